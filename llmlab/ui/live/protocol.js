// Messages as `panel.py` makes them, and the events in them as `wire.py` derives them from Python's `events.py`:
// objects whose keys are an event's fields, `event` its kind and `t` its time in seconds.

export const VERSION = 2;

// A message's events: a string where Gradio carried it as the value, a list where a server function returned it.
export function decode(message) {
  const list = typeof message.ev === "string" ? JSON.parse(message.ev) : message.ev;
  return list.filter((e) => e && typeof e.event === "string");
}

// A figure per layer travels as one number where all layers have the same.
export const perLayer = (rows, layers) => (Array.isArray(rows) ? rows : Array(Math.min(layers, 512)).fill(rows));
export const overLayers = (rows, layers) => (Array.isArray(rows) ? rows.reduce((a, b) => a + b, 0) : rows * layers);
export const deepest = (rows) => (Array.isArray(rows) ? Math.max(0, ...rows) : rows);

// How many events at the beginning of `list` are already the last ones of `known`, which a snapshot may have brought.
// Looked for from the end; 0 where nothing overlaps.
export function overlap(known, list) {
  const text = list.map((e) => JSON.stringify(e));
  for (let i = Math.max(0, known.length - 5000); i < known.length; i++) {
    let n = 0;
    while (n < text.length && i + n < known.length && JSON.stringify(known[i + n]) === text[n]) n++;
    if (n && (n === text.length || i + n === known.length)) return n;
  }
  return 0;
}
