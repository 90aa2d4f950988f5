// Axes and lines on a canvas, in the page's colours.

import { label, say } from "./words.js";

export const HEIGHT = 150;
export const ROOM = { left: 40, right: 10, top: 20, bottom: 28 };
const NAMES = ["ink", "dim", "paper", "line", "main", "ghost", "draft", "rejected", "correction"];
const PARTS = ["weights", "copies", "parts", "activations"];

export const colours = {};

// Takes the colours from the style sheet, which knows light and dark.
export function readColours(root) {
  const style = getComputedStyle(root);
  for (const name of [...NAMES, ...PARTS]) colours[name] = style.getPropertyValue(`--${name}`).trim();
  colours.hatch = hatched(colours.rejected);
}

function hatched(colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const g = tile.getContext("2d");
  g.strokeStyle = colour;
  g.lineWidth = 1.6;
  for (const shift of [-6, 0, 6]) {
    g.beginPath();
    g.moveTo(shift, 6);
    g.lineTo(shift + 6, 0);
    g.stroke();
  }
  return tile;
}

// Round steps between `low` and `high`, about `count` of them.
function ticks(low, high, count, whole) {
  const raw = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  let size = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw * 0.999);
  if (whole) size = Math.max(1, Math.round(size));
  const out = [];
  const first = Math.ceil(low / size - 1e-9) * size;
  for (let v = first; v <= high + size * 1e-6 && out.length < 20; v += size) out.push(v || 0);
  return out;
}

// Clears a chart, draws its axes, and gives its context and the functions from values to pixels and back.
export function axes(chart, { x, y, unitX, unitY, log, whole, top = ROOM.top }) {
  const { width } = chart;
  const g = cleared(chart);
  const [left, right, bottom] = [ROOM.left, width - ROOM.right, HEIGHT - ROOM.bottom];
  const scale = log ? Math.log10 : (v) => v;
  const [y0, y1] = [scale(y[0]), scale(y[1])];
  const X = (v) => left + ((v - x[0]) / (x[1] - x[0] || 1)) * (right - left);
  const Y = (v) => bottom - ((scale(v) - y0) / (y1 - y0 || 1)) * (bottom - top);
  const back = (pixel) => x[0] + ((pixel - left) / (right - left || 1)) * (x[1] - x[0]);
  const frame = { g, X, Y, back, left, right, top, bottom, width };
  const marks = log ? ticks(y0, y1, 3, true).map((v) => 10 ** v) : ticks(y[0], y[1], 3, whole);
  grid(frame, log && marks.length < 2 ? y : marks, unitY + (log ? ` (${say("log")})` : ""));
  scaleBelow(frame, ticks(x[0], x[1], width > 260 ? 5 : 3, unitX !== say("x_s")), unitX);
  return frame;
}

function cleared({ canvas, width }) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(HEIGHT * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(HEIGHT * ratio);
  }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, HEIGHT);
  g.font = "11px system-ui, sans-serif";
  g.strokeStyle = colours.line;
  g.fillStyle = colours.dim;
  g.lineWidth = 1;
  return g;
}

function grid({ g, Y, left, right }, marks, unit) {
  g.textBaseline = "middle";
  g.textAlign = "right";
  for (const v of marks) {
    const at = Math.round(Y(v)) + 0.5;
    g.beginPath();
    g.moveTo(left, at);
    g.lineTo(right, at);
    g.stroke();
    g.fillText(label(v), left - 5, at);
  }
  g.textAlign = "left";
  g.fillText(unit, 2, 6);
}

function scaleBelow({ g, X, right, bottom }, marks, unit) {
  g.textBaseline = "top";
  g.textAlign = "right";
  g.fillText(unit, right, HEIGHT - 12);
  for (const v of marks) {
    const at = X(v);
    g.textAlign = at > right - 12 ? "right" : "center";
    g.beginPath();
    g.moveTo(at, bottom);
    g.lineTo(at, bottom + 3);
    g.stroke();
    g.fillText(label(v), at, bottom + 4);
  }
}

// The first, lowest, highest and last point of each pixel column: the same picture for a fraction of the strokes.
function thinned({ X, left, right }, points) {
  if (points.length < 2 * (right - left)) return points;
  const out = [];
  for (let i = 0; i < points.length; ) {
    const column = Math.floor(X(points[i][0]));
    let [low, high, j] = [i, i, i];
    for (; j < points.length && Math.floor(X(points[j][0])) === column; j++) {
      if (points[j][1] < points[low][1]) low = j;
      if (points[j][1] > points[high][1]) high = j;
    }
    out.push(...[...new Set([i, low, high, j - 1])].sort((a, b) => a - b).map((k) => points[k]));
    i = j;
  }
  return out;
}

export function line(frame, all, { colour, dashed, dotted }, stepped) {
  if (!all.length) return;
  const { g, X, Y } = frame;
  const points = thinned(frame, all);
  g.save();
  g.strokeStyle = g.fillStyle = colour;
  g.lineWidth = dashed || dotted ? 1.6 : 2.2;
  g.lineJoin = "round";
  g.setLineDash(dotted ? [2, 3] : dashed ? [5, 4] : []);
  g.beginPath();
  points.forEach(([x, y], i) => {
    if (stepped && i) g.lineTo(X(x), Y(points[i - 1][1]));
    g.lineTo(X(x), Y(y));
  });
  g.stroke();
  const [x, y] = points[points.length - 1];
  g.beginPath();
  g.arc(X(x), Y(y), dashed ? 2.2 : 3, 0, 7);
  g.fill();
  g.restore();
}
