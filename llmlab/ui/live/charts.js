// The charts beside each other: which of them say something about this run, and how often they are drawn.

import { drafts, exits, rows } from "./bars.js";
import { readColours } from "./canvas.js";
import { layers, ms, tokens } from "./curves.js";
import { el, hide, put } from "./dom.js";
import { memory } from "./memory.js";
import { series } from "./series.js";
import { say } from "./words.js";

const DRAW = { tokens, ms, memory, drafts, rows, layers, exits };
const NARROWEST = 60; // pixels below which nothing could be read
const TELL = 1000; // ms between two descriptions in words

// Which charts would say something about this run.
function useful({ lanes, drafts }) {
  return {
    tokens: true,
    ms: true,
    memory: true,
    drafts,
    rows: lanes.some((l) => l.evicted || Array.isArray(l.last?.rows)),
    layers: lanes.some((l) => l.uneven) || new Set(lanes.map((l) => l.layers)).size > 1,
    exits: lanes.some((l) => l.early),
  };
}

export class Charts {
  constructor(state, { wake, playing }) {
    Object.assign(this, { state, wake, playing });
    this.charts = {};
    this.drawn = 0;
    this.told = 0;
    this.later = 0;
    this.sizes = new ResizeObserver((entries) => this.resize(entries));
    this.node = el("div", "charts");
    for (const key in DRAW) this.node.append(this.build(key));
    this.lines = el("div", "lines", undefined, { "aria-hidden": "true" });
    for (const [key, className] of [["stack", ""], ["baseline", "ghost"]]) {
      const item = el("span");
      item.append(el("i", className), say(key));
      this.lines.append(item);
    }
    this.absent = el("div", "lines");
  }

  build(key) {
    const card = el("figure", "card chart", undefined, { "data-chart": key });
    card.style.margin = "0";
    const header = el("header");
    const readout = el("span");
    header.append(el("b", "", say(`chart_${key}`)), readout);
    const canvas = el("canvas", "", undefined, { role: "img" });
    const legend = el("div", "parts");
    card.append(header, canvas, legend);
    const chart = (this.charts[key] = { card, canvas, readout, legend, width: 0, probe: null, note: "" });
    canvas.onpointermove = (e) => {
      if (chart.probe) put(readout, chart.probe(e.offsetX));
    };
    canvas.onpointerleave = () => put(readout, chart.note);
    this.sizes.observe(canvas);
    return card;
  }

  resize(entries) {
    for (const entry of entries) {
      const chart = Object.values(this.charts).find((c) => c.canvas === entry.target);
      if (chart) chart.width = entry.contentRect.width;
    }
    this.wake();
  }

  recolour(root) {
    readColours(root);
    this.wake();
  }

  draw() {
    const { state } = this;
    // Curves of many passes move little with each new one and cost the more to draw.
    const wait = Math.max(80, state.order.length / 10) - (performance.now() - this.drawn);
    if (wait > 0) {
      this.later ||= setTimeout(() => {
        this.later = 0;
        this.draw();
      }, wait);
      return;
    }
    this.drawn = performance.now();
    const some = state.lanes.some((l) => l.prefill || l.passes.length);
    const shown = useful(state);
    hide(this.node, !some);
    hide(this.lines, !some || !(state.pair || state.twice)); // the second run must push nothing down
    this.name(shown, some);
    if (some) this.drawEach(shown);
  }

  // Says which charts are left out, so that nobody looks for them.
  name(shown, some) {
    // Layers per token and depth per token say the same of a run in which nothing was left out.
    const covered = shown.exits ? "layers" : "exits";
    const missing = Object.keys(shown).filter((key) => !shown[key] && key !== covered);
    hide(this.absent, !some || !missing.length || !this.state.order.length);
    put(this.absent, `${say("absent")} ${missing.map((key) => say(`absent_${key}`)).join(" · ")}`);
  }

  drawEach(shown) {
    const list = series(this.state);
    const talk = this.drawn - this.told > TELL || (this.state.over && !this.playing());
    if (talk) this.told = this.drawn;
    for (const key in this.charts) {
      const chart = this.charts[key];
      hide(chart.card, !shown[key]);
      if (!shown[key] || chart.width < NARROWEST) continue;
      const words = DRAW[key](chart, list);
      if (talk) chart.canvas.setAttribute("aria-label", `${say(`chart_${key}`)}: ${words()}`);
      if (!chart.canvas.matches(":hover")) put(chart.readout, chart.note);
    }
  }
}
