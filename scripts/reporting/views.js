// The charts below each table, one tab each, drawn when they come into sight.

const linesOf = (section, pick) => drawnArms(section).flatMap((n) => pick(section.data.arms[n]).map(({ name, values, flat }) => ({
  name: name ? `${labelOf(section.data.arms[n])}: ${name}` : labelOf(section.data.arms[n]),
  color: colorOf(n), dash: dashOf(n), values, flat })));
const keysOf = (arms, field) => [...new Set(arms.flatMap((a) => Object.keys(a[field])))];
const hint = (text) => el('p', { class: 'hint' }, text);
const bandText = () => (state.spread === 'std' ? 'the standard deviation over seeds' : 'the 95 % interval over seeds');

function keep(section, name, options) {
  section.kept ||= {};
  if (!options.some(([key]) => key === section.kept[name])) section.kept[name] = options.length ? options[0][0] : undefined;
  return section.kept[name];
}
const picker = (section, name, text, options) => choose(text, options, keep(section, name, options), (value) => {
  section.kept[name] = value;
  section.redraw();
});

const VIEWS = {
  'Over tasks': {
    has: (table) => table.arms.some((a) => Object.values(a.curves).some((c) => c[0].length > 1)),
    draw(section) {
      const { data } = section, options = keysOf(data.arms, 'curves').map((k) => [k, data.scores[k]]), score = keep(section, 'curve', options);
      const lines = linesOf(section, (arm) => (arm.curves[score] ? [{ values: arm.curves[score], flat: arm.one }] : []));
      return [el('div', { class: 'controls' }, picker(section, 'curve', 'score', options)),
        lines.length ? lineChart({ label: `${data.scores[score]} over tasks`, lines, xText: 'task', yText: `${data.scores[score]}, mean over tasks seen (%)`, names: data.tasks }) : hint('Tick a method in the table.'),
        hint(`Mean over the tasks seen so far; the band is ${bandText()}. A level line is joint training or a single task.`)];
    },
  },
  Matrices: {
    has: (table) => table.arms.some((a) => Object.keys(a.matrices).length),
    draw(section) {
      const { data } = section, options = keysOf(data.arms, 'matrices').map((k) => [k, data.scores[k]]), score = keep(section, 'matrix', options);
      const arms = drawnArms(section).map((n) => data.arms[n]).filter((a) => a.matrices[score]);
      return [el('div', { class: 'controls' }, picker(section, 'matrix', 'score', options)),
        el('div', { class: 'maps' }, arms.map((arm) => matrixMap(data, arm, score))), hint('Percent, mean over seeds. Row: after this task; column: on the test set of that task.')];
    },
  },
  'Trade-off': {
    has: (table) => table.columns.some((c) => c.group === 'cost') && table.arms.length > 1,
    draw(section) {
      const { data } = section, costs = data.columns.filter((c) => c.group === 'cost').map((c) => [c.key, c.title]);
      const scores = data.columns.filter((c) => c.group !== 'cost' && !c.twin).map((c) => [c.key, c.title]);
      if (!scores.length) return [hint('There is no score.')];
      const [xKey, yKey] = [keep(section, 'cost', costs), keep(section, 'score', scores)];
      const points = drawnArms(section).map((n) => ({ n, arm: data.arms[n] }))
        .map(({ n, arm }) => ({ n, arm, xs: known(arm.values[xKey]), ys: known(arm.values[yKey]) })).filter((p) => p.xs.length && p.ys.length)
        .map(({ n, arm, xs, ys }) => ({ name: labelOf(arm), color: colorOf(n), x: mean(xs), y: mean(ys), half: halfWidth(ys), bound: arm.one }));
      return [el('div', { class: 'controls' }, picker(section, 'cost', 'cost', costs), picker(section, 'score', 'score', scores)),
        scatter({ label: 'score against cost', points, xKey, xText: costs.find((c) => c[0] === xKey)[1], yText: scores.find((c) => c[0] === yKey)[1] })];
    },
  },
  Classes: {
    has: (table) => table.arms.some((a) => a.classes.length),
    draw(section) {
      const { data } = section, shown = drawnArms(section).filter((n) => data.arms[n].classes.length);
      if (!shown.length) return [hint('Tick a method in the table.')];
      const options = shown.filter((n) => data.arms[n].confusion.length).map((n) => [`${n}`, labelOf(data.arms[n])]);
      const one = keep(section, 'class', options);
      return [el('h3', {}, 'Accuracy per class after the last task (%)'),
        el('div', { class: 'maps' }, el('figure', {}, classMap(data, shown.map((n) => data.arms[n])))),
        ...(options.length ? [el('h3', {}, 'Confusion after the last task'), el('div', { class: 'controls' }, picker(section, 'class', 'method', options)), confusionView(data, data.arms[one])] : [])];
    },
  },
  Loss: {
    has: (table) => table.arms.some((a) => a.loss.length),
    draw(section) {
      const lines = linesOf(section, (arm) => (arm.loss.length ? [{ values: arm.loss }] : []));
      if (!lines.length) return [hint('No ticked method trains by gradient steps of the loop.')];
      const longest = drawnArms(section).map((n) => section.data.arms[n]).reduce((a, b) => (b.loss.length && b.loss[0].length > (a ? a.loss[0].length : 0) ? b : a), null);
      const marks = longest.epochs.slice(0, -1).map((sum => (n) => (sum += n) - 0.5)(0));
      return [lineChart({ label: 'loss', lines, xText: 'epoch', yText: 'mean training loss', percent: false, marks }), hint(`Mean of each epoch; losses of different methods are different quantities. The band is ${bandText()}; dotted lines are between tasks.`)];
    },
  },
  Probes: {
    has: (table) => table.arms.some((a) => Object.keys(a.probes).length),
    draw(section) {
      const names = keysOf(section.data.arms, 'probes').map((k) => [k, k]), probe = keep(section, 'probe', names);
      const lines = linesOf(section, (arm) => (arm.probes[probe] ? [{ values: arm.probes[probe] }] : []));
      return [el('div', { class: 'controls' }, picker(section, 'probe', 'probe', names)),
        lines.length ? lineChart({ label: `probe ${probe}`, lines, start: 0, xText: 'tasks trained', yText: 'probe (%)' }) : hint('Tick a method in the table.'), hint('Data outside the stream; 0 is the untouched model.')];
    },
  },
  Compare: {
    has: (table) => table.arms.length > 1,
    draw(section) {
      const { data } = section, options = visible(section).map((n) => [`${n}`, labelOf(data.arms[n])]);
      const first = keep(section, 'first', options), second = keep(section, 'second', [...options.slice(1), ...options.slice(0, 1)]);
      if (options.length < 2) return [hint('The filter leaves fewer than two methods.')];
      return [el('div', { class: 'controls' }, picker(section, 'first', 'first', options), picker(section, 'second', 'second', options)),
        compareTable(data, +first, +second),
        hint('Paired over seeds: mean difference ± half its 95 % interval, two-sided p of Student’s t test; no correction for the number of scores that are compared.')];
    },
  },
};

function tabs(section, place) {
  const names = Object.keys(VIEWS).filter((name) => VIEWS[name].has(section.data));
  const box = section.node.querySelector('.views');
  if (!names.length) return;
  let now = names[0];
  const panel = el('div', { role: 'tabpanel', id: `panel-${place}`, 'aria-live': 'off' });
  const list = el('div', { role: 'tablist', 'aria-label': 'charts' }, names.map((name) => el('button', { type: 'button', role: 'tab', 'data-view': name,
    'aria-controls': panel.id, onclick: () => open(name), onkeydown: (e) => move(e) }, name)));
  const open = (name) => {
    now = name;
    for (const tab of list.children) {
      tab.setAttribute('aria-selected', tab.dataset.view === name);
      tab.tabIndex = tab.dataset.view === name ? 0 : -1;
    }
    panel.replaceChildren(...VIEWS[name].draw(section));
  };
  const move = (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!step) return;
    const next = list.children[(names.indexOf(now) + step + names.length) % names.length];
    open(next.dataset.view);
    next.focus();
  };
  box.append(list, panel);
  section.redraw = () => { if (section.seen) open(now); };
  new IntersectionObserver((entries, watcher) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    section.seen = true;
    open(now);
  }, { rootMargin: '400px' }).observe(box);
}

sections.forEach((section, k) => { setUp(section); tabs(section, k); });
fitColumns();
document.getElementById('filter').addEventListener('input', (e) => filter(e.target.value));
for (const box of document.querySelectorAll('input[data-group], #every')) box.addEventListener('change', showColumns);
for (const box of document.querySelectorAll('input[name=spread]')) box.addEventListener('change', (e) => showSpread(e.target.value));
const repaint = () => sections.forEach((section) => { paint(section); section.redraw(); });
document.getElementById('theme').addEventListener('click', () => { document.documentElement.dataset.theme = dark() ? 'light' : 'dark'; repaint(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', repaint);
narrow.addEventListener('change', () => { fitCharts(); repaint(); });
document.addEventListener('toggle', (e) => {
  for (const code of e.target.querySelectorAll(':scope > pre.command:not([data-copy])')) {
    code.dataset.copy = '1';
    code.before(el('button', { type: 'button', class: 'copy', onclick: (click) => { navigator.clipboard.writeText(code.textContent).then(() => { click.target.textContent = 'copied'; }, () => getSelection().selectAllChildren(code)); } }, 'copy'));
  }
}, true);
document.documentElement.dataset.ready = '1';
