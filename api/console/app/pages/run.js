/** A run: how it stands, where its time went, and all of its events. */

import {readEvent} from '../../longrun/event.js';
import {button, h, link, pre, region, show, wrong} from '../dom.js';
import {between, date, number, pretty, problem, short} from '../format.js';
import {badge, facts, heading, manyLines} from '../listing.js';
import {ask, client} from '../session.js';
import {Timeline} from '../timeline.js';

const REDRAW = 500;
/** So many events are kept to look at; of more the oldest go, some at a time. */
const MOST = 100_000;
const SURPLUS = 10_000;
/** What is longer is not read to show a line of it. */
const MOST_READ = 20_000;

/** What an event says, without what all of them have. @param {string} data */
function wordsOf(data) {
  if (data.length > MOST_READ) return short(data, 300);
  const {content, message} = readEvent(0, data);
  return message ?? (Object.keys(content).length ? short(JSON.stringify(content), 300) : short(data, 300));
}

/** @param {import('../main.js').Visit} visit */
export async function runPage({place, title, signal, go, args: [runId]}) {
  let run = await client().run(runId, {signal});
  const {agent_runs} = await ask(`thread/${run.threadId}/agent-runs`, {signal}).catch(() => ({agent_runs: []}));
  if (signal.aborted) return;
  title(`Run ${runId.slice(0, 8)}`);
  const row = agent_runs.find((/** @type {any} */ each) => each.id === runId);
  const timeline = new Timeline(row ? Date.parse(row.created_at) : null);
  /** @type {Array<{id: number, kind: string, at: string | null, data: string}>} */
  const events = [];
  const drawing = region('Timeline', 'drawing');
  const about = h('div');
  const actions = h('span', {class: 'actions'});
  const count = h('p', {class: 'quiet'});
  const took = h('span');
  const said = wrong();
  let dropped = 0;
  let cost = 0;
  const detail = pre('The chosen event', '');
  detail.hidden = true;
  const log = manyLines('Events', (nth) => {
    const event = events[nth];
    return h('div', {class: 'line'}, button(`${event.id}`, () => choose(event), {'aria-label': `Show event ${event.id}`}), h('span', {class: 'kind'}, event.kind), h('span', {class: 'words'}, wordsOf(event.data)));
  });
  place.append(heading(`Run ${runId.slice(0, 8)}`, actions), about, drawing, h('h2', {}, 'Events'), count, said, log.element, detail);

  /** @param {{id: number, data: string}} event */
  function choose(event) {
    detail.hidden = false;
    detail.textContent = `${event.id}\n${pretty(event.data)}`;
    detail.focus();
  }

  function showRun() {
    const ended = run.completedAt !== null;
    show(about, facts([
      ['State', badge(run.phase)], ['Conversation', link(`/conversations/${run.threadId}`, 'open')], ['Model', run.model_name ?? '—'],
      ['Started', date(run.startedAt)], ['Took', took], ['Attempts', number(run.attempt)],
      ['Credits', cost ? number(cost) : '—'],
      ...Object.entries(run.usage ?? {}).filter(([, value]) => typeof value === 'number').map(([name, value]) => /** @type {[string, any]} */ ([name.replaceAll('_', ' '), number(value)])),
    ]), run.error && wrong(run.error));
    show(actions, ended ? button('Run again', async () => go(`/runs/${(await ask(`agent-run/${runId}/retry`, {method: 'POST'})).agent_run_id}`))
      : button('Stop', () => client().stop(runId), {class: 'danger'}));
  }

  async function readAgain() {
    const now = await client().run(runId, {signal}).catch(() => run);
    if (signal.aborted || run.completedAt !== null) return;
    run = now;
    showRun();
  }

  let before = 0;
  let due = false;
  function redraw() {
    due = false;
    if (signal.aborted) return;
    show(drawing, timeline.draw(Date.now()));
    took.textContent = between(run.startedAt, run.completedAt);
    log.set(events.length, dropped !== before);
    before = dropped;
    count.textContent = `${number(dropped + events.length)} events${dropped ? `; the newest ${number(events.length)} are shown` : ''}${timeline.dropped ? `; the oldest ${timeline.dropped} spans are not drawn` : ''}`;
    if (stream.running) later();
  }
  function later() {
    if (!due) setTimeout(redraw, REDRAW);
    due = true;
  }

  /** As far as its calls are among the newest of the account. */
  async function readCost() {
    const {logs} = await ask('billing/usage-logs', {signal}).catch(() => ({logs: []}));
    for (const log of logs) if (log.agent_run_id === runId) cost += log.estimated_cost;
    showRun();
  }

  const stream = client().stream(runId, {
    limits: {parts: 50, chars: 100_000, toolChars: 1_000, steps: 50},
    onEvent(event) {
      events.push({id: event.id, kind: event.statusType ?? (event.final ? event.final : `${event.type}${event.streamStatus ? ` ${event.streamStatus}` : ''}`), at: event.createdAt, data: event.data});
      if (events.length >= MOST + SURPLUS) dropped += events.splice(0, SURPLUS).length;
      timeline.fold(event);
      if (run.completedAt === null && (event.statusType === 'thread_run_start' || event.statusType === 'run_resumed')) void readAgain();
      later();
    },
    onState: (state, attempt) => (said.textContent = state === 'reconnecting' ? `The connection was lost; trying again (${attempt})…` : ''),
    onEnd: () => readAgain().then(redraw).then(readCost),
    onError: (error) => (said.textContent = problem(error)),
  });
  signal.addEventListener('abort', () => stream.close());
  showRun();
  redraw();
}
