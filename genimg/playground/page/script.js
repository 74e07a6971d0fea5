'use strict';
// The page of genimg-play. The server describes the controls in model.json and checks every value again.

const find = (id) => document.getElementById(id);
const page = crypto.randomUUID();
const values = {};  // the values that the user has chosen, by name; tasks share them
const uploads = {};  // name of the chosen file, by control
const DELAY = 60;  // milliseconds between two requests of a moving slider
const POLL = 250;  // milliseconds
const TINY = 64;  // pixels, up to which pictures are enlarged without smoothing
const RANDOM_SEEDS = 1000000;

let model, task, newest = 0, timer = 0, polling = 0, result = null, shown = 0;

function make(tag, properties = {}, ...children) {
  const { dataset = {}, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

// Controls

function step(control) {
  if (control.kind !== 'number' || !control.usual) return 1;
  const range = control.usual[1] - control.usual[0];
  return range > 3 ? 0.1 : 0.01;
}

function valueOf(control) {
  return control.name in values ? values[control.name] : control.default;
}

function changed(control, value, isMoving = false) {
  values[control.name] = value;
  clearTimeout(timer);
  if (!find('auto').checked || (isMoving && !task.is_live)) return;
  timer = setTimeout(generate, DELAY);
}

function numberField(control, id) {
  const isSeed = control.kind === 'seed';
  const field = make('input', { id, type: 'number', step: control.kind === 'number' ? 'any' : '1', placeholder: control.optional ? 'none' : '' });
  field.inputMode = control.kind === 'number' ? 'decimal' : 'numeric';
  if (control.least !== null) field.min = control.least;
  if (control.most !== null) field.max = control.most;
  if (control.kind === 'number') field.step = step(control);
  const read = () => (field.value === '' ? (control.optional ? null : field.value) : Number(field.value));
  const row = make('div', { className: isSeed ? 'row seed' : 'row' }, field);
  let slider = null;
  const show = (value) => {
    field.value = value ?? '';
    if (!slider) return;
    slider.value = value ?? control.usual[1];
    slider.classList.toggle('unset', value === null);
  };
  if (isSeed) {
    const to = (label, text, next) => make('button', {
      type: 'button', ariaLabel: `${label} ${control.label.toLowerCase()}`, textContent: text,
      onclick: () => { show(next(Number(field.value) || 0)); changed(control, read()); },
    });
    row.append(
      to('Previous', '−', (seed) => Math.max(0, seed - 1)),
      to('Next', '+', (seed) => Math.min(control.most, seed + 1)),
      to('Random', '⚄', () => Math.floor(Math.random() * RANDOM_SEEDS)),
    );
    row.lastChild.title = 'Random seed';
  } else if (control.usual) {
    slider = make('input', { type: 'range', min: control.usual[0], max: control.usual[1], step: step(control), ariaLabel: `${control.label}, slider` });
    slider.oninput = () => { show(Number(slider.value)); changed(control, read(), true); };
    slider.onchange = () => changed(control, read());
    row.prepend(slider);
  }
  field.onchange = () => { show(read()); changed(control, read()); };
  field.oninput = () => { values[control.name] = read(); };
  show(valueOf(control));
  return row;
}

function choiceField(control, id) {
  const field = make('select', { id });
  const empty = control.name === 'label' ? 'random' : 'default';
  const choices = control.optional ? [[null, empty], ...control.choices] : control.choices;
  choices.forEach(([value, text], at) => field.append(make('option', { value: at, textContent: text, selected: value === valueOf(control) })));
  field.onchange = () => changed(control, choices[field.value][0]);
  return field;
}

function pictureField(control, id) {
  const chosen = make('p', { className: 'help', textContent: uploads[control.name] ? `Chosen: ${uploads[control.name]}` : '' });
  const field = make('input', { id, type: 'file', accept: 'image/*' });
  field.onchange = async () => {
    const [file] = field.files;
    if (!file) return;
    if (file.size > model.most_bytes) return fail(`${file.name} is larger than ${model.most_bytes / 2 ** 20} MiB: choose a smaller file`, control.name);
    const answer = await post(`/picture?name=${encodeURIComponent(file.name)}`, file, 'application/octet-stream');
    if (answer.error) return fail(answer.error, control.name);
    uploads[control.name] = answer.name;
    chosen.textContent = '';  // the field shows the name itself
    changed(control, answer.id);
  };
  return make('div', {}, field, chosen);
}

function fieldOf(control) {
  const id = `control-${control.name}`;
  const help = control.help ? make('p', { className: 'help', id: `${id}-help`, textContent: control.help }) : null;
  if (control.kind === 'flag') {
    const box = make('input', { id, type: 'checkbox', checked: valueOf(control), onchange: () => changed(control, box.checked) });
    const label = make('label', { className: 'check' }, box, ` ${control.label}`);
    return make('div', { className: 'field' }, label, ...(help ? [help] : []));
  }
  let field;
  if (control.kind === 'choice') field = choiceField(control, id);
  else if (control.kind === 'picture') field = pictureField(control, id);
  else if (control.kind === 'text') {
    field = make('input', { id, type: 'text', value: valueOf(control) ?? '', autocomplete: 'off' });
    const read = () => (field.value === '' && control.optional ? null : field.value);
    field.oninput = () => { values[control.name] = read(); };
    field.onchange = () => changed(control, read());
  } else field = numberField(control, id);
  const label = make('label', { htmlFor: id, textContent: control.label });
  const whole = make('div', { className: 'field' }, label, field, ...(help ? [help] : []));
  if (help) whole.querySelector(`#${CSS.escape(id)}`).setAttribute('aria-describedby', help.id);
  return whole;
}

function choose(chosen) {
  const valid = (control) => control.kind !== 'choice' || (control.optional && values[control.name] === null)
    || control.choices.some(([value]) => value === values[control.name]);
  task = chosen;
  document.body.classList.toggle('live', task.is_live);
  for (const control of task.controls) {
    if (control.name in values && !valid(control)) delete values[control.name];
  }
  find('controls').replaceChildren(...task.controls.filter((each) => !each.is_rare).map(fieldOf));
  const rare = task.controls.filter((each) => each.is_rare).map(fieldOf);
  find('rare').replaceChildren(...rare);
  find('more').hidden = !rare.length;
  find('make').textContent = task.name === 'reconstruct' ? 'Reconstruct' : task.name === 'translate' ? 'Translate' : 'Generate';
  generate();
}

// Requests

async function post(address, body, kind = 'application/json') {
  try {
    const answer = await fetch(address, { method: 'POST', body, headers: { 'Content-Type': kind } });
    return await answer.json();
  } catch {
    return { error: 'The server does not answer: start genimg-play again.' };
  }
}

function fail(message, key = '') {
  find('error').textContent = message;
  find('error').hidden = !message;
  for (const each of document.querySelectorAll('[aria-invalid]')) each.removeAttribute('aria-invalid');
  const field = key && find(`control-${key}`);
  if (field) field.setAttribute('aria-invalid', 'true');
}

function busy(isBusy) {
  find('pictures').classList.toggle('old', isBusy);
  find('results').ariaBusy = isBusy;
  clearInterval(polling);
  if (!isBusy) {
    find('busy').hidden = find('stop').hidden = true;
    return;
  }
  const start = performance.now();
  polling = setInterval(async () => {
    const number = newest;
    const state = await fetch(`/progress?page=${page}`).then((answer) => answer.json()).catch(() => ({}));
    if (number !== newest || find('results').ariaBusy !== 'true') return;
    const bar = find('progress'), own = state.own && state.progress;
    find('busy').hidden = find('stop').hidden = false;
    find('status').textContent = 'Working …';  // not for short work, which would make screen readers talk without pause
    if (own && own.total) Object.assign(bar, { max: own.total, value: own.done });
    else bar.removeAttribute('value');
    const what = state.busy && !state.own ? 'waiting for another page, ' : own && own.total > 1 ? `${own.what}, ${own.done} of ${own.total}, ` : '';
    find('elapsed').textContent = `${what}${((performance.now() - start) / 1000).toFixed(1)} s`;
  }, POLL);
}

async function generate() {
  clearTimeout(timer);
  const missing = task.controls.find((each) => each.kind === 'picture' && !valueOf(each));
  if (missing) {
    post('/stop', JSON.stringify({ page }));
    newest += 1;
    busy(false);
    fail('');
    show(null);
    find('status').textContent = `Choose a ${missing.label.toLowerCase()} first.`;
    return;
  }
  newest += 1;
  const number = newest;
  const sent = Object.fromEntries(task.controls.map((each) => [each.name, valueOf(each)]));
  busy(true);
  const answer = await post('/make', JSON.stringify({ page, task: task.name, values: sent }));
  if (number !== newest) return;
  busy(false);
  if (answer.is_replaced) {
    find('status').textContent = 'Stopped.';
    return;
  }
  fail(answer.error ?? '', answer.key);
  if (answer.error) {
    find('status').textContent = '';
    return;
  }
  const count = answer.pictures.filter((each) => !each.is_input).length;
  find('status').textContent = `${count} picture${count === 1 ? '' : 's'} in ${answer.seconds < 10 ? answer.seconds.toFixed(2) : answer.seconds.toFixed(0)} s`;
  show(answer);
}

// Pictures

const address = (picture) => `data:image/png;base64,${picture.png}`;
const title = (picture) => (picture.about ? `${picture.name}, ${picture.about}` : picture.name);

function item() {
  const image = make('img'), text = make('span'), link = make('a', { textContent: '↓' });
  const button = make('button', { type: 'button' }, image);
  const whole = make('li', {}, button, make('div', { className: 'caption' }, text, link));
  button.onclick = () => enlarge([...whole.parentNode.children].indexOf(whole));
  return Object.assign(whole, { image, text, link, button });
}

function show(made) {
  result = made;
  const pictures = made ? made.pictures : [], list = find('pictures');
  while (list.children.length > pictures.length) list.lastChild.remove();
  while (list.children.length < pictures.length) list.append(item());
  const tile = pictures.length <= 2 ? 260 : pictures.length <= 6 ? 200 : pictures.length <= 20 ? 132 : 96;
  list.style.setProperty('--tile', `${tile}px`);
  pictures.forEach((picture, at) => {
    const { image, text, link, button } = list.children[at];
    Object.assign(image, { src: address(picture), alt: title(picture), width: picture.width, height: picture.height });
    image.className = Math.max(picture.width, picture.height) <= TINY ? 'tiny' : '';
    button.ariaLabel = `Enlarge ${title(picture)}`;
    text.textContent = (!picture.is_input && picture.about) || picture.name.replace(/\.png$/, '');
    list.children[at].className = picture.is_input ? 'input' : '';
    Object.assign(link, { href: address(picture), download: picture.is_input ? 'input.png' : picture.name, ariaLabel: `Download ${picture.name}` });
  });
  find('shell').hidden = !made;
  if (!made) return;
  find('command').textContent = made.command;
  const where = made.files.length ? ` Run it in the folder of ${made.files.join(' and ')}.` : '';
  find('note').textContent = `It writes exactly these files.${where}`;
  if (find('dialog').open) enlarge(Math.min(shown, pictures.length - 1));
}

function enlarge(at) {
  const { pictures, command, files } = result, picture = pictures[at];
  shown = at;
  find('dialog-title').textContent = picture.name;
  find('large').className = Math.max(picture.width, picture.height) <= TINY ? 'tiny' : '';
  Object.assign(find('large'), { src: address(picture), alt: title(picture) });
  find('large-about').textContent = [picture.about, `${picture.width} × ${picture.height} pixels`].filter(Boolean).join(', ');
  Object.assign(find('save'), { href: address(picture), download: picture.is_input ? 'input.png' : picture.name });
  find('large-command').textContent = command;
  const where = files.length ? ` Run it in the folder of ${files.join(' and ')}.` : '';
  find('large-note').textContent = picture.is_input ? '' : `It writes this picture as ${picture.name}.${where}`;
  if (!find('dialog').open) find('dialog').showModal();
}

async function copy(button) {
  const code = find(button.dataset.of), text = button.textContent;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = 'Copied';
  } catch {  // no permission: the user can copy the selected text
    getSelection().selectAllChildren(code);
    button.textContent = 'Selected';
  }
  setTimeout(() => { button.textContent = text; }, 1500);
}

// Keys outside of the fields

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (find('dialog').open) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) enlarge((shown + move + result.pictures.length) % result.pictures.length);
    return;
  }
  const seed = task?.controls.find((each) => each.kind === 'seed');
  if (!seed || /^(INPUT|SELECT|TEXTAREA|SUMMARY|PRE)$/.test(event.target.tagName)) return;
  const at = { ArrowLeft: 0, ArrowRight: 1, r: 2, R: 2 }[event.key];
  if (at === undefined) return;
  event.preventDefault();
  find(`control-${seed.name}`).parentNode.querySelectorAll('button')[at].click();
}

async function start() {
  model = await fetch('/model.json').then((answer) => answer.json());
  document.title = `${model.title} · genimg playground`;
  find('title').textContent = model.title;
  for (const [name, value] of Object.entries(model.facts)) {
    find('facts').append(make('div', {}, make('dt', { textContent: name }), make('dd', { textContent: value })));
  }
  model.tasks.forEach((each, at) => {
    const radio = make('input', { type: 'radio', name: 'task', checked: at === 0, onchange: () => choose(each) });
    find('tasks').append(make('label', {}, radio, each.title));
  });
  find('form').onsubmit = (event) => {
    event.preventDefault();
    if (find('results').getBoundingClientRect().top > innerHeight - 100) find('results').scrollIntoView({ behavior: 'smooth' });
    generate();
  };
  find('stop').onclick = () => post('/stop', JSON.stringify({ page }));
  find('close').onclick = () => find('dialog').close();
  find('before').onclick = () => enlarge((shown + result.pictures.length - 1) % result.pictures.length);
  find('after').onclick = () => enlarge((shown + 1) % result.pictures.length);
  for (const button of document.querySelectorAll('.copy')) button.onclick = () => copy(button);
  document.addEventListener('keydown', pressed);
  addEventListener('pagehide', () => fetch('/stop', {
    method: 'POST', body: JSON.stringify({ page }), headers: { 'Content-Type': 'application/json' }, keepalive: true,
  }).catch(() => {}));
  choose(model.tasks[0]);
}

start().catch(() => fail('The server does not answer: start genimg-play again.'));
