// The drawing: laid out by a worker, moved by scrolling, which browsers do best.

const FAR = 0.45; // below this scale texts are not drawn
const MOST_KEPT = 8; // layouts that are remembered
const BAND = 1500; // height of a band of nodes, in the drawing's own px
const SLICE = 300; // nodes or edges that are made, or rendered anew, before the page may answer again

/** Lays out one drawing at a time; a new question ends the one before. */
class Layouter {
  static source = null; // of the worker, which all of them run

  constructor() {
    this.known = new Map();
    this.cancel = () => {};
  }

  async layout(key, plan) {
    if (this.known.has(key)) return this.known.get(key);
    Layouter.source ??= workerSource();
    this.cancel();
    // Every question has a worker of its own, whose memory goes with it.
    const worker = new Worker(await Layouter.source);
    const answer = await new Promise((resolve, reject) => {
      this.cancel = () => resolve(null);
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = (event) => reject(new Error(event.message || "the worker did not start"));
      worker.postMessage(plan);
    }).finally(() => worker.terminate());
    if (answer === null) return null;
    if (answer.error) throw new Error(answer.error);
    if (this.known.size >= MOST_KEPT) this.known.delete(this.known.keys().next().value);
    this.known.set(key, answer.scene);
    return answer.scene;
  }
}

/** Lets the page answer. */
function pause() {
  return new Promise((resolve) => setTimeout(resolve));
}

async function workerSource() {
  const packed = Uint8Array.from(atob(byId("engine").textContent), (letter) => letter.charCodeAt(0));
  const engine = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  return URL.createObjectURL(new Blob([engine, "\n", byId("worker").textContent], { type: "text/javascript" }));
}

/** What is open and what is closed: the same in every view of a network. */
class Folding {
  constructor(data) {
    this.data = data;
    this.modules = modulesOf(data.segments);
    this.unfolded = new Set(); // segments drawn with their operators
    this.folds = foldsThatFit(data, false, false);
  }

  get key() {
    return `${[...this.unfolded].sort((a, b) => a - b)} ${[...this.folds.closed].sort()} ${this.folds.once}`;
  }

  /** Opens all that is around a segment; says whether anything was closed. */
  openTo(index) {
    const around = modulesAround(this.data.segments[index], this.modules);
    const before = this.key;
    for (const path of around) openModule(this.folds, this.modules, path);
    return this.key !== before;
  }

  openAll() {
    this.folds.closed = new Set();
  }

  /** Closes so much that the graph can be read at once, or the outermost modules where it can be anyway. */
  foldAll() {
    this.folds = foldsThatFit(this.data, false, this.folds.once);
    if (this.folds.closed.size > 0) return;
    for (const module of this.modules.values()) if (module.parent === "") this.folds.closed.add(module.path);
  }
}

class GraphView {
  /**
   * @param elements `{viewport, busy, minimap}`.
   * @param folding what is open, shared with other views.
   * @param listeners `{onSelect, onFold}`, called with the segment selected, and with the one that is opened or closed.
   */
  constructor(data, elements, folding, { onSelect, onFold }, isSubnet = false) {
    this.data = data;
    this.folding = folding;
    this.onSelect = onSelect;
    this.onFold = onFold;
    this.viewport = elements.viewport;
    this.busy = elements.busy;
    this.minimap = new Minimap(elements.minimap, this.viewport);
    this.layouter = new Layouter();
    this.isSubnet = isSubnet;
    this.selected = null;
    this.current = null; // the segment that Tab reaches
    this.scale = 1;
    this.haystacks = data.segments.map((segment) => haystack(data, segment));
    this.found = [];
    this.nodes = new Map();
    this.turn = 0;
    this.listen();
  }

  /** Lays out and draws; `anchor` is a segment that keeps its place on the screen. */
  async show(anchor = null) {
    const turn = ++this.turn;
    this.viewport.ariaBusy = "true";
    await this.draw(turn, anchor);
    if (turn === this.turn) this.viewport.ariaBusy = "false";
  }

  async draw(turn, anchor) {
    const before = this.nodes.has(this.shown(anchor)) ? this.boxOf(this.shown(anchor)) : null;
    const { folds, unfolded } = this.folding;
    const plan = planDrawing(this.data, this.isSubnet, unfolded, folds);
    const key = `${this.isSubnet} ${this.folding.key}`;
    const wait = setTimeout(() => this.say(`Laying out ${plural(Object.keys(plan.nodes).length, "segment")} …`), 150);
    let scene;
    try {
      scene = await this.layouter.layout(key, plan);
    } catch (error) {
      this.say(`The graph could not be laid out (${error.message}). The tables hold everything.`);
      return;
    } finally {
      clearTimeout(wait);
    }
    const { clientWidth: width, clientHeight: height } = this.viewport;
    if (scene !== null && plan.isFolded) scene = inColumns(plan, scene, { width, height });
    const drawing = scene === null ? null : await this.build(plan, scene);
    if (turn !== this.turn) return; // overtaken by another
    this.say("");
    Object.assign(this, { plan, scene }, drawing);
    this.viewport.replaceChildren(this.svg);
    if (!this.nodes.has(this.current)) this.current = this.nodes.keys().next().value ?? null;
    this.nodes.get(this.current)?.setAttribute("tabindex", "0");
    this.zoom(this.scale);
    this.markSelected();
    this.minimap.show(plan, scene);
    this.search(byId("search").value);
    if (before && this.nodes.has(this.shown(anchor))) {
      const now = this.boxOf(this.shown(anchor));
      this.viewport.scrollBy(now.left - before.left, now.top - before.top);
      this.cull();
    } else this.fit();
    await this.uncovering;
  }

  say(text) {
    this.busy.textContent = text;
    this.busy.hidden = text === "";
  }

  /** Returns the segment whose box a segment is drawn in, undefined where it is not drawn. */
  shown(index) {
    return index === null ? undefined : this.plan?.shownAs.get(index);
  }

  /** Makes the elements of a drawing, not yet on the page. */
  async build(plan, scene) {
    const { width, height } = scene;
    const [, attributes, [, , ...wires], ...parts] = drawingTree(this.data, plan, scene);
    // No `g`: Chromium lays out what is in one even where it is not displayed.
    const bands = Array.from({ length: Math.ceil(height / BAND) }, () => svgElement(["svg", { class: "part away" }]));
    const drawing = svgElement(["g", attributes]);
    for (let i = 0; i < wires.length; i += SLICE) {
      drawing.append(svgElement(["svg", { class: "part edges away" }, ...wires.slice(i, i + SLICE)]));
      await pause();
    }
    const nodes = new Map();
    for (const [i, tree] of parts.entries()) {
      const index = tree[1]["data-segment"];
      const made = svgElement(tree);
      if (index === undefined) drawing.append(made);
      else {
        made.setAttribute("role", "button");
        made.setAttribute("tabindex", "-1");
        const name = plan.nodes[index].isModule ? `module ${plan.nodes[index].title}` : this.data.segments[index].name;
        // Read out is its name and why it is what it is, as its title says, and all that is written in it, with spaces.
        const written = [...made.querySelectorAll("title, text")];
        made.setAttribute("aria-label", written.map((each) => each.textContent).join(" "));
        for (const each of written) each.after(" ");
        made.dataset.name = name;
        nodes.set(index, made);
        bands[Math.floor(scene.places[index].y / BAND)].append(made);
      }
      if (i % SLICE === SLICE - 1) await pause();
    }
    drawing.append(...bands);
    const svg = svgElement(["svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Segment graph" }]);
    svg.append(drawing);
    return { svg, nodes, bands, edges: [...drawing.querySelectorAll(".edges")] };
  }

  // Scale and place.

  /** Changes the scale; a point of the viewport stays where it is. */
  zoom(scale, clientX, clientY) {
    const box = this.viewport.getBoundingClientRect();
    const [dx, dy] = [(clientX ?? box.left + box.width / 2) - box.left, (clientY ?? box.top + box.height / 2) - box.top];
    const next = Math.min(3, Math.max(0.02, scale));
    const ratio = next / this.scale;
    const [x, y] = [(this.viewport.scrollLeft + dx) * ratio - dx, (this.viewport.scrollTop + dy) * ratio - dy];
    this.scale = next;
    if (!this.svg) return;
    this.svg.setAttribute("width", this.scene.width * next);
    this.svg.setAttribute("height", this.scene.height * next);
    this.svg.classList.toggle("far", next < FAR);
    this.viewport.scrollTo(x, y);
    this.cull();
  }

  /** Takes bands of nodes that are far out of sight out of the rendering, which keeps thousands of them fluid. */
  cull() {
    const { top } = this.svg.getBoundingClientRect();
    const box = this.viewport.getBoundingClientRect();
    const isNear = this.bands.map((_, i) => {
      const [start, stop] = [top + i * BAND * this.scale, top + (i + 1.2) * BAND * this.scale];
      return stop >= box.top - box.height && start <= box.bottom + box.height;
    });
    this.minimap.move(this.scale);
    this.bands.forEach((band, i) => isNear[i] || band.classList.add("away"));
    this.covered = [...this.edges, ...this.bands.filter((_, i) => isNear[i])].filter((part) => part.classList.contains("away"));
    this.uncovering ??= this.uncover().then(() => { this.uncovering = null; });
  }

  /** Renders what has come near, one part in a frame. */
  async uncover() {
    for (let part; (part = this.covered.shift()); ) {
      part.classList.remove("away");
      await new Promise(requestAnimationFrame);
    }
  }

  /** Returns where a node stands on the screen, whether rendered or not. */
  boxOf(index) {
    const { left, top } = this.svg.getBoundingClientRect();
    const { x, y } = this.scene.places[index];
    const { width, height } = this.plan.nodes[index];
    return { left: left + x * this.scale, top: top + y * this.scale, width: width * this.scale, height: height * this.scale };
  }

  /** The graph is looked at: what needs its size on the screen is done now. */
  becomeVisible() {
    if (this.isFitted === false) this.refit();
  }

  /** Shows all of the graph; a folded one is arranged anew for the window. */
  refit() {
    return this.plan?.isFolded ? this.show() : this.fit();
  }

  fit() {
    const { clientWidth, clientHeight } = this.viewport;
    this.isFitted = clientWidth > 0 && this.scene !== undefined;
    if (!this.isFitted) return;
    const whole = Math.min(clientWidth / this.scene.width, clientHeight / this.scene.height);
    const wide = clientWidth / this.scene.width;
    // A tall graph is shown from its top, at a scale at which it can be read; a huge one as a whole, without texts.
    const readable = wide > READABLE ? Math.min(wide, 0.9) : whole < FAR ? whole : READABLE;
    this.zoom(Math.min(LARGEST, whole >= READABLE ? whole : readable));
    const { x } = this.scene.terminals[0] ?? { x: 0 };
    this.viewport.scrollTo((x + 30) * this.scale - clientWidth / 2, 0);
    this.cull();
  }

  /** Scrolls so that a segment is in sight, at a scale at which it can be read. */
  reveal(index) {
    if (!this.nodes.has(index)) return;
    if (this.scale < FAR) this.zoom(0.8);
    const box = this.viewport.getBoundingClientRect();
    const own = this.boxOf(index);
    const [x, y] = [own.left + own.width / 2, own.top + own.height / 2];
    const isInside = Math.abs(2 * x - box.left - box.right) + own.width <= box.width && Math.abs(2 * y - box.top - box.bottom) + own.height <= box.height;
    if (!isInside) this.viewport.scrollBy(x - box.left - box.width / 2, y - box.top - box.height / 2);
    this.cull();
  }

  // Selection and search.

  select(index, { reveal = true } = {}) {
    this.selected = index;
    this.markSelected();
    const shown = this.shown(index);
    if (shown !== undefined) {
      this.makeCurrent(shown);
      if (reveal) this.reveal(shown);
    }
    this.onSelect(index, this);
  }

  /** Marks what was selected in another view of the network. */
  follow(index) {
    this.selected = index;
    this.markSelected();
    const shown = this.shown(index);
    if (shown !== undefined) this.reveal(shown);
  }

  markSelected() {
    if (!this.svg) return;
    for (const marked of this.svg.querySelectorAll(".selected, .near")) marked.classList.remove("selected", "near");
    if (this.selected === null) return;
    const shown = this.shown(this.selected);
    this.nodes.get(shown)?.classList.add("selected");
    const ends = `[data-from="${shown}"], [data-to="${shown}"]`;
    for (const edge of this.svg.querySelectorAll(ends)) edge.classList.add("near");
  }

  makeCurrent(index) {
    this.nodes.get(this.current)?.setAttribute("tabindex", "-1");
    this.current = index;
    this.nodes.get(index)?.setAttribute("tabindex", "0");
  }

  search(text) {
    const sought = text.trim().toLowerCase();
    this.found = sought === "" ? [] : [...(this.plan?.shownAs.keys() ?? [])].filter((i) => i !== INPUT && this.haystacks[i].includes(sought));
    const found = new Set(this.found.map((i) => this.shown(i)));
    for (const [index, node] of this.nodes) node.classList.toggle("match", found.has(index));
    this.svg?.classList.toggle("searching", sought !== "");
    return sought === "" ? "" : this.found.length ? plural(this.found.length, "segment") : "nothing found";
  }

  goToNext(direction = 1) {
    if (this.found.length === 0) return "nothing found";
    const at = this.found.indexOf(this.selected);
    const next = at < 0 ? 0 : (at + direction + this.found.length) % this.found.length;
    this.select(this.found[next]);
    return `${next + 1} of ${plural(this.found.length, "segment")}`;
  }

  // Folding.

  canUnfold(index) {
    const node = this.plan?.nodes[index];
    return node !== undefined && !node.isModule && !node.isJoint;
  }

  /** Opens a closed module, or shows the operators of a segment, or hides them again. */
  toggle(index) {
    const { folds, modules, unfolded } = this.folding;
    const node = this.plan?.nodes[index];
    if (node?.isModule) openModule(folds, modules, node.paths[0]);
    else if (!this.canUnfold(index)) return;
    else if (!unfolded.delete(index)) unfolded.add(index);
    this.onFold(index);
  }

  /** Shows the other network; what is selected, or else in the middle of the window, stays where it is. */
  setSubnet(isSubnet) {
    this.isSubnet = isSubnet;
    return this.show(this.selected ?? this.central()).then(() => this.onSelect(this.selected, this));
  }

  /** Returns what is drawn nearest to the middle of the window and stays in the other network, null if nothing is. */
  central() {
    if (!this.scene || this.fitsIn()) return null;
    const { left, top, width, height } = this.viewport.getBoundingClientRect();
    const distance = (index) => {
      const box = this.boxOf(index);
      return Math.hypot(box.left + box.width / 2 - left - width / 2, box.top + box.height / 2 - top - height / 2);
    };
    const staying = [...this.nodes.keys()].filter((i) => this.data.segments[i].fate === "kept");
    return staying.length ? staying.reduce((a, b) => (distance(b) < distance(a) ? b : a)) : null;
  }

  fitsIn() {
    return this.scene.width * this.scale <= this.viewport.clientWidth && this.scene.height * this.scale <= this.viewport.clientHeight;
  }

  // Pointer and keys.

  listen() {
    const { viewport } = this;
    const indexOf = (target) => {
      const node = target.closest(".node");
      return node === null ? null : Number(node.dataset.segment);
    };
    let drag = null;
    viewport.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType !== "mouse") return;
      drag = { x: event.clientX, y: event.clientY, left: viewport.scrollLeft, top: viewport.scrollTop, hasMoved: false };
    });
    window.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.hasMoved && Math.hypot(dx, dy) < 4) return;
      drag.hasMoved = true;
      viewport.classList.add("dragging");
      viewport.scrollTo(drag.left - dx, drag.top - dy);
    });
    window.addEventListener("pointerup", () => {
      viewport.classList.remove("dragging");
      // The click that follows must still know.
      setTimeout(() => { drag = null; });
    });
    viewport.addEventListener("click", (event) => {
      if (drag?.hasMoved) return;
      this.select(indexOf(event.target), { reveal: false });
    });
    viewport.addEventListener("dblclick", (event) => {
      const index = indexOf(event.target);
      if (index !== null) this.toggle(index);
      else this.zoom(this.scale * 1.6, event.clientX, event.clientY);
    });
    viewport.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(this.scale * Math.exp(-event.deltaY / 250), event.clientX, event.clientY);
    }, { passive: false });
    viewport.addEventListener("scroll", () => this.svg && this.cull(), { passive: true });
    viewport.addEventListener("keydown", (event) => {
      const index = indexOf(event.target);
      if (index === null || event.ctrlKey || event.metaKey || event.altKey) return;
      const isHandled = event.key.startsWith("Arrow") ? this.walk(index, event.key) : this.press(index, event.key);
      if (isHandled) event.preventDefault();
    });
  }

  press(index, key) {
    if (key === "Enter" || key === " ") this.select(index);
    else if (key.toLowerCase() === "u") this.toggle(index);
    else return false;
    return true;
  }

  walk(index, key) {
    const next = this.neighbour(index, key);
    if (next === null) return true;
    this.makeCurrent(next);
    this.reveal(next);
    this.nodes.get(next).focus({ preventScroll: true });
    return true;
  }

  /** Up and down go along edges, left and right to the nearest segment at about the same height. */
  neighbour(index, key) {
    if (key === "ArrowDown") return this.plan.edges.find(({ from }) => from === index)?.to ?? null;
    if (key === "ArrowUp") return this.plan.edges.find(({ from, to }) => to === index && from !== INPUT)?.from ?? null;
    const middle = (i) => [this.scene.places[i].x + this.plan.nodes[i].width / 2, this.scene.places[i].y + this.plan.nodes[i].height / 2];
    const [x, y] = middle(index);
    const sign = key === "ArrowRight" ? 1 : -1;
    let [best, least] = [null, Infinity];
    for (const i of this.nodes.keys()) {
      const [dx, dy] = [sign * (middle(i)[0] - x), Math.abs(middle(i)[1] - y)];
      if (dx > 0 && dy < 60 && dx + 4 * dy < least) [best, least] = [i, dx + 4 * dy];
    }
    return best;
  }
}

/** Returns everything that a search may find a segment by. */
function haystack(data, segment) {
  const operators = segment.operators.map((i) => data.operators[i]);
  const paths = operators.flatMap((operator) => operator.parts.map((part) => data.parts[part].path));
  return [segment.name, segment.group >= 0 ? `group ${segment.group}` : "", ...operators.map((operator) => operator.name), ...paths].join("\n").toLowerCase();
}
