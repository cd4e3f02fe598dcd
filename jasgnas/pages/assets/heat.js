// A number for each of many groups over the steps, as colours: one row a group.

const HEAT = { left: 8, top: 8, bottom: 40, row: 6, mostRows: 400 };

/** Makes a heat map: each row runs from its own lowest value, pale, to its highest. */
function heatMap(title, series, { marks = [], measure = title }) {
  const rows = series.slice(0, HEAT.mostRows);
  const steps = rows[0].steps;
  const { width } = CHART;
  const inner = { width: width - 2 * HEAT.left, height: Math.max(120, HEAT.row * rows.length) };
  const height = HEAT.top + inner.height + HEAT.bottom;
  const [first, last] = [steps[0], Math.max(steps.at(-1), steps[0] + 1)];
  const x = (step) => round(HEAT.left + ((step - first) / (last - first)) * inner.width);
  const place = { x: HEAT.left, y: HEAT.top, width: inner.width, height: inner.height };
  const picture = ["image", { ...place, href: heatPicture(rows), preserveAspectRatio: "none", class: "heat" }];
  const uprights = marks.map(({ step, text }) => ["path", { class: "moment", d: `M${x(step)},${HEAT.top}V${HEAT.top + inner.height}` }, ["title", {}, text]]);
  const ticks = niceTicks(first, last, 6, true).map((tick) => ["text", { class: "tick middle", x: x(tick), y: height - HEAT.bottom + 16 }, figure(tick)]);
  const frame = ["rect", { class: "cursor row", x: HEAT.left, width: inner.width, height: inner.height / rows.length, y: -100 }];
  const svg = svgElement(["svg", { class: "curves", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: a row for each of ${rows.length} groups, over steps` }, picture, ...uprights, ...ticks, frame, ["text", { class: "axis-name end", x: width - HEAT.left, y: height - 6 }, "step (optimizer updates)"]]);
  const rest = `${measure}; dark is the largest of its row`;
  const readout = element("output", { class: "readout" }, rest);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const [px, py] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    const row = Math.floor(((py - HEAT.top) / inner.height) * rows.length);
    if (!rows[row]) return;
    const step = steps.reduce((best, each) => (Math.abs(x(each) - px) < Math.abs(x(best) - px) ? each : best));
    svg.querySelector(".row").setAttribute("y", HEAT.top + (row * inner.height) / rows.length);
    readout.textContent = `${rows[row].name}, step ${figure(step)}: ${figure(rows[row].values[steps.indexOf(step)])}`;
  });
  svg.addEventListener("pointerleave", () => { readout.textContent = rest; });
  const left = series.length - rows.length;
  return element("figure", { class: "chart" }, element("figcaption", {}, title, readout, downloads(title, () => svg)), svg, element("p", { class: "muted" }, left ? `The first ${rows.length} of ${plural(series.length, "row")}; those that go come first.` : "Groups that go are the upper rows."));
}

function heatPicture(rows) {
  const canvas = element("canvas", { width: rows[0].values.length, height: rows.length });
  const context = canvas.getContext("2d");
  rows.forEach(({ values, className }, y) => {
    const [low, high] = extent(values.filter((value) => value !== null));
    values.forEach((value, x) => {
      if (value === null) return;
      const share = high > low ? (value - low) / (high - low) : 0;
      context.fillStyle = className === "line-gone" ? `rgb(211 54 76 / ${0.06 + 0.94 * share})` : `rgb(91 118 232 / ${0.06 + 0.94 * share})`;
      context.fillRect(x, y, 1, 1);
    });
  });
  return canvas.toDataURL();
}
