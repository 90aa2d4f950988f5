// Elements. Everything that a model or a visitor wrote reaches the page by textContent or an attribute, not as markup.

// For whom motion is a nuisance, what moves is drawn twice a second.
export const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

export function el(tag, className, text, attributes) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  return filled(node, text, attributes);
}

export function svg(tag, attributes, text) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), text, attributes);
}

function filled(node, text, attributes) {
  if (text !== undefined) node.textContent = text;
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  return node;
}

// Writes only what has changed: a write is a layout, and what a visitor has selected is lost with it.
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function hide(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}
