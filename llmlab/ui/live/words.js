// The panel's words, and numbers as they are written in its language.

export const language = { name: "en", labels: { en: {} } };

// The browser's language where it is one of ours, else the page's.
export function speak(labels, fallback) {
  language.labels = labels;
  language.name = /^zh\b/i.test(navigator.language) ? "zh-CN" : labels[fallback] ? fallback : "en";
}

export const known = (key) => Object.hasOwn(language.labels.en, key);

export function say(key, values) {
  const text = language.labels[language.name][key] ?? language.labels.en[key] ?? key;
  return values ? text.replace(/\{(\w+)\}/g, (_, name) => String(values[name])) : text;
}

export const fixed = (x, digits) =>
  x.toLocaleString(language.name, { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const short = (x) => fixed(x, x >= 100 || Number.isInteger(x) ? 0 : x >= 10 ? 1 : 2);
export const millis = (seconds) => short(seconds * 1000);
const megabytes = (n) => `${short(n / 1e6)} MB`;
export const bytes = (n) => (n >= 1e10 ? `${short(n / 1e9)} GB` : megabytes(n));
// Two sizes beside each other: in megabytes where both would read the same otherwise.
export const change = (a, b) => [a, b].map(a !== b && bytes(a) === bytes(b) ? megabytes : bytes);

export const label = (v) =>
  Math.abs(v) >= 10000
    ? `${short(v / 1000)}k`
    : (v || 0).toLocaleString(language.name, { maximumSignificantDigits: 3 });
