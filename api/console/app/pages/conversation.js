/** A conversation: what was said, and the run that goes on. */

import {readEvent} from '../../longrun/event.js';
import {View} from '../../longrun/view.js';
import {composer} from '../composer.js';
import {button, h, link} from '../dom.js';
import {problem} from '../format.js';
import {announce, heading} from '../listing.js';
import {paced, Parts} from '../parts.js';
import {ask, client} from '../session.js';

const NEAR_END = 120;
const PAGE = 300;

/** @param {import('../main.js').Visit} visit */
export function newConversation({place, title, go}) {
  title('New conversation');
  const write = composer({
    label: 'What is to be done',
    files: true,
    async submit({text, files, model, agent, key}) {
      const made = await client().initiate({prompt: text, files, idempotencyKey: key, ...chosen(model, agent)});
      go(`/conversations/${made.thread_id}`);
    },
  });
  place.classList.add('begin');
  place.append(h('h1', {}, 'New conversation'), h('p', {class: 'quiet'}, 'Agents work for as long as it takes. Close the page and come back when you like: nothing is lost.'), write.element);
  write.focus();
}

/** @param {string} model @param {string} agent */
const chosen = (model, agent) => ({...(model ? {model_name: model} : {}), ...(agent ? {agent_id: agent} : {})});

/** @param {import('../main.js').Visit} visit */
export async function conversation({place, title, signal, args: [threadId]}) {
  const longrun = client();
  const read = (/** @type {string | null} */ cursor) => ask(`threads/${threadId}/messages`, {signal, query: {order: 'desc', limit: PAGE, cursor}});
  const [thread, newest] = await Promise.all([ask(`threads/${threadId}`, {signal}), read(null)]);
  if (signal.aborted) return;
  const name = thread.metadata?.title || thread.project?.name || 'Conversation';
  title(name);
  const past = new Parts();
  const present = new Parts();
  const banner = h('p', {class: 'banner', role: 'status', hidden: true});
  const about = h('p', {class: 'about'});
  const more = button('Show earlier messages', async () => {
    const {messages, next_cursor} = await read(earlier);
    rows = [...messages.reverse(), ...rows];
    earlier = next_cursor;
    showPast();
  });
  const write = composer({label: 'Message', files: false, submit});
  const stop = button('Stop', () => longrun.stop(stop.dataset.run), {class: 'danger', id: 'stop', hidden: true});
  place.classList.add('conversation');
  place.append(heading(name, stop), more, h('div', {class: 'log', role: 'log', 'aria-live': 'off', 'aria-label': 'Conversation'}, past.element, present.element), banner, about, write.element);

  /** The newest messages, oldest first, and where those before them begin. @type {any[]} */
  let rows = [];
  /** @type {string | null} */
  let earlier = null;
  let reads = 0;
  /** The run whose messages are shown as they are streamed. @type {string | null} */
  let followed = null;
  /** @type {import('../../longrun.js').RunStream | null} */
  let stream = null;
  /** What was said, or may have been, and no run answers yet. @type {{text: string, sure: boolean} | null} */
  let said = null;
  let missed = false;
  signal.addEventListener('abort', () => {
    stream?.close();
    past.close();
    present.close();
  });
  const latest = thread.recent_agent_runs?.[0];
  if (latest?.status === 'running') followed = latest.id;
  take(newest);

  /** Send again what a refusal left in the composer, and it is said once. @type {Parameters<typeof composer>[0]['submit']} */
  async function submit({text, model, agent, key}) {
    if (said?.text !== text || !(said.sure || (await isStored(text)))) {
      said = {text, sure: false};
      await longrun.say(threadId, text);
    }
    said = {text, sure: true};
    const {agent_run_id} = await longrun.start(threadId, {idempotencyKey: key, ...chosen(model, agent)});
    said = null;
    if (!signal.aborted) follow(agent_run_id);
  }

  /** @param {string} text */
  async function isStored(text) {
    const known = new Set(rows.map((row) => row.message_id));
    const {messages} = await read(null);
    return messages.some((/** @type {any} */ row) => row.type === 'user' && !known.has(row.message_id) && readEvent(0, JSON.stringify(row)).content.content === text);
  }

  /** The newest page, after what is known of those before it. @param {{messages: any[], next_cursor: string | null}} page */
  function take({messages, next_cursor}) {
    const ids = new Set(messages.map((row) => row.message_id));
    const known = rows.findIndex((row) => ids.has(row.message_id));
    if (known < 0) earlier = next_cursor;
    rows = [...rows.slice(0, Math.max(known, 0)), ...messages.reverse()];
    showPast();
  }

  /** Messages as parts; those of the run that is followed are in its stream. */
  function showPast() {
    const view = new View();
    for (const row of rows) {
      if (followed && row.metadata?.thread_run_id === followed) continue;
      view.fold(readEvent(0, JSON.stringify({...row, metadata: {...row.metadata, stream_status: 'complete'}})));
    }
    past.set(view.snapshot().parts.map((part) => (part.kind === 'answer' && part.messageId ? {...part, key: part.messageId} : part)));
    more.hidden = !earlier;
  }

  /** Read what is stored; whoever read later has it newer. @returns {Promise<boolean>} */
  async function refresh() {
    const mine = (reads += 1);
    const page = await read(null).catch(() => null);
    if (!page || signal.aborted || mine !== reads) return false;
    take(page);
    return true;
  }

  /** @param {string} runId */
  function follow(runId) {
    const interrupts = stream?.running;
    stream?.close();
    followed = runId;
    present.set([]);
    void refresh().then(toEnd);
    stop.hidden = false;
    stop.dataset.run = runId;
    const draw = paced(() => {
      if (followed !== runId || signal.aborted) return;
      const follows = atEnd();
      present.set(mine.view.parts);
      if (follows) scroller().scrollTop = scroller().scrollHeight;
    });
    const mine = (stream = longrun.stream(runId, {
      onChange: draw,
      onEvent: ({statusType}) => void (interrupts && statusType === 'thread_run_start' && refresh()),
      onState: (state, attempt) => tell(state, attempt, runId),
      onEnd: (end) => void ended(end, runId),
      onError: (error) => tell('error', 0, runId, error),
    }));
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

  /** What is stored takes the place of what was streamed. @param {import('../../longrun.d.ts').RunEnd} end @param {string} runId */
  async function ended({status, message}, runId) {
    stop.hidden = true;
    present.set(stream?.view.parts ?? []);
    announce(`The run has ended: ${status}.`);
    about.replaceChildren(h('span', {class: `end ${status}`}, status === 'completed' ? 'Done. ' : `The run ${status === 'stopped' ? 'was stopped' : 'failed'}${message ? `: ${message}` : '.'} `), link(`/runs/${runId}`, 'Details of this run'));
    const follows = atEnd();
    const page = await read(null).catch(() => null);
    if (!page || signal.aborted || followed !== runId) return;
    reads += 1;
    followed = null;
    present.set([]);
    take(page);
    if (follows) toEnd();
    if (missed) void look();
  }

  const scroller = () => /** @type {Element} */ (document.scrollingElement);
  const atEnd = () => scroller().scrollHeight - scroller().scrollTop - scroller().clientHeight < NEAR_END;
  const toEnd = () => requestAnimationFrame(() => signal.aborted || (scroller().scrollTop = scroller().scrollHeight));

  /** Another tab, or a schedule, may have begun a run meanwhile. */
  async function look() {
    missed = Boolean(followed);
    if (followed || document.hidden) return;
    const {recent_agent_runs: [newest]} = await ask(`threads/${threadId}`, {signal}).catch(() => thread);
    if (signal.aborted || followed) return;
    if (newest?.status === 'running') follow(newest.id);
    else void refresh();
  }
  document.addEventListener('visibilitychange', look, {signal});

  if (followed) follow(followed);
  else if (latest) {
    place.dataset.state = latest.status;
    about.append(latest.status === 'failed' ? h('span', {class: 'end failed'}, `The last run failed: ${latest.error ?? ''} `) : '', link(`/runs/${latest.id}`, 'Details of the last run'));
  }
  toEnd();
}
