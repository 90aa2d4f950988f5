// The text as it is written: every token coloured by where it came from, rejected drafts struck through.

import { el, hide, put } from "./dom.js";
import { depths } from "./state.js";
import { change, millis, say, short } from "./words.js";

const TAIL = 60; // characters of the prompt that are shown at first
const SHOWN_DRAFTS = 12; // rejected drafts shown per pass; a tree may have many more
const NOTHING = { tokens: [], parents: [], text: [] };

// The end of a text on one line, without splitting a character that takes two units.
const tail = (text) => Array.from(text.slice(-2 * TAIL)).slice(-TAIL).join("").replace(/\s*\n\s*/g, " ↵ ");

function token(className, text, id, title) {
  return el("span", `t ${className}`, text || (text === undefined ? `⟨${id}⟩` : ""), { title });
}

export class Tokens {
  constructor(state) {
    this.state = state;
    this.node = el("section", "card strip");
    this.lanes = el("div", "lanes");
    this.node.append(this.buildPrompt(), this.lanes, this.buildLegend());
    this.clear();
  }

  buildPrompt() {
    this.prompt = el("div", "prompt");
    this.promptText = el("div", "text");
    this.promptButton = el("button", "link", "", { type: "button", "aria-expanded": "false" });
    this.promptButton.onclick = () => {
      this.open = !this.open;
      this.drawPrompt();
    };
    this.prompt.append(this.promptText, this.promptButton);
    return this.prompt;
  }

  buildLegend() {
    this.legend = el("div", "legend", undefined, { role: "group", "aria-label": say("legend") });
    this.items = {};
    for (const kind of ["own", "draft", "correction", "rejected", "exit"]) {
      const item = el("span", "", undefined, { title: say(`${kind}_info`) });
      item.append(el("span", kind === "exit" ? "t exit3" : `t ${kind}`, "abc", { "aria-hidden": "true" }), say(kind));
      this.items[kind] = item;
      this.legend.append(item);
    }
    const box = el("input", "", undefined, { type: "checkbox" });
    box.checked = true;
    box.onchange = () => this.node.classList.toggle("no-rejected", !box.checked);
    this.rejectedLabel = el("label");
    this.rejectedLabel.append(box, say("show_rejected"));
    this.legend.append(this.rejectedLabel);
    return this.legend;
  }

  clear() {
    this.lanes.replaceChildren();
    this.views = [];
    this.open = false;
    this.marked = null;
    this.drawPrompt();
  }

  draw() {
    const { lanes } = this.state;
    if (this.views.some((view, i) => view.lane !== lanes[i])) this.clear();
    if (this.views.length < lanes.length) this.addLanes();
    for (const view of this.views) view.draw();
    this.drawLegend();
    this.mark();
  }

  addLanes() {
    const { state } = this;
    for (const lane of state.lanes.slice(this.views.length)) {
      const view = new LaneView(lane);
      this.views.push(view);
      this.lanes.append(view.node);
    }
    for (const view of this.views) {
      const ghost = view.lane === state.ghost;
      view.name(say(state.pair ? (ghost ? "baseline" : "stack") : "single"), ghost);
    }
    this.drawPrompt();
  }

  drawPrompt() {
    const lane = this.state.lanes[0];
    const all = lane ? lane.prompt : "";
    const cut = all.length > TAIL;
    put(this.promptText, this.open ? all : (cut ? "… " : "") + tail(all));
    put(this.promptButton, say(this.open ? "hide_prompt" : "show_prompt", { n: lane ? lane.promptTokens : 0 }));
    this.promptButton.setAttribute("aria-expanded", String(this.open));
    this.promptButton.hidden = !cut && !all.includes("\n");
    this.prompt.classList.toggle("empty", !all);
  }

  drawLegend() {
    const { lanes, drafts, twice, blank } = this.state;
    for (const kind of ["draft", "correction", "rejected"]) hide(this.items[kind], !drafts);
    hide(this.rejectedLabel, !drafts);
    hide(this.items.exit, !lanes.some((l) => l.early));
    // The place of the lanes is kept before they come: nothing below may move when they do.
    this.lanes.classList.toggle("two", Boolean(twice) || lanes.length > 1);
    hide(this.node, blank);
    for (const { lane, notes } of this.views) {
      const changes = lane.changes.map((c) => {
        const [a, b] = change(c.before_bytes, c.after_bytes);
        const went = say("weights_went", { a, b });
        return `${c.technique}: ${went}`;
      });
      put(notes, lane === this.state.ghost ? say("baseline_info") : changes.join(" · "));
    }
  }

  // Frames the pass that the cursor has come to, unless the view follows the newest one.
  mark() {
    const { current, cursor, order, follow, lanes } = this.state;
    const wanted = current && (!follow || cursor < order.length);
    const mark = wanted ? this.views[lanes.indexOf(current.lane)].passes[current.number - 1] : null;
    if (this.marked === mark) return;
    this.marked?.classList.remove("now");
    mark?.classList.add("now");
    this.marked = mark;
  }
}

class LaneView {
  constructor(lane) {
    this.lane = lane;
    this.passes = []; // a node for every pass that was ever shown
    this.shown = 0;
    this.node = el("div", "lane");
    this.title = el("b");
    this.notes = el("span");
    const header = el("header");
    header.append(this.title);
    for (const name of lane.stack) header.append(el("span", "chip", name));
    if (lane.stack.length) header.append(el("span", "", say(lane.lossless ? "lossless" : "lossy")));
    header.append(this.notes);
    this.tokens = el("div", "tokens");
    this.box = el("div", "box", undefined, { role: "log", "aria-live": "off", tabindex: "0", "data-lane": lane.name });
    this.box.append(this.tokens);
    this.node.append(header, this.box);
  }

  name(title, ghost) {
    put(this.title, title);
    this.box.setAttribute("aria-label", title);
    this.node.classList.toggle("ghost", ghost);
  }

  // Passes leave the view by being hidden: a cursor that goes to and fro builds nothing twice.
  draw() {
    const { lane, passes } = this;
    for (; this.shown < lane.shown; this.shown++) {
      if (this.shown < passes.length) passes[this.shown].hidden = false;
      else this.append(lane.passes[this.shown]);
    }
    while (this.shown > lane.shown) passes[--this.shown].hidden = true;
  }

  // A block of its own after a line break, so that adding to a long text lays out its last lines only.
  append(pass) {
    const before = this.lane.passes[pass.number - 2];
    const broken = before && (before.text[before.text.length - 1] ?? "").endsWith("\n");
    if (broken || !this.tokens.lastChild) this.tokens.append(el("div"));
    const node = passNode(pass);
    this.passes.push(node);
    this.tokens.lastChild.append(node);
  }
}

function passNode(p) {
  const node = el("span", "pass");
  const { layers } = p.lane;
  const shade = p.early ? ` exit${Math.min(4, Math.max(1, Math.ceil(4 * (1 - p.layers / layers))))}` : "";
  const after = p.path.length ? p.path[p.path.length - 1] : -1;
  const { parents } = p.draft ?? NOTHING;
  const refused = parents.some((parent, i) => parent === after && !p.path.includes(i));
  const depth = depths(p);
  p.tokens.forEach((id, i) => {
    if (i === p.path.length) addRejected(node, p);
    const kind = i < p.path.length ? "draft" : refused ? "correction" : "own";
    let title = say("token_title", { id, what: say(kind), p: p.number, ms: millis(p.seconds) });
    if (p.early) title += ` · ${say("left_after", { n: short(depth[i]), m: layers })}`;
    node.append(token(kind + shade, p.text[i], id, title));
  });
  if (p.tokens.length <= p.path.length) addRejected(node, p);
  return node;
}

function addRejected(node, p) {
  const { tokens, text } = p.draft ?? NOTHING;
  const rejected = tokens.map((_, i) => i).filter((i) => !p.path.includes(i));
  for (const i of rejected.slice(0, SHOWN_DRAFTS)) {
    node.append(token("rejected", text[i], tokens[i], say("rejected_title", { id: tokens[i], p: p.number })));
  }
  if (rejected.length > SHOWN_DRAFTS) {
    node.append(el("span", "t rejected", ` ${say("more", { n: rejected.length - SHOWN_DRAFTS })}`));
  }
}
