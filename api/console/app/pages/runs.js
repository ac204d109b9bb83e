/** The account's runs, newest first. */

import {h, link, select} from '../dom.js';
import {between, date, number, short, shortDate} from '../format.js';
import {badge, heading, pages} from '../listing.js';
import {ask} from '../session.js';

const SIZE = 100;
/** @type {Array<[string, string]>} */
const FILTERS = [['', 'All'], ['status=running', 'Not ended'], ['phase=waiting', 'Waiting'], ['phase=queued', 'Queued'], ['phase=running', 'Running'], ['phase=stopping', 'Stopping'], ['status=completed', 'Completed'], ['status=failed', 'Failed'], ['status=stopped', 'Stopped']];

/** @param {import('../main.js').Visit} visit */
export function runsPage({place, title}) {
  title('Runs');
  const filter = select({'aria-label': 'Which runs', id: 'filter'}, FILTERS);
  const list = pages('Runs', ['Run', 'State', 'Model', 'Started', 'Took', 'Tokens', 'Error'], async (cursor) => {
    const query = {...Object.fromEntries(new URLSearchParams(filter.value)), limit: SIZE, cursor};
    const {agent_runs, next_cursor} = await ask('agent-runs', {query});
    return {rows: agent_runs.map(row), next: next_cursor};
  }, 'There is no such run.');
  filter.addEventListener('change', () => void list.again());
  place.append(heading('Runs', filter), list.element);
  return list.load();
}

/** @param {any} run */
function row(run) {
  return [
    link(`/runs/${run.id}`, h('code', {}, run.id.slice(0, 8))),
    badge(run.phase),
    run.model_name,
    h('time', {datetime: run.started_at, title: date(run.started_at)}, shortDate(run.started_at)),
    between(run.started_at, run.completed_at),
    number(run.usage.total_tokens),
    short(run.error ?? '', 120),
  ];
}
