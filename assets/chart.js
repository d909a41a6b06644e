// Draws a live chart: props.value = {series: [{name, colour, points: [[step, value]], smoothed, dots}], last, unit}.
// Runs inside Gradio's HTML component, which supplies `element`, `props` and `watch`. Its title, hint and height stand in the frame.
const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 48, right: 16, top: 10, bottom: 26 };

const area = element.querySelector(".qs-chart-area");
const tip = element.querySelector(".qs-chart-tip");
const legend = element.querySelector(".qs-chart-legend");
const words = element.querySelector(".qs-chart").dataset;
const hidden = new Set();
let drawn = null;

function add(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// Round values between two ends, about `wanted` of them.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(+value.toPrecision(6));
  return found;
}

function drawLegend(series) {
  legend.replaceChildren(
    ...series.map((one) => {
      const button = document.createElement("button");
      const mark = document.createElement("i");
      mark.className = `c${one.colour % 8}`;
      button.type = "button";
      button.append(mark, document.createTextNode(one.name));
      button.setAttribute("aria-pressed", String(!hidden.has(one.name)));
      button.onclick = () => {
        if (!hidden.delete(one.name)) hidden.add(one.name);
        draw();
      };
      return button;
    }),
  );
}

function draw() {
  const all = props.value?.series || [];
  const width = area.clientWidth;
  const height = Number(words.height);
  drawn = null;
  if (!width) return;
  drawLegend(all);
  const series = all.filter((one) => !hidden.has(one.name));
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": describe(series) })) {
    svg.setAttribute(key, value);
  }
  area.replaceChildren(svg);
  const points = series.flatMap((one) => one.points);
  if (!points.length) {
    add(svg, "text", { x: width / 2, y: height / 2, class: "empty", "text-anchor": "middle" }, words.hint);
    return;
  }
  const steps = points.map((point) => point[0]);
  const values = points.map((point) => point[1]).sort((a, b) => a - b);
  const first = Math.min(...steps);
  const last = Math.max(...steps, props.value.last || first + 1);
  const top = values[Math.ceil((values.length - 1) * 0.995)]; // one wild point must not flatten the rest
  const room = (top - values[0] || 1) * 0.07;
  const x = (step) => MARGIN.left + ((step - first) / (last - first || 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => MARGIN.top + (1 - (value - values[0] + room) / (top - values[0] + 2 * room)) * (height - MARGIN.top - MARGIN.bottom);
  for (const value of ticks(values[0] - room, top + room, 5)) {
    add(svg, "line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value), class: "grid" });
    add(svg, "text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, value);
  }
  for (const step of ticks(first, last, Math.max(3, width / 110)).filter(Number.isInteger)) {
    add(svg, "text", { x: x(step), y: height - 6, "text-anchor": "middle" }, step);
  }
  const path = (line) => line.map(([step, value], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  for (const one of series) {
    const colour = `c${one.colour % 8}`;
    if (one.smoothed) add(svg, "path", { d: path(one.points), class: `raw ${colour}` });
    add(svg, "path", { d: path(one.smoothed || one.points), class: `line ${colour}` });
    const dotted = one.dots || one.points.length === 1 ? one.points : [];
    for (const [step, value] of dotted) add(svg, "circle", { cx: x(step), cy: y(value), r: 3.2, class: colour });
  }
  const cursor = add(svg, "line", { y1: MARGIN.top, y2: height - MARGIN.bottom, class: "cursor", visibility: "hidden" });
  drawn = { series, x, first, last, width, cursor };
}

// The chart in words, for those who do not see it.
function describe(series) {
  const parts = series.filter((one) => one.points.length).map((one) => `${one.name} ${one.points.at(-1)[1].toFixed(3)} at ${props.value.unit} ${one.points.at(-1)[0]}`);
  return `${words.title}: ${parts.join(", ") || "no points yet"}`;
}

area.addEventListener("pointermove", (event) => {
  if (!drawn) return;
  const across = event.clientX - area.getBoundingClientRect().left;
  const share = (across - MARGIN.left) / (drawn.width - MARGIN.left - MARGIN.right);
  const step = drawn.first + share * (drawn.last - drawn.first);
  const nearest = (points) => points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
  const hits = drawn.series.map((one) => [one.name, nearest(one.points)]);
  if (!hits.length) return;
  const at = drawn.x(hits[0][1][0]);
  for (const end of ["x1", "x2"]) drawn.cursor.setAttribute(end, at);
  drawn.cursor.setAttribute("visibility", "visible");
  tip.textContent = hits.map(([name, [where, value]]) => `${name}  ${value.toFixed(4)}  (${props.value.unit} ${where})`).join("\n");
  tip.hidden = false;
  tip.style.left = `${Math.max(0, Math.min(at + 12, drawn.width - tip.offsetWidth - 8))}px`;
});
area.addEventListener("pointerleave", () => {
  tip.hidden = true;
  drawn?.cursor.setAttribute("visibility", "hidden");
});
new ResizeObserver(draw).observe(area);
watch("value", draw);
draw();
