/** What was run and what models were used, by day and by model. */

import {add, h, link, region, svg} from '../dom.js';
import {number} from '../format.js';
import {facts, heading, table} from '../listing.js';
import {ask} from '../session.js';

const PAGES = 10;
const DAYS = 14;
const DAY = 86_400_000;
const WIDTH = 700;
const HEIGHT = 170;

/** Of a run, or of a call of a model where those are billed. @typedef {{created_at: string, model: string, tokens: number, cost: number}} Use */

/** @param {import('../main.js').Visit} visit */
export async function usagePage({place, title, signal}) {
  title('Usage');
  const [runs, calls, status] = await Promise.all([
    read('agent-runs', 'agent_runs', signal), read('billing/usage-logs', 'logs', signal), ask('billing/check-status', {signal}),
  ]);
  if (signal.aborted) return;
  const {plan_name, balance} = status.subscription ?? {};
  const billed = calls.length > 0;
  /** @type {Use[]} */
  const used = billed ? calls.map((call) => ({...call, model: call.content?.model || 'unknown', tokens: call.total_tokens, cost: call.estimated_cost}))
    : runs.map((run) => ({...run, model: run.model_name, tokens: run.usage.total_tokens ?? 0, cost: 0}));
  add(place, heading('Usage'), facts([['May run', status.can_run ? 'yes' : status.message], ['Plan', plan_name ?? '—'], ['Credits', balance === undefined ? 'not counted' : number(balance)]]));
  if (!used.length) return void place.append(h('p', {class: 'quiet'}, `Nothing was run in the last ${DAYS} days. `, link('/new', 'Begin a conversation')));
  const chart = (/** @type {string} */ name, /** @type {Array<[string, number, string]>} */ uses) => [h('h2', {}, `${name} in the last ${DAYS} days`), region(`${name} by day`, 'drawing', bars(name, byDay(uses, Date.now())))];
  add(place,
    chart('Runs', runs.map((run) => [run.created_at, 1, run.status])),
    chart('Tokens', used.map(({created_at, tokens}) => [created_at, tokens, 'model'])),
    h('h2', {}, 'By model'),
    table('By model', ['Model', billed ? 'Calls' : 'Runs', 'Tokens', 'Credits']).add(byModel(used).map(({model, count, tokens, cost}) => [model, number(count), number(tokens), billed ? number(cost) : '—'])),
    Math.max(runs.length, calls.length) >= PAGES * 1000 && h('p', {class: 'quiet'}, `Of the newest ${number(PAGES * 1000)}.`));
}

/** What is not older than the charts, newest first. @param {string} path @param {string} key @param {AbortSignal} signal */
async function read(path, key, signal) {
  const recent = (/** @type {any} */ row) => Date.parse(row.created_at) > Date.now() - DAYS * DAY;
  /** @type {any[]} */
  const all = [];
  for (let page = 0, cursor; page < PAGES; page += 1) {
    const found = await ask(path, {signal, query: {limit: 1000, cursor, items_per_page: 1000, page}});
    all.push(...found[key].filter(recent));
    cursor = found.next_cursor;
    if (!(cursor || found.has_more) || !recent(found[key].at(-1))) break;
  }
  return all;
}

/** Sums of each of the last days by kind, the oldest first. Pure. @param {Array<[string, number, string]>} uses when, how much, of what kind @param {number} now */
export function byDay(uses, now) {
  const days = Array.from({length: DAYS}, (_, nth) => ({day: new Date(now - (DAYS - 1 - nth) * DAY).toISOString().slice(0, 10), sum: 0, kinds: /** @type {Record<string, number>} */ ({})}));
  for (const [at, count, kind] of uses) {
    const found = days.find(({day}) => at.startsWith(day));
    if (!found) continue;
    found.sum += count;
    found.kinds[kind] = (found.kinds[kind] ?? 0) + count;
  }
  return days;
}

/** The most used first. Pure. @param {Use[]} used */
export function byModel(used) {
  /** @type {Record<string, {model: string, count: number, tokens: number, cost: number}>} */
  const models = Object.create(null);
  for (const {model, tokens, cost} of used) {
    const sum = (models[model] ??= {model, count: 0, tokens: 0, cost: 0});
    sum.count += 1;
    sum.tokens += tokens;
    sum.cost += cost;
  }
  return Object.values(models).sort((a, b) => b.tokens - a.tokens || b.count - a.count);
}

/** @param {string} name @param {ReturnType<typeof byDay>} days */
function bars(name, days) {
  const most = Math.max(...days.map(({sum}) => sum), 1);
  const step = WIDTH / days.length;
  const told = days.filter(({sum}) => sum).map((each) => `${each.day}: ${number(each.sum)}`).join(', ') || 'none';
  return svg('svg', {class: 'chart', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `${name} by day. ${told}`},
    days.map(({day, sum, kinds}, nth) => {
      let y = HEIGHT - 22;
      const word = (/** @type {number} */ at, /** @type {string} */ text) => svg('text', {class: 'quiet', x: (nth + 0.5) * step, y: at, 'text-anchor': 'middle'}, text);
      const bar = (/** @type {string} */ kind, /** @type {number} */ height) => svg('rect', {class: `bar ${kind}`, x: nth * step + 4, y: y -= height, width: step - 8, height}, svg('title', {}, `${day}: ${number(kinds[kind])} ${kind === 'model' ? name : kind}`));
      return [bar('none', 1), Object.entries(kinds).map(([kind, count]) => bar(kind, (count / most) * (HEIGHT - 42))), sum > 0 && word(y - 5, number(sum)), word(HEIGHT - 5, day.slice(5))];
    }));
}
