/** Makes elements. What comes from the service is only ever text here: nothing is parsed as HTML. */

const SVG = "http://www.w3.org/2000/svg";

function furnished(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element. Attributes that are functions listen to the event of that name; children are nodes or text. */
export function element(tag, attributes = {}, ...children) {
  return furnished(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function drawn(tag, attributes = {}, ...children) {
  return furnished(document.createElementNS(SVG, tag), attributes, children);
}

/** The element of the page with that id. */
export function byId(id) {
  return document.getElementById(id);
}

let number = 0;

/** An id that nothing else on the page has. */
export function freshId(prefix) {
  number += 1;
  return `${prefix}-${number}`;
}

/** A table for wide content: it scrolls inside itself, also by keyboard. */
export function scrollable(label, table) {
  return element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, table);
}

/** Says something to screen readers. */
export function announce(text) {
  byId("announcements").textContent = text;
}
