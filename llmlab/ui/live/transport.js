// The cursor over a run's passes: buttons, slider, keys, and the replay in the run's own time.

import { calm, el, put } from "./dom.js";
import { fixed, millis, say, short } from "./words.js";

const RATES = ["0.5", "1", "2", "4", "max"];
const SHORTEST = 120; // beats in which "max" plays a run
const BUSY = "input, textarea, select, button, summary, a[href], [contenteditable]:not([contenteditable='false'])";
const ROLES = "slider spinbutton textbox combobox listbox option radio tab menuitem switch button".split(" ");

// Ask for the next beat; gives the function that takes the wish back.
function next(beat) {
  if (calm.matches) {
    const id = setTimeout(() => beat(performance.now()), 500);
    return () => clearTimeout(id);
  }
  const id = requestAnimationFrame(beat);
  return () => cancelAnimationFrame(id);
}

export class Transport {
  // `wake` asks for a drawing soon, `drawAll` draws now.
  constructor(state, { wake, drawAll }) {
    Object.assign(this, { state, wake, drawAll });
    this.player = null; // takes the next beat back, while playing
    this.head = 0; // the replay's clock in seconds
    this.node = el("div", "card transport", undefined, { role: "toolbar", "aria-label": say("replay") });
    this.build();
  }

  build() {
    this.scrub = el("input", "", undefined, { type: "range", min: 0, max: 0, step: 1, "aria-label": say("scrub") });
    this.scrub.oninput = () => this.step(Number(this.scrub.value));
    this.position = el("span", "position");
    this.rate = el("select", "", undefined, { "aria-label": say("rate"), title: say("rate") });
    for (const rate of RATES) {
      this.rate.append(el("option", "", rate === "max" ? say("max") : `×${rate}`, { value: rate }));
    }
    this.rate.value = "1";
    this.race = el("button", "race", say("race"), { type: "button", "aria-pressed": "false", title: say("race_info") });
    this.race.onclick = () => this.toggleRace();
    this.live = el("button", "live", say("live"), { type: "button", title: say("live_info") });
    this.live.onclick = () => this.goLive();
    const detail = el("div", "detail");
    this.detail = el("span");
    detail.append(this.detail, el("span", "tip", say("keys")));
    this.node.append(this.buildKeys(), this.scrub, this.position, this.rate, this.race, this.live, detail);
  }

  buildKeys() {
    const keys = el("div", "keys");
    const button = (key, glyph, act) => {
      this[key] = el("button", key, glyph, { type: "button", "aria-label": say(key), title: say(key) });
      this[key].onclick = act;
      keys.append(this[key]);
    };
    const { state } = this;
    // U+FE0E: as text, where a phone would paint a picture.
    button("first", "❘◀\uFE0E", () => this.step(0));
    button("back", "◀\uFE0E", () => this.step(state.cursor - 1));
    button("play", "", () => this.toggle());
    button("forward", "▶\uFE0E", () => this.step(state.cursor + 1));
    button("last", "▶\uFE0E❘", () => this.step(state.order.length));
    return keys;
  }

  step(to) {
    const { state } = this;
    if (!state.order.length) return;
    this.stop();
    state.follow = state.over && to >= state.order.length;
    state.move(to);
    this.wake();
  }

  // While a run is live, the view that follows it counts as playing.
  get playing() {
    return Boolean(this.player) || (this.state.follow && !this.state.over);
  }

  toggle() {
    if (!this.playing) return this.start();
    this.state.follow = false;
    this.stop();
  }

  toggleRace() {
    this.state.race = !this.state.race;
    this.race.setAttribute("aria-pressed", String(this.state.race));
    this.state.arrange();
    this.rewind();
    this.wake();
  }

  goLive() {
    this.stop();
    this.state.follow = true;
    this.wake();
  }

  // The replay's clock at the cursor.
  rewind() {
    this.head = this.state.current ? this.state.current.at : 0;
  }

  start() {
    const { state } = this;
    if (!state.order.length) return;
    state.follow = state.cursor >= state.order.length && !state.over;
    if (state.follow) return this.wake();
    if (state.cursor >= state.order.length) state.move(0);
    this.rewind();
    this.before = performance.now();
    this.player = next((now) => this.beat(now));
    this.wake();
  }

  beat(now) {
    const { state } = this;
    const rate = this.rate.value;
    if (rate === "max") {
      state.move(state.cursor + Math.max(1, Math.ceil(state.order.length / SHORTEST)));
      this.rewind();
    } else {
      this.head += (Math.max(0, now - this.before) / 1000) * Number(rate);
      let to = state.cursor;
      while (to < state.order.length && state.order[to].at <= this.head) to++;
      state.move(to);
    }
    this.before = now;
    if (state.cursor >= state.order.length) {
      this.stop();
      state.follow = true;
    } else {
      this.player = next((later) => this.beat(later));
    }
    this.drawAll();
  }

  stop() {
    this.player?.();
    this.player = null;
    this.wake();
  }

  onKey(event) {
    const { state } = this;
    const plain = !(event.ctrlKey || event.metaKey || event.altKey || event.shiftKey);
    if (event.defaultPrevented || !plain || !state.order.length || this.node.offsetParent === null) return;
    const at = document.activeElement;
    const inside = at && at !== document.body && (at.closest(BUSY) || ROLES.includes(at.getAttribute("role")));
    // On the panel's own buttons the arrows still step; Space presses the button.
    const own = at && at.tagName === "BUTTON" && this.node.contains(at);
    if (inside && !(own && event.key !== " ")) return;
    const act = {
      " ": () => this.toggle(),
      ArrowLeft: () => this.step(state.cursor - 1),
      ArrowRight: () => this.step(state.cursor + 1),
      Home: () => this.step(0),
      End: () => this.step(state.order.length),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  draw() {
    const { state, playing } = this;
    const n = state.order.length;
    this.node.hidden = state.blank;
    this.play.disabled = this.scrub.disabled = !n;
    const p = state.current;
    this.scrub.max = n;
    this.scrub.value = state.cursor;
    const position = say("position", { p: state.cursor, n, s: fixed(p ? p.t : 0, 2) });
    this.scrub.setAttribute("aria-valuetext", position);
    put(this.position, position);
    put(this.play, playing ? `❚❚ ${say("pause")}` : `▶\uFE0E ${say("play")}`);
    this.play.setAttribute("aria-label", say(playing ? "pause" : "play"));
    this.first.disabled = this.back.disabled = state.cursor === 0;
    this.forward.disabled = this.last.disabled = state.cursor >= n;
    this.live.hidden = state.over || state.follow;
    this.race.hidden = !state.pair || !state.over;
    put(this.detail, p ? this.describe(p) : "");
  }

  // One pass in a sentence.
  describe(p) {
    const { pair, ghost } = this.state;
    const [a, o] = [p.path.length, p.tokens.length - p.path.length];
    const values = { p: p.number, ms: millis(p.seconds), d: p.drafted, a, o };
    const parts = [say(p.drafted ? "detail_draft" : "detail_plain", values)];
    if (p.early) parts.push(say("detail_layers", { n: short(p.layers), m: p.lane.layers }));
    if (p.layerRows) parts.push(say("detail_rows", { n: p.layerRows }));
    if (p.evicted) parts.push(say("detail_evicted", { n: p.evicted }));
    return (pair ? `${say(p.lane === ghost ? "baseline" : "stack")} · ` : "") + parts.join(" · ");
  }
}
