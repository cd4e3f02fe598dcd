// The result, first of all: what went, when and why, at what cost, and how it was made.

function overview(data) {
  const panels = [resultsPanel(data), layersPanel(data, "params", data.hasRemoval ? "Parameters of each layer, before and after" : "Parameters of each layer")];
  const others = [
    ...(data.groups.some((group) => typeof group.score === "number") ? [panelFigure("Redundancy scores: what has the highest goes first", [scoresPanel(data)])] : []),
    ...(data.sizes ? [tradeOff(data)] : []),
    ...(data.dimensions.length ? [panelFigure("Widths", [widthsPanel(data)])] : []),
  ];
  return [
    ...(data.runs.length > 1 ? [runsTable(data), ...runsFigures(data)] : []),
    panelFigure(data.hasRemoval ? "Full network and sub-network" : "The network", panels),
    element("div", { class: "columns" }, whatWent(data), whenAndWhy(data), madeWith(data)),
    ...others,
  ];
}

function factList(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element("dl", { class: "facts" }, ...shown.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, typeof value === "number" ? figure(value) : value)]));
}

function whatWent(data) {
  if (!data.hasRemoval) {
    return element("section", { class: "card" }, element("h2", {}, "What may go"), factList([
      ["Groups", `${data.groups.length}, of which at most ${data.largestRemoval} can go together`],
      ["Segments", `${exact.format(data.segments.length)}, ${exact.format(data.segments.filter((each) => each.group < 0).length)} of them not removable`],
      ["Operators", data.operators.length],
    ]));
  }
  const gone = removedGroups(data);
  const held = gone.reduce((sum, group) => sum + group.params, 0);
  const whole = data.segments.reduce((sum, segment) => sum + segment.params, 0);
  const dead = data.segments.filter((segment) => segment.fate === "dead").length;
  const narrowed = data.segments.filter((segment) => isNarrowed(segment)).length;
  const cut = data.dimensions.filter((each) => each.left < each.size);
  return element("section", { class: "card" }, element("h2", {}, "What went"), factList([
    ["Groups removed", `${gone.length} of ${data.groups.length}, which hold ${percent(held / whole)} of the parameters`],
    ["Segments removed with them", dead],
    ["Segments narrowed", narrowed],
    ["Dimensions narrowed", cut.length ? `${cut.length} of ${data.dimensions.length}` : null],
  ]), element("p", { class: "names" }, namesOf(data, gone)));
}

const MOST_NAMES = 10;

/** Names some groups, or the modules that they are in, with their numbers, where there are too many. */
function namesOf(data, groups) {
  if (groups.length <= MOST_NAMES) return groups.map((group) => data.segments[group.segment].label).join(", ");
  const counts = new Map();
  for (const { segment } of groups) {
    const module = data.segments[segment].module.split("/").slice(0, 2).join("/") || "the network itself";
    counts.set(module, (counts.get(module) ?? 0) + 1);
  }
  return [...counts].map(([module, count]) => `${module}: ${count}`).join(", ");
}

function whenAndWhy(data) {
  const scored = data.groups.some((group) => typeof group.score === "number");
  const said = scored
    ? "Groups go by falling redundancy score, as long as the network stays valid without them. Scores in units of the loss are minus its rise when the group goes: below zero means that the loss would rise."
    : "No scores are recorded.";
  const { selection } = data;
  return element("section", { class: "card" }, element("h2", {}, "When and why"), factList([
    ["Selected at update", selection?.at],
    ["Came next", selection?.runnerUp],
    ["Rise of the loss, predicted", selection?.predicted || null],
    ["Rise of the loss, measured", selection?.measured || null],
  ]), element("p", {}, said));
}

function madeWith(data) {
  const versions = Object.entries(data.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  return element("section", { class: "card" }, element("h2", {}, "Made with"), factList([...Object.entries(data.settings), ["Input", data.inputs.join(", ")], ["Versions", versions]]),
    ...(data.command ? [element("p", {}, element("code", { class: "command" }, data.command))] : []));
}

/** Size against the number of groups that go in the order of their scores, with what was chosen. */
function tradeOff(data) {
  const { groups, macs, params } = data.sizes;
  const full = { params: params[0], macs: macs[0] };
  const curve = (name, values, whole, className) => ({ name, steps: groups, values: values.map((value) => (100 * value) / whole), className });
    const points = data.hasRemoval
    ? [["params", "line-0"], ["macs", "line-1"]].map(([key, className]) => ({
        name: `chosen: ${key === "macs" ? "multiply-adds" : "parameters"}`, className, step: data.numRemoved, value: (100 * data.segments.reduce((sum, each) => sum + each[`sub${key[0].toUpperCase()}${key.slice(1)}`], 0)) / full[key],
      }))
    : [];
  return lineChart("Size by number of groups removed", [curve("parameters", params, full.params, "line-0"), curve("multiply-adds", macs, full.macs, "line-1")], [], {
    measure: "% of the full network", across: "groups removed, in the order of their scores", points,
  });
}
