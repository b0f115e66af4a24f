// The page of `polylora serve`: the server at a glance, its adapters, and a prompt that the base
// and adapters answer side by side.
//
// Names and answers come from others: they reach the page through `textContent` alone.

const POLL_MS = 2000;
// More rows than anybody reads; the filter finds the others.
const MOST_ROWS = 200;
// A browser opens six connections to a server: one is left for the table.
const MOST_ANSWERS = 5;

const $ = (id) => document.getElementById(id);
const count = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });
const order = new Intl.Collator('en', { numeric: true });

/** Leaves alone what is right already, so that nothing is laid out or announced in vain. */
function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = Math.min(Math.floor(Math.log2(n || 1) / 10), units.length - 1);
  const value = n / 1024 ** power;
  return `${value.toFixed(power && value < 100 ? 1 : 0).replace('.0', '')} ${units[power]}`;
}

function milliseconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

// --- The server -----------------------------------------------------------------------------

/** Where nobody answers, or not as asked: the message is for people. */
class Refusal extends Error {
  constructor(status, detail, retryAfter) {
    const again = retryAfter ? ` Try again in ${retryAfter} s.` : '';
    super((detail?.message ?? `The server answered with status ${status}.`) + again);
    this.status = status;
  }
}

async function api(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem('api-key');
  if (key) headers.set('Authorization', `Bearer ${key}`);
  const response = await fetch(path, { ...options, headers, cache: 'no-store' });
  if (response.ok) return response;
  const detail = await response.json().catch(() => null);
  // Not if another key has been given since.
  if (response.status === 401 && key === sessionStorage.getItem('api-key')) askForKey();
  throw new Refusal(response.status, detail?.error, response.headers.get('Retry-After'));
}

function askForKey() {
  const wasRefused = sessionStorage.getItem('api-key') !== null;
  sessionStorage.removeItem('api-key');
  set($('key-error'), wasRefused ? 'The server does not know this key.' : '');
  set($('link'), 'Waiting for a key');
  delete $('link').dataset.state;
  $('content').hidden = true;
  $('forget').hidden = true;
  $('key-form').hidden = false;
  $('key').focus();
}

$('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem('api-key', $('key').value);
  $('key').value = '';
  poll();
});

$('forget').addEventListener('click', () => {
  sessionStorage.removeItem('api-key');
  // With the key goes all that it let one see.
  location.reload();
});

// --- At a glance ----------------------------------------------------------------------------

let base = null;
let adapters = [];
let lastText = '';
let isPolling = false;
let timer = 0;

async function poll() {
  clearTimeout(timer);
  if (isPolling || document.hidden) return;
  isPolling = true;
  try {
    const response = await api('adapters', { signal: AbortSignal.timeout(10 * POLL_MS) });
    const text = await response.text();
    if (text !== lastText) show(JSON.parse(text));
    lastText = text;
    reveal();
    set($('link'), 'Live');
    $('link').dataset.state = 'live';
  } catch (error) {
    // The form goes on from here.
    if (error.status === 401) return;
    set($('link'), error instanceof Refusal ? error.message : 'The server cannot be reached');
    $('link').dataset.state = 'lost';
  } finally {
    isPolling = false;
  }
  timer = setTimeout(poll, POLL_MS);
}

document.addEventListener('visibilitychange', poll);

function reveal() {
  if (!$('content').hidden) return;
  $('content').hidden = false;
  $('forget').hidden = sessionStorage.getItem('api-key') === null;
  if ($('key-form').hidden) return;
  $('key-form').hidden = true;
  $('filter').focus();
}

function show({ model, cache, requests, adapters: all }) {
  base = model.id;
  adapters = all;
  set($('model'), model.id);
  set($('architecture'), `${model.architecture}, ${short.format(model.parameters)} parameters`);
  set($('context'), count.format(model.context));
  set($('threads'), count.format(model.threads));
  // What concerns others is told to admins only.
  for (const tile of document.querySelectorAll('.of-admin')) tile.hidden = !cache;
  if (cache) {
    set($('running'), count.format(requests.running));
    set($('waiting'), count.format(requests.waiting));
    set($('memory'), bytes(cache.bytes));
    set($('memory-cap'), `of ${bytes(cache.capacity_bytes)}`);
    Object.assign($('memory-meter'), { max: cache.capacity_bytes, value: cache.bytes });
    const kept = cache.prefix_pages ? `, ${count.format(cache.prefix_pages)} kept for reuse` : '';
    set($('pages'), count.format(cache.kv_used));
    set($('pages-cap'), `of ${count.format(cache.kv_capacity)} pages${kept}`);
    Object.assign($('pages-meter'), { max: cache.kv_capacity, value: cache.kv_used });
  }
  renderRows();
}

// --- The table ------------------------------------------------------------------------------

const number = (label, get, text = count.format) => ({ label, get, text, kind: 'number' });
const COLUMNS = [
  { label: 'Name', get: (a) => a.name },
  { label: 'State', get: (a) => a.state },
  number('Running', (a) => a.running),
  number('Waiting', (a) => a.waiting),
  number('Requests', (a) => a.requests),
  number('Tokens', (a) => a.tokens),
  number('Memory', (a) => a.bytes, bytes),
  number('Rank', (a) => a.rank),
  number('Generation', (a) => a.generation),
  { label: 'Hash', get: (a) => a.hash, text: (hash) => hash.slice(0, 10), kind: 'code' },
];
const [NAME, STATE] = [0, 1];

const rows = new Map(); // By name: those that are shown.
let sortedBy = COLUMNS[NAME];
let isDescending = false;

for (const column of COLUMNS) {
  const th = document.createElement('th');
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = column.label;
  button.addEventListener('click', () => {
    // Of numbers the largest are looked for, of names the first.
    isDescending = sortedBy === column ? !isDescending : column.kind === 'number';
    sortedBy = column;
    renderRows();
  });
  th.scope = 'col';
  th.className = column.kind ?? '';
  th.append(button);
  column.header = th;
  $('columns').append(th);
}

function compare(a, b) {
  const [x, y] = [sortedBy.get(a), sortedBy.get(b)];
  // What is not known comes last either way.
  const unknown = (x === null) - (y === null);
  const known = typeof x === 'number' ? x - y : order.compare(x, y);
  return unknown || (isDescending ? -known : known) || order.compare(a.name, b.name);
}

function renderRows() {
  for (const { header } of COLUMNS) header.removeAttribute('aria-sort');
  sortedBy.header.ariaSort = isDescending ? 'descending' : 'ascending';

  const wanted = $('filter').value.trim().toLowerCase();
  const matches = (a) => `${a.name}\n${a.state}\n${a.hash ?? ''}`.toLowerCase().includes(wanted);
  const found = adapters.filter(matches).sort(compare);
  const shown = found.slice(0, MOST_ROWS);
  set($('count'), summary(found.length, shown.length));

  const names = new Set(shown.map((a) => a.name));
  for (const [name, row] of rows) {
    if (names.has(name)) continue;
    row.tr.remove();
    rows.delete(name);
  }
  const focused = document.activeElement;
  let next = $('rows').firstElementChild;
  for (const adapter of shown) {
    if (!rows.has(adapter.name)) rows.set(adapter.name, newRow(adapter.name));
    const row = rows.get(adapter.name);
    update(row, adapter);
    if (row.tr === next) next = next.nextElementSibling;
    else $('rows').insertBefore(row.tr, next);
  }
  // What stands in a row that is moved loses the focus.
  if (focused.isConnected && focused !== document.activeElement) {
    focused.focus({ preventScroll: true });
  }
}

function summary(found, shown) {
  const all = adapters.length;
  const are = found < all ? `${count.format(found)} of ${count.format(all)}` : count.format(all);
  return shown < found ? `${are}; the first ${shown} are shown, the filter finds the others` : are;
}

function newRow(name) {
  const tr = document.createElement('tr');
  const cells = COLUMNS.map((column) => {
    const cell = document.createElement(column === COLUMNS[NAME] ? 'th' : 'td');
    cell.className = column.kind ?? '';
    tr.append(cell);
    return cell;
  });
  const label = document.createElement('label');
  const box = document.createElement('input');
  box.type = 'checkbox';
  box.checked = chosen.has(name);
  box.addEventListener('change', () => (box.checked ? choose(name) : dismiss(name)));
  label.append(box, name);
  cells[NAME].scope = 'row';
  cells[NAME].append(label);
  const [state, error] = [document.createElement('span'), document.createElement('small')];
  state.className = 'state';
  error.className = 'error';
  cells[STATE].append(state, error);
  return { tr, box, cells, state, error };
}

function update(row, adapter) {
  set(row.state, adapter.state);
  row.state.dataset.state = adapter.state;
  set(row.error, adapter.error ?? '');
  for (let at = STATE + 1; at < COLUMNS.length; at++) {
    const value = COLUMNS[at].get(adapter);
    set(row.cells[at], value === null ? '–' : COLUMNS[at].text(value));
  }
  row.cells.at(-1).title = adapter.hash ?? '';
}

$('filter').addEventListener('input', renderRows);

// --- Who answers ----------------------------------------------------------------------------

const chosen = new Map(); // The item of each adapter, by name.

function choose(name) {
  const item = $('chosen-template').content.cloneNode(true).firstElementChild;
  item.querySelector('.name').textContent = name;
  item.querySelector('.unseen').textContent = `Scale of ${name}`;
  const button = item.querySelector('button');
  button.ariaLabel = `Leave out ${name}`;
  button.addEventListener('click', () => {
    dismiss(name);
    $('base').focus();
  });
  chosen.set(name, item);
  $('chosen').append(item);
  checkLimit();
}

function dismiss(name) {
  chosen.get(name).remove();
  chosen.delete(name);
  const row = rows.get(name);
  if (row) row.box.checked = false;
  checkLimit();
}

/** Tells of too many, or none; returns whether it is neither. */
function checkLimit() {
  const answers = chosen.size + $('base').checked;
  const isRight = answers > 0 && answers <= MOST_ANSWERS;
  let advice = chosen.size ? '' : 'Tick adapters in the table to have them answer too.';
  if (answers === 0) advice = 'Choose who is to answer.';
  if (answers > MOST_ANSWERS) advice = `At most ${MOST_ANSWERS} can answer at once.`;
  set($('limit'), advice);
  $('limit').classList.toggle('error', !isRight);
  return isRight;
}

$('base').addEventListener('change', checkLimit);
checkLimit();

// --- Answers --------------------------------------------------------------------------------

let run = null; // What stops the answers that are being written.
let hasTemplate = true;

/** The events of a stream as values; chunks may end anywhere, even within a letter. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, data] = ['', []];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith('data:')) data.push(line.slice(5));
      if (line !== '' || data.length === 0) continue;
      const event = data.join('\n').trim();
      data = [];
      if (event === '[DONE]') return;
      yield JSON.parse(event);
    }
  }
}

async function complete(prompt, manner, signal) {
  const post = (path, question) =>
    api(path, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ ...manner, ...question }),
      signal,
    });
  if (hasTemplate) {
    try {
      return await post('v1/chat/completions', { messages: [{ role: 'user', content: prompt }] });
    } catch (error) {
      if (error.status !== 400 || !error.message.includes('/v1/completions')) throw error;
      hasTemplate = false;
    }
  }
  return post('v1/completions', { prompt });
}

async function answer(view, prompt, manner, signal) {
  const part = (name) => view.querySelector(name);
  const text = part('.text');
  const sent = performance.now();
  let [first, last, tokens, finish] = [0, 0, 0, null];
  const tell = (isExact) => {
    set(part('.tokens'), (isExact ? '' : '≥ ') + count.format(tokens));
    set(part('.first'), first ? milliseconds(first - sent) : '–');
    // Of those after the first, which took the reading of the prompt.
    if (last > first) set(part('.rate'), short.format((1000 * (tokens - 1)) / (last - first)));
  };
  set(part('.finish'), 'waiting');
  try {
    for await (const { error, choices, usage } of events(await complete(prompt, manner, signal))) {
      if (error) throw new Refusal(200, error);
      const piece = choices[0]?.delta?.content ?? choices[0]?.text;
      if (piece) {
        last = performance.now();
        first ||= last;
        // A piece is a token or more; how many they were is told at the end.
        tokens += 1;
        text.append(piece);
        set(part('.finish'), 'writing');
        tell(false);
      }
      finish = choices[0]?.finish_reason ?? finish;
      if (usage) tokens = usage.completion_tokens;
    }
    if (!finish) throw new TypeError('The stream ended before its end.');
    tell(true);
  } catch (error) {
    finish = signal.aborted ? 'stopped' : 'failed';
    const lost = 'The connection to the server was lost.';
    if (!signal.aborted) set(part('.error'), error instanceof Refusal ? error.message : lost);
  }
  set(part('.finish'), finish);
  text.normalize();
  text.ariaBusy = 'false';
  view.dataset.state = finish;
}

function newAnswer(title) {
  const view = $('answer-template').content.cloneNode(true).firstElementChild;
  view.querySelector('h3').textContent = title;
  view.querySelector('.text').ariaLabel = `Answer of ${title}`;
  $('answers').append(view);
  return view;
}

async function send() {
  if (run || !checkLimit()) return;
  // Steps are for the arrow keys: a scale may lie between them.
  const isWrong = ({ validity: v }) =>
    v.valueMissing || v.badInput || v.rangeUnderflow || v.rangeOverflow;
  const wrong = [...$('ask').elements].find(isWrong);
  if (wrong) {
    wrong.reportValidity();
    return;
  }
  run = new AbortController();
  const manner = {
    model: base,
    temperature: $('temperature').valueAsNumber,
    max_tokens: Math.round($('max-tokens').valueAsNumber),
    stream: true,
    stream_options: { include_usage: true },
  };
  if ($('seed').value) manner.seed = Math.round($('seed').valueAsNumber);
  const prompt = $('prompt').value;
  $('answers').replaceChildren();
  const answers = [];
  const ask = (title, lora) =>
    answers.push(answer(newAnswer(title), prompt, { ...manner, lora }, run.signal));
  // An empty list, for without one the base has the adapters of POST /lora-adapters.
  if ($('base').checked) ask('base model', []);
  for (const [name, item] of chosen) {
    const scale = item.querySelector('input').valueAsNumber;
    ask(scale === 1 ? name : `${name} × ${scale}`, [{ name, scale }]);
  }
  showRun(`Writing ${answers.length === 1 ? 'an answer' : `${answers.length} answers`}…`);
  $('answers').scrollIntoView({ block: 'nearest' });
  await Promise.all(answers);
  const hasFailed = document.querySelector('article[data-state="failed"]') !== null;
  const end = run.signal.aborted ? 'Stopped.' : hasFailed ? 'Not all could answer.' : 'Done.';
  run = null;
  const note = ' The model has no chat template: it went on with the text of the prompt.';
  showRun(hasTemplate ? end : end + note);
}

/** The buttons stay in reach, so that the focus does too. */
function showRun(status) {
  set($('status'), status);
  $('send').ariaDisabled = String(run !== null);
  $('stop').ariaDisabled = String(run === null);
}

$('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
$('stop').addEventListener('click', () => run?.abort());
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') run?.abort();
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !$('content').hidden) {
    event.preventDefault();
    send();
  }
});

poll();
