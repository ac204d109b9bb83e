/** Workflows, one with its graph, and an execution as it goes. */

import {add, button, field, form, h, link, pre, region, select, show, wrong} from '../dom.js';
import {between, date, pretty, problem, short, shortDate} from '../format.js';
import {graph} from '../graph.js';
import {badge, facts, heading, numbered, pages} from '../listing.js';
import {newKey} from '../../longrun/key.js';
import {backoff, pause} from '../../longrun/waiting.js';
import {paced, Parts} from '../parts.js';
import {ask, client} from '../session.js';
/** @import {Visit} from '../main.js' */

/** Milliseconds: a page that is left open takes little of the requests that a user may make in a minute. */
const READ_EVERY = 2000;
const LONGEST_WAIT = 5000;

/** @param {Visit} visit */
export function workflowsPage({place, title, go}) {
  title('Workflows');
  const list = pages('Workflows', ['Name', 'State', 'Description', 'Version', 'Changed'], numbered('workflows', 'workflows', (each) => [
    link(`/workflows/${each.id}`, each.name), badge(each.state.toLowerCase()), short(each.description ?? '', 120), `${each.version}`, shortDate(each.updated_at),
  ]), 'There is no workflow yet.');
  const offered = h('div', {class: 'cards'});
  place.append(heading('Workflows', button('From a template', async () => {
    const {templates} = await ask('workflows/templates');
    show(offered, templates.map((/** @type {any} */ each) => h('div', {class: 'card'}, h('h2', {}, each.name), h('p', {}, each.description), button('Use it', async () => {
      const {id, ...definition} = each;
      const made = await ask('workflows', {method: 'POST', json: {...definition, state: 'ACTIVE'}});
      go(`/workflows/${made.id}`);
    }, {class: 'primary'}))));
  })), offered, list.element);
  return list.load();
}

/** @param {Visit} visit */
export async function workflowPage({place, title, signal, go, args: [workflowId]}) {
  const workflow = await ask(`workflows/${workflowId}`, {signal});
  if (signal.aborted) return;
  title(workflow.name);
  const asked = workflow.steps.filter((/** @type {any} */ step) => step.type === 'INPUT').flatMap((/** @type {any} */ step) => step.config?.variables ?? []);
  /** @type {Array<{variable: any, control: any}>} */
  const inputs = asked.map((/** @type {any} */ variable) => ({variable, control: controlOf(variable)}));
  const sheet = form(inputs.map(({variable, control}) => field(variable.name, control, variable.description)), 'Execute', async () => {
    const variables = Object.fromEntries(inputs.filter(({control}) => control.value !== '').map(({variable, control}) => [variable.name, valueOf(variable, control.value)]));
    const {execution_id} = await ask(`workflows/${workflowId}/execute`, {method: 'POST', json: {variables}, idempotencyKey: newKey()});
    go(`/executions/${execution_id}`);
  });
  const executions = pages('Executions', ['Execution', 'State', 'By', 'Started', 'Took'], async (cursor) => {
    const {executions: found, next_cursor} = await ask(`workflows/${workflowId}/executions`, {query: {limit: 20, cursor}});
    const rows = found.map((/** @type {any} */ each) => [link(`/executions/${each.execution_id}`, h('code', {}, each.execution_id.slice(0, 8))), badge(each.phase), each.triggered_by.toLowerCase(), shortDate(each.started_at), between(each.started_at, each.completed_at)]);
    return {rows, next: next_cursor};
  }, 'It has not been executed yet.');
  add(place, heading(workflow.name, badge(workflow.state.toLowerCase())), workflow.description && h('p', {}, workflow.description),
    region('Graph', 'drawing', graph(workflow.steps, workflow.entry_point)),
    h('h2', {}, 'Execute'), sheet, h('h2', {}, 'Executions'), executions.element);
  return executions.load();
}

/** @param {any} variable */
function controlOf(variable) {
  const known = variable.default === null || variable.default === undefined ? '' : typeof variable.default === 'string' ? variable.default : JSON.stringify(variable.default);
  if (variable.type === 'boolean') return select({}, [['', '—'], ['true', 'yes'], ['false', 'no']], known);
  const isText = variable.type === 'string';
  return h(isText ? 'textarea' : 'input', {value: known, rows: 2, placeholder: isText ? '' : variable.type, required: variable.required && !known});
}

/** What was written as the variable's type; a text that is no such thing is left for the server to refuse. @param {any} variable @param {string} text */
function valueOf(variable, text) {
  if (variable.type === 'string') return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** @param {Visit} visit */
export async function executionPage({place, title, signal, args: [executionId]}) {
  const read = () => ask(`workflows/executions/${executionId}`, {signal});
  let execution = await read();
  const workflow = await ask(`workflows/${execution.workflow_id}`, {signal});
  if (signal.aborted) return;
  title(`Execution of ${workflow.name}`);
  const about = h('div');
  const drawing = region('Graph', 'drawing');
  const steps = h('div', {class: 'steps'});
  const said = new Parts();
  const refused = wrong();
  const cancel = button('Cancel', () => ask(`workflows/executions/${executionId}/cancel`, {method: 'POST'}), {class: 'danger'});
  place.append(heading(`Execution of ${workflow.name}`, cancel), about, refused, drawing, h('h2', {}, 'Steps'), steps, h('h2', {}, 'What was said'), said.element);

  function showAll() {
    cancel.hidden = execution.completed_at !== null || !execution.agent_run_id;
    show(about, facts([
      ['State', badge(execution.phase)], ['Workflow', link(`/workflows/${execution.workflow_id}`, `${workflow.name}, version ${execution.workflow_version}`)],
      ['Run', execution.agent_run_id ? link(`/runs/${execution.agent_run_id}`, execution.agent_run_id.slice(0, 8)) : 'none yet'],
      ['Conversation', execution.thread_id ? link(`/conversations/${execution.thread_id}`, 'open') : '—'],
      ['Started', date(execution.started_at)], ['Took', execution.completed_at ? between(execution.started_at, execution.completed_at) : '—'], ['By', execution.triggered_by.toLowerCase()],
    ]), execution.error && wrong(execution.error));
    const open = new Set([...steps.querySelectorAll('details[open]')].map((each) => each.dataset.key));
    show(steps, execution.steps.map((/** @type {any} */ step) => stepOf(step, open)), !execution.steps.length && h('p', {class: 'quiet'}, 'No step has begun yet.'),
      execution.next_cursor && h('p', {class: 'quiet'}, 'There are more steps; their events are in the run.'));
    draw(new Map(execution.steps.map((/** @type {any} */ step) => [step.step_id, step])));
  }

  /** @param {Map<string, any>} live */
  const draw = (live) => show(drawing, graph(workflow.steps, workflow.entry_point, live));

  async function readAgain() {
    due = false;
    const found = await read().catch(() => execution);
    if (execution.completed_at === null) execution = found; // else it was asked before the end, and is late
    if (!signal.aborted) showAll();
  }

  let due = false;
  let told = '';
  /** It may have been opened before there is a run: a message may ask for one, and a worker makes it. */
  async function follow() {
    for (let looks = 1; !execution.agent_run_id; looks++) {
      await pause(Math.min(backoff(looks), LONGEST_WAIT), signal);
      await readAgain();
      if (signal.aborted) return;
    }
    const stream = client().stream(execution.agent_run_id, {
      signal,
      onChange: paced(() => {
        if (signal.aborted) return;
        said.set(stream.view.parts);
        const now = JSON.stringify(stream.view.steps.map(({key, status}) => [key, status]));
        if (now === told || execution.completed_at) return;
        told = now;
        draw(new Map(stream.view.steps.map((step) => [step.stepId, step])));
        if (!due) setTimeout(readAgain, READ_EVERY);
        due = true;
      }),
      onEnd: readAgain,
      onError: (error) => (refused.textContent = problem(error)),
    });
  }
  signal.addEventListener('abort', () => said.close());
  showAll();
  void follow();
}

/** @param {any} step @param {Set<string>} open those that are to be open */
function stepOf(step, open) {
  const key = `${step.step_id} ${step.visit}`;
  const piece = (/** @type {string} */ label, /** @type {any} */ value) => [h('h4', {}, label), pre(label, short(pretty(value), 10_000))];
  return h('details', {class: 'tool', 'data-status': step.status, 'data-key': key, open: open.has(key)},
    h('summary', {}, h('code', {}, step.step_id), step.visit === '0' ? '' : ` ${step.visit}`, h('span', {class: 'state'}, step.status), h('span', {class: 'quiet'}, step.completed_at ? between(step.started_at, step.completed_at) : '')),
    h('div', {class: 'body'}, step.error && h('p', {class: 'problem'}, step.error), piece('Inputs', step.inputs), piece('Output', step.output)));
}
