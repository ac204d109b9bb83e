/** Schedules: when they fire next, what came of it. */

import {button, field, form, h, link, select, show} from '../dom.js';
import {date, problem, shortDate} from '../format.js';
import {badge, facts, heading, numbered, pages} from '../listing.js';
import {ask} from '../session.js';
/** @import {Visit} from '../main.js' */

/** @param {any} config */
function words(config) {
  const cron = config.type === 'cron' ? config.cron?.cron_expression : config.advanced?.cron_expression;
  if (config.type === 'simple') return `every ${config.simple?.interval_value} ${config.simple?.interval_type}`;
  return `${cron}${config.advanced?.timezone ? ` (${config.advanced.timezone})` : ''}`;
}

/** @param {Visit} visit */
export function schedulesPage({place, title, go}) {
  title('Schedules');
  const list = pages('Schedules', ['Name', 'State', 'When', 'Next', 'Fired'], numbered('schedules', 'schedules', (each) => [
    link(`/schedules/${each.id}`, each.name), badge(each.status), h('code', {}, words(each.config)), shortDate(each.next_execution), `${each.execution_count}`,
  ]), 'There is no schedule yet.');
  const sheet = h('div');
  place.append(heading('Schedules', button('New schedule', () => add(sheet, go), {class: 'primary'})), sheet, list.element);
  return list.load();
}

/** @param {any} place @param {(to: string) => void} go */
async function add(place, go) {
  const {workflows} = await ask('workflows', {query: {limit: 100, state: 'ACTIVE'}});
  const name = h('input', {required: true, maxlength: '255'});
  const target = select({}, [['', 'An agent, with a prompt'], ...workflows.map((/** @type {any} */ each) => [each.id, `The workflow ${each.name}`])]);
  const prompt = h('textarea', {rows: 3});
  const cron = h('input', {required: true, value: '0 9 * * *', spellcheck: 'false'});
  const zone = h('input', {value: Intl.DateTimeFormat().resolvedOptions().timeZone});
  const times = h('p', {class: 'quiet', role: 'status'});
  async function check() {
    const asked = [cron.value, zone.value].join();
    const found = await ask('schedules/validate/cron', {method: 'POST', json: {cron_expression: cron.value, timezone: zone.value}}).catch((error) => ({error: problem(error)}));
    if (asked !== [cron.value, zone.value].join()) return;
    times.textContent = found.valid ? `${found.description ?? ''}. Next: ${found.next_executions.map(shortDate).join(', ')}` : found.error;
  }
  cron.addEventListener('change', () => void check());
  zone.addEventListener('change', () => void check());
  show(place, form([field('Name', name), field('What it starts', target), field('Prompt', prompt), field('Cron', cron, 'minute hour day month weekday'), field('Time zone', zone), times], 'Make it', async () => {
    const json = {name: name.value, config: {type: 'advanced', enabled: true, advanced: {cron_expression: cron.value, timezone: zone.value}}, ...(target.value ? {workflow_id: target.value} : {prompt: prompt.value})};
    go(`/schedules/${(await ask('schedules', {method: 'POST', json})).id}`);
  }));
  void check();
}

/** @param {Visit} visit */
export async function schedulePage({place, title, signal, go, args: [scheduleId]}) {
  const schedule = await ask(`schedules/${scheduleId}`, {signal});
  if (signal.aborted) return;
  title(schedule.name);
  const active = schedule.status === 'active';
  const {next_executions} = active && schedule.config.type !== 'simple' ? await ask('schedules/validate/cron', {method: 'POST', json: {timezone: 'UTC', ...schedule.config.cron, ...schedule.config.advanced}}) : {};
  const act = (/** @type {string} */ method, path = '') => async () => {
    await ask(`schedules/${scheduleId}${path}`, {method});
    if (path) dispatchEvent(new HashChangeEvent('hashchange'));
    else go('/schedules');
  };
  const history = pages('History', ['Due', 'Fired', 'What came of it', 'Run', 'Error'], async (cursor) => {
    const {logs, next_cursor} = await ask(`schedules/${scheduleId}/logs`, {query: {limit: 20, cursor}});
    const rows = logs.map((/** @type {any} */ log) => [shortDate(log.scheduled_time), shortDate(log.actual_time), badge(log.run_status ?? log.status), log.agent_run_id ? link(`/runs/${log.agent_run_id}`, log.agent_run_id.slice(0, 8)) : '—', log.error ?? '']);
    return {rows, next: next_cursor};
  }, 'It has not fired yet.');
  place.append(heading(schedule.name,
    button(active ? 'Pause' : 'Resume', act('POST', active ? '/pause' : '/resume')),
    button('Delete', act('DELETE'), {class: 'danger'})),
  facts([['State', badge(schedule.status)], ['When', h('code', {}, words(schedule.config))], ['Next', date(schedule.next_execution)], ['After that', next_executions?.slice(1).map(shortDate).join(', ') || '—'], ['Last', date(schedule.last_execution)], ['Fired', `${schedule.execution_count}`],
    ['Starts', schedule.workflow_id ? link(`/workflows/${schedule.workflow_id}`, 'a workflow') : schedule.prompt ?? '—']]),
  h('h2', {}, 'History'), history.element);
  return history.load();
}
