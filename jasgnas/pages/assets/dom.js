// Elements and numbers. Text enters the page by textContent alone.

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element of HTML; attributes that are functions listen, children are elements or text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Makes an element of SVG, and what is in it, from a tree `[tag, attributes, ...children]`. */
function svgElement([tag, attributes, ...children]) {
  const made = document.createElementNS(SVG, tag);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  for (const child of children) {
    if (typeof child === "string") made.textContent = child;
    else made.append(svgElement(child));
  }
  return made;
}

const byId = (id) => document.getElementById(id);

const exact = new Intl.NumberFormat("en");

/** Writes a number: counts in full, others in four digits. */
function figure(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (Number.isInteger(value)) return exact.format(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/** Writes a share in two significant digits; just below the whole, those of what is missing. */
function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const digits = (part) => (part < 1 ? Number((100 * part).toPrecision(2)) : Math.round(100 * part));
  const value = share > 0.99 && share < 1 ? 100 - digits(1 - share) : digits(share);
  return `${Number(value.toPrecision(12))} %`;
}

function plural(count, word) {
  return `${exact.format(count)} ${word}${count === 1 ? "" : "s"}`;
}
