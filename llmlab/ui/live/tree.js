// A pass's draft where it is a tree: which branches were proposed, which path was accepted, what the model added.

import { el, hide, put, svg } from "./dom.js";
import { say } from "./words.js";

const NODE = { wide: 92, high: 24, gap: 22, line: 30 };
const MOST = 64; // nodes that are drawn
const ROOT = -1; // the last token before the draft
const OWN = -2; // what the model itself wrote after the accepted path
const EVERY = 500; // ms between two trees of a run that goes on: more nobody can read

// A token's text in the few characters that fit a node.
function brief(text, id) {
  const shown = Array.from((text ?? "").replace(/\n/g, "↵").replace(/^ /, "")).slice(0, 11).join("");
  return shown.trim() ? shown : text ? "␣" : `⟨${id}⟩`;
}

// The nodes that are drawn, with their children: the accepted ones, then the first others. A trace may hold any numbers
// as parents, so only what comes before a node counts as one.
function branches({ draft: { parents }, path }, own) {
  const accepted = path.filter((i) => i >= 0 && i < parents.length);
  const kept = new Set(accepted);
  const up = (i) => (parents[i] >= 0 && parents[i] < i && kept.has(parents[i]) ? parents[i] : ROOT);
  for (let i = 0; i < parents.length && kept.size < MOST; i++) if (parents[i] < 0 || up(i) >= 0) kept.add(i);
  const children = new Map([[ROOT, []]]);
  for (const i of [...kept].sort((a, b) => a - b)) {
    children.set(i, []);
    children.get(up(i)).push(i);
  }
  const last = accepted[accepted.length - 1] ?? ROOT;
  if (own) children.set(OWN, []).get(last).unshift(OWN);
  return { children, accepted, up: (i) => (i === OWN ? last : up(i)), hidden: parents.length - kept.size };
}

// Where each node goes: a column per level, a line per leaf, a parent beside its first child.
function places(children) {
  const found = new Map();
  let line = 0;
  const todo = [[ROOT, 0]];
  while (todo.length) {
    const [i, depth] = todo.pop();
    const below = children.get(i);
    found.set(i, { depth, x: depth * (NODE.wide + NODE.gap) + 2, y: line * NODE.line + 2 });
    if (!below.length) line++;
    for (const child of [...below].reverse()) todo.push([child, depth + 1]);
  }
  return found;
}

function edge(from, to, kind) {
  const [x1, y1] = [from.x + NODE.wide, from.y + NODE.high / 2];
  const [x2, y2] = [to.x, to.y + NODE.high / 2];
  const middle = (x1 + x2) / 2;
  return svg("path", { class: `edge ${kind}`, d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` });
}

function node({ x, y }, kind, text, title) {
  const group = svg("g", { class: `node ${kind}` });
  const centred = { "dominant-baseline": "central", "text-anchor": "middle" };
  const middle = { x: x + NODE.wide / 2, y: y + NODE.high / 2, ...centred };
  group.append(svg("title", {}, title), svg("rect", { x, y, width: NODE.wide, height: NODE.high, rx: 5 }));
  group.append(svg("text", middle, text));
  return group;
}

// What stands in a node, and what it says when pointed at.
function caption(p, i, kind) {
  const { tokens, text } = p.draft;
  if (kind === "root") {
    const before = p.lane.passes[p.number - 2];
    return [before ? brief(before.text[before.text.length - 1], "") : "…", ""];
  }
  const n = p.tokens.length - 1;
  if (kind === "own") return [brief(p.text[n], p.tokens[n]), say("own")];
  const title = kind === "accepted" ? say("draft") : say("rejected_title", { id: tokens[i], p: p.number });
  return [brief(text[i], tokens[i]), title];
}

export class Tree {
  constructor(state) {
    this.state = state;
    this.drawn = 0;
    this.node = el("section", "card tree", undefined, { "data-tree": "" });
    this.title = el("span");
    const header = el("header");
    header.append(el("b", "", say("tree")), this.title);
    this.box = el("div", "branches", undefined, { tabindex: "0", role: "img" });
    this.more = el("div", "hint");
    this.node.append(header, this.box, this.more);
  }

  draw() {
    const { state } = this;
    const some = state.lanes.some((l) => l.trees);
    hide(this.node, !some);
    if (!some) return;
    if (!state.over && state.follow && performance.now() - this.drawn < EVERY) return;
    const pass = state.order.slice(0, state.cursor).findLast((p) => p.tree) ?? null;
    if (this.pass === pass) return;
    this.pass = pass;
    this.drawn = performance.now();
    this.box.replaceChildren();
    put(this.title, pass ? say("tree_title", { p: pass.number, a: pass.path.length, d: pass.drafted }) : "");
    put(this.more, say("tree_info"));
    if (pass) this.show(pass);
  }

  show(p) {
    const { children, accepted, up, hidden } = branches(p, p.tokens.length > p.path.length);
    if (hidden) put(this.more, `${say("tree_more", { n: hidden })} · ${say("tree_info")}`);
    const found = places(children);
    const all = [...found];
    const most = (key) => Math.max(...all.map(([, place]) => place[key]));
    const [wide, high] = [most("x") + NODE.wide + 2, most("y") + NODE.high + 2];
    const picture = svg("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "aria-hidden": "true" });
    const kindOf = (i) => (i === ROOT ? "root" : i === OWN ? "own" : accepted.includes(i) ? "accepted" : "rejected");
    for (const [i, place] of all) if (i !== ROOT) picture.append(edge(found.get(up(i)), place, kindOf(i)));
    for (const [i, place] of all) picture.append(node(place, kindOf(i), ...caption(p, i, kindOf(i))));
    this.box.append(picture);
    const text = accepted.map((i) => p.draft.text[i]).join("") || say("tree_none");
    const levels = Math.max(...all.map(([i, place]) => (i === OWN ? 0 : place.depth)));
    this.box.setAttribute("aria-label", say("say_tree", { d: p.drafted, k: levels, text }));
  }
}
