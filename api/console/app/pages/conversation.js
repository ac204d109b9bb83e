/** A conversation: what was said, and the run that goes on. */

import {readEvent} from '../../longrun/event.js';
import {View} from '../../longrun/view.js';
import {composer} from '../composer.js';
import {button, h, link} from '../dom.js';
import {problem} from '../format.js';
import {announce, heading} from '../listing.js';
import {Parts} from '../parts.js';
import {ask, client} from '../session.js';

const NEAR_END = 120;

/** @param {import('../main.js').Visit} visit */
export function newConversation({place, title, go}) {
  title('New conversation');
  const write = composer({
    label: 'What is to be done',
    files: true,
    async submit({text, files, model, agent}) {
      const made = await client().initiate({prompt: text, files, ...chosen(model, agent)});
      go(`/conversations/${made.thread_id}`);
    },
  });
  place.classList.add('begin');
  place.append(h('h1', {}, 'New conversation'), write.element);
  write.focus();
}

/** @param {string} model @param {string} agent */
const chosen = (model, agent) => ({...(model ? {model_name: model} : {}), ...(agent ? {agent_id: agent} : {})});

/** @param {import('../main.js').Visit} visit */
export async function conversation({place, title, signal, args: [threadId]}) {
  const [thread, messages] = await Promise.all([ask(`threads/${threadId}`, {signal}), client().messages(threadId, {signal})]);
  if (signal.aborted) return;
  const name = thread.metadata?.title || thread.project?.name || 'Conversation';
  title(name);
  const past = new Parts();
  const present = new Parts();
  const banner = h('p', {class: 'banner', role: 'status', hidden: true});
  const about = h('p', {class: 'about'});
  const write = composer({
    label: 'Message',
    files: false,
    async submit({text, model, agent}) {
      await client().say(threadId, text);
      await settle();
      const {agent_run_id} = await client().start(threadId, chosen(model, agent));
      follow(agent_run_id);
    },
  });
  const stop = button('Stop', () => void stopRun(), {class: 'danger', id: 'stop', hidden: true});
  place.classList.add('conversation');
  place.append(heading(name, stop), h('div', {class: 'log', role: 'log', 'aria-live': 'off', 'aria-label': 'Conversation'}, past.element, present.element), banner, about, write.element);

  /** @type {import('../../longrun.js').RunStream | null} */
  let stream = null;
  signal.addEventListener('abort', () => {
    stream?.close();
    past.close();
    present.close();
  });
  const latest = thread.recent_agent_runs?.[0];
  showPast(messages, latest?.status === 'running' ? latest.id : null);

  /** Messages as parts; those of the run that is followed are in its stream. @param {any[]} rows @param {string | null} runId */
  function showPast(rows, runId) {
    const view = new View();
    for (const row of rows) {
      if (runId && row.metadata?.thread_run_id === runId) continue;
      view.fold(readEvent(0, JSON.stringify({...row, metadata: {...row.metadata, stream_status: 'complete'}})));
    }
    past.set(view.snapshot().parts);
  }

  /** What is stored takes the place of what was streamed. */
  async function settle() {
    const rows = await client().messages(threadId, {signal});
    if (signal.aborted) return;
    showPast(rows, null);
    present.set([]);
    about.replaceChildren();
  }

  /** @param {string} runId */
  function follow(runId) {
    stream?.close();
    void refreshPast(runId);
    stop.hidden = false;
    stop.disabled = false;
    stop.dataset.run = runId;
    stream = client().stream(runId, {
      onChange: ({view}) => {
        const follows = atEnd();
        present.set(view.parts);
        if (follows) toEnd();
      },
      onState: (state, attempt) => tell(state, attempt, runId),
      onEnd: (end) => void ended(end, runId),
      onError: (error) => tell('error', 0, runId, error),
    });
    toEnd();
  }

  /** @param {string} runId */
  async function refreshPast(runId) {
    const rows = await client().messages(threadId, {signal}).catch(() => null);
    if (rows && !signal.aborted) showPast(rows, runId);
    toEnd();
  }

  /** @param {string} state @param {number} attempt @param {string} runId @param {Error} [error] */
  function tell(state, attempt, runId, error) {
    place.dataset.state = state;
    banner.hidden = !['reconnecting', 'error'].includes(state);
    if (state === 'reconnecting') banner.textContent = `The connection was lost; trying again (${attempt})…`;
    if (state === 'error') banner.textContent = `The run cannot be followed: ${problem(error)}`;
    about.replaceChildren(h('span', {class: 'quiet'}, state === 'streaming' ? 'Working. ' : state === 'connecting' ? 'Connecting… ' : ''), link(`/runs/${runId}`, 'Details of this run'));
  }

  /** @param {import('../../longrun.d.ts').RunEnd} end @param {string} runId */
  async function ended({status, message}, runId) {
    stop.hidden = true;
    place.dataset.state = status;
    announce(`The run has ended: ${status}.`);
    const follows = atEnd();
    await settle().catch(() => {});
    about.replaceChildren(h('span', {class: `end ${status}`}, status === 'completed' ? 'Done. ' : `The run ${status === 'stopped' ? 'was stopped' : 'failed'}${message ? `: ${message}` : '.'} `), link(`/runs/${runId}`, 'Details of this run'));
    if (follows) toEnd();
  }

  async function stopRun() {
    stop.disabled = true;
    try {
      await client().stop(stop.dataset.run);
    } catch (error) {
      banner.hidden = false;
      banner.textContent = problem(error);
      stop.disabled = false;
    }
  }

  const scroller = () => /** @type {Element} */ (document.scrollingElement);
  const atEnd = () => scroller().scrollHeight - scroller().scrollTop - scroller().clientHeight < NEAR_END;
  const toEnd = () => requestAnimationFrame(() => (scroller().scrollTop = scroller().scrollHeight));

  if (latest?.status === 'running') follow(latest.id);
  else if (latest) {
    place.dataset.state = latest.status;
    about.append(latest.status === 'failed' ? h('span', {class: 'end failed'}, `The last run failed: ${latest.error ?? ''} `) : '', link(`/runs/${latest.id}`, 'Details of the last run'));
  }
  toEnd();
}
