// Pictures and tables to take along, made by the page itself: it reaches no network.

/** Returns buttons that save a picture, the one that is shown when they are pressed. */
function downloads(name, pictureOf) {
  return element(
    "span",
    { class: "downloads" },
    element("button", { type: "button", click: () => save(`${fileName(name)}.svg`, new Blob([svgText(pictureOf())], { type: "image/svg+xml" })) }, "SVG"),
    element("button", { type: "button", click: async () => save(`${fileName(name)}.png`, await pngOf(pictureOf())) }, "PNG"),
  );
}

/** Returns a button that saves a table as it is shown. */
function tableDownload(name, headings, cells) {
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const write = () => [headings, ...cells()].map((row) => row.map((value) => quoted(String(value ?? ""))).join(",")).join("\n");
  return element("button", { type: "button", class: "download", click: () => save(`${fileName(name)}.csv`, new Blob([write(), "\n"], { type: "text/csv" })) }, "CSV");
}

function fileName(name) {
  return name.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "").slice(0, 60) || "jasgnas";
}

function save(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Returns a picture as a file that needs nothing of the page: its style in it, with the colours that are shown. */
function svgText(svg) {
  const copy = svg.cloneNode(true);
  const colours = getComputedStyle(document.documentElement);
  const style = document.createElementNS(SVG, "style");
  style.textContent = document.querySelector("style").textContent.replaceAll(/var\((--[\w-]+)(?:, [^()]*)?\)/g, (_, name) => colours.getPropertyValue(name) || "none");
  const ground = svgElement(["rect", { ...boxOfView(svg), fill: colours.getPropertyValue("--panel") }]);
  copy.prepend(style, ground);
  const { width, height } = svg.viewBox.baseVal;
  for (const [key, value] of Object.entries({ xmlns: SVG, width, height })) copy.setAttribute(key, value);
  return new XMLSerializer().serializeToString(copy);
}

function boxOfView(svg) {
  const { x, y, width, height } = svg.viewBox.baseVal;
  return { x, y, width, height };
}

const MOST_PIXELS = 8192; // on a side of a picture

async function pngOf(svg) {
  const { width, height } = svg.viewBox.baseVal;
  const scale = Math.min(2, MOST_PIXELS / Math.max(width, height));
  const image = new Image();
  // The policy of the page allows pictures of data alone.
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(svg))}`;
  await image.decode();
  const canvas = element("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
