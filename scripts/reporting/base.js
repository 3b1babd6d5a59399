// Shared by all parts of the page: elements, colors, numbers, statistics, the tip at the pointer.

const DATA = JSON.parse(document.getElementById('data').textContent);
const state = { spread: document.querySelector('input[name=spread]:checked').value };
const LIGHT = ['#2f6fd0', '#c9520c', '#1f8a4c', '#b03a8c', '#7a5cc9', '#946c00', '#0f8a94', '#d03547', '#5a6b7b', '#8a5a33'];
const DARK = ['#7fb0ff', '#ff9a57', '#6ed598', '#f08bd0', '#b9a0ff', '#e3bf52', '#5fd3dc', '#ff8c97', '#b2c0cf', '#d8a77c'];
const DASHES = ['', '7 4', '2 3', '9 3 2 3'];
const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const dark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
};
const colorOf = (n) => (dark() ? DARK : LIGHT)[n % LIGHT.length];
const dashOf = (n) => DASHES[Math.floor(n / LIGHT.length) % DASHES.length];
const labelOf = (arm) => arm.name;
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// numbers

const known = (values) => values.filter((v) => v !== null && v !== undefined);
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
function deviation(values) {
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (values.length - 1));
}
// half the 95 % interval is the factor of n values times their deviation; Student's t, computed where the page was made
const factorOf = (n) => (n < DATA.factors.length ? DATA.factors[n] : 1.96 / Math.sqrt(n));
function halfWidth(values) {
  if (values.length < 2) return 0;
  return deviation(values) * (state.spread === 'std' ? 1 : factorOf(values.length));
}

function lnGamma(x) {
  const c = [676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905,
    -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  let sum = 0.99999999999980993;
  for (let k = 0; k < c.length; k++) sum += c[k] / (x + k);
  const t = x + c.length - 1.5;
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(sum);
}
// regularized incomplete beta function by its continued fraction (Lentz)
function beta(x, a, b) {
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - beta(1 - x, b, a);
  const front = Math.exp(lnGamma(a + b) - lnGamma(a) - lnGamma(b) + a * Math.log(x) + b * Math.log(1 - x)) / a;
  const tiny = 1e-300;
  let c = 1, d = 1 / (Math.abs(1 - (a + b) * x / (a + 1)) < tiny ? tiny : 1 - (a + b) * x / (a + 1)), h = d;
  for (let m = 1; m < 300; m++) {
    for (const term of [m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
      -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))]) {
      d = 1 / (Math.abs(1 + term * d) < tiny ? tiny : 1 + term * d);
      c = Math.abs(1 + term / c) < tiny ? tiny : 1 + term / c;
      h *= c * d;
    }
    if (Math.abs(c * d - 1) < 1e-12) break;
  }
  return front * h;
}
// two-sided p of Student's t
const pOfT = (t, freedom) => beta(freedom / (freedom + t * t), freedom / 2, 0.5);

function paired(first, second) {
  const gaps = first.map((v, k) => v - second[k]), n = gaps.length, middle = n ? mean(gaps) : 0;
  if (n < 2) return { n, middle, half: null, p: null };
  const sd = deviation(gaps);
  if (sd === 0) return { n, middle, half: 0, p: middle === 0 ? 1 : 0 };
  return { n, middle, half: sd * factorOf(n), p: pOfT(middle / (sd / Math.sqrt(n)), n - 1) };
}

const kindOf = (key) => (/bytes$/.test(key) ? 'bytes' : /wall_s$/.test(key) ? 'seconds'
  : /(forwards|parameters)$/.test(key) ? 'count' : 'percent');
function big(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
    if (size >= unit) return `${+(value / unit).toPrecision(3)}${letter}`;
  }
  return `${+value.toPrecision(3)}`;
}
function show(key, value) {
  const kind = kindOf(key);
  if (kind === 'bytes') return value >= 2 ** 20 ? `${+(value / 2 ** 20).toFixed(1)} MiB` : `${+(value / 1024).toFixed(1)} KiB`;
  if (kind === 'count') return big(value);
  return kind === 'seconds' ? `${+value.toPrecision(3)} s` : value.toFixed(2);
}

// about five round ticks
function ticks(low, high) {
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(+v.toPrecision(12));
  return found;
}

// at most seven ticks on a logarithmic axis: 1, 2 and 5 times a power of ten, for bytes powers of four
function logTicks(key, low, high) {
  const found = [];
  if (kindOf(key) === 'bytes') for (let v = 1; v <= high; v *= 4) found.push(v);
  else for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++) for (const m of [1, 2, 5]) found.push(m * 10 ** p);
  const inside = found.filter((v) => v >= low && v <= high), step = Math.ceil(inside.length / 7);
  return inside.filter((_, k) => k % step === 0);
}

const tip = document.body.appendChild(el('div', { id: 'tip', role: 'status' }));
function showTip(event, text) {
  tip.textContent = text;
  tip.style.display = 'block';
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${Math.max(4, event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 10
    : event.clientY + 16)}px`;
}
const hideTip = () => { tip.style.display = 'none'; };

const choose = (name, options, value, change) => {
  const list = el('select', { onchange: (e) => change(e.target.value) },
    options.map(([key, text]) => el('option', { value: key }, cut(text, 90))));
  list.value = value;
  return el('label', {}, name, list);
};
