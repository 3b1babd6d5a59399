// Tables: sorting, filtering, groups of columns, the spread, and which methods the charts show.

const FIRST = 8; // methods that the charts show at the start
const sections = [...document.querySelectorAll('main > section[id^=table-]')].map((node, k) => ({
  node, data: DATA.tables[k], shown: new Set(), redraw: () => {} }));

function setUp(section) {
  const { node, data } = section, body = node.querySelector('tbody');
  section.rows = [...body.querySelectorAll('tr[data-arm]')].map((row) => ({
    row, arm: +row.dataset.arm, text: row.querySelector('th').textContent.toLowerCase(),
    beside: [...body.querySelectorAll(`tr[data-of="${row.dataset.arm}"]`)] }));
  const first = data.columns.find((c) => c.group === 'accuracy') || data.columns[0];
  const values = data.arms.map((arm) => (first ? known(arm.values[first.key]) : []));
  const order = [...data.arms.keys()].sort((a, b) => (values[b].length ? mean(values[b]) : -1) - (values[a].length ? mean(values[a]) : -1));
  section.shown = new Set(order.slice(0, FIRST));
  for (const { row, arm } of section.rows) {
    const box = el('input', { type: 'checkbox', 'aria-label': `draw ${labelOf(data.arms[arm])}`, title: 'in the charts below',
      onchange: (e) => { section.shown[e.target.checked ? 'add' : 'delete'](arm); section.redraw(); } });
    box.checked = section.shown.has(arm);
    row.querySelector('th').prepend(el('span', { class: 'swatch' }, box));
  }
  for (const button of node.querySelectorAll('thead button[data-sort]')) button.addEventListener('click', () => sort(section, button));
  paint(section);
}

function paint(section) {
  for (const { row, arm } of section.rows) row.querySelector('.swatch').style.setProperty('--own', colorOf(arm));
}

function sort(section, button) {
  const head = button.closest('th'), place = [...head.parentNode.children].indexOf(head), key = button.dataset.sort;
  const column = section.data.columns.find((c) => c.key === key), before = head.getAttribute('aria-sort');
  const start = key === 'name' || (column && column.lower) ? 'ascending' : 'descending';
  const next = !before ? start : before === 'ascending' ? 'descending' : 'ascending';
  for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', next);
  const sign = next === 'ascending' ? 1 : -1;
  const worth = ({ row, text }) => (key === 'name' ? text : parseFloat(row.children[place].dataset.v));
  section.rows.sort((a, b) => {
    const [x, y] = [worth(a), worth(b)];
    if (key === 'name') return sign * x.localeCompare(y, 'en', { numeric: true });
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // empty cells come last
    return sign * (x - y) || a.arm - b.arm;
  });
  section.node.querySelector('tbody').append(...section.rows.flatMap((r) => [r.row, ...r.beside]));
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const section of sections) {
    for (const { row, beside, text: own } of section.rows) {
      const hidden = !words.every((w) => own.includes(w));
      for (const line of [row, ...beside]) line.hidden = hidden;
    }
    section.redraw();
  }
}
const visible = (section) => section.rows.filter(({ row }) => !row.hidden).map(({ arm }) => arm);
const drawnArms = (section) => visible(section).filter((arm) => section.shown.has(arm)).sort((a, b) => a - b);

// columns of the groups that are on: the main ones, or all of a group that has no main one
function showColumns() {
  const on = new Set([...document.querySelectorAll('input[data-group]:checked')].map((box) => box.dataset.group));
  const every = document.getElementById('every').checked;
  for (const { node } of sections) {
    const heads = [...node.querySelectorAll('thead th[data-key]')], hidden = new Set();
    const main = new Set(heads.filter((h) => !('more' in h.dataset)).map((h) => h.dataset.group));
    for (const { dataset } of heads) {
      const spare = 'twin' in dataset || ('more' in dataset && main.has(dataset.group));
      if (!on.has(dataset.group) || (spare && !every)) hidden.add(dataset.key);
    }
    for (const cell of node.querySelectorAll('table [data-key]')) cell.hidden = hidden.has(cell.dataset.key);
    for (const over of node.querySelectorAll('th[data-over]')) {
      const count = heads.filter((h) => h.dataset.group === over.dataset.over && !h.hidden).length;
      over.hidden = !count;
      over.colSpan = Math.max(1, count);
    }
  }
}

// at the start, groups are switched off from the last one until the widest table fits its card
function fitColumns() {
  const boxes = [...document.querySelectorAll('input[data-group]')];
  showColumns();
  const tooWide = () => sections.some(({ node }) => {
    const wrap = node.querySelector('.wrap');
    return wrap.scrollWidth > wrap.clientWidth + 1;
  });
  for (const box of boxes.slice(1).reverse()) {
    if (!tooWide()) break;
    box.checked = false;
    showColumns();
  }
}

function showSpread(kind) {
  state.spread = kind;
  for (const mark of document.querySelectorAll('.pm')) mark.textContent = mark.dataset[kind];
  for (const section of sections) section.redraw();
}
