// Two methods of a table: differences paired over the seeds that both have, with Student's t test.

function compareRows(table, first, second) {
  const [a, b] = [table.arms[first], table.arms[second]];
  return table.columns.filter((c) => !c.twin).map((column) => {
    const pairs = a.seeds.map((seed, k) => [seed, a.values[column.key][k], b.values[column.key][b.seeds.indexOf(seed)]])
      .filter(([, x, y]) => known([x, y]).length === 2);
    return { column, pairs, ...paired(pairs.map((p) => p[1]), pairs.map((p) => p[2])) };
  }).filter((row) => row.n);
}

const pText = (p) => (p === null ? '' : p < 0.001 ? '< 0.001' : p.toFixed(3));

function compareTable(table, first, second) {
  const rows = compareRows(table, first, second);
  if (!rows.length) return el('p', { class: 'none' }, 'These two have no seed in common: nothing can be paired.');
  const body = rows.map(({ column, pairs, n, middle, half, p }) => {
    const better = column.lower ? middle < 0 : middle > 0, told = half !== null && Math.abs(middle) > half;
    const key = column.key, sign = middle > 0 ? '+' : middle < 0 ? '−' : '';
    const seeds = pairs.map(([seed, x, y]) => `seed ${seed}: ${show(key, x)} and ${show(key, y)}`).join('\n');
    return el('tr', { title: seeds, 'data-p': p }, el('th', { scope: 'row', class: 'name' }, column.title),
      el('td', {}, show(key, mean(pairs.map((q) => q[1])))), el('td', {}, show(key, mean(pairs.map((q) => q[2])))),
      el('td', { class: told ? (better ? 'up' : 'down') : '' }, `${sign}${show(key, Math.abs(middle))}${half === null ? '' : ` ± ${show(key, half)}`}`),
      el('td', {}, pText(p)), el('td', {}, `${n}`),
      el('td', { class: 'text' }, !told ? (n < 2 ? 'one seed' : 'not told apart') : better ? 'first is better' : 'second is better'));
  });
  const head = ['score', 'first', 'second', 'first − second', 'p', 'seeds', 'by the 95 % interval'];
  return el('div', { class: 'wrap' }, el('table', { class: 'compare' },
    el('thead', {}, el('tr', {}, head.map((t, k) => el('th', { scope: 'col', class: ['name', '', '', '', '', '', 'text'][k] }, t)))), el('tbody', {}, body)));
}
