// Tables that sort by a click on a heading, or by Enter on it.

/**
 * Makes a table.
 *
 * @param caption what it shows.
 * @param columns `[{key, label, className, show}]`; `show(value, row)` returns text or an element. A column of class
 *   `number` is aligned to the right, one of class `long` left out on paper.
 * @param rows the objects shown; `row[key]` is what a column sorts by.
 * @param onOpen called with the row whose first button is pressed, if rows can be opened.
 */
function sortableTable(caption, columns, rows, onOpen) {
  // The roles stay what they are where a narrow screen shows every row as a list.
  const body = element("tbody", { role: "rowgroup" });
  const made = new Map();
  const rowOf = (row) => {
    const cells = columns.map(({ key, label, className, show, opens }) => {
      const content = show ? show(row[key], row) : figure(row[key]);
      const inner = opens && onOpen ? element("button", { type: "button", class: "link", click: () => onOpen(row) }, content) : content;
      return element("td", { role: "cell", class: className ?? "", "data-label": label }, inner);
    });
    return element("tr", { role: "row", class: row.className ?? "" }, ...cells);
  };
  let order = rows;
  const fill = (ordered) => {
    order = ordered;
    for (const row of ordered) if (!made.has(row)) made.set(row, rowOf(row));
    body.replaceChildren(...ordered.map((row) => made.get(row)));
  };
  const headings = columns.map((column) =>
    element("th", { scope: "col", role: "columnheader", class: column.className ?? "", "data-label": column.label }, element("button", { type: "button", click: () => sortBy(column) }, column.label)),
  );
  function sortBy(column) {
    const heading = headings[columns.indexOf(column)];
    // Numbers fall first, names rise first.
    const [first, second] = column.className === "number" ? ["descending", "ascending"] : ["ascending", "descending"];
    const direction = heading.getAttribute("aria-sort") === first ? second : first;
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    fill([...rows].sort((a, b) => sign * compare(a[column.key], b[column.key], sign)));
  }
  fill(rows);
  const textOf = new Map();
  const search = ({ target }) => {
    const sought = target.value.trim().toLowerCase();
    if (textOf.size === 0) for (const row of rows) textOf.set(row, columns.map(({ key }) => plainText(row[key])).join("\n").toLowerCase());
    const matches = new Set(rows.filter((row) => textOf.get(row).includes(sought)));
    // A row that is left out keeps its place in the order.
    for (const [row, own] of made) own.hidden = !matches.has(row);
    count.textContent = sought === "" ? "" : `${exact.format(matches.size)} of ${exact.format(rows.length)}`;
  };
  const count = element("output", { class: "muted" });
  const filter = rows.length < FEW_ROWS ? "" : element("input", { type: "search", class: "filter", placeholder: "Filter", "aria-label": `Filter: ${caption}`, input: search });
  const cells = () => order.filter((row) => !made.get(row).hidden).map((row) => columns.map(({ key }) => plainText(row[key])));
  const download = tableDownload(caption, columns.map(({ label }) => label), cells);
  const head = element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...headings));
  const table = element("table", { role: "table" }, element("caption", {}, caption), head, body);
  const both = document.createDocumentFragment();
  both.append(element("div", { class: "tools" }, filter, count, download), table);
  return both;
}

const FEW_ROWS = 12; // a table that is seen at once needs no filter

/** Returns what a cell holds as text, a list line by line; numbers in full. */
function plainText(value) {
  return Array.isArray(value) ? value.join("\n") : value === null || value === undefined ? "" : String(value);
}

/** Orders numbers by size and others as a person would, `item 2` before `item 10`; what is missing comes last. */
function compare(a, b, sign) {
  const isMissing = [a, b].map((value) => value === null || value === undefined);
  if (isMissing[0] || isMissing[1]) return sign * (isMissing[0] - isMissing[1]);
  return typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b));
}

const collator = new Intl.Collator("en", { numeric: true });

function groupsTable(data, onOpen) {
  const whole = data.segments.reduce((sum, segment) => sum + segment.params, 0);
  // What is selected is still there until all of it is zero, where that is known.
  const state = (group) => (!data.hasRemoval ? "removable" : !group.redundant ? "kept" : group.zero === false ? "selected" : "removed");
  const table = data.groups.map((group, index) => ({
    ...group,
    index,
    state: state(group),
    share: group.params / whole,
    className: group.redundant ? "redundant" : "",
  }));
  const largest = Math.max(...table.map((group) => group.score ?? 0));
  const columns = [
    { key: "index", label: "Group", className: "number" },
    { key: "name", label: "Structure", opens: true, show: (name) => foldedName(name) },
    ...(data.hasRemoval ? [{ key: "state", label: "State", show: (value) => element("span", { class: `badge ${value}` }, value) }] : []),
    ...(data.groups[0]?.score === undefined ? [] : [{ key: "score", label: "Redundancy score", className: "number", show: (value) => bar(value, largest) }]),
    { key: "params", label: "Parameters", className: "number" },
    { key: "share", label: "Share", className: "number", show: percent },
    { key: "macs", label: "Multiply-adds", className: "number" },
    { key: "paths", label: "Parameter paths", className: "long", show: (paths) => pathList(paths) },
  ];
  return sortableTable("The groups: parameters of minimal removal structures", columns, table, (row) => onOpen(row.segment));
}

function dimensionsTable(data) {
  const table = data.dimensions.map((dimension) => ({ ...dimension, className: dimension.left === 0 ? "redundant" : "" }));
  const left = data.hasRemoval
    ? [
        { key: "left", label: "Channels left", className: "number", show: (value, { size }) => bar(value, size) },
      ]
    : [];
  return sortableTable(
    "The dimensions: channels that the same parameters make",
    [
      { key: "name", label: "Dimension" },
      { key: "size", label: "Channels", className: "number" },
      ...left,
      { key: "params", label: "Parameters", className: "number" },
      { key: "paths", label: "Made by", className: "long", show: (paths) => pathList(paths) },
    ],
    table,
  );
}

function bar(value, largest) {
  const made = element("span", { class: "bar" }, figure(value));
  made.style.setProperty("--share", `${value > 0 && largest > 0 ? (100 * value) / largest : 0}%`);
  return made;
}

function pathList(paths) {
  if (paths.length < 4) return element("span", { class: "paths" }, paths.join("\n"));
  return element("details", {}, element("summary", {}, `${paths.length} paths`), element("span", { class: "paths" }, paths.join("\n")));
}

function networksTable(data) {
  const table = data.networks.map((row) => ({
    ...row,
    ratio: typeof row.full === "number" && typeof row.sub === "number" && row.full > 0 ? row.sub / row.full : null,
  }));
  return sortableTable(
    "Full network against sub-network",
    [
      { key: "label", label: "Result" },
      ...stagesOf(data).map(([key, label]) => ({ key, label, className: "number" })),
      { key: "ratio", label: "Sub / full", className: "number", show: (value) => (value === null ? "" : percent(value)) },
    ],
    table,
  );
}

/** Returns a name of several modules, the path that they share said once. */
function foldedName(name) {
  const parts = name.split("-");
  const paths = parts.map((part) => part.split("/"));
  let depth = 0;
  while (parts.length > 1 && paths.every((path) => path.length > depth + 1 && path[depth] === paths[0][depth])) depth += 1;
  if (depth === 0) return name;
  return element("span", { title: name }, element("span", { class: "prefix" }, `${paths[0].slice(0, depth).join("/")}/`), paths.map((path) => path.slice(depth).join("/")).join(" - "));
}

const FATES = { kept: "kept", redundant: "removed", dead: "removed with others", passing: "kept as a wire: one input is left" };

function fateCell(_, { segment: { fate, fateReason } }) {
  return element("span", {}, element("span", { class: `badge ${fate}` }, FATES[fate]), fateReason ? element("small", {}, fateReason) : "");
}

function fateText({ fate, fateReason }) {
  return fateReason ? `${FATES[fate]}: ${fateReason}` : FATES[fate];
}

function segmentsTable(data, onOpen) {
  const table = data.segments.map((segment, index) => {
    return {
      index,
      name: segment.name,
      operators: segment.operators.length,
      fate: fateText(segment),
      segment,
      params: segment.params,
      paramsLeft: segment.subParams,
      macs: segment.macs,
      macsLeft: segment.subMacs,
      className: segment.fate,
    };
  });
  const after = data.hasRemoval
    ? [{ key: "fate", label: "In the sub-network", show: fateCell }]
    : [];
  const left = (key, label) => (data.hasRemoval ? [{ key, label, className: "number" }] : []);
  return sortableTable(
    "The segments",
    [
      { key: "index", label: "Segment", className: "number" },
      { key: "name", label: "Name", opens: true, show: (name) => foldedName(name) },
      ...after,
      { key: "operators", label: "Operators", className: "number" },
      { key: "params", label: "Parameters", className: "number" },
      ...left("paramsLeft", "Parameters left"),
      { key: "macs", label: "Multiply-adds", className: "number" },
      ...left("macsLeft", "Multiply-adds left"),
    ],
    table,
    (row) => onOpen(row.index),
  );
}
