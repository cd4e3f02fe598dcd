// What a click on a segment shows: in the drawing of the sub-network, the sizes it has there.

/** Returns what there is to say of the box that a segment is drawn in. */
function boxDetails(data, index, from, actions) {
  const node = from.plan?.nodes[from.shown(index)];
  return node?.isModule ? moduleDetails(data, from.shown(index), node, from, actions) : segmentDetails(data, index, from, actions);
}

function moduleDetails(data, index, node, from, actions) {
  const { isSubnet } = from;
  const sizes = sizesOf(node.total, isSubnet);
  const of = (fate) => node.segments.filter((i) => data.segments[i].fate === fate).length;
  const groups = node.segments.filter((i) => data.segments[i].group >= 0).length;
  const other = sizesOf(node.total, !isSubnet);
  const facts = [
    ["Parameters", exact.format(sizes.params)],
    ["Multiply-adds", exact.format(sizes.macs)],
    ...(data.hasRemoval ? [[isSubnet ? "In the full network" : "Left of it", `${plural(other.params, "parameter")}, ${plural(other.macs, "multiply-add")}`]] : []),
    ["Segments", exact.format(node.segments.length)],
    ["Removable", exact.format(groups)],
    ...(data.hasRemoval ? [["Removed", `${of("redundant")}, and ${of("dead")} with them`]] : []),
  ];
  const inside = node.segments.slice(0, 40).map((i) => element("li", {}, element("button", { type: "button", class: "link", click: () => actions.select(i) }, data.segments[i].name)));
  return [
    element("h2", {}, node.paths.length > 1 ? `${node.paths[0]} and ${plural(node.paths.length - 1, "module")} like it` : node.paths[0]),
    element("p", { class: "reason" }, "a module, closed: one box stands for all that is inside it"),
    element("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    element("button", { type: "button", click: () => actions.unfold(index, from) }, "Open"),
    ...foldButtons(data, index, actions, node.paths[0]),
    element("h3", {}, "Inside"),
    element("ul", { class: "neighbours" }, ...inside),
    node.segments.length > inside.length ? element("p", { class: "muted" }, `and ${node.segments.length - inside.length} more`) : "",
  ];
}

/** Returns buttons that close the modules around a segment, up to one that is closed already. */
function foldButtons(data, index, actions, inner = "") {
  const around = modulesAround(data.segments[index], actions.folding.modules).filter((path) => path !== inner && (inner === "" || inner.startsWith(`${path}/`)));
  return around.map((path) => element("button", { type: "button", class: "fold", click: () => actions.close(path, index) }, `Fold ${path}`));
}

function segmentDetails(data, index, from, actions) {
  const { isSubnet, plan } = actions.shown(from);
  const segment = data.segments[index];
  const group = segment.group >= 0 ? data.groups[segment.group] : null;
  const sizes = sizesOf(segment, isSubnet);
  const facts = [
    ["Parameters", exact.format(sizes.params)],
    ["Multiply-adds", exact.format(sizes.macs)],
  ];
  if (data.hasRemoval) {
    const other = sizesOf(segment, !isSubnet);
    facts.push([isSubnet ? "In the full network" : "Left of it", `${plural(other.params, "parameter")}, ${plural(other.macs, "multiply-add")}`]);
  }
  if (group) {
    facts.unshift(["Group", String(segment.group)]);
    facts.push(["Group holds", plural(group.params, "parameter")]);
    if (group.score !== undefined) facts.push(["Redundancy score", figure(group.score)]);
  }
  if (data.hasRemoval) facts.push(["In the sub-network", fateText(segment)]);
  const sources = plan.edges.filter(({ to }) => to === index).map(({ from }) => from);
  const readers = plan.edges.filter(({ from }) => from === index).map(({ to }) => to);
  const outputs = plan.outputs.some(({ from }) => from === index) ? ["network output"] : [];
  return [
    element("h2", {}, segment.name),
    element("p", { class: segment.group >= 0 ? "reason removable" : "reason" }, segment.reason),
    element("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    from.canUnfold(index)
      ? element("button", { type: "button", click: () => actions.unfold(index, from) }, actions.folding.unfolded.has(index) ? "Fold" : "Unfold")
      : "",
    ...foldButtons(data, index, actions),
    element("h3", {}, plural(segment.operators.length, "operator")),
    element("ol", { class: "operators" }, ...segment.operators.map((i) => operatorDetails(data, data.operators[i], isSubnet))),
    element("h3", {}, "Reads"),
    neighbours(data, sources, actions, []),
    element("h3", {}, "Read by"),
    neighbours(data, readers, actions, outputs),
  ];
}

function operatorDetails(data, operator, isSubnet) {
  const parts = operator.parts.map((i) => data.parts[i]);
  const { params, macs, shape } = sizesOf(operator, isSubnet);
  const sizes = [shapeText(shape).replaceAll("×", " × ")];
  if (params) sizes.push(plural(params, "parameter"));
  if (macs) sizes.push(plural(macs, "multiply-add"));
  const rows = parts.map((part) =>
    element("li", { class: part.params ? "" : "state" }, element("code", {}, part.path), element("span", {}, shapeText(sizesOf(part, isSubnet).shape))),
  );
  return element(
    "li",
    {},
    element("b", {}, operator.name),
    element("span", { class: "kind" }, operator.kind),
    element("p", {}, sizes.join(" · ")),
    rows.length ? element("ul", { class: "parts" }, ...rows) : "",
  );
}

function neighbours(data, segments, actions, others) {
  const items = [...new Set(segments)].map((i) =>
    i === INPUT
      ? "network input"
      : element("button", { type: "button", class: "link", click: () => actions.select(i) }, `${data.segments[i].name}`),
  );
  const all = [...items, ...others];
  return all.length ? element("ul", { class: "neighbours" }, ...all.map((item) => element("li", {}, item))) : element("p", {}, "nothing");
}

function emptyDetails(data) {
  const keys = [
    ["/", "search"],
    ["↑ ↓ ← →", "walk along the edges"],
    ["Enter", "select"],
    ["U", "open the module, unfold the segment"],
    ["+ − 0", "zoom, show everything"],
    ["Esc", "clear"],
  ];
  return [
    element("h2", {}, "Nothing selected"),
    element("p", {}, "Select a segment to see its operators, its parameters, and why it is or is not removable. Drag to move, hold Ctrl and scroll to zoom."),
    element("dl", { class: "keys" }, ...keys.flatMap(([key, what]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, what)])),
    element("p", { class: "muted" }, `${plural(data.operators.length, "operator")} in ${plural(data.segments.length, "segment")}; ${plural(data.groups.length, "group")}, of which at most ${data.largestRemoval} can go together.`),
  ];
}
