// Panels: pictures with a size of their own, which stand alone or beside each other in one figure.

const PANEL = { label: 150, bar: 210, value: 92, row: 15, gap: 10, head: 26 };
const MOST_BARS = 90; // bars of a chart of layers; more could not be told apart
const MOST_SCORES = 24; // groups in the chart of scores

const text = (x, y, className, content) => ["text", { x, y, class: className }, content];

/** Returns a panel with a title above its rows. */
function panel(title, width, height, ...parts) {
  return { title, width, height: height + PANEL.head, tree: ["g", {}, text(0, 14, "panel-title", title), ["g", { transform: `translate(0,${PANEL.head})` }, ...parts]] };
}

/** Every result as bars, one for each network; results that are texts alone have none. */
function resultsPanel(data) {
  const stages = stagesOf(data).filter(([stage]) => stage === "full" || data.networks.some((row) => row[stage] !== null && row[stage] !== undefined));
  const parts = [];
  let y = 0;
  for (const row of data.networks) {
    const largest = Math.max(...stages.map(([stage]) => amount(row[stage]) ?? 0));
    parts.push(text(0, y + 11, "panel-label", clip(row.label, 24)));
    for (const [stage, name] of stages) {
      if (row[stage] === null || row[stage] === undefined) continue;
      const share = largest > 0 ? (amount(row[stage]) ?? 0) / largest : 0;
      const shown = typeof row[stage] === "number" && row[stage] >= 1e4 ? compact(row[stage]) : figure(row[stage]);
      parts.push(["rect", { class: `bar-${stage}`, x: PANEL.label, y: y + 2, width: round(PANEL.bar * share), height: PANEL.row - 4, rx: 2 }, ["title", {}, `${row.label}, ${name}: ${figure(row[stage])}`]]);
      parts.push(text(PANEL.label + PANEL.bar * share + 6, y + 11, "panel-value", shown));
      y += PANEL.row;
    }
    y += PANEL.gap;
  }
  let x = PANEL.label;
  for (const [stage, name] of stages) {
    parts.push(["rect", { class: `bar-${stage}`, x, y: y + 2, width: 10, height: 10, rx: 2 }], text(x + 14, y + 11, "panel-value", name));
    x += 6 * name.length + 30;
  }
  return panel("Results", Math.max(PANEL.label + PANEL.bar + PANEL.value, x), y + PANEL.row, ...parts);
}

/** The layers with parameters in the order of the network, or their modules where there are too many to tell apart. */
function layersOf(data) {
  let layers = data.segments.filter((segment) => segment.params > 0).map((segment) => ({ ...segment, module: segment.module.split("/") }));
  for (let depth = Math.max(...layers.map((layer) => layer.module.length)); layers.length > MOST_BARS && depth > 0; depth -= 1) {
    const joined = new Map();
    for (const layer of layers) {
      const module = layer.module.slice(0, depth);
      const own = joined.get(module.join("/")) ?? { name: module.join("/"), module, params: 0, macs: 0, subParams: 0, subMacs: 0 };
      for (const key of ["params", "macs", "subParams", "subMacs"]) own[key] += layer[key] ?? 0;
      joined.set(own.name, own);
    }
    layers = [...joined.values()];
  }
  return layers;
}

/** Bars of a size of every layer, in the full network and, filled, in the sub-network. */
function layersPanel(data, key, title) {
  const layers = layersOf(data);
  const left = `sub${key[0].toUpperCase()}${key.slice(1)}`;
  const [height, width] = [120, 460];
  const largest = Math.max(1, ...layers.map((layer) => layer[key]));
  const pitch = (width - 40) / Math.max(layers.length, 8);
  const parts = [0, 0.5, 1].flatMap((share) => [
    ["path", { class: "grid", d: `M40,${height * (1 - share)}H${width}` }],
    text(34, height * (1 - share) + 4, "tick end", compact(Math.round(largest * share))),
  ]);
  layers.forEach((layer, i) => {
    const bar = (size, className) => ["rect", { class: className, x: round(40 + pitch * i), y: round(height * (1 - size / largest)), width: round(Math.max(1, pitch * 0.8)), height: round((height * size) / largest) }];
    const said = data.hasRemoval ? `${exact.format(layer[key])} → ${exact.format(layer[left])}` : exact.format(layer[key]);
    parts.push(["g", { class: "layer", "data-size": layer[key], "data-left": layer[left] ?? "" }, ["title", {}, `${layer.name}: ${said}`], bar(layer[key], data.hasRemoval ? "bar-before" : "bar-full"), ...(data.hasRemoval ? [bar(layer[left], "bar-sub")] : [])]);
  });
  parts.push(text(40, height + 16, "tick", "input side"), text(width, height + 16, "tick end", "output side"));
  return panel(title, width, height + 22, ...parts);
}

/** The groups by falling score, those that go and the one that came next marked. */
function scoresPanel(data) {
  const known = data.groups.map((group, index) => ({ ...group, index })).filter((group) => typeof group.score === "number");
  const sorted = known.sort((a, b) => b.score - a.score);
  const next = data.selection?.runnerUpGroup ?? null;
  const shown = sorted.length <= MOST_SCORES ? sorted : sorted.slice(0, MOST_SCORES);
  const [low, high] = [Math.min(0, ...shown.map((group) => group.score)), Math.max(0, ...shown.map((group) => group.score))];
  const x = (score) => PANEL.label + (high > low ? ((score - low) / (high - low)) * PANEL.bar : 0);
  const parts = shown.flatMap((group, i) => {
    const [from, to] = [x(0), x(group.score)];
    const className = group.redundant ? "bar-gone" : group.index === next ? "bar-next" : "bar-full";
    const y = i * PANEL.row;
    const note = group.index === next ? " · came next" : "";
    return [
      text(0, y + 11, group.redundant ? "panel-label gone" : "panel-label", clip(group.name, 24)),
      ["rect", { class: className, x: round(Math.min(from, to)), y: y + 2, width: round(Math.max(1, Math.abs(to - from))), height: PANEL.row - 4, rx: 2 }, ["title", {}, `${group.name}: ${figure(group.score)}`]],
      text(PANEL.label + PANEL.bar + 6, y + 11, "panel-value", `${figure(group.score)}${note}`),
    ];
  });
  const rest = sorted.length - shown.length;
  if (rest) parts.push(text(0, shown.length * PANEL.row + 11, "panel-value", `and ${plural(rest, "group")} with lower scores`));
  return panel("Redundancy scores", PANEL.label + PANEL.bar + PANEL.value + 40, (shown.length + (rest ? 1 : 0)) * PANEL.row, ...parts);
}

/** Channels of every dimension, before and after. */
function widthsPanel(data) {
  const largest = Math.max(...data.dimensions.map((each) => each.size));
  const parts = data.dimensions.flatMap((each, i) => {
    const bar = (size, className) => ["rect", { class: className, x: PANEL.label, y: i * PANEL.row + 2, width: round((PANEL.bar * size) / largest), height: PANEL.row - 4, rx: 2 }];
    const said = data.hasRemoval ? `${each.size} → ${each.left}` : String(each.size);
    return [
      text(0, i * PANEL.row + 11, "panel-label", clip(each.name, 24)),
      bar(each.size, data.hasRemoval ? "bar-before" : "bar-full"),
      ...(data.hasRemoval ? [bar(each.left, "bar-sub")] : []),
      text(PANEL.label + PANEL.bar + 6, i * PANEL.row + 11, "panel-value", said),
    ];
  });
  return panel("Channels of each dimension", PANEL.label + PANEL.bar + PANEL.value, data.dimensions.length * PANEL.row, ...parts);
}

/** Puts panels into one figure: beside each other, or below each other on a narrow screen. */
function panelFigure(caption, panels) {
  const [gap, margin] = [34, 4];
  const isNarrow = matchMedia("(max-width: 820px)").matches;
  let [x, y] = [margin, margin];
  const placed = panels.map((each) => {
    const put = ["g", { transform: `translate(${x},${y})` }, each.tree];
    if (isNarrow) y += each.height + gap;
    else x += each.width + gap;
    return put;
  });
  const [widest, highest] = ["width", "height"].map((side) => Math.max(...panels.map((each) => each[side])) + 2 * margin);
  const [width, height] = isNarrow ? [widest, y - gap + margin] : [x - gap + margin, highest];
  const svg = svgElement(["svg", { class: "panels", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": caption }, ...placed]);
  return element("figure", { class: "picture" }, svg, element("figcaption", {}, caption, downloads(caption, () => svg)));
}
