const SVG = "http://www.w3.org/2000/svg";
const draw = (name, attributes, parent, text) => {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
};
const element = (name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const short = (value) => (value === null || value === undefined ? "no score" : value.toFixed(3).replace("-", "−"));

// Candidates of a level, the best first; those without a score last, equal ones by number. Within one level only.
const ranked = (level) =>
  level.index
    .map((candidate, position) => ({ candidate, score: level.scores[position] }))
    .sort((a, b) => (a.score === null) - (b.score === null) || (b.score ?? 0) - (a.score ?? 0) || a.candidate - b.candidate);
// 1 is the best; equal scores share a rank.
const rankOf = (level, candidate) => {
  const score = level.scores[level.index.indexOf(candidate)];
  return 1 + level.scores.filter((other) => other !== null && other > score).length;
};
const levelName = (level, number) => (level.sigma === null ? "finished" : "stage " + (number + 1) + ", σ " + level.sigma);

// What one level says of a candidate, in words.
const saying = (level, number, candidate) => {
  const position = level.index.indexOf(candidate);
  if (position < 0) return "";
  const score = level.scores[position];
  if (score === null) return levelName(level, number) + ": " + (level.errors[candidate] ? "no score, " + level.errors[candidate] : "not scored");
  return levelName(level, number) + ": rank " + rankOf(level, candidate) + " of " + level.index.length + " (score " + short(score) + ")";
};
const story = (detail, candidate) => {
  const parts = detail.levels.map((level, number) => saying(level, number, candidate)).filter(Boolean);
  const last = detail.levels.map((level) => level.index.includes(candidate)).lastIndexOf(true);
  const level = detail.levels[last];
  const fate = level.sigma === null ? (candidate === detail.winner ? "the winner" : "finished") : "fell at stage " + (last + 1);
  return { fate, text: "No. " + candidate + ", " + fate + ", seed " + detail.seeds[candidate] + ". " + parts.join("; ") + "." };
};

// Where every tile of a column lies: those that went on in rows, the best first, the others in a block below them.
const SMALL = 34, GAP = 6, LABEL = 66, TOP = 52;
const gridOnly = (detail) => {
  // Nobody fell: all side by side, names below.
  const level = detail.levels[0], size = level.index.length > 16 ? 56 : 92, across = level.index.length > 16 ? 11 : 7, tiles = new Map();
  ranked(level).forEach(({ candidate }, i) => {
    const y = TOP + Math.floor(i / across) * (size * detail.aspect + 40);
    tiles.set(candidate, { candidate, x: 4 + (i % across) * (size + 14), y, size, height: size * detail.aspect, below: true });
  });
  const rows = Math.ceil(tiles.size / across);
  return { level, number: 0, tiles, left: 4, width: Math.min(across, tiles.size) * (size + 14) - 14, bottom: TOP + rows * (size * detail.aspect + 40), belowAt: null, others: 0, last: true };
};
const placed = (detail, number, left) => {
  if (detail.levels.length === 1) return gridOnly(detail);
  const level = detail.levels[number], last = number === detail.levels.length - 1, order = ranked(level).map((one) => one.candidate);
  const inRows = last ? order.slice(0, order.length > 12 ? 1 : order.length) : level.kept;
  const others = order.filter((candidate) => !inRows.includes(candidate));
  const big = inRows.length > 14 ? 30 : inRows.length > 8 ? 44 : 60, gap = big < 40 ? 4 : GAP, across = 4, tiles = new Map();
  let bottom = TOP;
  const add = (candidate, x, y, size, row) => {
    tiles.set(candidate, { candidate, x, y, size, height: size * detail.aspect, row });
    bottom = Math.max(bottom, y + size * detail.aspect);
  };
  inRows.forEach((candidate, i) => add(candidate, left, TOP + i * (big * detail.aspect + gap), big, true));
  const start = bottom + (inRows.length ? 30 : 0);
  others.forEach((candidate, i) => add(candidate, left + (i % across) * (SMALL + GAP), start + Math.floor(i / across) * (SMALL * detail.aspect + GAP), SMALL, false));
  const wide = others.length ? Math.min(across, others.length) * (SMALL + GAP) - GAP : 0;
  return { level, number, tiles, left, width: Math.max(big + LABEL, wide, 124), bottom, belowAt: others.length ? start - 8 : null, others: others.length, last };
};

const drawTile = (svg, detail, column, place) => {
  const { level } = column, candidate = place.candidate, { fate, text } = story(detail, candidate);
  const fell = !column.last && !level.kept.includes(candidate), win = candidate === detail.winner;
  const group = draw("g", { class: "tile" + (fell ? " fell" : "") + (win ? " win" : ""), role: "img", tabindex: -1, "aria-label": text, "data-candidate": candidate, "data-level": column.number, "data-fate": fate }, svg);
  const position = level.index.indexOf(candidate);
  if (level.sheet) {
    const rows = Math.ceil(level.index.length / level.columns), x = position % level.columns, y = Math.floor(position / level.columns);
    const crop = draw("svg", { x: place.x, y: place.y, width: place.size, height: place.height, viewBox: x + " " + y + " 1 1", preserveAspectRatio: "none" }, group);
    draw("image", { href: level.sheet, width: level.columns, height: rows, preserveAspectRatio: "none" }, crop);
  } else {
    draw("rect", { class: "blank", x: place.x, y: place.y, width: place.size, height: place.height, rx: 3 }, group);
  }
  draw("rect", { class: "edge", x: place.x, y: place.y, width: place.size, height: place.height, rx: 2 }, group);
  const score = level.scores[position];
  if (place.below) {
    const x = place.x + place.size / 2, y = place.y + place.height;
    draw("text", { class: "name", x, y: y + 14, "text-anchor": "middle" }, group, "no. " + candidate);
    draw("text", { class: "soft", x, y: y + 28, "text-anchor": "middle" }, group, short(score));
  } else if (place.row) {
    const x = place.x + place.size + 8, middle = place.y + place.height / 2;
    draw("text", { class: "name", x, y: middle - 2 }, group, "no. " + candidate);
    draw("text", { class: "soft", x, y: middle + 13 }, group, score === null ? "" : column.last ? short(score) : "rank " + rankOf(level, candidate));
  }
  return group;
};

const drawLinks = (svg, detail, columns) => {
  for (let i = 0; i + 1 < columns.length; i += 1) {
    for (const [candidate, from] of columns[i].tiles) {
      const to = columns[i + 1].tiles.get(candidate);
      if (!to || !from.row) continue;
      const x0 = from.x + from.size + (columns[i].width - from.size > LABEL ? LABEL : from.size), y0 = from.y + from.height / 2;
      const x1 = to.x - 2, y1 = to.y + to.height / 2, bend = (x1 - x0) / 2;
      const kind = candidate === detail.winner ? " win" : to.row ? "" : " fell";
      draw("path", { class: "link" + kind, "data-candidate": candidate, d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}` }, svg);
    }
  }
};

// One tab stop; arrow keys walk over the tiles, and whoever is pointed at or walked to is followed through the levels.
const walkable = (svg, columns, say, resting) => {
  const tiles = [...svg.querySelectorAll(".tile")];
  const follow = (tile) => {
    svg.classList.toggle("following", Boolean(tile));
    for (const part of svg.querySelectorAll("[data-candidate]")) part.classList.toggle("on", Boolean(tile) && part.dataset.candidate === tile.dataset.candidate);
    say.textContent = tile ? tile.getAttribute("aria-label") : resting;
  };
  const at = (level, candidate) => tiles.find((tile) => tile.dataset.level === String(level) && tile.dataset.candidate === String(candidate));
  const step = (tile, key) => {
    const level = Number(tile.dataset.level), inColumn = [...columns[level].tiles.keys()], row = inColumn.indexOf(Number(tile.dataset.candidate));
    if (key === "ArrowDown" || key === "ArrowUp") return at(level, inColumn[row + (key === "ArrowDown" ? 1 : -1)]);
    const next = level + (key === "ArrowRight" ? 1 : -1);
    return columns[next] && (at(next, tile.dataset.candidate) ?? at(next, [...columns[next].tiles.keys()][0]));
  };
  for (const tile of tiles) {
    tile.addEventListener("pointerenter", () => follow(tile));
    tile.addEventListener("click", () => tile.focus());
    tile.addEventListener("focus", () => follow(tile));
    tile.addEventListener("keydown", (event) => {
      if (!event.key.startsWith("Arrow")) return;
      event.preventDefault();
      event.stopPropagation();
      const next = step(tile, event.key);
      if (!next) return;
      tile.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  }
  svg.addEventListener("pointerleave", () => follow(svg.contains(document.activeElement) ? document.activeElement : null));
  svg.addEventListener("focusout", () => follow(null));
  const first = svg.querySelector(".tile.win[data-level='0']") ?? tiles[0];
  if (first) first.setAttribute("tabindex", 0);
};

const drawTree = (detail, room) => {
  const section = element("section", "card search-tree");
  section.append(element("h3", "", detail.levels.length > 1 ? "Who went on, and who fell" : "Candidates"));
  const resting = "Point at a candidate to follow it, or press Tab and then the arrow keys.";
  const scroll = element("div", "scroll"), say = element("p", "say", resting);
  say.setAttribute("aria-live", "polite");
  const measured = detail.levels.map((_, number) => placed(detail, number, 4).width).reduce((sum, one) => sum + one, 0);
  const between = Math.min(170, Math.max(64, (room - 50 - measured) / Math.max(1, detail.levels.length - 1))), columns = [];
  let left = 4;
  detail.levels.forEach((level, number) => {
    columns.push(placed(detail, number, left));
    left += columns[number].width + between;
  });
  const width = left - between + 6, height = Math.max(...columns.map((column) => column.bottom)) + 8;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Candidates by level" });
  if (detail.crisp) svg.classList.add("pixels");
  drawLinks(svg, detail, columns);
  for (const column of columns) {
    const { level } = column, alive = level.index.length;
    draw("text", { class: "head", x: column.left, y: 16 }, svg, column.last ? "Finished" : "Stage " + (column.number + 1) + ", σ " + level.sigma);
    draw("text", { class: "soft", x: column.left, y: 33 }, svg, column.last ? alive + " finished" : level.kept.length + " of " + alive + " go on");
    if (column.belowAt !== null && column.tiles.size > column.others) draw("text", { class: "soft", x: column.left, y: column.belowAt }, svg, column.others + (column.last ? " more" : " fall"));
    for (const place of column.tiles.values()) drawTile(svg, detail, column, place);
  }
  scroll.append(svg);
  section.append(scroll, say);
  walkable(svg, columns, say, resting);
  return section;
};
