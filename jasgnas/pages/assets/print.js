// The graph on paper, where nobody can zoom: an overview, and sheets on which its texts can be read.

/** Makes the drawings of all sheets, and of an overview that tells where each of them lies if there are several. */
function paperDrawings(data, plan, scene) {
  const sheets = sheetsOf(plan, scene);
  const figures = sheets.map((sheet) => paperDrawing(`Sheet ${sheet.name}`, sheet, {}, drawingTree(data, plan, scene, sheet)));
  if (sheets.length === 1) return figures;
  const size = Math.max(scene.width, scene.height) / 80;
  const places = sheets.flatMap(({ name, x, y, width, height }) => [
    ["rect", { class: "place", x, y, width, height }],
    ["text", { class: "place-name", x: x + width / 2, y: y + height / 2 + size / 3, "font-size": size }, name],
  ]);
  const whole = { x: 0, y: 0, width: scene.width, height: scene.height };
  const overview = paperDrawing("Overview of the sheets that follow", whole, { class: "far" }, drawingTree(data, plan, scene), ["g", {}, ...places]);
  return [overview, ...figures];
}

function paperDrawing(caption, { x, y, width, height }, attributes, ...parts) {
  const svg = svgElement(["svg", { ...attributes, viewBox: `${x} ${y} ${width} ${height}`, width, height }, ...parts]);
  return element("figure", { class: "sheet" }, svg, element("figcaption", {}, caption));
}
