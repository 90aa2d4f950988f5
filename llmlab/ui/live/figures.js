// Seven figures of the run up to the cursor, each beside the baseline's, and the sentence that a screen reader hears.

import { el, put } from "./dom.js";
import { ledger, sum } from "./ledger.js";
import { partsTold } from "./memory.js";
import { bytes, fixed, language, millis, say, short } from "./words.js";

const KEYS = ["speed", "ttft", "per_pass", "accepted", "tokens_pass", "memory", "same"];
const SPEAK = 3000; // ms between two sentences
const NONE = "—";

const MOODS = { better: "good", worse: "bad" }; // a trade, no difference and what is undecided have no colour
const times = (a, b) => (a && b ? say("times", { x: fixed(a / b, 2) }) : "");
const ms = (seconds) => (seconds || seconds === 0 ? [millis(seconds), "ms"] : [NONE, ""]);

export class Figures {
  constructor(state) {
    this.state = state;
    this.node = el("div", "figures");
    this.polite = el("div", "quiet", "", { "aria-live": "polite" });
    this.cells = {};
    this.spoken = 0;
    for (const key of KEYS) {
      const cell = el("div", "figure", undefined, { "data-figure": key });
      const value = el("div", "value", NONE);
      const extra = el("div", "extra");
      cell.append(el("div", "name", say(key), { title: say(key) }), value, extra);
      this.node.append(cell);
      this.cells[key] = { cell, value, extra };
    }
  }

  show(key, value, unit = "", extra = "", mood = "") {
    const { cell, value: node, extra: below } = this.cells[key];
    const text = `${value}|${unit}`;
    if (node.dataset.text !== text) {
      node.dataset.text = text;
      node.textContent = value;
      if (unit) node.append(el("small", "", unit));
    }
    put(below, extra);
    below.title = extra;
    const name = mood ? `figure ${mood}` : "figure";
    if (cell.className !== name) cell.className = name;
  }

  draw() {
    const { subject, ghost } = this.state;
    const own = subject?.shown ? ledger(subject, subject.shown) : null;
    const base = ghost?.shown && subject !== ghost ? ledger(ghost, ghost.shown) : null;
    this.times(own, base);
    this.counts(own);
    this.memory(subject);
    this.same();
    if (own) this.speak(own);
  }

  times(own, base) {
    const [speed, before] = [own?.decode_tokens_per_second, base?.decode_tokens_per_second];
    const { over, verdict } = this.state;
    const mood = over && before ? MOODS[verdict?.verdict] ?? "" : "";
    this.show("speed", speed ? short(speed) : NONE, speed ? say("tokens_s") : "", this.ratio(speed, before), mood);
    this.show("ttft", ...ms(own?.ttft_seconds), times(own?.ttft_seconds, base?.ttft_seconds));
    const [middle, other] = [own?.seconds_per_pass_median, base?.seconds_per_pass_median];
    this.show("per_pass", ...ms(middle), times(middle, other) || (own ? say("median") : ""));
  }

  // The median of the pairs and their spread, once they have been measured.
  ratio(speed, before) {
    const { over, pairs } = this.state;
    if (!over || !pairs || !before) return times(speed, before);
    const [x, a, b] = [pairs.ratio, pairs.low, pairs.high].map((r) => fixed(r, 2));
    return say("pairs", { x, a, b, n: pairs.stack.length });
  }

  counts(own) {
    if (!own) {
      this.show("accepted", NONE);
      this.show("tokens_pass", NONE);
      return;
    }
    const { accepted: a, drafted: d, new_tokens: t, passes: p, acceptance_rate: rate } = own;
    if (d) this.show("accepted", fixed(100 * rate, 0), "%", say("of_drafted", { a, d }));
    else this.show("accepted", NONE, "", say("no_drafts"));
    this.show("tokens_pass", fixed(own.tokens_per_pass, 2), "", say("in_passes", { t, p }));
  }

  // Bytes at the cursor, not the most there were.
  memory(lane) {
    if (!lane) return this.show("memory", NONE);
    const pass = lane.shown ? lane.passes[lane.shown - 1] : lane.prefill;
    const parts = lane.parts(pass);
    const [size, unit] = bytes(sum(Object.values(parts))).split(" ");
    this.show("memory", size, unit, partsTold(parts).join(" + "));
  }

  same() {
    const { state } = this;
    const found = state.compare();
    if (!found) return this.show("same", NONE, "", state.lanes.length && state.over ? say("needs_baseline") : "");
    if (!state.main.ids.length) return this.show("same", NONE);
    const mood = found.final ? "good" : "";
    if (found.same) return this.show("same", say("yes"), "", found.final ? "" : say("so_far"), mood);
    this.show("same", say("no"), "", say("same_for", { n: found.at }), "bad");
  }

  // Now and then, and at once when the run is over.
  speak(own) {
    const { over, status } = this.state;
    const due = performance.now() - this.spoken >= SPEAK || (over && this.spokenStatus !== status);
    if (!own.decode_tokens_per_second || !due) return;
    this.spoken = performance.now();
    this.spokenStatus = status;
    const parts = [say("say", { t: own.new_tokens, s: short(own.decode_tokens_per_second) })];
    if (own.acceptance_rate !== null) parts.push(say("say_accepted", { a: fixed(100 * own.acceptance_rate, 0) }));
    put(this.polite, parts.join(language.name === "en" ? ", " : "，"));
  }
}
