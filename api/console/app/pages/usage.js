/** What models were used: tokens by day and by model. */

import {add, h, svg} from '../dom.js';
import {number} from '../format.js';
import {facts, heading} from '../listing.js';
import {ask} from '../session.js';

const PAGES = 10;
const DAYS = 14;
const WIDTH = 700;
const HEIGHT = 180;

/** @param {import('../main.js').Visit} visit */
export async function usagePage({place, title, signal}) {
  title('Usage');
  const [{logs, whole}, status] = await Promise.all([read(signal), ask('billing/check-status', {signal})]);
  if (signal.aborted) return;
  const days = byDay(logs, Date.now());
  const models = byModel(logs);
  add(place, heading('Usage'),
    facts([['May run', status.can_run ? 'yes' : status.message], ['Plan', status.subscription?.plan_name ?? '—'], ...(status.subscription?.balance === undefined ? [] : [/** @type {[string, any]} */ (['Credits', number(status.subscription.balance)])])]),
    h('h2', {}, `Tokens in the last ${DAYS} days`), h('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Tokens by day'}, bars(days)),
    h('h2', {}, 'By model'),
    h('table', {class: 'list'}, h('thead', {}, h('tr', {}, ['Model', 'Calls', 'Tokens', 'Cost'].map((name) => h('th', {scope: 'col'}, name)))),
      h('tbody', {}, models.map(({model, calls, tokens, cost}) => h('tr', {}, h('th', {scope: 'row'}, model), h('td', {}, number(calls)), h('td', {}, number(tokens)), h('td', {}, number(cost)))))),
    !models.length && h('p', {class: 'quiet'}, 'No call of a model is logged.'),
    !whole && h('p', {class: 'quiet'}, `Of the newest ${number(logs.length)} calls.`));
}

/** @param {AbortSignal} signal */
async function read(signal) {
  const since = Date.now() - DAYS * 86_400_000;
  /** @type {any[]} */
  const logs = [];
  for (let page = 0; page < PAGES; page += 1) {
    const found = await ask('billing/usage-logs', {signal, query: {page, items_per_page: 1000}});
    logs.push(...found.logs);
    if (!found.has_more || Date.parse(logs.at(-1)?.created_at) < since) return {logs, whole: true};
  }
  return {logs, whole: false};
}

/** Tokens of each of the last days, the oldest first. Pure. @param {any[]} logs @param {number} now */
export function byDay(logs, now) {
  const days = Array.from({length: DAYS}, (_, nth) => ({day: new Date(now - (DAYS - 1 - nth) * 86_400_000).toISOString().slice(0, 10), tokens: 0}));
  const known = new Map(days.map((day) => [day.day, day]));
  for (const log of logs) {
    const day = known.get(String(log.created_at).slice(0, 10));
    if (day) day.tokens += log.total_tokens;
  }
  return days;
}

/** Pure. @param {any[]} logs */
export function byModel(logs) {
  /** @type {Map<string, {model: string, calls: number, tokens: number, cost: number}>} */
  const models = new Map();
  for (const log of logs) {
    const model = String(log.content?.model ?? 'unknown');
    const sum = models.get(model) ?? {model, calls: 0, tokens: 0, cost: 0};
    models.set(model, {model, calls: sum.calls + 1, tokens: sum.tokens + log.total_tokens, cost: sum.cost + log.estimated_cost});
  }
  return [...models.values()].sort((a, b) => b.tokens - a.tokens);
}

/** @param {Array<{day: string, tokens: number}>} days */
function bars(days) {
  const most = Math.max(...days.map((day) => day.tokens), 1);
  const step = WIDTH / days.length;
  const told = days.filter((day) => day.tokens).map(({day, tokens}) => `${day}: ${number(tokens)}`).join(', ') || 'none';
  return svg('svg', {class: 'chart', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `Tokens by day. ${told}`},
    svg('text', {x: 2, y: 12, class: 'quiet'}, number(most)),
    days.map(({day, tokens}, nth) => {
      const height = (tokens / most) * (HEIGHT - 40);
      return [
        svg('rect', {class: 'bar model', x: (nth * step + 4).toFixed(1), y: (HEIGHT - 20 - height).toFixed(1), width: (step - 8).toFixed(1), height: Math.max(height, 1).toFixed(1), rx: 3}, svg('title', {}, `${day}: ${number(tokens)} tokens`)),
        svg('text', {class: 'quiet', x: (nth * step + step / 2).toFixed(1), y: HEIGHT - 5, 'text-anchor': 'middle'}, day.slice(8)),
      ];
    }));
}
