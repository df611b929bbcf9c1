"use strict";
// Draws every figure of the page's data as SVG: axes, intervals, lines or points, a tooltip on the
// nearest point, and a legend whose entries show and hide their series.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 640, HEIGHT = 360, LEFT = 64, RIGHT = 12, TOP = 12, BOTTOM = 46;

function element(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

function shorten(value) {
  const size = Math.abs(value);
  const unit = [[1e15, ""], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]].find(([u]) => size >= u);
  if (unit && unit[1]) return shorten(value / (unit[1] === "k" ? 1e3 : unit[0])) + unit[1];
  if (unit || (size > 0 && size < 1e-3)) return value.toExponential(1).replace("e+", "e");
  return Number(value.toPrecision(3)).toString();
}

function scale(values, log, from, to) {
  const finite = values.filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  const bend = log ? Math.log10 : (v) => v;
  let low = Math.min(...finite.map(bend)), high = Math.max(...finite.map(bend));
  if (!(high > low)) { low -= 0.5; high += 0.5; }
  const margin = 0.04 * (high - low);
  low -= margin; high += margin;
  const place = (v) => from + ((bend(v) - low) / (high - low)) * (to - from);
  const sparse = log ? logTicks(low, high) : [];
  const even = () => linearTicks(log ? 10 ** low : low, log ? 10 ** high : high);
  return { place, ticks: sparse.length > 2 ? sparse : even() };
}

function linearTicks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++)
    for (const m of high - low > 2 ? [1] : [1, 2, 5]) {
      const tick = m * 10 ** power;
      if (Math.log10(tick) >= low && Math.log10(tick) <= high) ticks.push(tick);
    }
  return ticks;
}

function draw(holder, figure) {
  const hidden = new Set();
  const legend = holder.querySelector(".legend"), plot = holder.querySelector(".plot");
  const tip = holder.querySelector(".tip");
  figure.series.forEach((series, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = `series-${index % 10}`;
    button.textContent = series.name;
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (hidden.has(index)) hidden.delete(index); else hidden.add(index);
      button.setAttribute("aria-pressed", String(!hidden.has(index)));
      paint();
    });
    legend.appendChild(button);
  });

  function paint() {
    plot.replaceChildren();
    const svg = element(plot, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      "aria-label": figure.title });
    const shown = figure.series.map((s, index) => ({ ...s, index }))
      .filter((s) => !hidden.has(s.index) && s.points.length);
    if (!shown.length) return;
    const points = shown.flatMap((s) => s.points);
    const x = scale(points.map((p) => p[0]), figure.x_log, LEFT, WIDTH - RIGHT);
    const ys = points.flatMap((p) => p.slice(1));
    const y = scale(ys, figure.y_log, HEIGHT - BOTTOM, TOP);
    axes(svg, x, y, figure);
    const targets = [];
    for (const series of shown) {
      const group = element(svg, "g", { class: `series-${series.index % 10}` });
      const at = (p, k) => `${x.place(p[0]).toFixed(1)},${y.place(p[k]).toFixed(1)}`;
      const banded = series.points.filter((p) => p[2] !== null && p[3] !== null);
      if (figure.lines && banded.length > 1) {
        const band = [...banded.map((p) => at(p, 2)), ...banded.map((p) => at(p, 3)).reverse()];
        element(group, "polygon", { points: band.join(" "), class: "band" });
      }
      if (figure.lines || series.joined)
        element(group, "polyline", { points: series.points.map((p) => at(p, 1)).join(" "),
          class: "line" });
      for (const p of series.points) {
        const [cx, cy] = [x.place(p[0]), y.place(p[1])];
        if (!figure.lines && !series.joined && p[2] !== null)
          element(group, "line", { x1: cx, x2: cx, y1: y.place(p[2]), y2: y.place(p[3]),
            class: "line" });
        if (!series.joined && (!figure.lines || series.points.length <= 12))
          element(group, "circle", { cx, cy, r: figure.lines ? 3 : 5, class: "dot" });
        targets.push({ cx, cy, p, series });
      }
    }
    svg.addEventListener("pointermove", (event) => point(svg, event, targets));
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  function point(svg, event, targets) {
    const box = svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * WIDTH;
    const py = ((event.clientY - box.top) / box.height) * HEIGHT;
    let best = null, least = Infinity;
    for (const target of targets) {
      const far = (target.cx - px) ** 2 + (target.cy - py) ** 2;
      if (far < least) { least = far; best = target; }
    }
    if (!best) return;
    const [a, b, low, high] = best.p;
    const range = low === null ? "" : ` [${shorten(low)}, ${shorten(high)}]`;
    tip.textContent = `${best.series.name}: ${figure.y_label} ${shorten(b)}${range} at ` +
      `${figure.x_label} ${shorten(a)}`;
    tip.style.left = `${Math.min((best.cx / WIDTH) * 100, 60)}%`;
    tip.style.top = `${(best.cy / HEIGHT) * 100}%`;
    tip.hidden = false;
  }
  paint();
}

function axes(svg, x, y, figure) {
  const bottom = HEIGHT - BOTTOM;
  const grid = element(svg, "g", { class: "axis" });
  for (const tick of y.ticks) {
    const at = y.place(tick);
    element(grid, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at });
    element(grid, "text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, shorten(tick));
  }
  for (const tick of x.ticks) {
    const at = x.place(tick);
    element(grid, "line", { x1: at, x2: at, y1: bottom, y2: bottom + 4 });
    element(grid, "text", { x: at, y: bottom + 17, "text-anchor": "middle" }, shorten(tick));
  }
  element(grid, "text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" },
    figure.x_label);
  element(grid, "text", { x: 14, y: (TOP + bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 14 ${(TOP + bottom) / 2})` }, figure.y_label);
}

const figures = JSON.parse(document.getElementById("figures").textContent);
document.querySelectorAll("figure[data-figure]").forEach((holder) => {
  draw(holder, figures[Number(holder.dataset.figure)]);
});
