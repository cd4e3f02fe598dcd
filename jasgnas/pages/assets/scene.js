// From a search space to a drawing: what is drawn, what Graphviz is asked, and the SVG that comes of its answer.
// Runs in the page and, for jasgnas.draw, in an embedded engine: pure functions of data, no DOM.
"use strict";

const INPUT = -1; // where a segment is expected, the network input
const LINE = 6.65; // width of a character of a title, in px: 11 px monospace
const SMALL = 6.05; // width of a character of a subtitle: 10 px monospace
const PITCH = 22; // distance of two operators of an unfolded segment
const JOINT = 26; // diameter of a joint
const TERMINAL = { width: 60, height: 24 }; // of the network's input and outputs
const GAP = { x: 20, y: 16 }; // distance of the boxes of a folded graph
const SHEET = { width: 1170, height: 1450 }; // of a drawing on a page of paper: A4 and letter at a scale that can be read
const SYMBOLS = { add: "+", sub: "−", mul: "×", div: "÷", concatenate: "∥", stack: "∥" };

/** Turns columns `{name: [values]}`, short in JSON, into rows `[{name: value}]`. */
function rows(columns) {
  const names = Object.keys(columns);
  return names.length === 0
    ? []
    : columns[names[0]].map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
}

/** Writes a count as people do: 950, 28.4k, 3.10M. */
function compact(number) {
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= unit) return (number / unit).toPrecision(3) + letter;
  }
  return String(number);
}

/** Shortens a text; of a path the end is kept. */
function clip(text, length) {
  if (text.length <= length) return text;
  if (!text.includes("/")) return text.slice(0, length - 1) + "…";
  const tail = text.slice(1 - length);
  const slash = tail.indexOf("/");
  return "…" + (slash >= 0 && slash < length / 2 ? tail.slice(slash) : tail);
}

/**
 * Decides what is drawn: boxes with sizes, and the edges between them.
 *
 * A run of additive joints, each read by the next alone, is one box with a port for every joint, so that a sum of
 * fifty branches is a row and no staircase.
 *
 * @param data the search space: segments, operators, outputs.
 * @param subnet whether only what is left after the removal is drawn, in its own sizes.
 * @param unfolded segments drawn with their operators.
 * @param folds modules drawn as one box, see `foldedBoxes`; the box stands for its first segment.
 * @return `{boxes: [{id, width, height, segments, isRow}], edges: [{from, to}], nodes: {segment: {width, …}}, shownAs}`,
 *   the last of which maps every segment that is drawn to that which its box stands for.
 */
function planDrawing(data, subnet, unfolded, folds = NO_FOLDS) {
  // What is dead but holds something yet, the biases that are left of a branch, is drawn as that.
  const isDrawn = (segment) => !subnet || data.segments[segment].fate === "kept" || sizesOf(data.segments[segment], subnet).params > 0;
  // In the sub-network, a joint with one input left is no more than a wire.
  const resolve = (segment) => {
    while (subnet && segment !== INPUT && data.segments[segment].fate === "passing") {
      segment = data.segments[segment].sources.find((s) => s === INPUT || isDrawn(s) || isPassing(s));
    }
    return segment;
  };
  const isPassing = (segment) => subnet && data.segments[segment].fate === "passing";
  const all = data.segments.map((_, i) => i).filter(isDrawn);
  const folded = foldedBoxes(data, all, folds);
  const shownAs = new Map([[INPUT, INPUT], ...all.map((i) => [i, i])]);
  for (const [first, { segments }] of folded) for (const i of segments) shownAs.set(i, first);
  const drawn = all.filter((i) => shownAs.get(i) === i);
  const edges = [];
  const isNew = newPairs();
  for (const i of all) {
    for (const source of data.segments[i].sources) {
      const found = source === INPUT || isDrawn(source) || isPassing(source) ? resolve(source) : null;
      if (found === null) continue;
      const [from, to] = [shownAs.get(found), shownAs.get(i)];
      // Of what enters or leaves a module, one edge between the same two boxes is enough.
      if (folded.has(from) || folded.has(to) ? from !== to && isNew(from, to) : true) edges.push({ from, to });
    }
  }
  // An invalid removal may have cut off outputs.
  const outputs = [...new Set(data.outputs.map(resolve).filter((i) => i === INPUT || isDrawn(i)).map((i) => shownAs.get(i)))];
  const readers = new Map(drawn.map((i) => [i, new Set()]));
  for (const { from, to } of edges) if (from !== INPUT) readers.get(from).add(to);
  for (const output of outputs) readers.get(output)?.add("output");

  const boxOf = new Map(drawn.map((i) => [i, i]));
  for (const i of drawn.toReversed()) {
    const [reader, ...others] = readers.get(i);
    const isJoint = (each) => data.segments[each]?.additive && !folded.has(each);
    if (isJoint(i) && others.length === 0 && isJoint(reader)) {
      boxOf.set(i, boxOf.get(reader));
    }
  }
  const members = new Map();
  for (const i of drawn) members.set(boxOf.get(i), [...(members.get(boxOf.get(i)) ?? []), i]);
  const open = new Set(unfolded);
  const node = (i) => (folded.has(i) ? moduleNode(data, folded.get(i), subnet) : nodeOf(data, data.segments[i], open.has(i), subnet));
  const nodes = Object.fromEntries(drawn.map((i) => [i, node(i)]));
  const boxes = [...members].map(([id, segments]) => ({
    id: `s${id}`,
    segments,
    isRow: segments.length > 1,
    width: segments.reduce((width, i) => width + nodes[i].width + (segments.length > 1 ? 6 : 0), 0),
    height: Math.max(...segments.map((i) => nodes[i].height)),
  }));
  const end = (segment) => (segment === INPUT ? "in" : `s${boxOf.get(segment)}`);
  return {
    nodes,
    boxes,
    shownAs,
    isFolded: folded.size > 0,
    edges: edges.map(({ from, to }) => ({ from, to, tail: end(from), head: end(to) })),
    outputs: outputs.map((from) => ({ from, tail: end(from) })),
  };
}

/** Returns a function that tells whether two numbers are given to it together for the first time. */
function newPairs() {
  const seen = new Set();
  return (a, b) => seen.size < seen.add(`${a} ${b}`).size;
}

/** Returns parameters, multiply-adds and shape of an operator or segment, in the full network or in the sub-network. */
function sizesOf({ params, macs, shape, subParams, subMacs, subShape }, subnet) {
  return subnet ? { params: subParams, macs: subMacs, shape: subShape } : { params, macs, shape };
}

/** Tells whether a segment stays with less than it had. */
function isNarrowed({ fate, params, subParams }) {
  return fate === "kept" && subParams < params;
}

/** Writes a shape; that of what is gone has none. */
function shapeText(shape) {
  return shape === null ? "gone" : shape.join("×") || "scalar";
}

function nodeOf(data, segment, isOpen, subnet) {
  const operators = segment.operators.map((i) => data.operators[i]);
  if (operators[0].kind === "joint") {
    const symbol = SYMBOLS[operators[0].name];
    return { isJoint: true, isGone: segment.fate === "dead", text: symbol ?? operators[0].name, height: JOINT, width: symbol ? JOINT : 16 + LINE * operators[0].name.length };
  }
  const title = clip(segment.label, 30);
  const tag = segment.group >= 0 ? `${segment.group}` : "";
  const params = amountText(segment, subnet);
  const names = operators.map((operator) => operator.name);
  // A segment without parameters is called by its operators.
  const subtitle = names.join(", ") === segment.name ? "" : clip(names.join(" · "), 30);
  const shapes = operators.map((operator) => shapeText(sizesOf(operator, subnet).shape));
  const inside = isOpen ? operators.map((operator, i) => LINE * (operator.name.length + 2) + SMALL * shapes[i].length + 24) : [];
  const isGone = segment.fate === "redundant" || segment.fate === "dead";
  const width = Math.max(
    72,
    LINE * title.length + (tag ? LINE * tag.length + 16 : 0) + 26,
    SMALL * (subtitle.length + params.length) + (params ? 12 : 0) + 26,
    ...inside,
  );
  const head = isOpen ? 24 : subtitle || params ? 40 : 26;
  return { title, tag, params, subtitle, shapes, isOpen, isGone, head, width: Math.ceil(width), height: head + (isOpen ? PITCH * operators.length + 4 : 0) };
}

/** Returns the box of a closed module, or of several equal ones. */
function moduleNode(data, { paths, segments }, subnet) {
  const sum = (key) => segments.reduce((total, i) => total + (data.segments[i][key] ?? 0), 0);
  const total = { params: sum("params"), macs: sum("macs"), subParams: sum("subParams"), subMacs: sum("subMacs") };
  const title = clip(paths.length > 1 ? `${paths[0]} … ${paths.at(-1).split("/").at(-1)}` : paths[0], 30);
  const tag = paths.length > 1 ? `×${paths.length}` : "";
  const removed = segments.filter((i) => data.segments[i].fate === "redundant").length;
  const groups = segments.filter((i) => data.segments[i].group >= 0).length;
  const subtitle = `${segments.length} segments` + (groups ? ` · ${removed ? `${removed} of ${groups} removed` : `${groups} removable`}` : "");
  const params = amountText(total, subnet);
  const width = Math.max(LINE * (title.length + tag.length) + 42 + (tag ? 16 : 0), SMALL * (subtitle.length + params.length) + 38);
  const isGone = segments.every((i) => ["redundant", "dead"].includes(data.segments[i].fate));
  return { isModule: true, paths, segments, total, title, tag, params, subtitle, shapes: [], head: 40, width: Math.ceil(width), height: 46, isGone, isPartly: !isGone && removed > 0 };
}

/** Writes how many parameters there are, and to how many they are narrowed. */
function amountText({ params, subParams }, subnet) {
  const count = subnet ? subParams : params;
  const isLess = !subnet && subParams > 0 && subParams < params;
  return count ? compact(count) + (isLess ? ` → ${compact(subParams)}` : "") : "";
}

/** Asks Graphviz. Nothing of the user's is in the question, only numbers. */
function toDot(plan) {
  const inch = (px) => (px / 72).toFixed(3);
  const terminal = `width=${inch(TERMINAL.width)}, height=${inch(TERMINAL.height)}`;
  const lines = [
    "digraph {",
    `graph [splines=true, nodesep=${inch(GAP.x)}, ranksep=${plan.isFolded ? inch(GAP.y) : 0.42}, pad=0]`,
    'node [shape=box, fixedsize=true, label=""]',
    "edge [arrowhead=none]",
    `in [${terminal}]`,
    "{rank=source; in}",
  ];
  for (const box of plan.boxes) {
    if (box.isRow) {
      const cell = (i) => `<TD PORT="p${i}" FIXEDSIZE="TRUE" WIDTH="${plan.nodes[i].width + 6}" HEIGHT="${box.height}"></TD>`;
      const row = box.segments.map(cell).join("");
      lines.push(`${box.id} [shape=plain, fixedsize=false, label=<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>${row}</TR></TABLE>>]`);
    } else {
      lines.push(`${box.id} [width=${inch(box.width)}, height=${inch(box.height)}]`);
    }
  }
  const isRow = new Map(plan.boxes.map((box) => [box.id, box.isRow]));
  plan.edges.forEach(({ to, tail, head }, id) => {
    if (tail !== head) lines.push(`${tail} -> ${head}${isRow.get(head) ? `:p${to}:n` : ""} [id=${id}]`);
  });
  plan.outputs.forEach(({ tail }, i) => {
    lines.push(`out${i} [${terminal}]`, `${tail} -> out${i} [id=${plan.edges.length + i}]`);
  });
  lines.push("}");
  return lines.join("\n");
}

/**
 * Reads Graphviz's answer, in its format json0.
 *
 * @return `{width, height, places: {segment: {x, y}}, paths: [path of each edge], terminals: [{kind, x, y}]}`, all
 *   with the origin at the top left; `x` and `y` are those of a node's own top left corner.
 */
function placeDrawing(plan, answer) {
  const margin = 16;
  const [, , width, height] = answer.bb.split(",").map(Number);
  const point = (text) => {
    const [x, y] = text.split(",").map(Number);
    return [round(x + margin), round(height - y + margin)];
  };
  const centre = new Map(answer.objects.filter((object) => object.pos).map((object) => [object.name, point(object.pos)]));
  const places = {};
  for (const box of plan.boxes) {
    const [x, y] = centre.get(box.id);
    let left = x - box.width / 2 + (box.isRow ? 3 : 0);
    for (const i of box.segments) {
      places[i] = { x: round(left), y: round(y - plan.nodes[i].height / 2) };
      left += plan.nodes[i].width + 6;
    }
  }
  const paths = Array(plan.edges.length + plan.outputs.length).fill("");
  for (const edge of answer.edges ?? []) {
    paths[Number(edge.id)] = toPath(edge.pos, point);
  }
  plan.edges.forEach(({ from, to, tail, head }, id) => {
    if (tail !== head) return; // two joints of a row
    const [a, b] = [places[from], places[to]];
    const middle = round(a.y + plan.nodes[from].height / 2);
    const [start, end] = [`${round(a.x + plan.nodes[from].width)},${middle}`, `${b.x},${middle}`];
    paths[id] = `M${start}C${start} ${end} ${end}`;
  });
  const terminals = [["in", "input"], ...plan.outputs.map((_, i) => [`out${i}`, "output"])]
    .filter(([id]) => id !== "in" || plan.edges.some(({ from }) => from === INPUT))
    .map(([id, kind]) => ({ kind, x: centre.get(id)[0] - 30, y: centre.get(id)[1] - 12 }));
  return { width: Math.ceil(width + 2 * margin), height: Math.ceil(height + 2 * margin), places, paths, terminals };
}

function toPath(spline, point) {
  const points = spline.split(" ").filter((text) => !/^[se]/.test(text)).map(point);
  const [start, ...rest] = points.map((xy) => xy.join(","));
  return `M${start}C${rest.join(" ")}`;
}

function round(number) {
  return Math.round(number * 10) / 10;
}

/** Returns the box of a segment in a drawing. */
function segmentBox(plan, scene, index) {
  const { x, y } = scene.places[index];
  const { width, height } = plan.nodes[index];
  return { x, y, width, height };
}

/** Returns the box of the network's input or of an output. */
function terminalBox({ x, y }) {
  return { x, y, ...TERMINAL };
}

/** Returns a box around a path: of its coordinates, every other one is an x. */
function pathBox(path) {
  const numbers = (path.match(/-?[\d.]+/g) ?? []).map(Number);
  const [xs, ys] = [0, 1].map((rest) => numbers.filter((_, i) => i % 2 === rest));
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x, y, width: Math.max(...xs) - x, height: Math.max(...ys) - y };
}

function meet(a, b) {
  return a.x <= b.x + b.width && b.x <= a.x + a.width && a.y <= b.y + b.height && b.y <= a.y + a.height;
}

/**
 * Cuts a drawing into sheets of paper on which its texts can be read: between its ranks, and so that every box is whole
 * on one of them.
 *
 * @return boxes `{name, x, y, width, height}`; the name of a single one is empty.
 */
function sheetsOf(plan, scene) {
  const whole = { name: "", x: 0, y: 0, width: scene.width, height: scene.height };
  if (whole.width <= SHEET.width && whole.height <= SHEET.height) return [whole];
  return rowsOf(ranksOf(boxesOf(plan, scene)), SHEET.height).flatMap((row, i) => sheetsOfRow(row).map((sheet, j) => ({ name: `${i + 1}.${j + 1}`, ...sheet })));
}

/** Returns the boxes of all nodes and of the network's inputs and outputs. */
function boxesOf(plan, scene) {
  return [...Object.keys(scene.places).map((i) => segmentBox(plan, scene, i)), ...scene.terminals.map(terminalBox)];
}

/** Joins ranks that follow each other to rows that are no higher than so much, where a rank by itself is not. */
function rowsOf(ranks, height) {
  const rows = [];
  for (const rank of ranks) {
    const row = rows.at(-1);
    if (row && rank.bottom - row.top <= height) Object.assign(row, { bottom: rank.bottom, boxes: [...row.boxes, ...rank.boxes] });
    else rows.push({ ...rank });
  }
  return rows;
}

/** Groups boxes by height: between one group and the next lies a line that meets no box. */
function ranksOf(boxes) {
  const ranks = [];
  for (const box of boxes.toSorted((a, b) => a.y - b.y)) {
    const [rank, bottom] = [ranks.at(-1), box.y + box.height];
    if (rank && box.y < rank.bottom) {
      rank.boxes.push(box);
      rank.bottom = Math.max(rank.bottom, bottom);
    } else ranks.push({ top: box.y, bottom, boxes: [box] });
  }
  return ranks;
}

/** Cuts a row into sheets that overlap by the width of its widest box, each as high as what is on it. */
function sheetsOfRow({ boxes }) {
  const margin = 12;
  const overlap = Math.min(SHEET.width / 2, Math.max(...boxes.map((box) => box.width)) + 2 * margin);
  const left = Math.min(...boxes.map((box) => box.x)) - margin;
  const right = Math.max(...boxes.map((box) => box.x + box.width)) + margin;
  const count = Math.max(1, Math.ceil((right - left - overlap) / (SHEET.width - overlap)));
  const step = count > 1 ? (right - left - SHEET.width) / (count - 1) : 0;
  return Array.from({ length: count }, (_, i) => round(left + i * step)).flatMap((x) => {
    const found = boxes.filter((box) => box.x <= x + SHEET.width && x <= box.x + box.width);
    if (found.length === 0) return [];
    const y = Math.min(...found.map((box) => box.y)) - margin;
    return [{ x, y, width: SHEET.width, height: Math.max(...found.map((box) => box.y + box.height)) + margin - y }];
  });
}

/**
 * Returns the drawing as a tree `[tag, attributes, ...children]`; a child that is a string is text.
 *
 * Groups with `data-segment` are the vertices of the segment graph and paths of class `edge` its edges; with everything
 * unfolded, groups with `data-operator` are those of the trace graph, `edge` and `link` its edges.
 *
 * @param sheet a box outside of which nothing needs to be drawn; by default everything is.
 */
function drawingTree(data, plan, scene, sheet) {
  const isOn = (boxOf) => sheet === undefined || meet(boxOf(), sheet);
  const edge = ({ from, to }, path) => {
    const ends = [from, to].filter((i) => i !== INPUT && i !== undefined);
    const fate = ends.some((i) => plan.nodes[i].isGone) ? " gone" : "";
    const kind = ends.length === 2 ? "edge" : "wire";
    return ["path", { class: kind + fate, d: path, "data-from": from, ...(to === undefined ? {} : { "data-to": to }) }];
  };
  const wires = [...plan.edges, ...plan.outputs].flatMap((each, i) => (isOn(() => pathBox(scene.paths[i])) ? [edge(each, scene.paths[i])] : []));
  const terminals = scene.terminals.filter((terminal) => isOn(() => terminalBox(terminal))).map(({ kind, x, y }) => [
    "g", { class: "terminal", transform: `translate(${x},${y})` },
    ["rect", { ...TERMINAL, rx: 12 }],
    ["text", { x: 30, y: 16, class: "centred" }, kind],
  ]);
  const nodes = Object.entries(scene.places)
    .filter(([i]) => isOn(() => segmentBox(plan, scene, i)))
    .map(([i, place]) => nodeTree(data, Number(i), plan.nodes[i], place));
  return ["g", { class: "drawing" }, ["g", { class: "edges" }, ...wires], ...terminals, ...nodes];
}

/** Draws a closed module: the edge of a second box behind it, and how many parameters of it stay. */
function moduleTree(data, index, node, { x, y }) {
  const { width, height, total } = node;
  const classes = ["node", "box", "module", node.isGone ? "dead" : "", node.isPartly ? "partly" : ""].filter(Boolean).join(" ");
  const chip = LINE * node.tag.length + 8;
  return [
    "g", { class: classes, "data-segment": index, "data-module": node.paths.join(" "), transform: `translate(${x},${y})` },
    ["title", {}, `${node.paths.join(", ")}: ${node.subtitle}. Open it to see what is inside.`],
    ["rect", { class: "shape", x: 4, y: 4, width: width - 4, height: height - 4, rx: 6 }],
    ["rect", { class: "shape", width: width - 4, height: height - 4, rx: 6 }],
    ["text", { class: "title", x: 12, y: 17 }, node.title],
    ...(node.tag ? [["rect", { class: "chip", x: width - chip - 10, y: 5, width: chip, height: 15, rx: 4 }], ["text", { class: "tag centred", x: width - chip / 2 - 10, y: 16 }, node.tag]] : []),
    ["text", { class: "subtitle", x: 12, y: 31 }, node.subtitle],
    ["text", { class: "subtitle amount", x: width - 12, y: 31 }, node.params],
    ...(data.hasRemoval ? costBar(12, height - 9, width - 28, total) : []),
  ];
}

/** Draws how much of the multiply-adds of a box is left. */
function costBar(x, y, width, { macs, subMacs }) {
  if (!macs) return [];
  return [
    ["rect", { class: "cost", x, y, width, height: 2.5 }],
    ["rect", { class: "cost-left", x, y, width: round((width * subMacs) / macs), height: 2.5 }],
  ];
}

function nodeTree(data, index, node, { x, y }) {
  if (node.isModule) return moduleTree(data, index, node, { x, y });
  const segment = data.segments[index];
  const kind = data.operators[segment.operators[0]].kind;
  const classes = ["node", node.isJoint ? "joint" : "box", kind === "unknown" || segment.hasUnknown ? "unknown" : "", segment.group >= 0 ? "removable" : "", segment.fate === "kept" ? "" : segment.fate];
  const { width, height } = node;
  const attributes = { class: classes.filter(Boolean).join(" "), "data-segment": index, transform: `translate(${x},${y})` };
  const children = [["title", {}, `${segment.name}: ${segment.reason}${segment.fateReason && `\n${segment.fateReason}`}`]];
  if (node.isJoint) {
    attributes["data-operator"] = segment.operators[0];
    children.push(["rect", { class: "shape", width, height, rx: height / 2 }]);
    children.push(["text", { class: "symbol centred", x: width / 2, y: height / 2 + 5 }, node.text]);
    if (data.hasRemoval) children.push(...costBar(12, height - 5, width - 24, segment));
  } else {
    children.push(["rect", { class: "shape", width, height, rx: 6 }]);
    if (segment.fate === "redundant") children.push(["path", { class: "cross", d: `M4,4L${width - 4},${height - 4}M${width - 4},4L4,${height - 4}` }]);
    if (segment.group >= 0) children.push(["rect", { class: "stripe", width: 4, height: height - 8, x: 4, y: 4, rx: 2 }]);
    children.push(["text", { class: "title", x: 14, y: 17 }, node.title]);
    if (node.tag) {
      const chip = LINE * node.tag.length + 8;
      children.push(["rect", { class: "chip", x: width - chip - 6, y: 5, width: chip, height: 15, rx: 4 }]);
      children.push(["text", { class: "tag centred", x: width - chip / 2 - 6, y: 16 }, node.tag]);
    }
    if (node.isOpen) children.push(...operatorTrees(data, segment, node));
    else {
      if (node.subtitle) children.push(["text", { class: "subtitle", x: 14, y: 31 }, node.subtitle]);
      if (node.params) children.push(["text", { class: "subtitle amount", x: width - 8, y: 31 }, node.params]);
      if (data.hasRemoval) children.push(...costBar(14, height - 6, width - 22, segment));
    }
  }
  return ["g", attributes, ...children];
}

function operatorTrees(data, segment, node) {
  const trees = [];
  segment.operators.forEach((index, i) => {
    const top = node.head + PITCH * i;
    if (i > 0) trees.push(["path", { class: "link", d: `M${node.width / 2},${top - 4}V${top}` }]);
    trees.push([
      "g", { class: `operator ${data.operators[index].kind}`, "data-operator": index },
      ["rect", { x: 12, y: top, width: node.width - 18, height: PITCH - 4, rx: 4 }],
      ["text", { class: "title", x: 18, y: top + 13 }, data.operators[index].name],
      ["text", { class: "subtitle amount", x: node.width - 12, y: top + 13 }, node.shapes[i]],
    ]);
  });
  return trees;
}
