/** Whether what Longrun stands on answers. */

import {h, show, wrong} from '../dom.js';
import {date} from '../format.js';
import {badge, facts, heading, table} from '../listing.js';
import {client} from '../session.js';

const EVERY = 10_000;

/** @param {import('../main.js').Visit} visit */
export async function healthPage({place, title, signal}) {
  title('Health');
  const body = h('div');
  place.append(heading('Health'), body);
  const look = async () => {
    const found = await read(signal);
    if (!signal.aborted) show(body, found ? told(found) : wrong('The API does not answer.'));
  };
  const timer = setInterval(() => void look(), EVERY);
  signal.addEventListener('abort', () => clearInterval(timer));
  await look();
}

/** What it says is worth reading with any status. @param {AbortSignal} signal @returns {Promise<any>} */
const read = (signal) => fetch(client().url('health/ready'), {signal, cache: 'no-store'}).then((answer) => answer.json()).catch(() => null);

/** @param {any} found */
function told(found) {
  return [
    facts([['State', badge(found.status)], ['At', date(found.timestamp)], ['Answered by', h('code', {}, found.instance_id)]]),
    table('Dependencies', ['Dependency', 'State', 'Latency', 'Error']).add(Object.entries(found.dependencies ?? {}).map(([name, each]) => [name, badge(each.ok ? 'ok' : 'down'), each.latency_ms === undefined ? '—' : `${each.latency_ms} ms`, each.error ?? ''])),
  ];
}
