// Messages from the server, in order and each once: what came twice is left, what is missing is asked for.

import { VERSION, decode, overlap } from "./protocol.js";

const QUIET = 4000; // ms without a message before the panel asks for what it may have missed
const LATE = 10000; // ms after which an answer to such a question is not waited for
const LONGEST = 60000; // ms that it waits between two such questions at most

export class Feed {
  // `server` holds Gradio's server functions; `began` is called for every new run, `changed` after every change.
  constructor(state, server, { began, changed }) {
    Object.assign(this, { state, server, began, changed });
    this.past = new Set();
    this.updates = 0;
    this.reset();
  }

  reset() {
    this.held = []; // lists of events that came while a snapshot was asked for
    this.asking = false;
    this.merging = false; // whether what comes next may already be in the snapshot
    this.hear();
  }

  hear() {
    this.heard = performance.now();
    this.patience = QUIET;
  }

  begin(run) {
    const { state } = this;
    if (state.run && state.run !== run) this.past.add(state.run);
    state.begin(run);
    this.reset();
    this.began();
  }

  take(message) {
    if (message?.v !== VERSION) return;
    const { state } = this;
    const { run, seq, reset } = message;
    const known = run === state.run;
    // Gradio sends the last message twice, and a stopped run's last one may come after the next run's first.
    if (known ? seq <= state.seq : this.past.has(run) && !reset) return;
    const events = decode(message);
    this.updates++;
    const missed = known ? seq > state.seq + 1 : seq > 0;
    if (!known || reset) this.begin(run);
    Object.assign(state, { seq, status: message.state, note: message.note, lost: false });
    state.twice = Boolean(message.compare);
    this.hear();
    if (missed && !reset) this.ask();
    if (this.asking) this.held.push(events);
    else state.ingest(this.merging ? this.fresh(events) : events);
    if (state.over) state.arrange();
    this.changed();
  }

  // A message was missed, or nothing has come for long: get the whole run again.
  ask() {
    if (this.asking) return;
    const { state } = this;
    const { epoch } = state;
    this.asking = true;
    // A browser that has no connection left would let this wait, and with it everything that comes meanwhile.
    const late = new Promise((give) => setTimeout(give, LATE, null));
    Promise.race([Promise.resolve(this.server?.snapshot_of?.(state.run)), late])
      .catch(() => null)
      .then((message) => {
        if (state.epoch !== epoch) return;
        this.asking = false;
        if (message?.ev) this.restore(message);
        else state.lost = true;
        for (const list of this.held.splice(0)) state.ingest(this.fresh(list));
        this.changed();
      });
  }

  restore(message) {
    const { state } = this;
    const { cursor, follow } = state;
    state.forget();
    this.merging = true;
    // Whoever makes a snapshot need not know the messages' count, so its seq says nothing.
    if (!state.over) Object.assign(state, { status: message.state, note: message.note });
    state.ingest(decode(message));
    if (follow) return;
    state.follow = false;
    state.move(cursor);
  }

  // What a delta adds to events that a snapshot may already have brought.
  fresh(list) {
    if (!list.length) return list;
    const n = overlap(this.state.events, list);
    if (!n) this.merging = false;
    return list.slice(n);
  }

  // Called every second.
  watch() {
    const running = this.state.status === "running" || this.state.status === "queued";
    if (!running || this.asking || performance.now() - this.heard <= this.patience) return;
    this.patience = Math.min(LONGEST, this.patience * 2);
    this.heard = performance.now();
    this.ask();
  }
}
