// The curves of a run, as SVG with axes, shaded phases and a readout under the pointer.

const PHASES = ["warm-up", "projection", "target met"];
const CHART = { width: 520, height: 262, left: 58, right: 12, top: 36, bottom: 40 };
const LETTER = 9; // at least the width of a character in a chart, in its own px, on a narrow screen too

function trainingCharts(data) {
  const { history } = data;
  const charts = new Map();
  for (const [name, { steps, values }] of Object.entries(history.series)) {
    const slash = name.lastIndexOf("/");
    const [series, chart] = slash < 0 ? ["", name] : [name.slice(0, slash), name.slice(slash + 1)];
    charts.set(chart, [...(charts.get(chart) ?? []), { name: series || chart, steps, values, className: `line-${charts.get(chart)?.length % 6 || 0}` }]);
  }
  const made = [...charts].map(([title, series]) => lineChart(title.replaceAll("_", " "), series, history.phases));
  if (history.norms) {
    const series = history.norms.values.map((values, i) => ({
      name: history.norms.names[i],
      steps: history.norms.steps,
      values,
      className: history.norms.redundant[i] ? "line-gone" : "line-stays",
    }));
    // Those that go are drawn last, on top.
    series.sort((a, b) => (a.className === "line-gone") - (b.className === "line-gone"));
    made.push(lineChart("group norms", series, history.phases, "norm of each group's parameters"));
  }
  return made;
}

/**
 * Makes a chart.
 *
 * @param title what the curves show.
 * @param series `[{name, steps, values, className}]`; a value that is null is left out.
 * @param phases `[{phase, start, stop}]`, in steps.
 * @param measure name of the upright axis.
 */
function lineChart(title, series, phases, measure = title) {
  const { width, height, left, right, top, bottom } = CHART;
  const values = series.flatMap((line) => line.values).filter((value) => value !== null);
  const yTicks = niceTicks(...extent(values), 5);
  const [xMin, last] = extent(series.flatMap((line) => line.steps));
  const xMax = Math.max(last, xMin + 1);
  const xTicks = niceTicks(xMin, xMax, 6, true);
  const [yMin, yMax] = [yTicks[0], yTicks.at(-1)];
  const x = (step) => round(left + ((step - xMin) / (xMax - xMin)) * (width - left - right));
  const y = (value) => round(height - bottom - ((value - yMin) / (yMax - yMin)) * (height - top - bottom));
  const shades = phases.flatMap(({ phase, start, stop }) => {
    const [from, to] = [x(start), x(stop)];
    const name = phaseName(phase);
    const label = to - from > LETTER * name.length ? [["text", { class: "phase-name", x: (from + to) / 2, y: top - 6 }, name]] : [];
    return [["rect", { class: `phase phase-${phase}`, x: from, y: top, width: Math.max(0, to - from), height: height - top - bottom }, ["title", {}, name]], ...label];
  });
  const grid = yTicks.flatMap((tick) => [
    ["path", { class: "grid", d: `M${left},${y(tick)}H${width - right}` }],
    ["text", { class: "tick end", x: left - 7, y: y(tick) + 4 }, figure(tick)],
  ]);
  const marks = xTicks.map((tick) => ["text", { class: "tick middle", x: x(tick), y: height - bottom + 18 }, figure(tick)]);
  const lines = series.map((line) => ["path", { class: `line ${line.className}`, d: linePath(line, x, y) }]);
  const svg = svgElement([
    "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} over steps` },
    ...shades, ...grid, ...marks, ...lines,
    ["text", { class: "axis-name", x: 4, y: 13 }, measure],
    ["text", { class: "axis-name end", x: width - right, y: height - 6 }, "step (optimizer updates)"],
    ["path", { class: "cursor", d: "" }],
    ["circle", { class: "cursor", r: 0 }],
  ]);
  const readout = element("output", { class: "readout" }, summary(series));
  listen(svg, readout, { series, x, y });
  return element("figure", { class: "chart" }, element("figcaption", {}, title, readout), svg, legendOf(series), phasesOf(phases));
}

function phaseName(phase) {
  return PHASES[phase] ?? `phase ${phase}`;
}

/** Names the shades below the chart too: in it, short phases have no room for their names. */
function phasesOf(phases) {
  const entries = phases.map(({ phase, start, stop }) =>
    element("li", {}, element("i", { class: `shade shade-${phase}` }), `${phaseName(phase)}: steps ${figure(start)} to ${figure(stop)}`),
  );
  return element("ul", { class: "legend phases", "aria-label": "Phases" }, ...entries);
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return low <= high ? [low, high] : [0, 1];
}

/** Returns round numbers that cover a range, or that lie inside it. */
function niceTicks(low, high, count, isInside = false) {
  if (low === high) [low, high] = [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = isInside ? Math.ceil(low / step) : Math.floor(low / step);
  const last = isInside ? Math.floor(high / step) : Math.ceil(high / step);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function linePath({ steps, values }, x, y) {
  const points = values.flatMap((value, i) => (value === null ? [] : [`${x(steps[i])},${y(value)}`]));
  return points.length ? `M${points.join("L")}` : "";
}

function summary(series) {
  const last = (values) => values.findLast((value) => value !== null);
  return series.length > 4 ? "" : series.map((line) => (series.length > 1 ? `${line.name} ` : "") + figure(last(line.values))).join("  ");
}

function legendOf(series) {
  const classes = new Set(series.map((line) => line.className));
  const entries = classes.has("line-gone") || classes.has("line-stays")
    ? [["line-stays", "stays"], ["line-gone", "redundant"]].filter(([name]) => classes.has(name))
    : series.length > 1 ? series.map((line) => [line.className, line.name]) : [];
  return element("ul", { class: "legend" }, ...entries.map(([className, name]) => element("li", {}, element("i", { class: className }), name)));
}

/** Shows the values nearest to the pointer; of many curves, the nearest one. */
function listen(svg, readout, { series, x, y }) {
  const [line, dot] = svg.querySelectorAll(".cursor");
  const paths = svg.querySelectorAll(".line");
  const rest = readout.textContent;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * CHART.width;
    const py = ((event.clientY - box.top) / box.height) * CHART.height;
    const points = series.map((one) => pointNear(one, px, x)).filter(Boolean);
    if (points.length === 0) return;
    const distance = (point) => Math.hypot(x(point.step) - px, y(point.value) - py);
    const nearest = points.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    const shown = series.length > 4 ? [nearest] : points;
    line.setAttribute("d", `M${x(nearest.step)},${CHART.top}V${CHART.height - CHART.bottom}`);
    dot.setAttribute("cx", x(nearest.step));
    dot.setAttribute("cy", y(nearest.value));
    dot.setAttribute("r", 3.5);
    paths.forEach((path, k) => path.classList.toggle("near", series.length > 1 && series[k].name === nearest.name));
    const texts = shown.map((point) => (series.length > 1 ? `${point.name} ` : "") + figure(point.value));
    readout.textContent = `step ${figure(nearest.step)}: ${texts.join("  ")}`;
  });
  svg.addEventListener("pointerleave", () => {
    line.setAttribute("d", "");
    dot.setAttribute("r", 0);
    paths.forEach((path) => path.classList.remove("near"));
    readout.textContent = rest;
  });
}

function pointNear({ name, steps, values }, px, x) {
  let best = null;
  steps.forEach((step, i) => {
    if (values[i] === null) return;
    if (best === null || Math.abs(x(step) - px) < Math.abs(x(best.step) - px)) best = { name, step, value: values[i] };
  });
  return best;
}
