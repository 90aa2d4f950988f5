// The charts with a bar per pass, layer or token; they answer as those in `curves.js` do.

import { axes, colours } from "./canvas.js";
import { sum } from "./ledger.js";
import { at, lastOf, most, told } from "./series.js";
import { depths } from "./state.js";
import { say, short } from "./words.js";

const clamp = (i, n) => Math.max(0, Math.min(n - 1, i));

export function drafts(chart, list) {
  const s = lastOf(list);
  const x1 = Math.max(8, s.all.length);
  const y = [0, most([s], (p) => p.drafted, 1)];
  const frame = axes(chart, { x: [0.5, x1 + 0.5], y, unitX: say("x_pass"), unitY: say("y_drafts"), whole: true });
  // Bars thinner than two pixels would blur into each other: neighbours share one, as their mean.
  const group = Math.max(1, Math.ceil((2.5 * x1) / (frame.right - frame.left)));
  const wide = Math.max(1, (frame.X(1 + group) - frame.X(1)) * 0.78);
  const hatch = frame.g.createPattern(colours.hatch, "repeat");
  for (let i = 0; i < s.passes.length; i += group) {
    const x = frame.X(i + (group + 1) / 2) - wide / 2;
    draftBar(frame, { x, wide, hatch }, s.passes.slice(i, i + group));
  }
  const averaged = group > 1 ? ` · ${say("bars_mean", { n: group })}` : "";
  chart.note = `■ ${say("accepted_short")}  ▨ ${say("rejected_short")}${averaged}`;
  chart.probe = (pixel) => at([s], frame.back(pixel), (p) => `${p.path.length} / ${p.drafted}`);
  return told([s], (_, p) => say("say_drafts", { a: p.sumAccepted, b: p.sumDrafted - p.sumAccepted }));
}

// What was accepted, and on it what was rejected.
function draftBar({ g, Y, bottom }, { x, wide, hatch }, passes) {
  const good = sum(passes.map((p) => p.path.length)) / passes.length;
  const all = sum(passes.map((p) => p.drafted)) / passes.length;
  g.fillStyle = colours.draft;
  g.fillRect(x, Y(good), wide, bottom - Y(good));
  if (all <= good) return;
  g.fillStyle = hatch;
  g.fillRect(x, Y(all), wide, Y(good) - Y(all));
  if (wide < 4) return;
  g.strokeStyle = colours.rejected;
  g.strokeRect(x + 0.5, Y(all) + 0.5, wide - 1, Y(good) - Y(all) - 1);
}

export function rows(chart, list) {
  const held = list.map((s) => s.lane.rowsOf(lastOf(s.passes)));
  const atEnd = list.map((s) => s.lane.rowsOf(lastOf(s.all)));
  const n = Math.max(1, ...held.map((r) => r.length));
  const y1 = Math.max(1, ...held.flat(), ...atEnd.flat());
  const units = { unitX: say("x_layer"), unitY: say("y_rows") };
  const frame = axes(chart, { x: [0.5, n + 0.5], y: [0, y1], ...units, whole: true });
  const { g, X, Y } = frame;
  const wide = Math.max(1, ((frame.right - frame.left) / n) * 0.74);
  list.forEach((s, k) => {
    g.fillStyle = s.colour;
    g.globalAlpha = s.dashed ? 1 : 0.8;
    held[k].forEach((v, i) => {
      const x = X(i + 1) - wide / 2;
      if (s.dashed) g.fillRect(x - wide * 0.17, Y(v) - 1, wide * 1.34, 2);
      else g.fillRect(x, Y(v), wide, frame.bottom - Y(v));
    });
  });
  g.globalAlpha = 1;
  chart.probe = (pixel) => {
    const i = clamp(Math.round(frame.back(pixel)) - 1, n);
    return `${say("x_layer")} ${i + 1}: ${[...held].reverse().map((r) => r[i] ?? "—").join(" / ")}`;
  };
  return told(list, (s) => {
    const own = held[list.indexOf(s)];
    return say("say_rows", { a: Math.min(...own), b: Math.max(...own), n: own.length });
  });
}

export function exits(chart, list) {
  const s = list.findLast((one) => one.lane.early) ?? lastOf(list);
  const { layers } = s.lane;
  const x1 = Math.max(8, most([s], (p) => p.sumTokens, 1));
  const units = { unitX: say("x_tokens"), unitY: say("y_depth") };
  const { g, X, Y, back, left, right, bottom } = axes(chart, { x: [0, x1], y: [0, layers], ...units, whole: true });
  const wide = (right - left) / x1;
  const all = s.passes.flatMap(depths);
  const early = (depth) => depth < layers - 0.01;
  g.fillStyle = colours.ghost;
  g.globalAlpha = 0.16;
  g.fillRect(left, Y(layers), wide * all.length, bottom - Y(layers));
  g.fillStyle = colours.main;
  all.forEach((depth, i) => {
    g.globalAlpha = early(depth) ? 1 : 0.35;
    g.fillRect(X(i), Y(depth), Math.max(1, wide - (wide > 3 ? 1 : 0)), bottom - Y(depth));
  });
  g.globalAlpha = 1;
  chart.probe = (pixel) => {
    if (!all.length) return "";
    const i = clamp(Math.floor(back(pixel)), all.length);
    return say("probe_exits", { n: i + 1, a: short(all[i]), m: layers });
  };
  const mean = sum(all) / (all.length || 1);
  return () => say("say_exits", { a: all.filter(early).length, n: all.length, b: short(mean), m: layers });
}
