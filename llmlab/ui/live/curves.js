// The charts with a line per lane. Each draws itself, sets what pointing at it says (`probe`) and what stands beside
// its title (`note`), and returns a function that says in words what is seen.

import { axes, colours, line } from "./canvas.js";
import { ledger, median } from "./ledger.js";
import { at, lastOf, most, told } from "./series.js";
import { fixed, say, short } from "./words.js";

export function tokens(chart, list) {
  const x1 = most(list, (p) => p.t, 0.05);
  const y1 = most(list, (p) => p.sumTokens, 4);
  const frame = axes(chart, { x: [0, x1], y: [0, y1], unitX: say("x_s"), unitY: say("y_tokens"), whole: true });
  for (const s of list) {
    const start = s.passes.length ? [[s.lane.read, 0]] : [];
    line(frame, [...start, ...s.passes.map((p) => [p.t, p.sumTokens])], s);
  }
  chart.probe = (pixel) => {
    const t = Math.max(0, frame.back(pixel));
    const counts = list.map((s) => s.passes.findLast((p) => p.t <= t)?.sumTokens ?? 0);
    return `${fixed(t, 2)} s · ${counts.reverse().join(" / ")} ${say("y_tokens")}`;
  };
  return told(list, (s, p) => say("say_tokens", { a: p.sumTokens, s: fixed(p.t, 2) }));
}

export function ms(chart, list) {
  const value = (p) => p.seconds * 1000;
  const values = list.flatMap((s) => s.all.map(value));
  const high = most(list, value, 0.1);
  // One slow pass would press all others to the ground.
  const log = high > 12 * (median(values) || high);
  const low = log ? Math.max(0.01, values.reduce((a, b) => (b > 0 ? Math.min(a, b) : a), high)) : 0;
  const x = [1, Math.max(2, most(list, (p) => p.number, 2))];
  const frame = axes(chart, { x, y: [low, high * 1.05], unitX: say("x_pass"), unitY: say("y_ms"), log });
  for (const s of list) line(frame, s.passes.map((p) => [p.number, Math.max(low, value(p))]), s);
  chart.probe = (pixel) => at(list, frame.back(pixel), (p) => `${short(value(p))} ms`);
  return told(list, (s) => {
    const sorted = s.passes.map(value).sort((a, b) => a - b);
    return say("say_ms", { a: short(median(sorted)), b: short(sorted[0]), c: short(lastOf(sorted)) });
  });
}

// Two lines for each run: how many layers its newest token waited for, and how many were computed per new token.
export function layers(chart, list) {
  const x = [1, Math.max(2, most(list, (p) => p.number, 2))];
  const y = [0, Math.max(1, ...list.map((s) => s.lane.layers), most(list, (p) => p.computed, 0))];
  const frame = axes(chart, { x, y, unitX: say("x_pass"), unitY: say("y_layers"), whole: true });
  for (const s of list) {
    line(frame, s.passes.map((p) => [p.number, p.layers]), s, true);
    const points = s.passes.filter((p) => p.computed);
    const colour = s.dashed ? s.colour : colours.correction;
    line(frame, points.map((p) => [p.number, p.computed]), { colour, dotted: true }, true);
  }
  // Traces of earlier versions did not count what was computed.
  const counted = list.some((s) => s.passes.some((p) => p.computed));
  chart.note = `━ ${say("waited_short")}` + (counted ? ` ┅ ${say("computed_short")}` : "");
  const rows = (n) => (n ? short(n) : say("layers_uncounted"));
  const words = (p) => say("probe_layers", { a: short(p.layers), b: p.lane.layers, c: rows(p.computed) });
  chart.probe = (pixel) => at(list, frame.back(pixel), words);
  return told(list, (s) => {
    const own = ledger(s.lane, s.passes.length);
    const c = rows(own.layer_rows_per_token);
    return say("say_layers", { a: short(own.layers_run_mean), b: s.lane.layers, c });
  });
}
