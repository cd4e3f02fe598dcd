// The data of the page: what is so of the space and, of several runs, of the one that is looked at.

const TABLES = ["operators", "segments", "parts", "groups", "dimensions"];

/** What the address says after its `#`: `tab=groups&run=2`. */
function address() {
  return new URLSearchParams(location.hash.slice(1));
}

/** Reads the data; its tables become rows, those of the run joined with those of the space. */
function readData() {
  const { space, runs } = JSON.parse(byId("data").textContent);
  const index = Math.min(runs.length - 1, Math.max(0, Number(address().get("run")) || 0));
  const tables = Object.fromEntries(TABLES.map((name) => [name, rows({ ...space[name], ...runs[index][name] })]));
  for (const segment of tables.segments) segment.module = space.modules[segment.module];
  for (const group of tables.groups) group.name ??= tables.segments[group.segment].name;
  for (const group of tables.groups) group.paths = group.paths.map((path) => (typeof path === "number" ? tables.parts[path].path : path));
  return { ...space, ...runs[index], ...tables, runs, index };
}

const STAGES = { full: "Full network", construction: "At construction", recalibrated: "Recalibrated", sub: "Sub-network" };

/** Names the stages of the results that are there; the last is called the end where there are others before it. */
function stagesOf(data) {
  const found = Object.keys(STAGES).filter((stage) => stage === "full" || stage === "sub" || data.networks.some((row) => stage in row));
  return found.map((stage) => [stage, stage === "sub" && found.length > 2 ? "At the end" : STAGES[stage]]);
}

/** Returns a result as a number to compare by, null where it is none: `0.98`, and also the text `98.0 %`. */
function amount(value) {
  if (typeof value === "number") return value;
  const found = /^\s*(-?\d[\d.]*)\s*%\s*$/.exec(value ?? "");
  return found ? Number(found[1]) : null;
}

/** Returns the groups that go, with their numbers. */
function removedGroups(data) {
  return data.groups.map((group, index) => ({ ...group, index })).filter((group) => group.redundant);
}
