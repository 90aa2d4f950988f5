// The live panel. Gradio runs this once per mount with `element`, `props`, `server` and `watch`; LABELS is put in front of it.
// Everything that a model or a visitor wrote reaches the page by textContent or an attribute, never as markup.

const root = element.querySelector(".llmlab-panel");
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const lang = /^zh\b/i.test(navigator.language) ? "zh-CN" : LABELS[props.fallback] ? props.fallback : "en";
const QUIET = 4000; // ms without a message before the panel asks for what it may have missed
const TAIL = 60; // characters of the prompt that are shown at first
const SHOWN_DRAFTS = 12; // rejected drafts shown per pass; a tree may have many more
const TREE_NODES = 64; // nodes of a tree that are drawn

function say(key, values) {
  const text = LABELS[lang][key] ?? LABELS.en[key] ?? key;
  return values ? text.replace(/\{(\w+)\}/g, (_, name) => String(values[name])) : text;
}

function el(tag, className, text, attributes) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const fixed = (x, digits) => x.toLocaleString(lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
const short = (x) => fixed(x, x >= 100 || Number.isInteger(x) ? 0 : x >= 10 ? 1 : 2);
const millis = (s) => short(s * 1000);
const bytes = (n) => (n >= 1e10 ? `${short(n / 1e9)} GB` : `${short(n / 1e6)} MB`);
const sum = (values) => values.reduce((a, b) => a + b, 0);

function median(values) {
  if (!values.length) return null;
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// State ------------------------------------------------------------------------------------------------------------

let S = blank("");
let updates = 0;

function blank(run) {
  return {
    run, seq: -1, state: "idle", note: "", quality: null, failed: "",
    events: [], lanes: [], order: [], cursor: 0, follow: true, differs: null,
    held: [], asking: false, merging: false, lost: false, heard: performance.now(), patience: QUIET,
  };
}

const over = () => S.state === "done" || S.state === "error" || S.state === "recorded";

class Lane {
  constructor(ev, number) {
    const [, t, name, about, stack, sizes, lossless, prompt, cut] = ev;
    Object.assign(this, { name, about, stack, lossless, prompt, cut, t0: t, number });
    [this.promptTokens, this.layers, this.weightBytes] = sizes;
    this.ids = [];
    this.passes = [];
    this.shown = 0;
    this.prefill = null;
    this.changes = [];
    this.draft = null;
    this.exits = [];
    this.end = t;
    this.reason = "";
  }

  take(ev) {
    this.end = ev[1];
    if (ev[0] === "W") this.changes.push(ev);
    else if (ev[0] === "P") this.prefill = { t: ev[1], done: ev[2], total: ev[3], kv: ev[4], rows: ev[5] };
    else if (ev[0] === "D") this.draft = ev;
    else if (ev[0] === "X") this.exits.push(ev);
    else if (ev[0] === "F") this.reason = ev[2];
    else if (ev[0] === "E") this.evict(ev);
    else if (ev[0] === "C") return this.commit(ev);
    return null;
  }

  evict([, , before, after]) {
    const total = (rows) => (Array.isArray(rows) ? sum(rows) : rows * this.layers);
    const last = this.passes[this.passes.length - 1];
    if (last) last.evicted += Math.max(0, total(before) - total(after));
    this.evicted = true;
  }

  commit([, t, tokens, path, text, seconds, layers, kv, rows]) {
    const last = this.passes[this.passes.length - 1];
    const drafted = this.draft ? this.draft[2].length : 0;
    const pass = {
      lane: this, t: t - this.t0, number: this.passes.length + 1, tokens, path, text, seconds, layers, kv, rows, drafted,
      draft: this.draft, exits: this.exits, evicted: 0, at: 0, node: null,
      sumTokens: (last ? last.sumTokens : 0) + tokens.length,
      sumDrafted: (last ? last.sumDrafted : 0) + drafted,
      sumAccepted: (last ? last.sumAccepted : 0) + path.length,
    };
    pass.tree = pass.draft !== null && this.draft[3].some((parent, i) => parent !== i - 1);
    this.trees ||= pass.tree;
    this.draft = null;
    this.exits = [];
    this.early ||= layers < this.layers - 0.01;
    this.ids.push(...tokens);
    this.passes.push(pass);
    return pass;
  }

  rowsOf(pass) {
    const rows = pass ? pass.rows : this.prefill ? this.prefill.rows : 0;
    return Array.isArray(rows) ? rows : Array(Math.min(this.layers, 512)).fill(rows);
  }

  get read() {
    return this.prefill ? this.prefill.t - this.t0 : 0;
  }
}

const lane = (name) => S.lanes.find((l) => l.name === name);
const pair = () => S.lanes.length > 1;
const ghost = () => (pair() ? lane("baseline") ?? S.lanes[0] : null);
const main = () => S.lanes.findLast((l) => l !== ghost());

// The lane the figures speak of: the one that runs, or the one that the cursor stands in.
function subject() {
  return !pair() || S.follow || main().shown || race ? main() : ghost();
}

function ingest(list) {
  for (const ev of list) {
    S.events.push(ev);
    if (ev[0] === "S") {
      const found = new Lane(ev, S.lanes.length);
      S.lanes.push(found);
      drawLane(found);
    } else if (ev[0] === "!") {
      S.failed = ev[2];
    } else if (S.lanes.length) {
      const pass = S.lanes[S.lanes.length - 1].take(ev);
      if (pass) S.order.push(pass);
    }
  }
  if (list.length) arrange();
}

// The order in which passes are replayed: as they happened, or both lanes at once by each one's own clock.
function arrange() {
  const mixed = pair() && race && over();
  const { cursor } = S;
  // Passes may change places, so what is shown has to be taken back before.
  if (mixed || S.mixed) move(0);
  S.mixed = mixed;
  S.order = S.lanes.flatMap((l) => l.passes);
  let before = 0;
  for (const l of S.lanes) {
    for (const p of l.passes) p.at = mixed ? p.t : before + p.t;
    before += l.end - l.t0;
  }
  if (mixed) S.order.sort((x, y) => x.at - y.at);
  move(cursor);
}

// Where two lanes' texts part; null while they are the same.
function compare() {
  if (!pair()) return null;
  const [a, b] = [ghost(), main()];
  const n = Math.min(a.ids.length, b.ids.length);
  if (S.differs === null || S.differs > n) {
    let i = S.compared ?? 0;
    while (i < n && a.ids[i] === b.ids[i]) i++;
    S.compared = i;
    S.differs = i < n ? i : null;
  }
  if (S.differs !== null) return { same: false, at: S.differs, final: true };
  const finished = a.reason && b.reason;
  if (finished && a.ids.length !== b.ids.length) return { same: false, at: n, final: true };
  return { same: true, final: Boolean(finished) };
}

// Messages ---------------------------------------------------------------------------------------------------------

const past = new Set();

function begin(run) {
  if (S.run && S.run !== run) past.add(S.run);
  S = blank(run);
  stopPlaying();
  clearLanes();
}

// A message's events: a string where Gradio carried it as the value, a list where a server function returned it.
const listOf = (m) => (typeof m.ev === "string" ? JSON.parse(m.ev) : m.ev);

function take(m) {
  if (!m || m.v !== 1) return;
  const events = listOf(m);
  const known = m.run === S.run;
  // Gradio sends the last message twice, and a stopped run's last one may come after the next run's first.
  if (known ? m.seq <= S.seq : past.has(m.run) && !m.reset) return;
  updates++;
  const missed = known ? m.seq > S.seq + 1 : m.seq > 0;
  if (!known || m.reset) begin(m.run);
  S.seq = m.seq;
  S.state = m.state;
  S.note = m.note;
  S.quality = m.quality ?? S.quality;
  S.heard = performance.now();
  S.patience = QUIET;
  S.lost = false;
  if (missed && !m.reset) ask();
  if (S.asking) S.held.push(events);
  else ingest(S.merging ? fresh(events) : events);
  if (over()) arrange();
  wake();
}

// A message was missed, or nothing has come for long: get the whole run again.
function ask() {
  if (S.asking) return;
  const mine = S;
  S.asking = true;
  Promise.resolve(server?.snapshot_of?.(S.run))
    .catch(() => null)
    .then((m) => {
      if (S !== mine) return;
      S.asking = false;
      if (m?.ev) restore(m);
      else S.lost = true;
      for (const list of S.held.splice(0)) ingest(fresh(list));
      wake();
    });
}

function restore(m) {
  const { cursor, follow } = S;
  clearLanes();
  Object.assign(S, { events: [], lanes: [], order: [], cursor: 0, follow: true, differs: null, compared: 0, failed: "" });
  S.merging = true;
  S.quality = m.quality ?? S.quality;
  // Whoever makes a snapshot need not know the messages' count, so its seq says nothing.
  if (!over()) Object.assign(S, { state: m.state, note: m.note });
  ingest(listOf(m));
  if (!follow) {
    S.follow = false;
    move(Math.min(cursor, S.order.length));
  }
}

// What a delta adds to events that a snapshot may already have brought: their overlap is looked for from the end.
function fresh(list) {
  if (!list.length) return list;
  const text = list.map((ev) => JSON.stringify(ev));
  const from = Math.max(0, S.events.length - 5000);
  for (let i = from; i < S.events.length; i++) {
    let n = 0;
    while (n < text.length && i + n < S.events.length && JSON.stringify(S.events[i + n]) === text[n]) n++;
    if (n === text.length) return [];
    if (n && i + n === S.events.length) return list.slice(n);
  }
  S.merging = false;
  return list;
}

function watchdog() {
  if (!element.isConnected) return;
  const silent = performance.now() - S.heard;
  if ((S.state === "running" || S.state === "queued") && !S.asking && silent > S.patience) {
    S.patience = Math.min(60000, S.patience * 2);
    S.heard = performance.now();
    ask();
  }
}

// The page's skeleton ------------------------------------------------------------------------------------------------

const ui = {};

function build() {
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", say("panel"));
  ui.status = el("div", "status");
  ui.dot = el("span", "dot");
  ui.told = el("span");
  ui.progress = el("progress");
  ui.about = el("span", "about");
  ui.status.append(ui.dot, ui.told, ui.progress, ui.about);
  ui.alert = el("div", "alert", undefined, { role: "alert" });
  ui.alertTitle = el("b");
  ui.alertText = el("span");
  ui.alert.append(ui.alertTitle, ui.alertText);
  ui.polite = el("div", "quiet", "", { "aria-live": "polite" });

  ui.figures = el("div", "figures");
  for (const key of ["speed", "ttft", "per_pass", "accepted", "tokens_pass", "memory", "same"]) {
    const cell = el("div", "figure", undefined, { "data-figure": key });
    const value = el("div", "value", "—");
    const extra = el("div", "extra");
    cell.append(el("div", "name", say(key), { title: say(key) }), value, extra);
    ui.figures.append(cell);
    ui[`figure_${key}`] = { cell, value, extra };
  }

  ui.strip = el("section", "card strip");
  ui.prompt = el("div", "prompt");
  ui.promptText = el("div", "text");
  ui.promptButton = el("button", "link", "", { type: "button", "aria-expanded": "false" });
  ui.promptButton.onclick = () => {
    ui.promptOpen = !ui.promptOpen;
    drawPrompt();
  };
  ui.prompt.append(ui.promptText, ui.promptButton);
  ui.lanes = el("div");
  ui.legend = el("div", "legend", undefined, { role: "group", "aria-label": say("legend") });
  ui.legends = {};
  for (const kind of ["own", "draft", "correction", "rejected", "exit"]) {
    const item = el("span", "", undefined, { title: say(`${kind}_info`) });
    item.append(el("span", kind === "exit" ? "t exit3" : `t ${kind}`, "abc", { "aria-hidden": "true" }), say(kind));
    ui.legends[kind] = item;
    ui.legend.append(item);
  }
  ui.rejectedLabel = el("label");
  ui.rejectedBox = el("input", "", undefined, { type: "checkbox" });
  ui.rejectedBox.checked = true;
  ui.rejectedBox.onchange = () => ui.strip.classList.toggle("no-rejected", !ui.rejectedBox.checked);
  ui.rejectedLabel.append(ui.rejectedBox, say("show_rejected"));
  ui.legend.append(ui.rejectedLabel);
  ui.strip.append(ui.prompt, ui.lanes, ui.legend);

  buildTransport();
  buildTree();
  buildCharts();
  root.append(ui.status, ui.alert, ui.figures, ui.strip, ui.transport, ui.tree, ui.lines, ui.charts, ui.absent, ui.polite);
}

function buildTransport() {
  ui.transport = el("div", "card transport", undefined, { role: "toolbar", "aria-label": say("replay") });
  const keys = el("div", "keys");
  const button = (key, glyph, act) => {
    ui[key] = el("button", key, glyph, { type: "button", "aria-label": say(key), title: say(key) });
    ui[key].onclick = act;
    keys.append(ui[key]);
  };
  button("first", "❘◀\uFE0E", () => step(0));
  button("back", "◀\uFE0E", () => step(S.cursor - 1));
  button("play", "", toggle);
  button("forward", "▶\uFE0E", () => step(S.cursor + 1));
  button("last", "▶\uFE0E❘", () => step(S.order.length));
  ui.scrub = el("input", "", undefined, { type: "range", min: 0, max: 0, step: 1, "aria-label": say("scrub") });
  ui.scrub.oninput = () => step(Number(ui.scrub.value));
  ui.position = el("span", "position");
  ui.rate = el("select", "", undefined, { "aria-label": say("rate"), title: say("rate") });
  for (const rate of ["0.5", "1", "2", "4", "max"]) {
    ui.rate.append(el("option", "", rate === "max" ? say("max") : `×${rate}`, { value: rate }));
  }
  ui.rate.value = "1";
  ui.race = el("button", "race", say("race"), { type: "button", "aria-pressed": "false", title: say("race_info") });
  ui.race.onclick = () => {
    race = !race;
    ui.race.setAttribute("aria-pressed", String(race));
    arrange();
    rewind();
    wake();
  };
  ui.live = el("button", "live", say("live"), { type: "button", title: say("live_info") });
  ui.live.onclick = () => {
    stopPlaying();
    S.follow = true;
    wake();
  };
  ui.detail = el("div", "detail");
  ui.detailText = el("span");
  ui.detail.append(ui.detailText, el("span", "tip", say("keys")));
  ui.transport.append(keys, ui.scrub, ui.position, ui.rate, ui.race, ui.live, ui.detail);
}

function buildTree() {
  ui.tree = el("section", "card tree", undefined, { "data-tree": "" });
  const header = el("header");
  ui.treeTitle = el("span");
  header.append(el("b", "", say("tree")), ui.treeTitle);
  ui.treeBox = el("div", "branches", undefined, { tabindex: "0", role: "img" });
  ui.treeMore = el("div", "hint");
  ui.tree.append(header, ui.treeBox, ui.treeMore);
}

// Trees --------------------------------------------------------------------------------------------------------------

const NODE = { wide: 92, high: 24, gap: 22, line: 30 };
const OWN = -2; // the node of what the model itself wrote after the accepted path; -1 is the root
let treeDrawn = 0;

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  if (text !== undefined) node.textContent = text;
  return node;
}

// A token's text in the few characters that fit a node.
function brief(text, id) {
  const shown = Array.from((text ?? "").replace(/\n/g, "↵").replace(/^ /, "")).slice(0, 11).join("");
  return shown.trim() ? shown : text ? "␣" : `⟨${id}⟩`;
}

// Where each node of a pass's draft goes: a column per level, a line per leaf, a parent beside its first child. A trace
// may hold any numbers as parents, so only what comes before a node counts as one.
function layout({ draft, path }, own) {
  const [, , , parents] = draft;
  const accepted = path.filter((i) => i >= 0 && i < parents.length);
  const kept = new Set(accepted);
  const up = (i) => (parents[i] >= 0 && parents[i] < i && kept.has(parents[i]) ? parents[i] : -1);
  for (let i = 0; i < parents.length && kept.size < TREE_NODES; i++) if (parents[i] < 0 || up(i) >= 0) kept.add(i);
  const children = new Map([[-1, []]]);
  for (const i of [...kept].sort((a, b) => a - b)) {
    children.set(i, []);
    children.get(up(i)).push(i);
  }
  const last = accepted[accepted.length - 1] ?? -1;
  if (own) children.set(OWN, []).get(last).unshift(OWN);
  const places = new Map();
  let lines = 0;
  const todo = [[-1, 0]];
  while (todo.length) {
    const [i, depth] = todo.pop();
    const below = children.get(i);
    places.set(i, { depth, line: lines });
    if (!below.length) lines++;
    for (const child of [...below].reverse()) todo.push([child, depth + 1]);
  }
  return { places, lines, up: (i) => (i === OWN ? last : up(i)), accepted, hidden: parents.length - kept.size };
}

function drawTree() {
  const some = S.lanes.some((l) => l.trees);
  if (ui.tree.hidden !== !some) ui.tree.hidden = !some;
  if (!some) return;
  // Live, a tree every half second is all that anybody can read.
  if (!over() && S.follow && performance.now() - treeDrawn < 500) return;
  let at = S.cursor - 1;
  while (at >= 0 && !S.order[at].tree) at--;
  const p = at < 0 ? null : S.order[at];
  if (ui.treeOf === p) return;
  ui.treeOf = p;
  treeDrawn = performance.now();
  ui.treeBox.replaceChildren();
  put(ui.treeTitle, p ? say("tree_title", { p: p.number, a: p.path.length, d: p.drafted }) : "");
  put(ui.treeMore, say("tree_info"));
  if (!p) return;
  const own = p.tokens.length > p.path.length;
  const { places, lines, up, accepted, hidden } = layout(p, own);
  if (hidden) put(ui.treeMore, `${say("tree_more", { n: hidden })} · ${say("tree_info")}`);
  const kindOf = (i) => (i === OWN ? "own" : accepted.includes(i) ? "accepted" : "rejected");
  const [, , ids, , texts] = p.draft;
  const deepest = Math.max(...[...places.values()].map((v) => v.depth));
  const x = (depth) => depth * (NODE.wide + NODE.gap) + 2;
  const y = (line) => line * NODE.line + 2;
  const [wide, high] = [x(deepest) + NODE.wide + 2, y(lines - 1) + NODE.high + 2];
  const picture = svg("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "aria-hidden": "true" });
  const edge = (from, to, kind) => {
    const [x1, y1] = [x(from.depth) + NODE.wide, y(from.line) + NODE.high / 2];
    const [x2, y2] = [x(to.depth), y(to.line) + NODE.high / 2];
    const middle = (x1 + x2) / 2;
    picture.append(svg("path", { class: `edge ${kind}`, d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` }));
  };
  const node = (place, kind, text, what) => {
    const group = svg("g", { class: `node ${kind}` });
    group.append(svg("title", {}, what));
    group.append(svg("rect", { x: x(place.depth), y: y(place.line), width: NODE.wide, height: NODE.high, rx: 5 }));
    const middle = { x: x(place.depth) + NODE.wide / 2, y: y(place.line) + NODE.high / 2 };
    group.append(svg("text", { ...middle, "dominant-baseline": "central", "text-anchor": "middle" }, text));
    picture.append(group);
  };
  for (const [i, place] of places) if (i !== -1) edge(places.get(up(i)), place, kindOf(i));
  const before = p.lane.passes[p.number - 2];
  const n = p.tokens.length - 1;
  for (const [i, place] of places) {
    const kind = i === -1 ? "root" : kindOf(i);
    if (kind === "root") node(place, kind, before ? brief(before.text[before.text.length - 1], "") : "…", "");
    else if (kind === "own") node(place, kind, brief(p.text[n], p.tokens[n]), say("own"));
    else if (kind === "accepted") node(place, kind, brief(texts[i], ids[i]), say("draft"));
    else node(place, kind, brief(texts[i], ids[i]), say("rejected_title", { id: ids[i], p: p.number }));
  }
  ui.treeBox.append(picture);
  const text = accepted.map((i) => texts[i]).join("") || say("tree_none");
  const levels = Math.max(...[...places].map(([i, place]) => (i === OWN ? 0 : place.depth)));
  ui.treeBox.setAttribute("aria-label", say("say_tree", { d: p.drafted, k: levels, text }));
}

// Tokens -------------------------------------------------------------------------------------------------------------

function clearLanes() {
  ui.lanes.replaceChildren();
  ui.promptOpen = false;
  ui.marked = null;
  ui.treeOf = undefined;
}

function drawLane(l) {
  const node = el("div", "lane");
  const header = el("header");
  l.title = el("b");
  l.notes = el("span");
  header.append(l.title);
  for (const name of l.stack) header.append(el("span", "chip", name));
  if (l.stack.length) header.append(el("span", "", say(l.lossless ? "lossless" : "lossy")));
  header.append(l.notes);
  l.tokens = el("div", "tokens");
  const box = el("div", "box", undefined, { role: "log", "aria-live": "off", tabindex: "0", "data-lane": l.name });
  box.append(l.tokens);
  node.append(header, box);
  ui.lanes.append(node);
  for (const other of S.lanes) {
    const key = pair() ? (other === ghost() ? "baseline" : "stack") : "single";
    put(other.title, say(key));
    other.tokens.parentNode.setAttribute("aria-label", say(key));
    other.tokens.closest(".lane").classList.toggle("ghost", other === ghost());
  }
  drawPrompt();
}

function drawPrompt() {
  const l = S.lanes[0];
  const all = l ? l.prompt : "";
  const cut = all.length > TAIL || (l && l.cut);
  put(ui.promptText, ui.promptOpen ? (l.cut ? "… " : "") + all : (cut ? "… " : "") + tail(all));
  put(ui.promptButton, say(ui.promptOpen ? "hide_prompt" : "show_prompt", { n: l ? l.promptTokens : 0 }));
  ui.promptButton.setAttribute("aria-expanded", String(Boolean(ui.promptOpen)));
  ui.promptButton.hidden = !cut && !all.includes("\n");
  ui.prompt.hidden = !all;
}

// The end of a text on one line, without splitting a character that takes two units.
const tail = (text) => Array.from(text.slice(-2 * TAIL)).slice(-TAIL).join("").replace(/\s*\n\s*/g, " ↵ ");

function span(className, text, id, title) {
  return el("span", `t ${className}`, text || (text === undefined ? `⟨${id}⟩` : ""), { title });
}

// Where a pass belongs: a block of its own after a line break, so that adding to a long text lays out its last lines only.
function paragraph(p) {
  const { tokens, passes } = p.lane;
  const before = passes[p.number - 2];
  const broken = before && (before.text[before.text.length - 1] ?? "").endsWith("\n");
  if (broken || !tokens.lastChild) tokens.append(el("div"));
  return tokens.lastChild;
}

function passNode(p) {
  const node = el("span", "pass");
  const { lane: l } = p;
  const early = p.layers < l.layers - 0.01;
  const shade = early ? ` exit${Math.min(4, Math.max(1, Math.ceil(4 * (1 - p.layers / l.layers))))}` : "";
  const after = p.path.length ? p.path[p.path.length - 1] : -1;
  const [, , guesses, parents, texts] = p.draft ?? [0, 0, [], [], []];
  const refused = parents.some((parent, i) => parent === after && !p.path.includes(i));
  p.tokens.forEach((id, i) => {
    const own = i >= p.path.length;
    if (own && i === p.path.length) drawRejected(node, p, guesses, texts);
    const kind = own ? (refused ? "correction" : "own") : "draft";
    let title = say("token_title", { id, what: say(kind), p: p.number, ms: millis(p.seconds) });
    if (early) {
      const layers = p.exits.length === p.tokens.length ? p.exits[i][2] : p.layers;
      title += ` · ${say("left_after", { n: short(layers), m: l.layers })}`;
    }
    node.append(span(kind + shade, p.text[i], id, title));
  });
  if (p.tokens.length <= p.path.length) drawRejected(node, p, guesses, texts);
  return node;
}

function drawRejected(node, p, guesses, texts) {
  const rejected = guesses.map((_, i) => i).filter((i) => !p.path.includes(i));
  for (const i of rejected.slice(0, SHOWN_DRAFTS)) {
    node.append(span("rejected", texts[i], guesses[i], say("rejected_title", { id: guesses[i], p: p.number })));
  }
  if (rejected.length > SHOWN_DRAFTS) {
    node.append(el("span", "t rejected", ` ${say("more", { n: rejected.length - SHOWN_DRAFTS })}`));
  }
}

// Cursor and replay ----------------------------------------------------------------------------------------------------

let race = false;
let player = null;
let head = 0;

function move(to) {
  for (; S.cursor < to; S.cursor++) {
    const p = S.order[S.cursor];
    if (p.node) p.node.hidden = false;
    else paragraph(p).append((p.node = passNode(p)));
    p.lane.shown++;
  }
  while (S.cursor > to) {
    const p = S.order[--S.cursor];
    p.node.hidden = true;
    p.lane.shown--;
  }
}

// The replay's clock at the cursor.
function rewind() {
  head = S.cursor ? S.order[S.cursor - 1].at : 0;
}

function step(to) {
  if (!S.order.length) return;
  stopPlaying();
  S.follow = over() && to >= S.order.length;
  move(Math.max(0, Math.min(S.order.length, to)));
  wake();
}

// While a run is live, the view that follows it counts as playing.
const playing = () => Boolean(player) || (S.follow && !over());

function toggle() {
  if (!playing()) return play();
  S.follow = false;
  stopPlaying();
}

function play() {
  if (!S.order.length) return;
  S.follow = S.cursor >= S.order.length && !over();
  if (S.follow) return wake();
  if (S.cursor >= S.order.length) move(0);
  rewind();
  let before = performance.now();
  const beat = (now) => {
    const rate = ui.rate.value;
    let to = S.cursor;
    if (rate === "max") to += Math.max(1, Math.ceil(S.order.length / 120));
    else head += (Math.max(0, now - before) / 1000) * Number(rate);
    before = now;
    while (rate !== "max" && to < S.order.length && S.order[to].at <= head) to++;
    move(Math.min(to, S.order.length));
    if (rate === "max") rewind();
    if (S.cursor >= S.order.length) {
      stopPlaying();
      S.follow = true;
    } else {
      player = next(beat);
    }
    draw();
  };
  player = next(beat);
  wake();
}

// Ask for the next beat; gives the function that takes the wish back.
function next(beat) {
  if (calm.matches) {
    const id = setTimeout(() => beat(performance.now()), 500);
    return () => clearTimeout(id);
  }
  const id = requestAnimationFrame(beat);
  return () => cancelAnimationFrame(id);
}

function stopPlaying() {
  player?.();
  player = null;
  wake();
}

function onKey(e) {
  if (!element.isConnected) return window.removeEventListener("keydown", onKey);
  const plain = !(e.ctrlKey || e.metaKey || e.altKey || e.shiftKey);
  if (e.defaultPrevented || !plain || !S.order.length || root.offsetParent === null) return;
  const at = document.activeElement;
  const busy = "input, textarea, select, button, summary, a[href], [contenteditable]:not([contenteditable='false'])";
  const roles = "slider spinbutton textbox combobox listbox option radio tab menuitem switch button".split(" ");
  const inside = at && at !== document.body && (at.closest(busy) || roles.includes(at.getAttribute("role")));
  // On the panel's own buttons the arrows still step; Space presses the button.
  const own = at && at.tagName === "BUTTON" && ui.transport.contains(at);
  if (inside && !(own && e.key !== " ")) return;
  const act = {
    " ": toggle,
    ArrowLeft: () => step(S.cursor - 1),
    ArrowRight: () => step(S.cursor + 1),
    Home: () => step(0),
    End: () => step(S.order.length),
  }[e.key];
  if (!act) return;
  e.preventDefault();
  act();
}

// Drawing ----------------------------------------------------------------------------------------------------------------

let pending = false;
let drawn = 0;

function wake() {
  if (pending) return;
  pending = true;
  const wait = calm.matches ? Math.max(0, 500 - (performance.now() - drawn)) : 0;
  if (wait) setTimeout(() => requestAnimationFrame(frame), wait);
  else requestAnimationFrame(frame);
}

function frame() {
  pending = false;
  drawn = performance.now();
  draw();
}

function draw() {
  if (S.follow && !player) move(S.order.length);
  drawStatus();
  drawFigures();
  drawLegend();
  drawTransport();
  drawTree();
  drawCharts();
  const shown = (name) => {
    const l = lane(name);
    return l && l.shown ? l.passes[l.shown - 1].sumTokens : 0;
  };
  const data = {
    state: S.state, seq: S.seq, cursor: S.cursor, passes: S.order.length, updates,
    tokensBaseline: shown("baseline"), tokensStack: shown("stack"),
  };
  for (const key in data) {
    const value = String(data[key]);
    if (root.dataset[key] !== value) root.dataset[key] = value;
  }
  window.__llmlab = { events: S.events, state: { run: S.run, note: S.note, lost: S.lost, ...data } };
}

function drawStatus() {
  const last = S.lanes[S.lanes.length - 1];
  const failed = S.failed || (S.state === "error" ? S.note : "");
  let text = say(S.state);
  let progress;
  const parts = S.note.split("|");
  if (S.lost) text = say("lost");
  else if (S.state === "queued" && S.note.startsWith("waiting:")) {
    const n = Number(S.note.slice(8));
    if (n > 0) text = n === 1 ? say("waiting_1") : say("waiting", { n });
  } else if (S.state === "running" && parts.length === 3) {
    const [what, done, total] = [parts[0], Number(parts[1]), Number(parts[2])];
    const unit = (n) => fixed(total > 2 ** 20 ? n / 1e6 : n, 0);
    text = what + (total > 0 ? ` · ${unit(done)} / ${unit(total)}${total > 2 ** 20 ? " MB" : ""}` : " …");
    progress = [done, total];
  } else if (S.state === "running" && !last) {
    text = say("preparing");
  } else if (S.state === "running" && !last.passes.length) {
    text = say("prefill");
    if (last.prefill) progress = [last.prefill.done, last.prefill.total];
  } else if (S.state === "done") {
    if (S.note === "stopped" || last?.reason === "stopped") text = say("stopped");
    else if (last && LABELS.en[last.reason]) text = say(last.reason);
  } else if (S.state === "recorded" && S.note) text = `${say("recorded")}: ${S.note}`;
  put(ui.told, text);
  ui.status.className = `status ${S.state}`;
  ui.progress.hidden = !(progress?.[1] > 0);
  if (!ui.progress.hidden) {
    ui.progress.setAttribute("aria-label", text);
    ui.progress.max = progress[1];
    ui.progress.value = Math.min(progress[0], progress[1]);
  }
  put(ui.about, last ? last.about.filter(Boolean).join(" · ") : "");
  if (ui.alert.hidden !== !failed) ui.alert.hidden = !failed;
  put(ui.alertTitle, failed ? say("error") : "");
  put(ui.alertText, failed);
}

// What a lane's first `shown` passes amount to.
function totals(l) {
  const p = l && l.shown ? l.passes[l.shown - 1] : null;
  if (!p) return { pass: null, speed: null };
  const decode = p.t - l.read;
  return {
    pass: p,
    speed: decode > 0 ? p.sumTokens / decode : null,
    ttft: l.passes[0].t,
    median: median(l.passes.slice(0, l.shown).map((q) => q.seconds)),
    perPass: p.sumTokens / p.number,
    accepted: p.sumDrafted ? p.sumAccepted / p.sumDrafted : null,
  };
}

function figure(key, value, unit, extra, mood) {
  const { cell, value: node, extra: below } = ui[`figure_${key}`];
  const text = `${value}|${unit}`;
  if (node.dataset.text !== text) {
    node.dataset.text = text;
    node.textContent = value;
    if (unit) node.append(el("small", "", unit));
  }
  put(below, extra || "");
  below.title = extra || "";
  const name = mood ? `figure ${mood}` : "figure";
  if (cell.className !== name) cell.className = name;
}

const moods = (ratio) => (ratio > 1.02 ? "good" : ratio < 0.98 ? "bad" : "");

function drawFigures() {
  const l = subject();
  const base = ghost() && l !== ghost() ? totals(ghost()) : null;
  const own = totals(l);
  const ratio = (a, b) => (a && b ? say("times", { x: fixed(a / b, 2) }) : "");
  figure("speed", own.speed ? short(own.speed) : "—", own.speed ? say("tokens_s") : "",
    ratio(own.speed, base?.speed), base?.speed && own.speed ? moods(own.speed / base.speed) : "");
  const ms = (s) => (s || s === 0 ? [millis(s), "ms"] : ["—", ""]);
  figure("ttft", ...ms(own.ttft), ratio(own.ttft, base?.ttft));
  figure("per_pass", ...ms(own.median), ratio(own.median, base?.median) || (own.pass ? say("median") : ""));
  figure("accepted", own.accepted === undefined || own.accepted === null ? "—" : fixed(100 * own.accepted, 0),
    own.accepted === undefined || own.accepted === null ? "" : "%",
    !own.pass ? "" : own.pass.sumDrafted
      ? say("of_drafted", { a: own.pass.sumAccepted, d: own.pass.sumDrafted }) : say("no_drafts"));
  figure("tokens_pass", own.pass ? fixed(own.perPass, 2) : "—", "",
    own.pass ? say("in_passes", { t: own.pass.sumTokens, p: own.pass.number }) : "");
  const kv = own.pass ? own.pass.kv : l?.prefill ? l.prefill.kv : 0;
  const [size, unit] = l ? bytes(l.weightBytes + kv).split(" ") : ["—", ""];
  figure("memory", size, unit, l ? say("weights_kv", { w: bytes(l.weightBytes), k: bytes(kv) }) : "");
  drawSame();
  speak(own);
}

function drawSame() {
  const q = S.quality;
  const c = q && typeof q.identical === "boolean" ? { same: q.identical, at: q.first_difference, final: true } : compare();
  const alone = !pair() && S.lanes.length && over();
  if (!c || (pair() && !main().ids.length)) return figure("same", "—", "", alone ? say("needs_baseline") : "");
  if (c.same) return figure("same", say("yes"), "", c.final ? "" : say("so_far"), "good");
  figure("same", say("no"), "", Number.isInteger(c.at) ? say("same_for", { n: c.at }) : "", "bad");
}

let spoken = 0;
function speak(own) {
  if (!own.pass || !own.speed || (performance.now() - spoken < 3000 && !(over() && ui.spokenState !== S.state))) return;
  spoken = performance.now();
  ui.spokenState = S.state;
  const parts = [say("say", { t: own.pass.sumTokens, s: short(own.speed) })];
  if (own.accepted !== null) parts.push(say("say_accepted", { a: fixed(100 * own.accepted, 0) }));
  put(ui.polite, parts.join(lang === "en" ? ", " : "，"));
}

function drawLegend() {
  const drafts = S.lanes.some((l) => l.passes.length && l.passes[l.passes.length - 1].sumDrafted);
  const exits = S.lanes.some((l) => l.early);
  ui.legend.hidden = !S.lanes.length;
  for (const kind of ["draft", "correction", "rejected"]) ui.legends[kind].hidden = !drafts;
  ui.rejectedLabel.hidden = !drafts;
  ui.legends.exit.hidden = !exits;
  ui.strip.hidden = !S.lanes.length;
  for (const l of S.lanes) {
    const changes = l.changes.map((c) => `${c[2]}: ${say("weights_went", { a: bytes(c[3]), b: bytes(c[4]) })}`);
    put(l.notes, l === ghost() ? say("baseline_info") : changes.join(" · "));
  }
}

function drawTransport() {
  const n = S.order.length;
  ui.transport.hidden = !n;
  if (!n) return;
  const p = S.cursor ? S.order[S.cursor - 1] : null;
  ui.scrub.max = n;
  ui.scrub.value = S.cursor;
  const position = say("position", { p: S.cursor, n, s: fixed(p ? p.t : 0, 2) });
  ui.scrub.setAttribute("aria-valuetext", position);
  put(ui.position, position);
  put(ui.play, playing() ? `❚❚ ${say("pause")}` : `▶\uFE0E ${say("play")}`);
  ui.play.setAttribute("aria-label", say(playing() ? "pause" : "play"));
  ui.first.disabled = ui.back.disabled = S.cursor === 0;
  ui.forward.disabled = ui.last.disabled = S.cursor >= n;
  ui.live.hidden = over() || S.follow;
  ui.race.hidden = !pair() || !over();
  put(ui.detailText, p ? detail(p) : "");
  const mark = p && (!S.follow || S.cursor < n) ? p.node : null;
  if (ui.marked !== mark) {
    ui.marked?.classList.remove("now");
    mark?.classList.add("now");
    ui.marked = mark;
  }
}

function detail(p) {
  const values = { p: p.number, ms: millis(p.seconds), d: p.drafted, a: p.path.length, o: p.tokens.length - p.path.length };
  const parts = [say(p.drafted ? "detail_draft" : "detail_plain", values)];
  if (p.layers < p.lane.layers - 0.01) parts.push(say("detail_layers", { n: short(p.layers), m: p.lane.layers }));
  if (p.evicted) parts.push(say("detail_evicted", { n: p.evicted }));
  return (pair() ? `${say(p.lane === ghost() ? "baseline" : "stack")} · ` : "") + parts.join(" · ");
}

// Charts -----------------------------------------------------------------------------------------------------------------

const HEIGHT = 150;
const ROOM = { left: 40, right: 10, top: 20, bottom: 28 };
const charts = {};
let colours = {};

function buildCharts() {
  ui.charts = el("div", "charts");
  for (const key of ["tokens", "ms", "memory", "drafts", "rows", "layers", "exits"]) {
    const card = el("figure", "card chart", undefined, { "data-chart": key });
    card.style.margin = "0";
    const header = el("header");
    const readout = el("span");
    header.append(el("b", "", say(`chart_${key}`)), readout);
    const canvas = el("canvas", "", undefined, { role: "img" });
    card.append(header, canvas);
    ui.charts.append(card);
    const chart = (charts[key] = { key, card, canvas, readout, width: 0, probe: null, note: "" });
    canvas.onpointermove = (e) => {
      if (chart.probe) put(readout, chart.probe(e.offsetX));
    };
    canvas.onpointerleave = () => put(readout, chart.note);
    sizes.observe(canvas);
  }
  ui.lines = el("div", "lines", undefined, { "aria-hidden": "true" });
  ui.lineStack = el("span");
  ui.lineStack.append(el("i"), say("stack"));
  ui.lineGhost = el("span");
  ui.lineGhost.append(el("i", "ghost"), say("baseline"));
  ui.lines.append(ui.lineStack, ui.lineGhost);
  ui.absent = el("div", "lines");
}

const sizes = new ResizeObserver((entries) => {
  for (const entry of entries) {
    const chart = Object.values(charts).find((c) => c.canvas === entry.target);
    if (chart) chart.width = entry.contentRect.width;
  }
  wake();
});

function readColours() {
  const style = getComputedStyle(root);
  for (const name of ["ink", "dim", "paper", "line", "main", "ghost", "draft", "rejected", "correction", "weights"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const g = tile.getContext("2d");
  g.strokeStyle = colours.rejected;
  g.lineWidth = 1.6;
  for (const shift of [-6, 0, 6]) {
    g.beginPath();
    g.moveTo(shift, 6);
    g.lineTo(shift + 6, 0);
    g.stroke();
  }
  colours.hatch = tile;
  wake();
}

// Round steps between `low` and `high`, about `count` of them.
function ticks(low, high, count, whole) {
  const raw = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  let size = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw * 0.999);
  if (whole) size = Math.max(1, Math.round(size));
  const out = [];
  for (let v = Math.ceil(low / size - 1e-9) * size; v <= high + size * 1e-6 && out.length < 20; v += size) out.push(v || 0);
  return out;
}

const label = (v) =>
  Math.abs(v) >= 10000 ? `${short(v / 1000)}k` : (v || 0).toLocaleString(lang, { maximumSignificantDigits: 3 });

// Clears a chart and draws its axes. Gives its context and the functions from values to pixels and back.
function axes(chart, { x, y, unitX, unitY, log, whole, top = ROOM.top }) {
  const { canvas, width } = chart;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(HEIGHT * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(HEIGHT * ratio);
  }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, HEIGHT);
  g.font = "11px system-ui, sans-serif";
  const [left, right, bottom] = [ROOM.left, width - ROOM.right, HEIGHT - ROOM.bottom];
  const scale = log ? Math.log10 : (v) => v;
  const [y0, y1] = [scale(y[0]), scale(y[1])];
  const X = (v) => left + ((v - x[0]) / (x[1] - x[0] || 1)) * (right - left);
  const Y = (v) => bottom - ((scale(v) - y0) / (y1 - y0 || 1)) * (bottom - top);
  const back = (pixel) => x[0] + ((pixel - left) / (right - left || 1)) * (x[1] - x[0]);
  g.strokeStyle = colours.line;
  g.fillStyle = colours.dim;
  g.lineWidth = 1;
  g.textBaseline = "middle";
  g.textAlign = "right";
  const marks = log ? ticks(y0, y1, 3, true).map((v) => 10 ** v) : ticks(y[0], y[1], 3, whole);
  if (log && marks.length < 2) marks.splice(0, marks.length, y[0], y[1]);
  for (const v of marks) {
    const at = Math.round(Y(v)) + 0.5;
    g.beginPath();
    g.moveTo(left, at);
    g.lineTo(right, at);
    g.stroke();
    g.fillText(label(v), left - 5, at);
  }
  g.textAlign = "left";
  g.fillText(unitY + (log ? ` (${say("log")})` : ""), 2, 6);
  g.textBaseline = "top";
  g.textAlign = "right";
  g.fillText(unitX, right, HEIGHT - 12);
  for (const v of ticks(x[0], x[1], width > 260 ? 5 : 3, unitX !== say("x_s"))) {
    const at = X(v);
    g.textAlign = at > right - 12 ? "right" : "center";
    g.beginPath();
    g.moveTo(at, bottom);
    g.lineTo(at, bottom + 3);
    g.stroke();
    g.fillText(label(v), at, bottom + 4);
  }
  return { g, X, Y, back, left, right, top, bottom, width };
}

// At most the first, lowest, highest and last point of each pixel column: the same picture for a fraction of the strokes.
function thinned({ X, left, right }, points) {
  if (points.length < 2 * (right - left)) return points;
  const out = [];
  for (let i = 0; i < points.length; ) {
    const column = Math.floor(X(points[i][0]));
    let [low, high, j] = [i, i, i];
    for (; j < points.length && Math.floor(X(points[j][0])) === column; j++) {
      if (points[j][1] < points[low][1]) low = j;
      if (points[j][1] > points[high][1]) high = j;
    }
    out.push(...[...new Set([i, low, high, j - 1])].sort((a, b) => a - b).map((k) => points[k]));
    i = j;
  }
  return out;
}

function line(frame, all, colour, dashed, stepped) {
  if (!all.length) return;
  const { g, X, Y } = frame;
  const points = thinned(frame, all);
  g.save();
  g.strokeStyle = g.fillStyle = colour;
  g.lineWidth = dashed ? 1.6 : 2.2;
  g.lineJoin = "round";
  g.setLineDash(dashed ? [5, 4] : []);
  g.beginPath();
  points.forEach(([x, y], i) => {
    if (stepped && i) g.lineTo(X(x), Y(points[i - 1][1]));
    g.lineTo(X(x), Y(y));
  });
  g.stroke();
  const [x, y] = points[points.length - 1];
  g.beginPath();
  g.arc(X(x), Y(y), dashed ? 2.2 : 3, 0, 7);
  g.fill();
  g.restore();
}

// The lanes a chart draws, each with the passes shown so far and all that are known (these fix the axes).
function series() {
  const front = subject();
  const back = front === ghost() ? null : ghost();
  return [back, front].filter(Boolean).map((l) => ({
    lane: l, all: l.passes, passes: l.shown === l.passes.length ? l.passes : l.passes.slice(0, l.shown),
    colour: l === ghost() ? colours.ghost : colours.main, dashed: l === ghost(),
  }));
}

function most(list, value, floor) {
  let best = floor;
  for (const s of list) for (const p of s.all) if (value(p) > best) best = value(p);
  return best;
}

const nearest = (passes, test) => {
  let low = 0;
  let high = passes.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (test(passes[mid])) low = mid + 1;
    else high = mid;
  }
  return passes[Math.min(low, passes.length - 1)];
};

const DRAW = {
  tokens(chart, list) {
    const x1 = most(list, (p) => p.t, 0.05);
    const y1 = most(list, (p) => p.sumTokens, 4);
    const a = axes(chart, { x: [0, x1], y: [0, y1], unitX: say("x_s"), unitY: say("y_tokens"), whole: true });
    for (const s of list) {
      const points = s.passes.length ? [[s.lane.read, 0]] : [];
      for (const p of s.passes) points.push([p.t, p.sumTokens]);
      line(a, points, s.colour, s.dashed);
    }
    chart.probe = (pixel) => {
      const t = Math.max(0, a.back(pixel));
      const counts = list.map((s) => {
        let n = 0;
        for (const p of s.passes) if (p.t <= t) n = p.sumTokens;
        return n;
      });
      return `${fixed(t, 2)} s · ${counts.reverse().join(" / ")} ${say("y_tokens")}`;
    };
    return told(list, (s, p) => say("say_tokens", { a: p.sumTokens, s: fixed(p.t, 2) }));
  },

  ms(chart, list) {
    const ms = (p) => p.seconds * 1000;
    const high = most(list, ms, 0.1);
    const middle = median(list.flatMap((s) => s.all.map(ms))) || high;
    const log = high > 12 * middle;
    const low = log ? Math.max(0.01, Math.min(...list.flatMap((s) => s.all.map(ms)).filter((v) => v > 0))) : 0;
    const x1 = Math.max(2, most(list, (p) => p.number, 2));
    const a = axes(chart, { x: [1, x1], y: [low, high * 1.05], unitX: say("x_pass"), unitY: say("y_ms"), log });
    for (const s of list) line(a, s.passes.map((p) => [p.number, Math.max(low, ms(p))]), s.colour, s.dashed);
    chart.probe = (pixel) => at(list, a.back(pixel), (p) => `${short(ms(p))} ms`);
    return told(list, (s) => {
      const values = s.passes.map(ms);
      return say("say_ms", { a: short(median(values)), b: short(Math.min(...values)), c: short(Math.max(...values)) });
    });
  },

  drafts(chart, list) {
    const s = list[list.length - 1];
    const y1 = most([s], (p) => p.drafted, 1);
    const x1 = Math.max(8, s.all.length);
    const a = axes(chart, { x: [0.5, x1 + 0.5], y: [0, y1], unitX: say("x_pass"), unitY: say("y_drafts"), whole: true });
    // Bars thinner than two pixels would blur into each other: neighbours share one, as their mean.
    const group = Math.max(1, Math.ceil((2.5 * x1) / (a.right - a.left)));
    const wide = Math.max(1, (a.X(1 + group) - a.X(1)) * 0.78);
    const hatch = a.g.createPattern(colours.hatch, "repeat");
    for (let i = 0; i < s.passes.length; i += group) {
      const some = s.passes.slice(i, i + group);
      const good = sum(some.map((p) => p.path.length)) / some.length;
      const all = sum(some.map((p) => p.drafted)) / some.length;
      const x = a.X(i + (group + 1) / 2) - wide / 2;
      a.g.fillStyle = colours.draft;
      a.g.fillRect(x, a.Y(good), wide, a.bottom - a.Y(good));
      if (all <= good) continue;
      a.g.fillStyle = hatch;
      a.g.fillRect(x, a.Y(all), wide, a.Y(good) - a.Y(all));
      if (wide < 4) continue;
      a.g.strokeStyle = colours.rejected;
      a.g.strokeRect(x + 0.5, a.Y(all) + 0.5, wide - 1, a.Y(good) - a.Y(all) - 1);
    }
    chart.note = `■ ${say("accepted_short")}  ▨ ${say("rejected_short")}`;
    chart.probe = (pixel) => at([s], a.back(pixel), (p) => `${p.path.length} / ${p.drafted}`);
    return told([s], (_, p) => say("say_drafts", { a: p.sumAccepted, b: p.sumDrafted - p.sumAccepted }));
  },

  memory(chart, list) {
    const kv = (p) => p.kv / 1e6;
    const start = (s) => (s.lane.prefill ? s.lane.prefill.kv / 1e6 : 0);
    const top = ROOM.top + 10 + 13 * list.length;
    const x1 = Math.max(4, most(list, (p) => p.sumTokens, 4));
    const y1 = Math.max(0.001, ...list.map(start), most(list, kv, 0)) * 1.08;
    const a = axes(chart, { x: [0, x1], y: [0, y1], unitX: say("x_tokens"), unitY: "", top });
    const { g } = a;
    const whole = Math.max(...list.map((s) => s.lane.weightBytes / 1e6 + Math.max(start(s), most([s], kv, 0)))) || 1;
    // Weights dwarf the cache of a short run, so they are a bar to scale and the cache has the axis to itself.
    [...list].reverse().forEach((s, i) => {
      const p = s.passes[s.passes.length - 1];
      const [w, k] = [s.lane.weightBytes / 1e6, p ? kv(p) : start(s)];
      const wide = (v) => (v / whole) * (a.right - 4);
      const y = 2 + 13 * i;
      g.fillStyle = s.dashed ? colours.ghost : colours.weights;
      g.globalAlpha = s.dashed ? 0.55 : 1;
      g.fillRect(2, y, wide(w), 9);
      g.globalAlpha = 1;
      g.fillStyle = s.dashed ? colours.ghost : colours.main;
      g.fillRect(2 + wide(w) + 1, y, Math.max(2, wide(k)), 9);
    });
    g.fillStyle = colours.dim;
    g.textAlign = "left";
    g.textBaseline = "middle";
    g.fillText(say("y_kv"), 2, top - 10);
    for (const s of list) {
      const points = s.lane.prefill ? [[0, start(s)]] : [];
      for (const p of s.passes) points.push([p.sumTokens, kv(p)]);
      line(a, points, s.colour, s.dashed, true);
    }
    const front = list[list.length - 1];
    const last = front.passes[front.passes.length - 1];
    chart.note = say("weights_kv", { w: bytes(front.lane.weightBytes), k: bytes(last ? last.kv : start(front) * 1e6) });
    chart.probe = (pixel) => {
      const n = a.back(pixel);
      const found = list.map((s) => s.passes.length && nearest(s.passes, (p) => p.sumTokens < n)).filter(Boolean);
      return `${say("kv")} ${found.reverse().map((p) => bytes(p.kv)).join(" / ")}`;
    };
    return told(list, (s, p) => say("say_memory", { w: bytes(s.lane.weightBytes), k: bytes(p.kv) }));
  },

  rows(chart, list) {
    const rows = list.map((s) => s.lane.rowsOf(s.passes[s.passes.length - 1]));
    const peak = list.map((s) => Math.max(1, ...s.lane.rowsOf(s.all[s.all.length - 1])));
    const n = Math.max(1, ...rows.map((r) => r.length));
    const y1 = Math.max(...peak, ...rows.map((r) => Math.max(1, ...r)));
    const a = axes(chart, { x: [0.5, n + 0.5], y: [0, y1], unitX: say("x_layer"), unitY: say("y_rows"), whole: true });
    const wide = Math.max(1, ((a.right - a.left) / n) * 0.74);
    list.forEach((s, k) => {
      a.g.fillStyle = s.colour;
      a.g.strokeStyle = s.colour;
      rows[k].forEach((v, i) => {
        const x = a.X(i + 1) - wide / 2;
        if (s.dashed) {
          a.g.fillRect(x - wide * 0.17, a.Y(v) - 1, wide * 1.34, 2);
        } else {
          a.g.globalAlpha = 0.8;
          a.g.fillRect(x, a.Y(v), wide, a.bottom - a.Y(v));
          a.g.globalAlpha = 1;
        }
      });
    });
    chart.probe = (pixel) => {
      const i = Math.max(0, Math.min(n - 1, Math.round(a.back(pixel)) - 1));
      return `${say("x_layer")} ${i + 1}: ${[...rows].reverse().map((r) => r[i] ?? "—").join(" / ")}`;
    };
    return told(list, (s) => {
      const own = rows[list.indexOf(s)];
      return say("say_rows", { a: Math.min(...own), b: Math.max(...own), n: own.length });
    });
  },

  layers(chart, list) {
    const x1 = Math.max(2, most(list, (p) => p.number, 2));
    const y1 = Math.max(1, ...list.map((s) => s.lane.layers));
    const a = axes(chart, { x: [1, x1], y: [0, y1], unitX: say("x_pass"), unitY: say("y_layers"), whole: true });
    for (const s of list) line(a, s.passes.map((p) => [p.number, p.layers]), s.colour, s.dashed, true);
    chart.probe = (pixel) => at(list, a.back(pixel), (p) => `${short(p.layers)} / ${p.lane.layers}`);
    return told(list, (s) => {
      const mean = sum(s.passes.map((p) => p.layers)) / s.passes.length;
      return say("say_layers", { a: short(mean), b: s.lane.layers });
    });
  },
};

// How many layers each token of a pass went through.
const depths = (p) => p.tokens.map((_, i) => (p.exits.length === p.tokens.length ? p.exits[i][2] : p.layers));

DRAW.exits = (chart, list) => {
  const s = list.findLast((one) => one.lane.early) ?? list[list.length - 1];
  const { lane: l, passes } = s;
  const x1 = Math.max(8, most([s], (p) => p.sumTokens, 1));
  const unit = { unitX: say("x_tokens"), unitY: say("y_depth") };
  const a = axes(chart, { x: [0, x1], y: [0, l.layers], ...unit, whole: true });
  const wide = (a.right - a.left) / x1;
  const all = passes.flatMap(depths);
  a.g.fillStyle = colours.ghost;
  a.g.globalAlpha = 0.16;
  a.g.fillRect(a.left, a.Y(l.layers), wide * all.length, a.bottom - a.Y(l.layers));
  a.g.globalAlpha = 1;
  a.g.fillStyle = colours.main;
  all.forEach((depth, i) => {
    a.g.globalAlpha = depth < l.layers - 0.01 ? 1 : 0.35;
    a.g.fillRect(a.X(i), a.Y(depth), Math.max(1, wide - (wide > 3 ? 1 : 0)), a.bottom - a.Y(depth));
  });
  a.g.globalAlpha = 1;
  chart.probe = (pixel) => {
    if (!all.length) return "";
    const i = Math.max(0, Math.min(all.length - 1, Math.floor(a.back(pixel))));
    return say("probe_exits", { n: i + 1, a: short(all[i]), m: l.layers });
  };
  const early = all.filter((depth) => depth < l.layers - 0.01).length;
  return () => say("say_exits", { a: early, n: all.length, b: short(sum(all) / (all.length || 1)), m: l.layers });
};

// A function that says what a chart shows: the run's own, then the baseline's. Only called now and then.
const told = (list, words) => () => {
  const parts = [];
  for (const s of [...list].reverse()) {
    if (!s.passes.length) continue;
    const text = words(s, s.passes[s.passes.length - 1]);
    parts.push(s.dashed ? say("say_baseline", { x: text }) : text);
  }
  return parts.join("; ") || say("say_no");
};

// The values of the passes nearest to an x that counts passes: the run's own first.
function at(list, x, words) {
  const n = Math.max(1, Math.round(x));
  const found = list.map((s) => s.passes[Math.min(n, s.passes.length) - 1]).filter(Boolean);
  return found.length ? `${say("x_pass")} ${n}: ${found.reverse().map(words).join(" / ")}` : "";
}

// Which charts would say something about this run.
function telling() {
  const uneven = (l) => l.passes.length && Array.isArray(l.passes[l.passes.length - 1].rows);
  const depth = new Set(S.lanes.map((l) => l.layers));
  return {
    tokens: true,
    ms: true,
    memory: true,
    drafts: S.lanes.some((l) => l.passes.length && l.passes[l.passes.length - 1].sumDrafted),
    rows: S.lanes.some((l) => l.evicted || uneven(l)),
    layers: depth.size > 1,
    exits: S.lanes.some((l) => l.early),
  };
}

let chartsDrawn = 0;
let chartsTold = 0;
let chartsLater = 0;
function drawCharts() {
  // Curves of many passes move little with each new one and cost the more to draw.
  const wait = Math.max(80, S.order.length / 10) - (performance.now() - chartsDrawn);
  if (wait > 0) {
    chartsLater ||= setTimeout(() => {
      chartsLater = 0;
      drawCharts();
    }, wait);
    return;
  }
  chartsDrawn = performance.now();
  const list = S.lanes.length ? series() : [];
  const useful = telling();
  const some = S.lanes.some((l) => l.prefill || l.passes.length);
  ui.charts.hidden = !some;
  ui.lines.hidden = !some || !pair();
  // Layers per pass and depth per token say the same of a run in which nothing was left out.
  const said = useful.exits ? "layers" : "exits";
  const missing = Object.keys(useful).filter((key) => !useful[key] && key !== said);
  ui.absent.hidden = !some || !missing.length || !S.order.length;
  put(ui.absent, `${say("absent")} ${missing.map((key) => say(`absent_${key}`)).join(" · ")}`);
  if (!some) return;
  const talk = chartsDrawn - chartsTold > 1000 || (over() && !player);
  if (talk) chartsTold = chartsDrawn;
  for (const key in charts) {
    const chart = charts[key];
    if (chart.card.hidden !== !useful[key]) chart.card.hidden = !useful[key];
    if (!useful[key] || chart.width < 60) continue;
    const words = DRAW[key](chart, list);
    if (talk) chart.canvas.setAttribute("aria-label", `${say(`chart_${key}`)}: ${words()}`);
    if (!chart.canvas.matches(":hover")) put(chart.readout, chart.note);
  }
}

// Start ------------------------------------------------------------------------------------------------------------------

root.before(el("style", "", `.llmlab-panel { ${STYLE} }`));
element.closest(".html-container")?.style.setProperty("padding", "0"); // Gradio 6.31 pads in spite of padding=False
build();
readColours();
new MutationObserver(readColours).observe(document.body, { attributes: true, attributeFilter: ["class"] });
window.addEventListener("keydown", onKey);
setInterval(watchdog, 1000);
watch("value", () => take(props.value));
take(props.value);
wake();
