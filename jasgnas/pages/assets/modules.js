// Large graphs folded by the modules of the network: a closed module is one box, which stands where its first segment would.
// Pure functions of data, as the drawing itself.
"use strict";

const MOST_BOXES = 60; // boxes that are read without being folded
const MOST_FOLDED = 40; // boxes of a graph that has been folded
const SCREEN = { width: 960, height: 560 }; // that graphs are folded for: what a window of 1280 × 800 has for one
const NO_FOLDS = { closed: new Set(), once: false };

const knownModules = new WeakMap();

/** Opens a module: those inside it are closed instead. */
function openModule(folds, modules, path) {
  if (!folds.closed.delete(path)) return;
  for (const module of modules.values()) if (module.parent === path) folds.closed.add(module.path);
}

/** Closes a module, and with it what is inside. */
function closeModule(folds, path) {
  for (const each of [...folds.closed]) if (each.startsWith(`${path}/`)) folds.closed.delete(each);
  folds.closed.add(path);
}

/**
 * Returns the modules that hold several segments, each with those inside it, outer ones first.
 *
 * A module that holds all that the one around it holds is not listed again.
 *
 * @return `Map(path -> {path, parent, segments})`
 */
function modulesOf(segments) {
  if (knownModules.has(segments)) return knownModules.get(segments);
  const found = new Map();
  segments.forEach(({ module }, index) => {
    const names = module === "" ? [] : module.split("/");
    names.forEach((_, depth) => {
      const path = names.slice(0, depth + 1).join("/");
      if (!found.has(path)) found.set(path, { path, segments: [] });
      found.get(path).segments.push(index);
    });
  });
  const sizes = new Map([["", segments.length]]);
  const modules = new Map();
  for (const path of [...found.keys()].sort((a, b) => a.split("/").length - b.split("/").length)) {
    const { segments: own } = found.get(path);
    const parent = parentOf(path, modules);
    if (own.length < 2 || own.length === sizes.get(parent)) continue;
    sizes.set(path, own.length);
    modules.set(path, { path, parent, segments: own });
  }
  knownModules.set(segments, modules);
  return modules;
}

/** Returns the path of the module that is listed around another, empty for the network. */
function parentOf(path, modules) {
  let parent = path;
  do parent = parent.slice(0, Math.max(0, parent.lastIndexOf("/")));
  while (parent !== "" && !modules.has(parent));
  return parent;
}

/** Returns the modules around a segment, the outermost first. */
function modulesAround(segment, modules) {
  const names = segment.module.split("/");
  return names.map((_, depth) => names.slice(0, depth + 1).join("/")).filter((path) => modules.has(path));
}

/**
 * Says which segments are drawn as one box.
 *
 * @param drawn the segments that are drawn, in order.
 * @param folds `closed`, paths of modules that are one box; `once`, whether equal ones that follow each other are one.
 * @return `Map(segment -> {paths, segments})` of the first segment of each box that stands for several.
 */
function foldedBoxes(data, drawn, { closed, once }) {
  if (closed.size === 0) return new Map();
  const modules = modulesOf(data.segments);
  const inside = new Map();
  for (const i of drawn) {
    const path = modulesAround(data.segments[i], modules).find((each) => closed.has(each));
    if (path !== undefined) inside.set(path, [...(inside.get(path) ?? []), i]);
  }
  const boxes = [];
  for (const [path, segments] of inside) {
    const [parent, looks] = [modules.get(path).parent, once ? lookOf(data, segments) : path];
    const last = boxes.at(-1);
    if (once && last && last.parent === parent && last.looks === looks) {
      last.paths.push(path);
      last.segments.push(...segments);
    } else boxes.push({ paths: [path], parent, looks, segments: [...segments] });
  }
  return new Map(boxes.filter(({ segments }) => segments.length > 1).map((box) => [box.segments[0], box]));
}

/** Returns a text that is the same for modules that compute alike and of which the same is left. */
function lookOf(data, segments) {
  return segments.map((i) => {
    const { operators, fate, params, subParams } = data.segments[i];
    return [...operators.map((each) => data.operators[each].name), fate, params, subParams].join(" ");
  }).join("\n");
}

/** Chooses which modules are closed so that the whole graph can be read at once: as many as fit are open. */
function foldsThatFit(data, subnet, once) {
  const none = { closed: new Set(), once };
  if (data.segments.length <= MOST_BOXES || planDrawing(data, subnet, [], none).boxes.length <= MOST_BOXES) return none;
  const modules = modulesOf(data.segments);
  const children = (path) => [...modules.values()].filter(({ parent }) => parent === path).map((module) => module.path);
  let closed = new Set(children(""));
  for (let level = [...closed]; level.length > 0; level = level.flatMap(children)) {
    // Siblings that look alike open together, or not at all.
    for (const parent of new Set(level.map((path) => modules.get(path).parent))) {
      const own = level.filter((path) => closed.has(path) && modules.get(path).parent === parent);
      const opened = own.filter((path) => children(path).length > 0);
      if (opened.length === 0) continue;
      const next = new Set([...closed].filter((path) => !opened.includes(path)).concat(opened.flatMap(children)));
      const plan = planDrawing(data, subnet, [], { closed: next, once });
      if (plan.boxes.length <= MOST_FOLDED && canBeRead(plan)) closed = next;
    }
  }
  return { closed, once };
}

/** Tells whether a drawing that is not laid out yet will be read at once; edges back to what came before count nowhere. */
function canBeRead({ boxes, edges }) {
  const order = new Map(boxes.map(({ id }, i) => [id, i]));
  const depth = new Map(boxes.map(({ id }) => [id, 1]));
  const sorted = edges.filter(({ tail, head }) => order.get(tail) < order.get(head)).sort((a, b) => order.get(a.tail) - order.get(b.tail));
  for (const { tail, head } of sorted) depth.set(head, Math.max(depth.get(head), depth.get(tail) + 1));
  const ranks = [];
  for (const box of boxes) (ranks[depth.get(box.id)] ??= []).push(box);
  let [bottom, width] = [0, 0];
  const rows = [[TERMINAL], ...ranks.slice(1), [TERMINAL]].map((own) => {
    const top = bottom + GAP.y;
    bottom = top + Math.max(...own.map((box) => box.height));
    width = Math.max(width, own.reduce((sum, box) => sum + box.width + GAP.x, GAP.x));
    return { top, bottom, boxes: own };
  });
  return columnsThatFit(rows, width, SCREEN) !== null;
}
