const entries = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel"), find = document.getElementById("find");
const buttons = [...document.querySelectorAll(".entry")];

const facts = (rows) => {
  const list = element("dl");
  for (const [name, value] of rows) list.append(element("dt", "", name), element("dd", "", value));
  return list;
};
const table = (heads, rows, caption) => {
  const made = element("table", "plain"), head = made.createTHead().insertRow(), body = made.createTBody();
  made.setAttribute("aria-label", caption);
  heads.forEach((name, i) => { const cell = element("th", i ? "n" : "", name); cell.scope = "col"; head.append(cell); });
  for (const row of rows) {
    const line = body.insertRow();
    line.className = row.kind ?? "";
    row.cells.forEach((value, i) => {
      const cell = element(i ? "td" : "th", i ? "n" : "", value);
      if (!i) cell.scope = "row";
      line.append(cell);
    });
  }
  const scroll = element("div", "scroll");
  scroll.append(made);
  return scroll;
};

const winnerCard = (entry) => {
  const { detail } = entry, card = element("section", "card won-card"), about = element("div", "about"), picture = new Image();
  const finish = detail.levels.at(-1), at = finish.index.indexOf(detail.winner);
  picture.src = detail.folder + "/winner.png";
  picture.alt = "winner, score " + short(finish.scores[at]);
  if (detail.crisp) picture.className = "crisp";
  const components = Object.entries(finish.components).map(([name, values]) => [name, short(values[at])]);
  const of = finish.index.length === detail.seeds.length ? detail.seeds.length + " candidates" : finish.index.length + " finished of " + detail.seeds.length + " candidates";
  about.append(element("h2", "", entry.prompt), element("p", "big", short(finish.scores[at])));
  about.append(facts([["Winner", "no. " + detail.winner + ", the best of " + of + " by " + detail.ranked], ["Seed", detail.seeds[detail.winner]], ...components]));
  if (detail.cut) about.append(element("p", "notice", "A limit ended this search early: only the leader was finished."));
  for (const [text, href] of [["All candidates as one picture", detail.grid], ["scores.json", detail.folder + "/scores.json"]]) {
    if (!href) continue;
    const link = element("a", "", text);
    link.href = href;
    about.append(link);
  }
  card.append(picture, about);
  return card;
};

// Ranks within each level, as shares from best to worst: scores of two levels have no common scale.
const ranksChart = (detail) => {
  const card = element("section", "card ranks"), width = 400, height = 210, levels = detail.levels, paths = new Map();
  card.append(element("h3", "", "Rank at each level"), element("p", "faint", "Among those alive there, the best on top. Scores of different levels are not comparable."));
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height + 22}`, role: "img", "aria-label": "Rank of every candidate at each level; the winner stood at " + levels.map((level, i) => saying(level, i, detail.winner)).join(", ") });
  const across = (i) => 48 + (i * (width - 84)) / Math.max(1, levels.length - 1);
  levels.forEach((level, i) => {
    const x = across(i);
    draw("path", { class: "level", d: `M${x} 8V${height}` }, svg);
    draw("text", { x, y: height + 16, "text-anchor": "middle" }, svg, level.sigma === null ? "finished" : "σ " + level.sigma);
    const scored = ranked(level).filter((one) => one.score !== null);
    scored.forEach(({ candidate, score }) => {
      const equal = scored.filter((one) => one.score === score).length, rank = rankOf(level, candidate) - 1 + (equal - 1) / 2;
      const y = 14 + (rank * (height - 24)) / Math.max(1, scored.length - 1);
      paths.set(candidate, [...(paths.get(candidate) ?? []), [x, y]]);
    });
  });
  for (const [candidate, points] of [...paths].sort(([a], [b]) => (a === detail.winner) - (b === detail.winner))) {
    const on = candidate === detail.winner ? " on" : "";
    if (points.length > 1) draw("path", { class: "line" + on, d: "M" + points.map((point) => point.join(" ")).join("L") }, svg);
    for (const [cx, cy] of points) draw("title", {}, draw("circle", { class: on.trim(), cx, cy, r: on ? 5 : 2.5 }, svg), "no. " + candidate);
  }
  draw("text", { x: 2, y: 18 }, svg, "best");
  draw("text", { x: 2, y: height - 4 }, svg, "worst");
  card.append(svg);
  return card;
};

const finalsChart = (detail) => {
  const card = element("section", "card finals"), width = 400, height = 210, finish = detail.levels.at(-1);
  const scored = ranked(finish).filter((one) => one.score !== null), values = scored.map((one) => one.score);
  const low = Math.min(0, ...values), high = Math.max(0, ...values), span = high - low || 1;
  const y = (value) => 18 + ((high - value) / span) * (height - 18), zero = y(0), wide = Math.min(40, (width - 8) / values.length);
  card.append(element("h3", "", "Scores of the finished"), element("p", "faint", "All by the same reward, on finished pictures."));
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height + 22}`, role: "img", "aria-label": "Scores of the finished, from " + short(values[0]) + " to " + short(values.at(-1)) });
  scored.forEach(({ candidate, score }, i) => {
    const bar = draw("rect", { class: candidate === detail.winner ? "on" : "", x: 4 + i * wide, y: Math.min(y(score), zero), width: Math.max(1, wide - 2), height: Math.max(1, Math.abs(zero - y(score))), rx: 1.5 }, svg);
    draw("title", {}, bar, "no. " + candidate + ": " + short(score));
    if (wide > 34) {
      draw("text", { x: 3 + i * wide + wide / 2, y: Math.min(y(score), zero) - 4, "text-anchor": "middle" }, svg, short(score));
      draw("text", { x: 3 + i * wide + wide / 2, y: height + 14, "text-anchor": "middle" }, svg, candidate);
    }
  });
  if (wide <= 34) draw("text", { x: 4, y: 12 }, svg, "best " + short(values[0]) + ", worst " + short(values.at(-1)));
  draw("path", { class: "axis", d: `M0 ${zero}H${width}` }, svg);
  card.append(svg);
  return card;
};

const candidateTable = (detail) => {
  const made = element("details", "card"), finish = detail.levels.at(-1);
  made.append(element("summary", "", "All " + detail.seeds.length + " candidates as a table"));
  const heads = ["Candidate", "Seed", ...detail.levels.map((level, i) => (level.sigma === null ? "Final score" : "Rank at σ " + level.sigma)), "Fate"];
  const last = (candidate) => detail.levels.map((level) => level.index.includes(candidate)).lastIndexOf(true);
  const place = (candidate) => ranked(detail.levels[last(candidate)]).findIndex((one) => one.candidate === candidate);
  const order = detail.seeds.map((_, i) => i).sort((a, b) => last(b) - last(a) || place(a) - place(b));
  const cell = (level, candidate) => {
    const at = level.index.indexOf(candidate);
    if (at < 0) return "";
    if (level.scores[at] === null) return level.errors[candidate] ?? "–";
    return level === finish ? short(level.scores[at]) : String(rankOf(level, candidate));
  };
  const rows = order.map((candidate) => {
    const { fate } = story(detail, candidate);
    return { kind: candidate === detail.winner ? "win" : fate.startsWith("fell") ? "fell" : "", cells: ["no. " + candidate, detail.seeds[candidate], ...detail.levels.map((level) => cell(level, candidate)), fate] };
  });
  made.append(table(heads, rows, "All candidates"));
  return made;
};

const costCard = (detail) => {
  const card = element("section", "card");
  card.append(element("h3", "", "Cost of this prompt"), table(["What", "Planned", "Counted"], detail.costs.map((cells) => ({ cells })), "Cost of this prompt"));
  return card;
};

const show = (number) => {
  const entry = entries[number];
  if (!entry) return;
  buttons.forEach((button, i) => {
    button.setAttribute("aria-current", String(i === number));
    button.tabIndex = i === number ? 0 : -1;
  });
  panel.replaceChildren();
  if (!entry.detail) {
    panel.append(element("h2", "", entry.prompt), element("p", "notice bad", entry.error));
  } else {
    const both = element("div", "two-up");
    if (entry.detail.levels.length > 1) both.append(ranksChart(entry.detail));
    both.append(finalsChart(entry.detail), costCard(entry.detail));
    const section = element("section");
    section.append(both);
    panel.append(winnerCard(entry), drawTree(entry.detail, panel.clientWidth), section, candidateTable(entry.detail));
  }
  history.replaceState(null, "", "#p" + number);
};

const visible = () => buttons.filter((button) => !button.parentElement.hidden);
const goTo = (button) => {
  if (!button) return;
  show(Number(button.dataset.number));
  button.focus({ preventScroll: true });
  const list = document.getElementById("entries");
  const above = button.offsetTop - list.offsetTop;
  if (above < list.scrollTop || above + button.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = above - list.clientHeight / 2;
};
const neighbour = (key) => {
  const all = visible(), now = all.findIndex((button) => button.getAttribute("aria-current") === "true");
  const to = { ArrowDown: now + 1, ArrowRight: now + 1, ArrowUp: Math.max(0, now - 1), ArrowLeft: Math.max(0, now - 1), Home: 0, End: all.length - 1 };
  return key in to ? all[Math.min(to[key], all.length - 1)] : undefined;
};

for (const button of buttons) button.addEventListener("click", () => goTo(button));
document.getElementById("entries").addEventListener("keydown", (event) => {
  const next = neighbour(event.key);
  if (next) { event.preventDefault(); goTo(next); }
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, [data-candidate], summary, #entries, .scroll");
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "/" && event.target !== find) { event.preventDefault(); find.focus(); return; }
  if (typing || !(event.key === "ArrowLeft" || event.key === "ArrowRight")) return;
  event.preventDefault();
  goTo(neighbour(event.key));
});
find.addEventListener("input", () => {
  const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  entries.forEach((entry, i) => { buttons[i].parentElement.hidden = !wanted.every((word) => entry.prompt.toLowerCase().includes(word)); });
  document.getElementById("shown").textContent = visible().length + " of " + buttons.length;
});
find.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === "ArrowDown") { event.preventDefault(); goTo(visible()[0]); }
  if (event.key === "Escape") { find.value = ""; find.dispatchEvent(new Event("input")); }
});
show(Math.min(Number(/^#p(\d+)$/.exec(location.hash)?.[1] ?? 0), entries.length - 1));
