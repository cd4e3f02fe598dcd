// The curves of a run, as SVG with axes, shaded phases and a readout under the pointer.

const PHASES = ["warm-up", "projection", "target met"];
const CHART = { width: 520, height: 262, left: 58, right: 12, top: 36, bottom: 40 };
const LETTER = 9; // at least the width of a character in a chart, in its own px, on a narrow screen too
const NAME_ROW = 16; // and the height of a line

// Title and axis of the norms of groups, by the column of the history that they are in.
const NORMS = {
  group_norms: ["group norms", "norm of each group's parameters"],
  shrinking_norms: ["shrinking norms", "norm of each group on its way to zero, 0 of the others"],
};
const MOST_LINES = 20; // groups whose curves can be told apart; more are a heat map
const MOST_RUNS = 6; // as many colours as there are

function trainingCharts(data) {
  const { history } = data;
  const charts = new Map();
  const add = (chart, line) => charts.set(chart, [...(charts.get(chart) ?? []), { ...line, className: `line-${(charts.get(chart)?.length ?? 0) % MOST_RUNS}` }]);
  for (const [name, curve] of Object.entries(history.series)) {
    const slash = name.lastIndexOf("/");
    const [series, chart] = slash < 0 ? ["", name] : [name.slice(0, slash), name.slice(slash + 1)];
    const others = slash < 0 ? data.runs.filter((run, i) => i !== data.index && run.history?.series[name]).slice(0, MOST_RUNS - 1) : [];
    add(chart, { name: series || (others.length ? data.name : chart), ...curve });
    for (const run of others) add(chart, { name: run.name, ...run.history.series[name] });
  }
  const { phases, marks } = history;
  const made = [...charts].map(([title, series]) => lineChart(title.replaceAll("_", " "), series, phases, { marks }));
  if (history.norms) made.push(groupsChart(...NORMS[history.norms.column], history.norms, phases, marks));
  if (history.scores) made.push(groupsChart("redundancy scores", "score of each group: what has the highest goes first", history.scores, phases, marks));
  return made;
}

/** A chart of a number for each group: as lines, or of many groups as a heat map. */
function groupsChart(title, measure, { names, redundant, steps, values }, phases, marks) {
  const series = values.map((own, i) => ({ name: names[i], steps, values: own, className: redundant[i] ? "line-gone" : "line-kept" }));
  // Those that go are drawn last, on top; of a heat map they are the first rows.
  series.sort((a, b) => (a.className === "line-gone") - (b.className === "line-gone"));
  return series.length > MOST_LINES ? heatMap(title, series.toReversed(), { marks, measure }) : lineChart(title, series, phases, { marks, measure });
}

/**
 * Makes a chart.
 *
 * @param title what the curves show.
 * @param series `[{name, steps, values, className}]`; a value that is null is left out.
 * @param phases `[{phase, start, stop}]`, in steps.
 * @param options `measure`, name of the upright axis; `across`, that of the other; `marks`, `[{step, text}]`, moments;
 *   `points`, `[{name, step, value, className}]`, single ones.
 */
function lineChart(title, series, phases, { measure = title, across = "step (optimizer updates)", marks: moments = [], points = [] } = {}) {
  const { width, height, left, right, top, bottom } = CHART;
  const values = [...series.flatMap((line) => line.values).filter((value) => value !== null), ...points.map((point) => point.value)];
  const yTicks = niceTicks(...extent(values), 5);
  const [first, last] = extent([...series.flatMap((line) => line.steps), ...points.map((point) => point.step)]);
  // Sizes that are all alike stand in the middle.
  const isOneSize = first === last && points.length > 0;
  const [xMin, xMax] = isOneSize ? [0.9 * first, 1.1 * first] : [first, Math.max(last, first + 1)];
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
  const marks = xTicks.map((tick) => ["text", { class: "tick middle", x: x(tick), y: height - bottom + 18 }, tick >= 1e4 ? compact(tick) : figure(tick)]);
  const uprights = moments.filter(({ step }) => step >= xMin && step <= xMax).flatMap(({ step, text }) => [
    ["path", { class: "moment", d: `M${x(step)},${top}V${height - bottom}` }, ["title", {}, `${text}, step ${figure(step)}`]],
  ]);
  const dots = points.map((point) => (
    ["circle", { class: `dot ${point.className}`, cx: x(point.step), cy: y(point.value), r: 5, "data-step": point.step, "data-value": point.value }, ["title", {}, `${point.name}: ${figure(point.value)}`]]
  ));
  const names = pointNames(points.map((point) => ({ name: point.name, cx: x(point.step), cy: y(point.value) })), (left + width - right) / 2);
  const lines = series.map((line) => ["path", { class: `line ${line.className}`, d: linePath(line, x, y) }]);
  const svg = svgElement([
    "svg", { class: "curves", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} over ${across}` },
    ...shades, ...grid, ...marks, ...uprights, ...lines, ...dots, ...names,
    ["text", { class: "axis-name", x: 4, y: 13 }, measure],
    ["text", { class: "axis-name end", x: width - right, y: height - 6 }, across],
    ["path", { class: "cursor", d: "" }],
    ["circle", { class: "cursor", r: 0 }],
  ]);
  const readout = element("output", { class: "readout" }, summary(series));
  listen(svg, readout, { series, x, y, across: across.split(" ")[0] });
  return element("figure", { class: "chart" }, element("figcaption", {}, title, readout, downloads(title, () => svg)), svg, legendOf(series), phasesOf(phases, moments));
}

/** Returns the names of points, each on that side of its point where there is room; those that would overlap are below each other. */
function pointNames(points, middle) {
  const placed = [];
  for (const { name, cx, cy } of points.toSorted((a, b) => a.cy - b.cy)) {
    const isLeft = cx > middle;
    const wide = LETTER * name.length;
    const start = isLeft ? cx - 9 - wide : cx + 9;
    let at = cy - 6;
    const isTaken = (other) => start < other.start + other.wide && other.start < start + wide && Math.abs(at - other.at) < NAME_ROW;
    for (let other; (other = placed.find(isTaken)); ) at = other.at + NAME_ROW;
    placed.push({ start, wide, at, text: ["text", { class: isLeft ? "tick end" : "tick", x: cx + (isLeft ? -9 : 9), y: at }, name] });
  }
  return placed.map(({ text }) => text);
}

function phaseName(phase) {
  return PHASES[phase] ?? `phase ${phase}`;
}

/** Names the shades below the chart too: in it, short phases have no room for their names. */
function phasesOf(phases, moments) {
  const entries = phases.map(({ phase, start, stop }) =>
    element("li", {}, element("i", { class: `shade shade-${phase}` }), `${phaseName(phase)}: steps ${figure(start)} to ${figure(stop)}`),
  );
  const uprights = moments.map(({ step, text }) => element("li", {}, element("i", { class: "shade moment-shade" }), `${text}: step ${figure(step)}`));
  return element("ul", { class: "legend phases", "aria-label": "Phases" }, ...entries, ...uprights);
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
  return series.length > 4 ? "" : series.map((line) => (series.length > 1 ? `${line.name} ` : "") + figure(last(line.values))).join(", ");
}

function legendOf(series) {
  const classes = new Set(series.map((line) => line.className));
  const entries = classes.has("line-gone") || classes.has("line-kept")
    ? [["line-kept", "kept"], ["line-gone", "removed"]].filter(([name]) => classes.has(name))
    : series.length > 1 ? series.map((line) => [line.className, line.name]) : [];
  return element("ul", { class: "legend" }, ...entries.map(([className, name]) => element("li", {}, element("i", { class: className }), name)));
}

/** Shows the values nearest to the pointer; of many curves, the nearest one. */
function listen(svg, readout, { series, x, y, across }) {
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
    readout.textContent = `${across} ${figure(nearest.step)}: ${texts.join(", ")}`;
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
