// Heat maps: score matrices, accuracy per class, confusion.

const SCALE = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121],
  [110, 206, 88], [181, 222, 43], [253, 231, 37]];

function heatColor(share) {
  const at = Math.max(0, Math.min(1, share)) * (SCALE.length - 1), low = Math.floor(at), rest = at - low;
  const next = SCALE[Math.min(low + 1, SCALE.length - 1)];
  return SCALE[low].map((v, k) => Math.round(v + (next[k] - v) * rest));
}
const css = (rgb) => `rgb(${rgb.join(' ')})`;
const inkOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? '#111' : '#fff');

// values: rows of numbers or null; columns, rows: labels; tipOf(row, column, value)
function heatMap({ label, values, columns, rows, most = 100, tipOf, digits = 0, columnText, rowText }) {
  const across = columns.length, down = rows.length;
  const side = across > 60 ? 9 : across > 30 ? 14 : across > 14 ? 24 : 38;
  const tall = down > 60 ? 9 : Math.max(side, across > 30 ? 14 : 22);
  const left = Math.min(190, 14 + 6.6 * Math.max(...rows.map((r) => Math.min(r.length, 26)), 2)) + (rowText ? 16 : 0);
  const longest = Math.max(...columns.map((c) => Math.min(c.length, 16)), 1);
  const turned = longest * 6.6 > side - 2, head = (turned ? Math.min(110, 10 + longest * 6.2) : 18) + (columnText ? 16 : 0);
  const width = left + across * side + (turned ? 0.7 * head : 4), height = head + down * tall + 4;
  const root = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': label });
  if (columnText) root.append(svg('text', { class: 'soft', x: left, y: 11 }, columnText));
  if (rowText) root.append(svg('text', { class: 'soft', 'text-anchor': 'middle', transform: `translate(10 ${head + down * tall / 2}) rotate(-90)` }, rowText));
  const thin = Math.max(1, Math.ceil(11 / side)), thinDown = Math.max(1, Math.ceil(11 / tall));
  columns.forEach((name, j) => {
    if (j % thin) return;
    const at = left + (j + 0.5) * side, text = cut(name, 16);
    root.append(turned ? svg('text', { class: 'soft', transform: `translate(${at + 4} ${head - 5}) rotate(-50)` }, text)
      : svg('text', { class: 'soft', x: at, y: head - 5, 'text-anchor': 'middle' }, text));
  });
  rows.forEach((name, i) => {
    if (i % thinDown === 0) root.append(svg('text', { class: 'soft', x: left - 6, y: head + (i + 0.5) * tall + 4, 'text-anchor': 'end' }, cut(name, 26)));
  });
  values.forEach((row, i) => row.forEach((v, j) => {
    if (v === null || v === undefined) return;
    const rgb = heatColor(v / most);
    root.append(svg('rect', { class: 'cell', x: left + j * side, y: head + i * tall, width: side - (side > 12 ? 1 : 0),
      height: tall - (tall > 12 ? 1 : 0), fill: css(rgb), 'data-i': i, 'data-j': j }));
    if (side >= 24 && tall >= 18) {
      root.append(svg('text', { x: left + (j + 0.5) * side - 0.5, y: head + (i + 0.5) * tall + 3.5, 'text-anchor': 'middle',
        style: `fill:${inkOn(rgb)};font-size:10.5px;pointer-events:none` }, v.toFixed(digits)));
    }
  }));
  root.addEventListener('pointermove', (e) => {
    const { i, j } = e.target.dataset || {};
    if (i === undefined) hideTip();
    else showTip(e, tipOf(+i, +j, values[i][j]));
  });
  root.addEventListener('pointerleave', hideTip);
  return root;
}

const taskName = (table, t) => (table.tasks[t] ? `task ${t + 1} (${cut(table.tasks[t], 90)})` : `task ${t + 1}`);

function matrixMap(table, arm, score) {
  const values = arm.matrices[score], across = values[0].length;
  const short = [...Array(across).keys()].map((t) => (table.tasks[t] && table.tasks[t].length <= 14 ? table.tasks[t] : `${t + 1}`));
  return el('figure', {}, el('figcaption', {}, labelOf(arm)), heatMap({
    label: `${score} of ${labelOf(arm)}`, values, columns: short, rows: values.map((_, t) => `${t + 1}`),
    columnText: 'test set of task', rowText: 'after task', digits: across > 14 ? 0 : 1,
    tipOf: (i, j, v) => `${v.toFixed(1)} %\nafter task ${i + 1}\non the test set of ${taskName(table, j)}` }));
}

function classMap(table, arms) {
  const order = [...table.classes.keys()];
  return heatMap({ label: 'accuracy per class', values: arms.map((a) => order.map((k) => a.classes[k] ?? null)),
    columns: table.classes, rows: arms.map(labelOf),
    tipOf: (i, j, v) => `${v.toFixed(1)} %\n${table.classes[j]}\n${labelOf(arms[i])}` });
}

function confusionView(table, arm) {
  const count = table.classes.length, totals = Array(count).fill(0);
  arm.confusion.forEach(([t, , n]) => { totals[t] += n; });
  const whole = arm.confusion.some(([t, s]) => t === s) && count <= 40;
  const wrong = arm.confusion.filter(([t, s]) => t !== s).sort((a, b) => b[2] - a[2]).slice(0, 12);
  const parts = [];
  if (whole) {
    const values = table.classes.map(() => Array(count).fill(null));
    arm.confusion.forEach(([t, s, n]) => { values[t][s] = 100 * n / totals[t]; });
    parts.push(el('figure', {}, el('figcaption', {}, 'Percent of the images of a class (row) that were taken for a class (column)'),
      heatMap({ label: `confusion of ${labelOf(arm)}`, values, columns: table.classes, rows: table.classes, columnText: 'predicted', rowText: 'class',
        tipOf: (i, j, v) => `${v.toFixed(1)} % of ${table.classes[i]}\ntaken for ${table.classes[j]}` })));
  }
  parts.push(el('figure', {}, el('figcaption', {}, 'Most frequent mistakes'), el('table', {},
    el('thead', {}, el('tr', {}, el('th', { scope: 'col', class: 'name' }, 'class'), el('th', { scope: 'col' }, 'taken for'), el('th', { scope: 'col' }, 'images'))),
    el('tbody', {}, wrong.map(([t, s, n]) => el('tr', {}, el('th', { scope: 'row', class: 'name' }, table.classes[t]), el('td', {}, table.classes[s]), el('td', {}, `${n}`)))))));
  return el('div', { class: 'maps' }, parts);
}
