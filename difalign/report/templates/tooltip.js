"use strict";
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  const box = figure.querySelector(".box");
  const cursor = box.querySelector(".cursor");
  const tip = box.querySelector(".tip");

  const nearest = (points, across) => {
    let best = 0;
    points.forEach((point, index) => {
      if (Math.abs(point[0] - across) < Math.abs(points[best][0] - across)) best = index;
    });
    return best;
  };

  const show = (event) => {
    const frame = box.getBoundingClientRect();
    const across = (100 * (event.clientX - frame.left)) / frame.width;
    const index = nearest(chart.curves[0].points, across);
    const place = chart.curves[0].points[index][0];
    tip.replaceChildren();
    tip.append(chart.positions[index]);
    for (const curve of chart.curves) {
      const line = document.createElement("div");
      line.textContent = (chart.curves.length > 1 ? curve.name + "  " : "") + curve.labels[nearest(curve.points, place)];
      tip.append(line);
    }
    cursor.style.left = place + "%";
    cursor.hidden = tip.hidden = false;
    tip.style.left = place < 50 ? "calc(" + place + "% + 8px)" : "auto";
    tip.style.right = place < 50 ? "auto" : "calc(" + (100 - place) + "% + 8px)";
  };
  const hide = () => { cursor.hidden = tip.hidden = true; };

  box.addEventListener("pointermove", show);
  box.addEventListener("pointerdown", show);
  box.addEventListener("pointerleave", hide);
}
