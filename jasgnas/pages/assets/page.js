// The page: reads the data, fills the parts, and connects them.

function headline(data) {
  const row = (label) => data.networks.find((each) => each.label === label);
  const change = ({ full, sub }) => {
    if (typeof full !== "number") return [figure(full)];
    const before = element("b", {}, compact(full));
    return typeof sub === "number" ? [before, " → ", element("b", {}, compact(sub)), element("small", {}, percent(sub / full))] : [before];
  };
  const gone = data.groups.filter((group) => group.redundant).length;
  const figures = [
    ["Parameters", change(row("parameters"))],
    ["Multiply-adds", change(row("multiply-adds"))],
    ["Groups", data.hasRemoval ? [element("b", {}, String(gone)), ` of ${data.groups.length} removed`] : [element("b", {}, String(data.groups.length))]],
  ];
  if (data.dimensions.length) {
    const sum = (key) => data.dimensions.reduce((total, each) => total + each[key], 0);
    const before = element("b", {}, compact(sum("size")));
    figures.push(["Channels", data.hasRemoval ? [before, " → ", element("b", {}, compact(sum("left")))] : [before]]);
  }
  if (data.selection) {
    figures.push(["Selected at update", [element("b", {}, String(data.selection.at))]]);
  }
  byId("figures").append(...figures.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, ...value))));
  byId("warning").hidden = data.isValid;
  byId("inputs").textContent = `input ${data.inputs.join(", ")}`;
}

function legend(data) {
  const entries = [["box removable", "removable"], ["box", "not removable"], ["joint", "joint"]];
  if (modulesOf(data.segments).size) entries.push(["box module", "closed module"]);
  if (data.segments.some((segment) => segment.hasUnknown)) entries.push(["box unknown", "unknown operator"]);
  if (data.hasRemoval) entries.push(["box redundant", "removed"], ["box dead", "removed with others"], ["joint passing", "joint with one input left"]);
  byId("legend").append(
    ...entries.map(([className, text]) => {
      const isJoint = className.startsWith("joint");
      const shape = { class: "shape", x: 1, y: 1, width: isJoint ? 14 : 24, height: 14, rx: isJoint ? 7 : 3 };
      const icon = ["svg", { width: isJoint ? 16 : 26, height: 16, "aria-hidden": "true" }, ["g", { class: "drawing" }, ["g", { class: className }, ["rect", shape], ...(className.includes("redundant") ? [["path", { class: "cross", d: "M2,2L24,14M24,2L2,14" }]] : [])]]];
      return element("li", {}, svgElement(icon), text);
    }),
  );
}

/** Makes tabs of the sections that have something to show. */
function tabs(onShow) {
  const sections = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
  const buttons = sections.map((section) => {
    section.setAttribute("role", "tabpanel");
    section.setAttribute("aria-labelledby", `tab-${section.id}`);
    return element("button", { type: "button", role: "tab", id: `tab-${section.id}`, "aria-controls": section.id, click: () => open(section.id) }, section.dataset.tab);
  });
  function open(id, hasFocus = false) {
    const asked = address();
    asked.set("tab", id);
    // The frame of a notebook has no address of its own.
    if (location.protocol !== "about:") history.replaceState(null, "", `#${asked}`);
    sections.forEach((section, i) => {
      const isOpen = section.id === id;
      section.classList.toggle("open", isOpen);
      buttons[i].setAttribute("aria-selected", isOpen);
      buttons[i].setAttribute("tabindex", isOpen ? 0 : -1);
      if (isOpen && hasFocus) buttons[i].focus();
    });
    onShow(id);
  }
  byId("tabs").append(...buttons);
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = sections.findIndex((section) => section.classList.contains("open"));
    open(sections[(at + step + sections.length) % sections.length].id, true);
  });
  return open;
}

function theme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => { root.dataset.theme = dark.matches ? "dark" : "light"; };
  follow();
  dark.addEventListener("change", follow);
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  });
  // Paper is white.
  let before = null;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; });
  addEventListener("afterprint", () => { root.dataset.theme = before; });
}

/** Returns what fills a section when it is first shown, so that the page does not have to make what nobody looks at. */
function filler(contents) {
  const fill = (id) => {
    byId(id).append(...(contents[id]?.() ?? []));
    delete contents[id];
  };
  addEventListener("beforeprint", () => Object.keys(contents).forEach(fill));
  return fill;
}

function start() {
  theme();
  const data = readData();
  headline(data);
  legend(data);
  if (data.runs.length > 1) byId("theme").before(runChoice(data));

  const details = byId("details");
  const folding = new Folding(data);
  const onSelect = (index, from) => {
    details.replaceChildren(...(index === null ? emptyDetails(data) : boxDetails(data, index, from, actions)));
    details.scrollTop = 0;
    for (const other of views) if (other !== from && other.selected !== index) other.follow(index);
  };
  const onFold = (anchor) => Promise.all(shownViews().map((each) => each.show(anchor))).then(() => {
    sayFolds();
    onSelect(views[0].selected, views[0]);
  });
  const elements = (end) => ({ viewport: byId(`viewport${end}`), busy: byId(`busy${end}`), minimap: byId(`minimap${end}`) });
  const views = [
    new GraphView(data, elements(""), folding, { onSelect, onFold }),
    new GraphView(data, elements("-2"), folding, { onSelect, onFold }, true),
  ];
  const view = views[0];
  const shownViews = () => views.filter((each, i) => i === 0 || !byId("second").hidden);
  const sayFolds = () => { byId("modules").textContent = folding.folds.closed.size > 0 ? "Open modules" : "Fold modules"; };
  const actions = {
    unfold: (index, from) => from.toggle(index),
    close: (path, index) => {
      closeModule(folding.folds, path);
      return onFold(index);
    },
    select: (index) => openSegment(index),
    // A row of a table may be opened before the first layout is there.
    shown: (from) => ({ isSubnet: from.isSubnet, plan: from.plan ?? planDrawing(data, from.isSubnet, []) }),
    folding,
  };

  byId("training").hidden = !data.history;
  byId("network").hidden = !data.hasRemoval;
  const fill = filler({
    overview: () => overview(data),
    groups: () => [
      ...(data.groups.length ? [groupsTable(data, (index) => openSegment(index))] : []),
      ...(data.dimensions.length ? [dimensionsTable(data)] : []),
    ],
    networks: () => [networksTable(data), segmentsTable(data, (index) => openSegment(index))],
    training: () => (data.history ? trainingCharts(data) : []),
  });
  const openTab = tabs((id) => {
    fill(id);
    if (id === "graph") shownViews().forEach((each) => each.becomeVisible());
  });
  addEventListener("beforeprint", () => { if (view.scene) byId("paper").replaceChildren(...paperDrawings(data, view.plan, view.scene)); });
  addEventListener("afterprint", () => byId("paper").replaceChildren());

  async function openSegment(index) {
    openTab("graph");
    if (folding.openTo(index)) await onFold(index);
    if (view.isSubnet && view.shown(index) === undefined) {
      document.querySelector('input[value="full"]').checked = true;
      await showNetwork("full");
    }
    view.select(index);
    view.nodes.get(view.shown(index))?.focus({ preventScroll: true });
  }

  /** Shows the full network, the sub-network, or one beside the other. */
  async function showNetwork(name) {
    byId("second").hidden = name !== "both";
    if (name === "both") {
      views[1].selected = view.selected;
      await Promise.all([view.setSubnet(false).then(() => view.fit()), views[1].show()]);
    } else await view.setSubnet(name === "subnet");
  }

  const search = byId("search");
  search.addEventListener("input", () => {
    byId("matches").textContent = view.search(search.value);
    views[1].search(search.value);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") byId("matches").textContent = view.goToNext(event.shiftKey ? -1 : 1);
  });
  byId("network").addEventListener("change", (event) => showNetwork(event.target.value));
  byId("unfold").addEventListener("click", ({ currentTarget: button }) => {
    const isOpen = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", isOpen);
    folding.unfolded = new Set(isOpen ? data.segments.keys() : []);
    onFold(view.selected);
  });
  document.querySelector("#graph .zoom").after(downloads("graph", () => view.svg));
  byId("modules").hidden = byId("repeats").hidden = folding.modules.size === 0;
  sayFolds();
  byId("modules").addEventListener("click", () => {
    if (folding.folds.closed.size > 0) folding.openAll();
    else folding.foldAll();
    onFold(view.selected);
  });
  byId("repeats").addEventListener("click", ({ currentTarget: button }) => {
    const once = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", once);
    folding.folds.once = once;
    folding.foldAll();
    onFold(view.selected);
  });
  const zoomBy = (factor) => shownViews().forEach((each) => each.zoom(each.scale * factor));
  const fit = () => shownViews().forEach((each) => each.scene && each.refit());
  byId("zoom-in").addEventListener("click", () => zoomBy(1.25));
  byId("zoom-out").addEventListener("click", () => zoomBy(1 / 1.25));
  byId("zoom-fit").addEventListener("click", fit);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      search.value = "";
      byId("matches").textContent = "";
      for (const each of views) each.search("");
      view.select(null);
      if (document.activeElement === search) search.blur();
      return;
    }
    if (event.target.closest("input, textarea")) return;
    const zooms = { "+": () => zoomBy(1.25), "-": () => zoomBy(1 / 1.25), 0: fit };
    if (event.key === "/") {
      event.preventDefault();
      openTab("graph");
      search.focus();
    } else if (zooms[event.key] && view.scene) zooms[event.key]();
  });

  const sections = [...document.querySelectorAll("main > section:not([hidden])")].map((section) => section.id);
  const asked = address().get("tab");
  openTab(sections.includes(asked) ? asked : data.hasRemoval || data.runs.length > 1 ? "overview" : "graph");
  view.select(null);
  view.show().then(() => { document.documentElement.dataset.ready = "true"; });
}

start();
