// The worker: asks Graphviz, so that the page stays free. The engine's own script stands before this one.
"use strict";
const ready = Viz.instance();

onmessage = async ({ data: plan }) => {
  try {
    const graphviz = await ready;
    const answer = graphviz.renderString(toDot(plan), { format: "json0" });
    postMessage({ scene: placeDrawing(plan, JSON.parse(answer)) });
  } catch (error) {
    postMessage({ error: String(error) });
  }
};
