// The lanes as a chart sees them: the passes up to the cursor, all that are known, and a colour.

import { colours } from "./canvas.js";
import { say } from "./words.js";

// The baseline first, so that the run itself is drawn over it. All that is known fixes the axes: they stand still while
// a replay runs.
export function series({ subject, ghost }) {
  const back = subject === ghost ? null : ghost;
  return [back, subject].filter(Boolean).map((lane) => ({
    lane,
    all: lane.passes,
    passes: lane.shown === lane.passes.length ? lane.passes : lane.passes.slice(0, lane.shown),
    colour: lane === ghost ? colours.ghost : colours.main,
    dashed: lane === ghost,
  }));
}

export const lastOf = (list) => list[list.length - 1];

export function most(list, value, floor) {
  let best = floor;
  for (const s of list) for (const p of s.all) if (value(p) > best) best = value(p);
  return best;
}

// The first pass for which `before` does not hold, or the last one. Passes are in order, so it is found by halving.
export function nearest(passes, before) {
  let low = 0;
  let high = passes.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (before(passes[mid])) low = mid + 1;
    else high = mid;
  }
  return passes[Math.min(low, passes.length - 1)];
}

// A function that says what a chart shows: the run's own, then the baseline's. Only called now and then.
export const told = (list, words) => () => {
  const parts = [];
  for (const s of [...list].reverse()) {
    if (!s.passes.length) continue;
    const text = words(s, lastOf(s.passes));
    parts.push(s.dashed ? say("say_baseline", { x: text }) : text);
  }
  return parts.join("; ") || say("say_no");
};

// The values of the passes nearest to an x that counts passes: the run's own first.
export function at(list, x, words) {
  const n = Math.max(1, Math.round(x));
  const found = list.map((s) => s.passes[Math.min(n, s.passes.length) - 1]).filter(Boolean);
  return found.length ? `${say("x_pass")} ${n}: ${found.reverse().map(words).join(" / ")}` : "";
}
