// The chart of memory: what is held, by part. A bar to scale has everything, since weights dwarf the rest; below it,
// what changes while text is written has the axis to itself. Each part has its name and its size in the legend.

import { ROOM, axes, colours, line } from "./canvas.js";
import { el } from "./dom.js";
import { lastOf, most, nearest, told } from "./series.js";
import { bytes, say } from "./words.js";

const MOVING = ["kv", "activations"];
const colourOf = (name) => (name === "kv" ? colours.main : colours[name]);
const total = (parts) => Object.values(parts).reduce((a, b) => a + b, 0);
const megabytes = (p) => (p ? p.kv + p.activations : 0) / 1e6;

// Parts of nothing are left out.
export const partsTold = (parts) =>
  Object.entries(parts).filter(([, n]) => n > 0).map(([name, n]) => `${say(`m_${name}`)} ${bytes(n)}`);

export function memory(chart, list) {
  const top = ROOM.top + 10 + 13 * list.length;
  const x = [0, Math.max(4, most(list, (p) => p.sumTokens, 4))];
  const y = [0, Math.max(0.001, ...list.map((s) => megabytes(s.lane.prefill)), most(list, megabytes, 0)) * 1.08];
  const frame = axes(chart, { x, y, unitX: say("x_tokens"), unitY: "", top });
  bars(frame, list);
  frame.g.fillStyle = colours.dim;
  frame.g.textAlign = "left";
  frame.g.textBaseline = "middle";
  frame.g.fillText(`${MOVING.map((name) => say(`m_${name}`)).join(" + ")}, ${say("y_memory")}`, 2, top - 10);
  for (const s of list) {
    const points = [...(s.lane.prefill ? [[0, s.lane.prefill]] : []), ...s.passes.map((p) => [p.sumTokens, p])];
    if (!s.dashed) areas(frame, points);
    line(frame, points.map(([at, p]) => [at, megabytes(p)]), s, true);
  }
  const { lane, passes } = lastOf(list);
  const parts = lane.parts(lastOf(passes));
  legend(chart, parts);
  chart.note = bytes(total(parts));
  chart.probe = (pixel) => {
    const n = frame.back(pixel);
    const found = list.map((s) => nearest(s.passes, (p) => p.sumTokens < n)).filter(Boolean);
    return `${say("m_kv")} ${found.reverse().map((p) => bytes(p.kv)).join(" / ")}`;
  };
  return told(list, (s, p) => {
    const own = s.lane.parts(p);
    return say("say_memory", { t: bytes(total(own)), parts: partsTold(own).join(" + ") });
  });
}

// Keys and values with the activations on them, as steps.
function areas({ g, X, Y, bottom }, points) {
  let below = points.map(() => 0);
  for (const name of MOVING) {
    const above = points.map(([, p], i) => below[i] + p[name] / 1e6);
    g.fillStyle = colourOf(name);
    g.globalAlpha = 0.35;
    points.forEach(([at], i) => {
      const end = points[i + 1]?.[0] ?? at;
      g.fillRect(X(at), Y(above[i]), X(end) - X(at), (below[i] ? Y(below[i]) : bottom) - Y(above[i]));
    });
    g.globalAlpha = 1;
    below = above;
  }
}

function bars({ g, right }, list) {
  const all = list.map((s) => s.lane.parts(lastOf(s.passes)));
  const highest = (s) => s.lane.weightBytes + 1e6 * Math.max(megabytes(s.lane.prefill), most([s], megabytes, 0));
  const whole = Math.max(...list.map(highest)) || 1;
  [...list].reverse().forEach((s, i) => {
    let from = 2;
    for (const [name, n] of Object.entries(all[list.indexOf(s)])) {
      if (!n) continue;
      const wide = Math.max(2, (n / whole) * (right - 8));
      g.fillStyle = s.dashed ? colours.ghost : colourOf(name);
      g.globalAlpha = s.dashed ? 0.55 : 1;
      g.fillRect(from, 2 + 13 * i, wide - 1, 9);
      from += wide;
    }
  });
  g.globalAlpha = 1;
}

// The names and sizes of the parts, in the order of the bar.
function legend(chart, parts) {
  const text = partsTold(parts).join(" + ");
  if (chart.legend.dataset.text === text) return;
  chart.legend.dataset.text = text;
  const names = Object.keys(parts).filter((name) => parts[name] > 0);
  chart.legend.replaceChildren(
    ...names.map((name) => {
      const item = el("span");
      item.append(el("i", `part-${name}`), `${say(`m_${name}`)} ${bytes(parts[name])}`);
      return item;
    }),
  );
}
