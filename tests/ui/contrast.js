// Every visible piece of text whose contrast to what lies behind it is below `least` (WCAG 2.2, 1.4.3): [what, ratio].
(least) => {
  const parsed = (colour) => {
    const own = colour.match(/^color\(srgb ([^)]*)\)/);
    const n = (own ? own[1] : colour).match(/[\d.]+/g).map(Number);
    const [r, g, b] = own ? n.slice(0, 3).map((x) => x * 255) : n;
    return [r, g, b, n.length > 3 ? n[3] : 1];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const light = (c) => {
    const [r, g, b] = c.map((x) => ((x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const behind = (node) => {
    const layers = [];
    for (let e = node; e; e = e.parentElement) layers.push(parsed(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255, 1]);
  };
  const faint = (node) => {
    let all = 1;
    for (let e = node; e; e = e.parentElement) all *= Number(getComputedStyle(e).opacity);
    return all;
  };
  const shown = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && !node.closest(".quiet");
  const bad = new Map();
  const judge = (node, colour, text) => {
    const back = behind(node);
    const [r, g, b, a] = parsed(colour);
    const found = ratio(over([r, g, b, a * faint(node)], back), back);
    if (found >= least) return;
    const path = [node, node.parentElement, node.parentElement?.parentElement]
      .map((e) => e && `${e.tagName.toLowerCase()}${e.id ? "#" + e.id : ""}.${String(e.className?.baseVal ?? e.className).replace(/svelte-\w+/g, "").trim().replace(/\s+/g, ".")}`);
    bad.set(`${text.trim().slice(0, 30)} | ${path.join(" < ")}`, `${found.toFixed(2)} ${colour} on ${back.map(Math.round)}`);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || node.closest("script, style, noscript, option") || !shown(node)) continue;
    const box = node.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    const style = getComputedStyle(node);
    judge(node, node.closest("svg") ? style.fill : style.color, walk.currentNode.data);
  }
  for (const field of document.querySelectorAll("input:not([type=range], [type=checkbox], [type=radio]), textarea, select")) {
    if (!shown(field) || field.getBoundingClientRect().width < 2) continue;
    if (field.value) judge(field, getComputedStyle(field).color, field.value);
    else if (field.placeholder) judge(field, getComputedStyle(field, "::placeholder").color, field.placeholder);
  }
  return [...bad];
}
