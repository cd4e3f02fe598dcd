// Several runs of one network beside each other.

/** Returns a result of a run by its label. */
function resultOf(run, label, stage = "sub") {
  return run.networks.find((row) => row.label === label)?.[stage] ?? null;
}

function runsTable(data) {
  const labels = [...new Set(data.runs.flatMap((run) => run.networks.map((row) => row.label)))];
  const table = data.runs.map((run, index) => ({
    index,
    name: run.name,
    removed: run.numRemoved,
    at: run.selection?.at ?? null,
    measured: run.selection?.measured ?? null,
    className: index === data.index ? "current" : "",
    ...Object.fromEntries(labels.map((label) => [`result ${label}`, resultOf(run, label)])),
  }));
  return sortableTable("The runs: results of their sub-networks", [
    { key: "name", label: "Run", opens: true },
    ...labels.map((label) => ({ key: `result ${label}`, label, className: "number" })),
    { key: "removed", label: "Groups removed", className: "number" },
    { key: "at", label: "Selected at update", className: "number" },
    { key: "measured", label: "Measured rise of the loss", className: "number" },
  ], table, (row) => openRun(row.index));
}

function runsFigures(data) {
  const known = data.runs.filter((run) => run.groups.redundant);
  const agreement = known.length > 1 ? [panelFigure("Which groups went in which run", [agreementPanel(data, known)])] : [];
  return [element("div", { class: "columns" }, ...runsCharts(data), ...agreement)];
}

/** Every result that was measured in several runs against the size of their sub-networks. */
function runsCharts(data) {
  const sizes = ["parameters", "multiply-adds"];
  const labels = [...new Set(data.runs.flatMap((run) => run.networks.map((row) => row.label)))].filter((label) => !sizes.includes(label));
  return labels.flatMap((label) => {
    const points = data.runs.flatMap((run, i) => {
      const [value, macs] = [amount(resultOf(run, label)), amount(resultOf(run, "multiply-adds"))];
      return value === null || macs === null ? [] : [{ name: run.name, step: macs, value, className: `line-${i % MOST_RUNS}` }];
    });
    return points.length > 1 ? [lineChart(`${label} by size`, [], [], { measure: label, across: "multiply-adds of the sub-network", points })] : [];
  });
}

/** A square for every group that went in a run; groups that went in none are left out. */
function agreementPanel(data, runs) {
  const counts = data.groups.map((_, i) => runs.filter((run) => run.groups.redundant[i]).length);
  const shown = data.groups.map((group, index) => ({ ...group, index })).filter(({ index }) => counts[index] > 0);
  shown.sort((a, b) => counts[b.index] - counts[a.index]);
  const most = shown.slice(0, 40);
  const parts = most.flatMap((group, i) => [
    text(0, i * PANEL.row + 11, "panel-label", clip(group.name, 24)),
    ...runs.map((run, j) => ["rect", { class: run.groups.redundant[group.index] ? "bar-gone" : "bar-none", x: PANEL.label + 16 * j, y: i * PANEL.row + 1, width: 13, height: 13, rx: 2, "data-went": String(run.groups.redundant[group.index]) }, ["title", {}, `${group.name} ${run.groups.redundant[group.index] ? "went" : "stayed"} in ${run.name}`]]),
    text(PANEL.label + 16 * runs.length + 8, i * PANEL.row + 11, "panel-value", `${counts[group.index]} of ${runs.length}`),
  ]);
  const height = most.length * PANEL.row;
  const legend = runs.map((run, j) => text(0, height + 16 + 14 * j, "panel-value", `column ${j + 1}: ${run.name}`));
  const rest = shown.length - most.length;
  return panel(`Groups that went${rest ? `, the ${most.length} most frequent of ${shown.length}` : ""}`, PANEL.label + 16 * runs.length + 120, height + 14 * runs.length + 8, ...parts, ...legend);
}

/** Shows another run: the page is made anew of it. */
function openRun(index) {
  const asked = address();
  asked.set("run", index);
  location.hash = asked;
  location.reload();
}

/** A list to choose the run that is looked at from. */
function runChoice(data) {
  const options = data.runs.map((run, index) => element("option", { value: String(index), selected: index === data.index }, run.name));
  return element("label", { class: "run" }, "Run ", element("select", { id: "run", change: ({ target }) => openRun(Number(target.value)) }, ...options));
}
