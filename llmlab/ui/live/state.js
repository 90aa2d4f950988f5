// What a run's events amount to: its lanes with their passes, the order in which these are replayed, and the cursor.
// A fold without a page; what is drawn is drawn from here.

import { deepest, overLayers, perLayer } from "./protocol.js";

// What each kind of event does to the lane that is running. Kinds that are not here, those of a newer lab, do nothing.
const FOLD = {
  WeightsChanged: (lane, e) => lane.changes.push(e),
  Prefilled: (lane, e) => lane.prefilled(e),
  Drafted: (lane, e) => lane.drafted(e),
  Exited: (lane, e) => lane.exits.push(e),
  Committed: (lane, e) => lane.commit(e),
  Evicted: (lane, e) => lane.evict(e),
  Finished: (lane, e) => lane.finish(e),
};

const VERDICTS = ["better", "worse", "trade", "none", "undecided"];

// One run of a model: the baseline, or the stack beside it.
class Lane {
  constructor(started) {
    const { t, lane, model, device, weights, stack, lossless, prompt } = started;
    Object.assign(this, { name: lane, about: [model, device, weights], stack, lossless, prompt, t0: t, end: t });
    this.promptTokens = started.prompt_tokens;
    this.layers = started.layers;
    this.weightBytes = started.weight_bytes;
    this.copiesBytes = started.copies_bytes ?? 0;
    this.partsBytes = started.auxiliary_bytes ?? 0;
    this.ids = [];
    this.passes = [];
    this.shown = 0; // passes up to the cursor
    this.prefill = null;
    this.prefillPeak = { bytes: 0, rows: 0, activations: 0, held: 0 };
    this.changes = []; // what transforms did to the weights
    this.draft = null; // what has been proposed since the last pass
    this.exits = [];
    this.evictedBefore = 0; // rows that were dropped before the first pass
    this.reason = "";
  }

  get last() {
    return this.passes[this.passes.length - 1];
  }

  // Seconds that the prompt took.
  get read() {
    return this.prefill ? this.prefill.t - this.t0 : 0;
  }

  take(event) {
    this.end = event.t;
    if (Object.hasOwn(FOLD, event.event)) FOLD[event.event](this, event);
  }

  prefilled({ t, done, total, kv_bytes: kv, kv_rows: rows, layer_rows, flops, activation_bytes }) {
    const activations = activation_bytes ?? 0;
    this.prefill = { t, done, total, kv, rows, activations, layerRows: layer_rows ?? 0, flops: flops ?? 0 };
    this.prefillPeak.activations = Math.max(this.prefillPeak.activations, activations);
    this.prefillPeak.held = Math.max(this.prefillPeak.held, kv + activations);
    this.prefillPeak.bytes = Math.max(this.prefillPeak.bytes, kv);
    this.prefillPeak.rows = Math.max(this.prefillPeak.rows, deepest(rows));
  }

  drafted({ tokens, parents, text }) {
    this.draft = { tokens, parents, text };
  }

  evict({ before, after }) {
    const dropped = overLayers(before, this.layers) - overLayers(after, this.layers);
    if (this.last) this.last.evicted += dropped;
    else this.evictedBefore += dropped;
    this.evicted = true;
  }

  commit(event) {
    const { t, tokens, path, text, seconds, layers_run: layers, kv_bytes: kv, kv_rows: rows } = event;
    // Traces of earlier versions did not count these.
    const { layer_rows: layerRows = 0, kv_only_rows: kvOnly = 0, drafter_rows: drafterRows = 0 } = event;
    const { flops = 0, activation_bytes: activations = 0 } = event;
    const { last, draft, exits } = this;
    const drafted = draft ? draft.tokens.length : 0;
    const tree = draft !== null && draft.parents.some((parent, i) => parent !== i - 1);
    this.passes.push({
      lane: this, number: this.passes.length + 1, t: t - this.t0, at: 0,
      tokens, path, text, seconds, layers, kv, rows, draft, drafted, tree, exits, evicted: 0,
      layerRows, kvOnly, drafterRows, flops, activations,
      early: layers < this.layers - 0.01,
      computed: layerRows / Math.max(1, tokens.length), // layer-rows per new token; 0 where they were not counted
      sumTokens: (last ? last.sumTokens : 0) + tokens.length,
      sumDrafted: (last ? last.sumDrafted : 0) + drafted,
      sumAccepted: (last ? last.sumAccepted : 0) + path.length,
    });
    this.trees ||= tree;
    this.early ||= this.last.early;
    this.uneven ||= this.early || (layerRows > 0 && Math.abs(this.last.computed - this.layers) > 0.01);
    this.draft = null;
    this.exits = [];
    this.ids.push(...tokens);
  }

  finish({ reason }) {
    this.reason = reason;
  }

  // Bytes by part after a pass, or after the prompt; the names are those of `labels.json` behind "m_".
  parts(pass) {
    const now = pass ?? this.prefill ?? { kv: 0, activations: 0 };
    const { weightBytes, copiesBytes: copies, partsBytes: parts } = this;
    return { weights: weightBytes - copies - parts, copies, parts, kv: now.kv, activations: now.activations };
  }

  // Rows of the cache per layer after a pass, or after the prompt.
  rowsOf(pass) {
    return perLayer(pass ? pass.rows : this.prefill ? this.prefill.rows : 0, this.layers);
  }
}

// How many layers each token of a pass went through.
export const depths = (p) => p.tokens.map((_, i) => (p.exits.length === p.tokens.length ? p.exits[i].layer : p.layers));

export class State {
  constructor() {
    this.race = false; // replay both lanes at once, each by its own clock
    this.epoch = 0;
    this.begin("");
  }

  // Another run: everything known is of the one before.
  begin(run) {
    Object.assign(this, { run, seq: -1, status: "idle", note: "", lost: false });
    this.epoch++;
    this.forget();
  }

  forget() {
    Object.assign(this, { events: [], lanes: [], order: [], cursor: 0, follow: true, mixed: false, failed: "" });
    Object.assign(this, { differs: null, compared: 0, verdict: null, pairs: null });
  }

  get over() {
    return ["done", "error", "recorded"].includes(this.status);
  }

  // Nothing has run, or what ran failed before it began.
  get blank() {
    return !this.lanes.length && (this.status === "idle" || this.over);
  }

  get pair() {
    return this.lanes.length > 1;
  }

  get ghost() {
    return this.pair ? this.lane("baseline") ?? this.lanes[0] : null;
  }

  get main() {
    return this.lanes.findLast((l) => l !== this.ghost);
  }

  // The lane the figures speak of: the one that runs, or the one that the cursor stands in.
  get subject() {
    return !this.pair || this.follow || this.main.shown || this.race ? this.main : this.ghost;
  }

  // The pass before the cursor.
  get current() {
    return this.cursor ? this.order[this.cursor - 1] : null;
  }

  get drafts() {
    return this.lanes.some((l) => l.last?.sumDrafted);
  }

  lane(name) {
    return this.lanes.find((l) => l.name === name);
  }

  ingest(list) {
    for (const event of list) {
      this.events.push(event);
      if (event.event === "Started") this.lanes.push(new Lane(event));
      else if (event.event === "Failed") this.failed = event.message;
      else if (event.event === "Compared") this.judge(event);
      else this.lanes[this.lanes.length - 1]?.take(event);
    }
    if (list.length) this.arrange();
  }

  // What Python weighed: speed, memory and quality together. Nothing here decides what is better.
  judge({ verdict, pairs }) {
    this.verdict = VERDICTS.includes(verdict?.verdict) ? verdict : null;
    this.pairs = pairs?.ratio ? pairs : null;
  }

  // The order in which passes are replayed: as they happened, or both lanes at once by each one's own clock.
  arrange() {
    const mixed = this.pair && this.race && this.over;
    const { cursor } = this;
    // Passes may change places, so what is shown has to be taken back before.
    if (mixed || this.mixed) this.move(0);
    this.mixed = mixed;
    this.order = this.lanes.flatMap((l) => l.passes);
    let before = 0;
    for (const l of this.lanes) {
      for (const p of l.passes) p.at = mixed ? p.t : before + p.t;
      before += l.end - l.t0;
    }
    if (mixed) this.order.sort((x, y) => x.at - y.at);
    this.move(cursor);
  }

  move(to) {
    const end = Math.max(0, Math.min(this.order.length, to));
    while (this.cursor < end) this.order[this.cursor++].lane.shown++;
    while (this.cursor > end) this.order[--this.cursor].lane.shown--;
  }

  // Where two lanes' texts part; null while there is nothing to compare.
  compare() {
    if (!this.pair) return null;
    const { ghost: a, main: b } = this;
    const n = Math.min(a.ids.length, b.ids.length);
    if (this.differs === null) {
      while (this.compared < n && a.ids[this.compared] === b.ids[this.compared]) this.compared++;
      if (this.compared < n) this.differs = this.compared;
    }
    if (this.differs !== null) return { same: false, at: this.differs, final: true };
    // Where one of them was stopped, its text is a beginning: shorter is no difference.
    const finished = [a, b].every((lane) => lane.reason && lane.reason !== "stopped");
    if (finished && a.ids.length !== b.ids.length) return { same: false, at: n, final: true };
    return { same: true, final: Boolean(finished) };
  }
}
