// What jasgnas.draw calls in an embedded engine; Graphviz is ready as soon as the queue of promises has been worked off.
"use strict";
var graphviz = null;
Viz.instance().then((viz) => { graphviz = viz; });

function draw(columns, view) {
  const data = { ...columns, operators: rows(columns.operators), segments: rows(columns.segments) };
  const plan = planDrawing(data, view === "subnet" && data.hasRemoval, view === "operators" ? data.segments.keys() : []);
  const scene = placeDrawing(plan, JSON.parse(graphviz.renderString(toDot(plan), { format: "json0" })));
  return JSON.stringify([drawingTree(data, plan, scene), scene.width, scene.height]);
}
