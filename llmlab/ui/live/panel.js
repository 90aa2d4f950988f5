// The live panel: a run as it happens, or as it was recorded. Messages (`feed`) are folded into a state, and a few
// times a second the parts of the page draw themselves from it.

import { Charts } from "./charts.js";
import { calm, el } from "./dom.js";
import { Feed } from "./feed.js";
import { Figures } from "./figures.js";
import { State } from "./state.js";
import { Status } from "./status.js";
import { Tokens } from "./tokens.js";
import { Transport } from "./transport.js";
import { Tree } from "./tree.js";
import { say, speak } from "./words.js";

const FIRST_ROW = 190; // pixels of a row of charts

// Called once per mount with what Gradio gives a component's script, its words by language, and its style sheet.
export function mount({ element, props, server, watch }, labels, style) {
  speak(labels, props.fallback);
  const root = element.querySelector(".llmlab-panel");
  root.before(el("style", "", `.llmlab-panel { ${style} }`));
  element.closest(".html-container")?.style.setProperty("padding", "0"); // Gradio 6.31 pads in spite of padding=False
  const panel = new Panel(root, server);
  panel.listen(element);
  watch("value", () => panel.feed.take(props.value));
  panel.feed.take(props.value);
  panel.wake();
}

class Panel {
  constructor(root, server) {
    this.root = root;
    this.pending = false;
    this.drawn = 0;
    this.revealed = ""; // the last run that was brought into view
    this.place = 0; // where the page was scrolled to then
    const wake = () => this.wake();
    const state = (this.state = new State());
    this.transport = new Transport(state, { wake, drawAll: () => this.draw() });
    this.feed = new Feed(state, server, { began: () => this.began(), changed: wake });
    this.status = new Status(state);
    this.figures = new Figures(state);
    this.tokens = new Tokens(state);
    this.tree = new Tree(state);
    this.charts = new Charts(state, { wake, playing: () => Boolean(this.transport.player) });
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", say("panel"));
    const { status, figures, tokens, transport, tree, charts } = this;
    this.frame = el("div", "frame");
    this.frame.append(charts.lines, charts.node, charts.absent);
    root.append(status.node, status.alert, figures.node, tokens.node, transport.node);
    root.append(this.frame, tree.node, figures.polite);
    charts.recolour(root);
  }

  // What must end when the panel leaves the page ends by itself at the next occasion: Gradio tells nobody.
  listen(element) {
    const { transport, feed, charts, root } = this;
    new MutationObserver(() => charts.recolour(root)).observe(document.body, { attributeFilter: ["class"] });
    const onKey = (event) => {
      if (element.isConnected) transport.onKey(event);
      else window.removeEventListener("keydown", onKey);
    };
    window.addEventListener("keydown", onKey);
    const timer = setInterval(() => {
      if (element.isConnected) feed.watch();
      else clearInterval(timer);
    }, 1000);
  }

  // Another run: its charts get the room that the last ones had, so that nothing moves while a model loads.
  began() {
    this.transport.stop();
    this.frame.style.minHeight = "";
    this.width = this.root.clientWidth;
    this.frame.style.minHeight = `${this.frame.offsetHeight}px`;
  }

  // When a run starts, the panel with its charts comes into view; whoever has scrolled by hand stays where they are.
  reveal() {
    const { run, over, status } = this.state;
    if (run === this.revealed || over || status === "idle") return;
    this.revealed = run;
    const [panel, charts] = [this.root, this.frame].map((node) => node.getBoundingClientRect());
    const seen = panel.top >= 0 && charts.top + FIRST_ROW <= window.innerHeight;
    if (seen || (window.scrollY && Math.abs(window.scrollY - this.place) > 40)) return;
    this.place = window.scrollY + panel.top - parseFloat(getComputedStyle(this.root).scrollMarginTop);
    window.scrollTo({ top: this.place, behavior: calm.matches ? "auto" : "smooth" });
  }

  // Draw with the next frame; once, however often it is asked for.
  wake() {
    if (this.pending) return;
    this.pending = true;
    const frame = () => {
      this.pending = false;
      this.drawn = performance.now();
      this.draw();
    };
    const wait = calm.matches ? Math.max(0, 500 - (performance.now() - this.drawn)) : 0;
    if (wait) setTimeout(() => requestAnimationFrame(frame), wait);
    else requestAnimationFrame(frame);
  }

  draw() {
    const { state, transport } = this;
    if (state.status === "recorded" || this.root.clientWidth !== this.width) this.frame.style.minHeight = "";
    this.reveal();
    if (state.follow && !transport.player) state.move(state.order.length);
    for (const part of [this.status, this.figures, this.tokens, transport, this.tree, this.charts]) part.draw();
    this.publish();
  }

  // What tests and scripts can wait for.
  publish() {
    const { state, feed, root } = this;
    const shown = (name) => {
      const lane = state.lane(name);
      return lane?.shown ? lane.passes[lane.shown - 1].sumTokens : 0;
    };
    const { status, seq, cursor, run, note, lost, events } = state;
    const data = {
      run, state: status, seq, cursor, passes: state.order.length, updates: feed.updates,
      tokensBaseline: shown("baseline"), tokensStack: shown("stack"),
    };
    for (const key in data) {
      const value = String(data[key]);
      if (root.dataset[key] !== value) root.dataset[key] = value;
    }
    window.__llmlab = { events, state: { note, lost, ...data } };
  }
}
