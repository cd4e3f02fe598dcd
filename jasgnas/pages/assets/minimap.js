// A small map of a drawing that does not fit into its window, with the part that is seen; a click goes there.

const MAP = { width: 150, height: 190 };

class Minimap {
  constructor(element, viewport) {
    this.element = element;
    this.viewport = viewport;
    const go = (event) => {
      if (event.type === "pointermove" && event.buttons === 0) return;
      const box = this.element.firstChild.getBoundingClientRect();
      const [x, y] = [((event.clientX - box.left) / box.width) * viewport.scrollWidth, ((event.clientY - box.top) / box.height) * viewport.scrollHeight];
      viewport.scrollTo(x - viewport.clientWidth / 2, y - viewport.clientHeight / 2);
    };
    element.addEventListener("pointerdown", go);
    element.addEventListener("pointermove", go);
  }

  /** Draws the boxes of a drawing; those that go in their colour. */
  show(plan, scene) {
    const ratio = Math.min(MAP.width / scene.width, MAP.height / scene.height);
    const path = (isGone) => Object.entries(scene.places).filter(([i]) => plan.nodes[i].isGone === isGone)
      .map(([i, { x, y }]) => `M${x},${y}h${plan.nodes[i].width}v${plan.nodes[i].height}h${-plan.nodes[i].width}z`).join("");
    this.scene = scene;
    this.ratio = ratio;
    // No part of the picture, and a layer of its own: with every step it is moved, and nothing is painted anew.
    this.frame = element("div", { class: "map-window" });
    const svg = svgElement(["svg", { viewBox: `0 0 ${scene.width} ${scene.height}`, width: scene.width * ratio, height: scene.height * ratio, "aria-hidden": "true" }, ["path", { class: "map-kept", d: path(false) }], ["path", { class: "map-gone", d: path(true) }]]);
    this.element.replaceChildren(svg, this.frame);
  }

  /** Follows what is seen. */
  move(scale) {
    if (!this.scene) return;
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = this.viewport;
    this.element.hidden = this.scene.width * scale <= clientWidth + 1 && this.scene.height * scale <= clientHeight + 1;
    if (this.element.hidden) return;
    const ratio = this.ratio / scale;
    const pixels = (value) => `${round(value * ratio)}px`;
    Object.assign(this.frame.style, {
      transform: `translate(${pixels(scrollLeft)}, ${pixels(scrollTop)})`,
      width: pixels(Math.min(clientWidth, this.scene.width * scale)),
      height: pixels(Math.min(clientHeight, this.scene.height * scale)),
    });
  }
}
