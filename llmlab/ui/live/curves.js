// The charts with a line per lane. Each draws itself, sets what pointing at it says (`probe`) and what stands beside
// its title (`note`), and returns a function that says in words what is seen.

import { ROOM, axes, colours, line } from "./canvas.js";
import { median, sum } from "./ledger.js";
import { at, lastOf, most, nearest, told } from "./series.js";
import { bytes, fixed, say, short } from "./words.js";

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

export function layers(chart, list) {
  const x = [1, Math.max(2, most(list, (p) => p.number, 2))];
  const y = [0, Math.max(1, ...list.map((s) => s.lane.layers))];
  const frame = axes(chart, { x, y, unitX: say("x_pass"), unitY: say("y_layers"), whole: true });
  for (const s of list) line(frame, s.passes.map((p) => [p.number, p.layers]), s, true);
  chart.probe = (pixel) => at(list, frame.back(pixel), (p) => `${short(p.layers)} / ${p.lane.layers}`);
  return told(list, (s) => {
    const mean = sum(s.passes.map((p) => p.layers)) / s.passes.length;
    return say("say_layers", { a: short(mean), b: s.lane.layers });
  });
}

const kvMegabytes = (p) => p.kv / 1e6;
const afterPrompt = (s) => (s.lane.prefill ? kvMegabytes(s.lane.prefill) : 0);

export function memory(chart, list) {
  const top = ROOM.top + 10 + 13 * list.length;
  const x = [0, Math.max(4, most(list, (p) => p.sumTokens, 4))];
  const y = [0, Math.max(0.001, ...list.map(afterPrompt), most(list, kvMegabytes, 0)) * 1.08];
  const frame = axes(chart, { x, y, unitX: say("x_tokens"), unitY: "", top });
  memoryBars(frame, list);
  frame.g.fillStyle = colours.dim;
  frame.g.textAlign = "left";
  frame.g.textBaseline = "middle";
  frame.g.fillText(say("y_kv"), 2, top - 10);
  for (const s of list) {
    const start = s.lane.prefill ? [[0, afterPrompt(s)]] : [];
    line(frame, [...start, ...s.passes.map((p) => [p.sumTokens, kvMegabytes(p)])], s, true);
  }
  const { lane, passes } = lastOf(list);
  const held = lastOf(passes) ?? lane.prefill;
  chart.note = say("weights_kv", { w: bytes(lane.weightBytes), k: bytes(held ? held.kv : 0) });
  chart.probe = (pixel) => {
    const n = frame.back(pixel);
    const found = list.map((s) => nearest(s.passes, (p) => p.sumTokens < n)).filter(Boolean);
    return `${say("kv")} ${found.reverse().map((p) => bytes(p.kv)).join(" / ")}`;
  };
  return told(list, (s, p) => say("say_memory", { w: bytes(s.lane.weightBytes), k: bytes(p.kv) }));
}

// Weights dwarf the cache of a short run, so they are a bar to scale and the cache has the axis to itself.
function memoryBars({ g, right }, list) {
  const megabytes = (s) => s.lane.weightBytes / 1e6;
  const whole = Math.max(...list.map((s) => megabytes(s) + Math.max(afterPrompt(s), most([s], kvMegabytes, 0)))) || 1;
  const wide = (v) => (v / whole) * (right - 4);
  [...list].reverse().forEach((s, i) => {
    const p = lastOf(s.passes);
    const kv = p ? kvMegabytes(p) : afterPrompt(s);
    const y = 2 + 13 * i;
    g.fillStyle = s.dashed ? colours.ghost : colours.weights;
    g.globalAlpha = s.dashed ? 0.55 : 1;
    g.fillRect(2, y, wide(megabytes(s)), 9);
    g.globalAlpha = 1;
    g.fillStyle = s.dashed ? colours.ghost : colours.main;
    g.fillRect(2 + wide(megabytes(s)) + 1, y, Math.max(2, wide(kv)), 9);
  });
}
