// Lines with bands, and points with their Pareto front.

const M = { left: 52, right: 14, top: 12, bottom: 44 };
const narrow = matchMedia('(max-width: 700px)');
let W, H;
const fitCharts = () => { [W, H] = narrow.matches ? [400, 300] : [760, 360]; };
fitCharts();

function frame(label, xs, ys, xText, yText, grid) {
  const root = svg('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': label });
  for (const [at, text] of ys) {
    root.append(svg('line', { class: 'grid', x1: M.left, x2: W - M.right, y1: at, y2: at }),
      svg('text', { class: 'soft', x: M.left - 7, y: at + 4, 'text-anchor': 'end' }, text));
  }
  for (const [at, text] of xs) {
    if (grid) root.append(svg('line', { class: 'grid', x1: at, x2: at, y1: M.top, y2: H - M.bottom }));
    root.append(svg('text', { class: 'soft', x: at, y: H - M.bottom + 17, 'text-anchor': 'middle' }, text));
  }
  root.append(svg('line', { class: 'axis', x1: M.left, x2: W - M.right, y1: H - M.bottom, y2: H - M.bottom }),
    svg('text', { class: 'soft', x: (M.left + W - M.right) / 2, y: H - 8, 'text-anchor': 'middle' }, xText),
    svg('text', { class: 'soft', x: 0, y: 0, 'text-anchor': 'middle',
      transform: `translate(13 ${(M.top + H - M.bottom) / 2}) rotate(-90)` }, yText));
  return root;
}

function legend(lines) {
  const mark = (line) => (line.values ? svg('line', { x1: 1, x2: 25, y1: 5, y2: 5, stroke: line.color, 'stroke-width': 2.5,
    'stroke-dasharray': line.flat ? '3 3' : line.dash })
    : svg('circle', { cx: 13, cy: 5, r: 4, stroke: line.color, 'stroke-width': 2, fill: line.bound ? 'none' : line.color }));
  return el('ul', { class: 'legend' }, lines.map((line) => el('li', {},
    svg('svg', { viewBox: '0 0 26 10', 'aria-hidden': 'true' }, mark(line)), line.name)));
}

// lines: {name, color, dash, values: one list per seed, flat}; a flat one is a level, drawn over the whole width
function lineChart({ label, lines, start = 1, xText, yText, percent = true, marks = [], names = [] }) {
  const drawn = lines.map((line) => {
    const count = line.values[0].length;
    const columns = [...Array(count).keys()].map((t) => known(line.values.map((v) => v[t])));
    return { ...line, middle: columns.map((c) => (c.length ? mean(c) : null)), half: columns.map(halfWidth) };
  });
  const longest = Math.max(2, ...drawn.filter((l) => !l.flat).map((l) => l.middle.length));
  const every = drawn.flatMap((l) => l.middle.flatMap((v, t) => (v === null ? [] : [v - l.half[t], v + l.half[t]])));
  if (!every.length) return el('p', { class: 'none' }, 'Nothing to draw.');
  let low = Math.min(...every), high = Math.max(...every);
  const pad = (high - low) * 0.06 || 1;
  low = percent ? Math.max(0, low - pad) : low - pad;
  high = percent ? Math.min(100, high + pad) : high + pad;
  const x = (t) => M.left + 8 + (W - M.left - M.right - 16) * t / (longest - 1);
  const y = (v) => H - M.bottom - (H - M.bottom - M.top) * (Math.min(high, Math.max(low, v)) - low) / (high - low);
  const step = Math.max(1, Math.ceil(longest / (W / 48)));
  const xs = [...Array(longest).keys()].filter((t) => t % step === 0).map((t) => [x(t), `${t + start}`]);
  const root = frame(label, xs, ticks(low, high).map((v) => [y(v), `${v}`]), xText, yText, false);
  for (const at of marks) root.append(svg('line', { class: 'axis', x1: x(at), x2: x(at), y1: M.top, y2: H - M.bottom,
    'stroke-dasharray': '2 4' }));
  for (const line of drawn) drawLine(root, line, x, y, longest, drawn.length > 4 ? 0.08 : 0.15);
  hover(root, drawn, x, longest, (t) => (names[t] ? `${t + start}: ${cut(names[t], 120)}` : `${xText} ${t + start}`), y);
  return el('div', { class: 'plot' }, root, legend(drawn));
}

function drawLine(root, line, x, y, longest, opacity) {
  const look = { stroke: line.color, 'stroke-width': 2, fill: 'none', 'stroke-linejoin': 'round' };
  if (line.flat) {
    const at = y(line.middle[line.middle.length - 1]);
    root.append(svg('line', { ...look, class: 'level', x1: x(0), x2: x(longest - 1), y1: at, y2: at, 'stroke-dasharray': '3 3' }));
    return;
  }
  const points = line.middle.map((v, t) => (v === null ? null : [x(t), y(v), t])).filter(Boolean);
  if (line.half.some((h) => h > 0)) {
    const upper = points.map(([a, , t]) => `${a.toFixed(1)} ${y(line.middle[t] + line.half[t]).toFixed(1)}`);
    const lower = points.map(([a, , t]) => `${a.toFixed(1)} ${y(line.middle[t] - line.half[t]).toFixed(1)}`).reverse();
    root.append(svg('path', { class: 'band', d: `M${upper.concat(lower).join('L')}Z`, fill: line.color, opacity }));
  }
  root.append(svg('path', { ...look, class: 'line', 'stroke-dasharray': line.dash,
    d: `M${points.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join('L')}` }));
  if (points.length <= 40) for (const [a, b] of points) root.append(svg('circle', { cx: a, cy: b, r: 2.6, fill: line.color }));
}

function hover(root, lines, x, longest, title, y) {
  const rule = svg('line', { class: 'axis', y1: M.top, y2: H - M.bottom, visibility: 'hidden' });
  root.append(rule);
  root.addEventListener('pointermove', (event) => {
    const box = root.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * W;
    const t = Math.max(0, Math.min(longest - 1, Math.round((at - x(0)) / (x(1) - x(0)))));
    rule.setAttribute('x1', x(t));
    rule.setAttribute('x2', x(t));
    rule.setAttribute('visibility', 'visible');
    const rows = lines.map((l) => [l, l.flat ? l.middle.length - 1 : t]).filter(([l, k]) => known([l.middle[k]]).length)
      .sort(([a, i], [b, j]) => b.middle[j] - a.middle[i])
      .map(([l, k]) => `${l.middle[k].toFixed(2)}${l.half[k] ? ` ± ${l.half[k].toFixed(2)}` : ''}  ${cut(l.name, 50)}`);
    showTip(event, [title(t), ...rows.slice(0, 14), ...(rows.length > 14 ? [`and ${rows.length - 14} more`] : [])].join('\n'));
  });
  root.addEventListener('pointerleave', () => { rule.setAttribute('visibility', 'hidden'); hideTip(); });
}

// points no other one beats: at most as much on x, and more on y
function pareto(points) {
  let best = -Infinity;
  return [...points].sort((a, b) => a.x - b.x || b.y - a.y).filter((p) => p.y > best && ((best = p.y), true));
}

function scatter({ label, points, xKey, xText, yText }) {
  if (!points.length) return el('p', { class: 'none' }, 'No selected method has both numbers.');
  const xsAll = points.map((p) => p.x), ysAll = points.flatMap((p) => [p.y - p.half, p.y + p.half]);
  const log = Math.min(...xsAll) > 0 && Math.max(...xsAll) / Math.min(...xsAll) > 20;
  const to = (v) => (log ? Math.log10(v) : v);
  let [low, high] = [Math.min(...xsAll.map(to)), Math.max(...xsAll.map(to))];
  const padX = (high - low) * 0.07 || Math.abs(low) * 0.1 || 1;
  [low, high] = [log || low - padX > 0 ? low - padX : Math.min(0, low), high + padX * 1.6];
  const padY = (Math.max(...ysAll) - Math.min(...ysAll)) * 0.08 || 1;
  const [bottom, top] = [Math.max(0, Math.min(...ysAll) - padY), Math.max(...ysAll) + padY];
  const x = (v) => M.left + (W - M.left - M.right) * (to(v) - low) / (high - low);
  const y = (v) => H - M.bottom - (H - M.bottom - M.top) * (v - bottom) / (top - bottom);
  const places = log ? logTicks(xKey, 10 ** low, 10 ** high) : ticks(low, high);
  const root = frame(label, places.map((v) => [x(v), show(xKey, v)]), ticks(bottom, top).map((v) => [y(v), `${v}`]),
    log ? `${xText} (logarithmic)` : xText, yText, true);
  const front = pareto(points.filter((p) => !p.bound));
  if (front.length > 1) {
    const steps = front.map((p, k) => `${k ? `H${x(p.x).toFixed(1)}V` : `M${x(p.x).toFixed(1)} `}${y(p.y).toFixed(1)}`);
    root.append(svg('path', { class: 'front', d: steps.join(''), fill: 'none', stroke: 'var(--soft)', 'stroke-dasharray': '4 4' }));
  }
  const taken = [];
  for (const p of points) drawPoint(root, p, x(p.x), y, front.includes(p), taken, xKey);
  return el('div', { class: 'plot' }, root, el('div', {}, legend(points), el('p', { class: 'hint' }, 'Dashed: the Pareto front, methods that no other one beats on both numbers. Hollow: an upper bound, trained on all tasks at once.')));
}

function drawPoint(root, p, a, y, onFront, taken, xKey) {
  const b = y(p.y);
  if (p.half) root.append(svg('line', { x1: a, x2: a, y1: y(p.y - p.half), y2: y(p.y + p.half), stroke: p.color, opacity: 0.6 }));
  const dot = svg('circle', { class: 'point', cx: a, cy: b, r: 5.5, fill: p.bound ? 'var(--card)' : p.color, stroke: p.color,
    'stroke-width': 2 });
  dot.addEventListener('pointermove', (e) => showTip(e, `${p.name}\n${p.y.toFixed(2)}${p.half ? ` ± ${p.half.toFixed(2)}` : ''}\n${show(xKey, p.x)}`));
  dot.addEventListener('pointerleave', hideTip);
  root.append(dot);
  const text = cut(p.name, 26), width = text.length * 6.4;
  const right = a + 9 + width < W - M.right;
  const box = [right ? a + 9 : a - 9 - width, b - 6, width];
  const free = !taken.some((t) => Math.abs(t[1] - box[1]) < 13 && box[0] < t[0] + t[2] && t[0] < box[0] + box[2]);
  if (free || onFront) {
    taken.push(box);
    root.append(svg('text', { class: 'halo', x: right ? a + 9 : a - 9, y: b + 4, 'text-anchor': right ? 'start' : 'end',
      'font-weight': onFront ? 600 : 400 }, text));
  }
}
