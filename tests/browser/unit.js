/** Tests of the client's parts, run in a page: each is a function whose name is a sentence. `run()` tells what failed. */

import {Longrun, LongrunError} from '/console/longrun.js';
import {readEvent} from '/console/longrun/event.js';
import {Parser} from '/console/longrun/sse.js';
import {View} from '/console/longrun/view.js';
import {around, backoff, retryAfter} from '/console/longrun/waiting.js';

const RUN = '11111111-1111-1111-1111-111111111111';
export const bytes = (text) => new TextEncoder().encode(text);

export function equal(seen, wanted) {
  const [a, b] = [JSON.stringify(seen), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${a.slice(0, 2000)} instead of ${b.slice(0, 2000)}`);
}

export async function until(look, what = look) {
  const deadline = Date.now() + 25_000;
  while (!look()) {
    if (Date.now() > deadline) throw new Error(`never: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Milliseconds of the quickest of some times, or of the first that is quick enough: the others tell what else the machine did. */
export function quickest(work, most) {
  let least = Infinity;
  for (let n = 0; n < 3 && least > most; n += 1) {
    const began = performance.now();
    work();
    least = Math.min(least, performance.now() - began);
  }
  return least;
}

/** An event as the API says it. */
const said = (type, content, metadata = {}, more = {}) =>
  JSON.stringify({sequence: 1, type, message_id: null, thread_id: 't', created_at: '2026-01-01T00:00:00Z', content: JSON.stringify(content), metadata: JSON.stringify(metadata), ...more});
export const status = (status_type, content = {}) => said('status', {status_type, ...content});
export const chunk = (text) => said('assistant', {role: 'assistant', content: text}, {stream_status: 'chunk'});
export const stored = (text, id, metadata = {}, content = {}) =>
  said('assistant', {role: 'assistant', content: text, ...content}, {stream_status: 'complete', ...metadata}, {message_id: id});
export const last = (status = 'completed', message = 'The run completed.') => JSON.stringify({type: 'status', status, message});
export const frames = (events, from = 0) => events.map((data, n) => `id: ${from + n}\ndata: ${data}\n\n`).join('');
const folded = (events, view = new View()) => (events.forEach((data, n) => view.fold(readEvent(n, data))), view);

const parse = (text, size = text.length || 1) => {
  const parser = new Parser();
  const all = {frames: [], retry: null, comments: []};
  const raw = bytes(text);
  for (let start = 0; start < raw.length; start += size) {
    const {frames, retry, comments} = parser.feed(raw.slice(start, start + size));
    all.frames.push(...frames.map(({id, data}) => [id, data]));
    all.retry = retry ?? all.retry;
    all.comments.push(...comments);
  }
  return all;
};

/** A server that answers each opening of the stream with the next of `answers`, and everything else by `others`. */
function server(answers, others = () => ({status: 'running'})) {
  const asked = [];
  const open = [];
  const fetch = async (url, {headers = {}, signal, method = 'GET'} = {}) => {
    const path = new URL(url).pathname.replace('/api/', '');
    asked.push({path, headers, method, cursor: headers['Last-Event-ID'] ?? null});
    if (!path.endsWith('/stream')) {
      const answer = others(path, headers, method);
      return answer instanceof Response ? answer : new Response(JSON.stringify(answer), {status: 200});
    }
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    if (typeof answer === 'function') return answer(headers);
    if (answer instanceof Error) throw new TypeError('network');
    if (typeof answer === 'number') return new Response(answer === 204 ? null : '{"detail": "no"}', {status: answer});
    const body = new ReadableStream({
      start(controller) {
        open.push(controller);
        signal?.addEventListener('abort', () => { try { controller.error(new DOMException('aborted', 'AbortError')); } catch {} });
        for (const piece of [answer].flat()) if (typeof piece === 'string') controller.enqueue(bytes(piece));
        const end = [answer].flat().at(-1);
        if (end === null) return;
        if (end instanceof Error) setTimeout(() => controller.error(new TypeError('cut')), 5);
        else controller.close();
      },
    });
    return new Response(body, {status: 200, headers: {'Content-Type': 'text/event-stream; charset=utf-8'}});
  };
  return {fetch, asked, open, answers, streams: () => asked.filter(({path}) => path.endsWith('/stream'))};
}

const client = (fake, more = {}) => new Longrun({url: 'http://longrun.test', token: 'a.b.c', fetch: fake.fetch, share: false, ...more});
const follow = (fake, options = {}, more = {}) => {
  const seen = {ids: [], states: []};
  const stream = client(fake, more).stream(RUN, {
    ...options,
    onEvent: (event) => (seen.ids.push(event.id), options.onEvent?.(event)),
    onState: (state, attempt) => seen.states.push(attempt ? `${state}(${attempt})` : state),
  });
  return Object.assign(stream, {seen});
};

/** Two streams of one person and run; both have seen two events. */
async function twoTabs() {
  const fake = server([[frames([chunk('a'), chunk('b')]), null], [null]]);
  const first = follow(fake, {}, {share: true});
  await until(() => first.cursor === 1, 'the first tab connected');
  fake.answers.unshift([frames([chunk('a'), chunk('b')]), null]);
  const second = follow(fake, {}, {share: true});
  await until(() => second.cursor === 1 && !second.own && second.tabs.leader, 'the second tab caught up');
  return {fake, first, second, say: (events, from) => fake.open[0].enqueue(bytes(frames(events, from)))};
}

const tests = [
  // The parser.
  function a_stream_reads_the_same_however_it_is_cut() {
    const text = '\ufeffretry: 3000\r\n\r\nid: 0\r\ndata: {"ä": "€ 🦒"}\r\n\r\n: ping\n\nid: 1\rdata: a\rdata: b\r\rid: 2\ndata:\n\ndata\nid\n\nid: 9\ndata: cut';
    const wanted = {frames: [['0', '{"ä": "€ 🦒"}'], ['1', 'a\nb'], ['2', ''], ['', '']], retry: 3000, comments: ['ping']};
    for (let size = 1; size < 40; size += 1) equal(parse(text, size), wanted);
  },
  function an_id_outlives_its_event_and_other_fields_are_ignored() {
    equal(parse('id: 5\n\nevent: x\nfoo: bar\nretry: soon\ndata: a\n\nid: b\0c\ndata: d\n\n').frames, [['5', 'a'], ['5', 'd']]);
  },
  function a_huge_event_takes_no_longer_than_its_size() {
    const text = `id: 1\ndata: ${'x'.repeat(8 * 1024 * 1024)}\n\n`;
    const took = quickest(() => equal(parse(text, 4096).frames[0][1].length, 8 * 1024 * 1024), 3000);
    if (took > 3000) throw new Error(`${took} ms`);
  },
  function an_event_that_never_ends_is_refused() {
    const parser = new Parser(1000);
    let error = null;
    try {
      for (let n = 0; n < 100; n += 1) parser.feed(bytes('data: xxxxxxxxxxxxxxxxxxxx\n'));
    } catch (caught) {
      error = caught;
    }
    equal(error?.message, 'an event of the stream is too large');
  },
  // What is seen.
  function chunks_become_the_stored_answer() {
    const view = folded([chunk('Hel'), chunk('lo')]);
    const [live] = view.snapshot().parts;
    equal([live.text, live.live], ['Hello', true]);
    view.fold(readEvent(2, stored('Hello!', 'm1', {usage: {prompt_tokens: 1, completion_tokens: 2, total_tokens: 3}})));
    const [part] = view.snapshot().parts;
    equal([part.text, part.live, part.messageId, part.key === live.key], ['Hello!', false, 'm1', true]);
    equal(view.snapshot().usage.total_tokens, 3);
  },
  function what_was_not_stored_is_void_after_a_hand_over() {
    const view = folded([
      stored('One.', 'm1', {usage: {total_tokens: 5}}), chunk('Tw'), status('tool_call_chunk', {tool_call_id: 'c', function_name: 'ls', tool_call_chunk: {function: {arguments: '{"a"'}}}),
      status('run_resumed', {attempt: 2}),
    ]);
    equal(view.snapshot().text, 'One.');
    equal([view.snapshot().parts.length, view.snapshot().attempt], [1, 2]);
    folded([stored('One.', 'm1', {usage: {total_tokens: 5}}), chunk('Two'), stored('Two.', 'm2')], view);
    equal(view.snapshot().text, 'One.\n\nTwo.');
    equal(view.snapshot().usage.total_tokens, 5);
  },
  function a_tool_call_is_written_started_and_ended() {
    const call = {tool_call_id: 'c1', function_name: 'run', xml_tag_name: null};
    const states = [];
    const view = new View();
    const pieces = ['{"cmd":', '"ls"}'];
    const events = [
      ...pieces.map((piece) => status('tool_call_chunk', {...call, tool_call_chunk: {function: {arguments: piece}}})),
      stored('', 'm1', {}, {tool_calls: [{id: 'c1', function: {name: 'run', arguments: '{"cmd":"ls"}'}}]}),
      status('tool_started', call), status('tool_output', {...call, output: 'a\n'}), status('tool_output', {...call, output: 'b\n'}),
      said('tool', {role: 'tool', tool_call_id: 'c1', content: 'a b'}, {tool_call_id: 'c1', tool_status: 'completed', stream_status: 'complete'}, {message_id: 'm2'}),
      status('tool_completed', call),
    ];
    for (const [n, data] of events.entries()) {
      view.fold(readEvent(n, data));
      const tool = view.snapshot().parts.find(({kind}) => kind === 'tool');
      states.push(tool.status);
    }
    equal(states, ['calling', 'calling', 'called', 'running', 'running', 'running', 'completed', 'completed']);
    const tool = view.snapshot().parts.find(({kind}) => kind === 'tool');
    equal([tool.arguments, tool.output, tool.result, tool.name], ['{"cmd":"ls"}', 'a\nb\n', 'a b', 'run']);
  },
  function a_call_in_xml_shows_its_result_or_its_error() {
    const result = (success) => ({role: 'user', content: JSON.stringify({tool_execution: {result: {success, output: success ? 'fine' : null, error: success ? null : 'broke'}}})});
    const view = folded([
      stored('<ls/>', 'm1', {xml_tool_calls: [{id: 'x1', function_name: 'ls', arguments: {path: '.'}}, {id: 'x2', function_name: 'ls', arguments: {}}]}),
      said('tool', result(true), {tool_call_id: 'x1', tool_status: 'completed', function_name: 'ls'}, {message_id: 'r1'}),
      said('tool', result(false), {tool_call_id: 'x2', tool_status: 'failed', function_name: 'ls'}, {message_id: 'r2'}),
    ]);
    equal(view.snapshot().parts.slice(1).map(({arguments: given, result, status}) => [given, result, status]), [['{"path":"."}', 'fine', 'completed'], ['{}', 'broke', 'failed']]);
  },
  function reasoning_stands_beside_the_text() {
    const view = folded([said('assistant', {content: '', reasoning_content: 'Hm. '}, {stream_status: 'chunk'}), chunk('Yes')]);
    equal(view.snapshot().parts.map(({text, reasoning}) => [text, reasoning]), [['Yes', 'Hm. ']]);
  },
  function nothing_goes_on_after_the_last_event() {
    const view = folded([chunk('Ha'), status('tool_started', {tool_call_id: 'c', function_name: 'f'}), last('stopped', 'Stopped.')]);
    equal(view.snapshot().parts.map((part) => part.live ?? part.status), [false, 'cancelled']);
    equal([view.snapshot().status, view.snapshot().message], ['stopped', 'Stopped.']);
  },
  function whatever_a_foreign_producer_says_breaks_nothing() {
    const junk = ['', 'null', '[]', '7', '"x"', '{', '{"type": 5}', '{"type":"assistant"}', '{"type":"tool","content":"{}","metadata":7}', '{"type":"status","content":[]}',
      '{"type":"assistant","content":"{\\"content\\":{\\"a\\":1}}","metadata":"{\\"stream_status\\":\\"chunk\\"}"}', '{"type":"status","status":"completed","sequence":1}', '{"type":"workflow_status"}'];
    equal(folded(junk).snapshot().status, null);
  },
  function steps_of_a_workflow_are_told_by_visit() {
    const step = (kind, more) => said('workflow_status', {status_type: kind, step_id: 'a', step_name: 'A', step_type: 'TOOL', ...more});
    const view = folded([step('step_started', {visit: 1}), step('step_completed', {visit: 1, output: {x: 1}}), step('step_started', {visit: 2})]);
    equal(view.snapshot().steps.map(({visit, status, output}) => [visit, status, output ?? null]), [[1, 'completed', {x: 1}], [2, 'started', null]]);
  },
  function the_view_is_bounded_and_says_what_it_let_go() {
    const view = new View({parts: 10, chars: 100, toolChars: 20, steps: 2});
    for (let n = 0; n < 50; n += 1) view.fold(readEvent(n, stored('0123456789', `m${n}`)));
    equal([view.snapshot().parts.length, view.snapshot().dropped, view.places.size <= 20], [10, 40, true]);
    for (let n = 0; n < 50; n += 1) view.fold(readEvent(n, status('tool_output', {tool_call_id: 't', function_name: 'f', output: 'abcdefghij'})));
    equal(view.snapshot().parts.at(-1).output.length, 20);
    view.fold(readEvent(1, stored('x'.repeat(500), 'big')));
    equal(view.snapshot().parts.map(({text}) => text.length), [500]);
    view.fold(readEvent(2, stored('y', 'big')));
    equal(view.snapshot().parts.map(({text}) => text), ['y']);
  },
  function a_snapshot_is_the_same_until_something_changes() {
    const view = folded([stored('One', 'm1'), chunk('Two')]);
    const before = view.snapshot();
    equal(before === view.snapshot(), true);
    view.fold(readEvent(3, chunk(' more')));
    const after = view.snapshot();
    equal([before === after, before.parts[0] === after.parts[0], before.parts[1] === after.parts[1], before.text], [false, true, false, 'One\n\nTwo']);
  },
  function a_long_answer_is_folded_in_time() {
    const took = quickest(() => {
      const view = new View();
      for (let n = 0; n < 20_000; n += 1) {
        view.fold(readEvent(n, chunk('word ')));
        if (n % 20 === 0) view.snapshot();
      }
      equal(view.snapshot().text.length, 100_000);
    }, 5_000);
    if (took > 5_000) throw new Error(`${took} ms`);
  },
  // Time.
  function waiting_doubles_up_to_half_a_minute_and_is_spread() {
    equal([1, 2, 3, 7, 50].map((n) => backoff(n, () => 1)), [500, 1000, 2000, 30_000, 30_000]);
    equal([backoff(1, () => 0), around(3000, () => 0), around(3000, () => 1)], [250, 1500, 4500]);
    equal([retryAfter('3'), retryAfter(null), retryAfter('soon'), retryAfter(new Date(5000).toUTCString(), 2000)], [3000, null, null, 3000]);
  },
  // The stream.
  async function a_cut_stream_goes_on_after_the_last_event_that_was_seen() {
    const fake = server([[frames([chunk('a'), chunk('b')]), 'id: 2\nda', new Error()], frames([chunk('b'), chunk('c'), stored('abc', 'm'), last()], 1)]);
    const stream = follow(fake);
    equal(await stream.done, {status: 'completed', message: 'The run completed.', whole: true});
    equal(stream.seen.ids, [0, 1, 2, 3, 4]);
    equal(fake.streams().map(({cursor}) => cursor), [null, '1']);
    equal(stream.view.text, 'abc');
    equal(stream.seen.states, ['connecting', 'streaming', 'reconnecting(1)', 'streaming', 'completed']);
  },
  async function the_n_of_reconnecting_counts_and_starts_again_after_an_event() {
    const fake = server([new Error(), 503, frames([chunk('a')]), 502, frames([last()], 1)]);
    const stream = follow(fake);
    const waking = setInterval(() => stream.wake.now(), 5);
    await stream.done;
    clearInterval(waking);
    equal(stream.seen.states, ['connecting', 'reconnecting(1)', 'reconnecting(2)', 'streaming', 'reconnecting(1)', 'reconnecting(2)', 'streaming', 'completed']);
  },
  async function after_204_the_row_says_how_it_ended() {
    const fake = server([204], () => ({status: 'failed', error: 'It broke.'}));
    const stream = follow(fake, {after: 7});
    equal(await stream.done, {status: 'failed', message: 'It broke.', whole: true});
    equal([stream.state, stream.view.status, fake.streams()[0].cursor], ['failed', 'failed', '7']);
  },
  async function of_an_old_run_only_the_end_is_told() {
    const fake = server([frames([last('failed', 'Long ago.')], 812)]);
    equal(await follow(fake).done, {status: 'failed', message: 'Long ago.', whole: false});
  },
  async function a_run_that_has_ended_is_never_shown_as_running() {
    const draining = 'retry: 10\n\n: the server is restarting, reconnect\n\n';
    const fake = server([frames([chunk('a')]), draining, draining, draining, draining], () => ({status: 'stopped', error: null}));
    const stream = follow(fake);
    await until(() => stream.run, 'the row was read');
    equal(stream.running, false);
    equal(await stream.done, {status: 'stopped', message: null, whole: false});
  },
  async function a_draining_server_is_asked_again_when_it_said() {
    const fake = server(['retry: 40\n\n: the server is restarting, reconnect\n\n', frames([last()])]);
    const waits = [];
    const real = globalThis.setTimeout;
    globalThis.setTimeout = (act, milliseconds, ...given) => (waits.push(milliseconds), real(act, milliseconds, ...given));
    await follow(fake).done.finally(() => (globalThis.setTimeout = real));
    if (!waits.some((each) => each >= 20 && each <= 60)) throw new Error(`it waited ${waits} ms`);
  },
  async function a_token_that_expired_is_renewed_once_for_all() {
    let renewed = 0;
    const fake = server([(headers) => (headers.Authorization === 'Bearer new' ? new Response(bytes(frames([last()])), {headers: {'Content-Type': 'text/event-stream'}}) : new Response('{}', {status: 401}))],
      (path, headers) => (headers.Authorization === 'Bearer new' ? {status: 'running'} : new Response('{}', {status: 401})));
    const longrun = client(fake, {token: ({expired}) => new Promise((resolve) => setTimeout(resolve, 30, expired ? `new${(renewed += 1) > 1 ? renewed : ''}` : 'old'))});
    await longrun.headers();
    await Promise.all([longrun.run(RUN), longrun.run(RUN), longrun.stream(RUN).done]);
    equal(renewed, 1);
  },
  async function a_token_that_expired_while_the_server_was_away_is_renewed() {
    const refuse = (headers) => (headers.Authorization === 'Bearer new' ? new Response(bytes(frames([last()])), {headers: {'Content-Type': 'text/event-stream'}}) : new Response('{}', {status: 401}));
    const fake = server([new Error(), 503, new Error(), 502, refuse]);
    const stream = follow(fake, {}, {token: ({expired}) => (expired ? 'new' : 'old')});
    const waking = setInterval(() => stream.wake.now(), 5);
    equal((await stream.done).status, 'completed');
    clearInterval(waking);
    const never = server([401]);
    let asked = 0;
    const error = await follow(never, {}, {token: () => `t${(asked += 1)}`}).done.catch((error) => error);
    equal([error.status, never.streams().length], [401, 3]);
  },
  async function a_lasting_refusal_is_an_error_and_asked_no_more() {
    for (const code of [401, 403, 404, 422]) {
      const fake = server([code]);
      const stream = follow(fake);
      const error = await stream.done.catch((error) => error);
      equal([error instanceof LongrunError, error.status, error.message, stream.state, fake.streams().length], [true, code, 'no', 'error', 1]);
    }
  },
  async function an_answer_that_is_no_stream_is_asked_again() {
    const page = () => new Response('<html>sign in to the hotel</html>', {headers: {'Content-Type': 'text/html'}});
    const fake = server([page, frames([last('failed', 'no')])]);
    equal((await follow(fake).done).status, 'failed');
  },
  async function a_silent_connection_is_given_up() {
    const fake = server([[frames([chunk('a')]), null], frames([last()], 1)]);
    const stream = follow(fake, {silentAfter: 100});
    await until(() => stream.cursor === 0);
    await new Promise((resolve) => setTimeout(resolve, 150));
    stream.look();
    await stream.done;
    equal(stream.seen.ids, [0, 1]);
  },
  async function whoever_looks_again_or_is_online_again_connects_at_once() {
    const later = () => new Response('{}', {status: 503, headers: {'Retry-After': '60'}});
    const fake = server([later, later, frames([last()])]);
    const stream = follow(fake);
    await until(() => stream.attempt === 1);
    await until(() => fake.streams().length === 1);
    await new Promise((resolve) => setTimeout(resolve, 50));
    window.dispatchEvent(new Event('online'));
    await until(() => stream.attempt === 2, 'the second attempt');
    await new Promise((resolve) => setTimeout(resolve, 50));
    document.dispatchEvent(new Event('visibilitychange'));
    await until(() => stream.over, 'the third attempt');
  },
  async function a_page_that_is_put_away_lets_go_and_goes_on_when_it_is_back() {
    const fake = server([[frames([chunk('a')]), null], frames([last()], 1)]);
    const stream = follow(fake);
    await until(() => stream.cursor === 0);
    window.dispatchEvent(new Event('pagehide'));
    equal([stream.own, stream.state], [null, 'reconnecting']);
    window.dispatchEvent(new Event('pageshow'));
    equal((await stream.done).whole, true);
    equal(fake.streams().map(({cursor}) => cursor), [null, '0']);
  },
  async function an_iterator_gives_every_event_and_ends() {
    const fake = server([frames([chunk('a'), chunk('b'), last()])]);
    const ids = [];
    for await (const event of follow(fake)) ids.push(event.id);
    equal(ids, [0, 1, 2]);
  },
  async function an_iterator_that_is_left_lets_the_stream_go_on() {
    const fake = server([frames([...Array(3000).fill(chunk('a')), last()])]);
    const stream = follow(fake);
    for await (const event of stream) if (event.id === 5) break;
    await stream.done;
    equal(stream.seen.ids.length, 3001);
  },
  async function a_slow_iterator_slows_the_stream_and_loses_nothing() {
    let pulled = 0;
    const fake = server([() => {
      const body = new ReadableStream({
        pull(controller) {
          if (pulled === 100) return controller.close();
          const from = pulled++ * 100;
          controller.enqueue(bytes(frames(Array(100).fill(chunk('a')), from) + (pulled === 100 ? frames([last()], 10_000) : '')));
          return undefined;
        },
      }, {highWaterMark: 0});
      return new Response(body, {headers: {'Content-Type': 'text/event-stream'}});
    }]);
    const stream = follow(fake);
    const iterator = stream[Symbol.asyncIterator]();
    equal((await iterator.next()).value.id, 0);
    await new Promise((resolve) => setTimeout(resolve, 100));
    if (pulled > 20) throw new Error(`${pulled} pieces were read ahead`);
    let count = 1;
    for await (const event of iterator) equal(event.id, count++);
    equal(count, 10_001);
  },
  async function an_iterator_throws_what_ended_the_stream() {
    const fake = server([404]);
    let error = null;
    try {
      for await (const event of follow(fake)) equal(event, null);
    } catch (caught) {
      error = caught;
    }
    equal(error?.status, 404);
  },
  async function closing_ends_it_and_the_run_goes_on() {
    const fake = server([[frames([chunk('a')]), null]]);
    const stream = follow(fake);
    await until(() => stream.cursor === 0);
    stream.close();
    equal([stream.state, (await stream.done.catch((error) => error)).name], ['idle', 'AbortError']);
    equal(fake.asked.length, 1);
    const controller = new AbortController();
    controller.abort();
    equal(await follow(fake, {signal: controller.signal}).done.catch((error) => error.name), 'AbortError');
    equal(fake.asked.length, 1);
  },
  async function a_callback_that_fails_does_not_end_the_stream() {
    const heard = [];
    const hear = (event) => (heard.push(event.message), event.preventDefault());
    window.addEventListener('error', hear);
    const fake = server([frames([chunk('a'), last()])]);
    await follow(fake, {onEvent: () => { throw new Error('mine'); }}).done;
    await until(() => heard.length === 2);
    window.removeEventListener('error', hear);
  },
  async function an_event_of_any_size_is_read_but_not_one_without_end() {
    const fake = server([[...Array(20).fill('data: '.padEnd(1024 * 1024, 'x')), null]]);
    equal((await follow(fake).done.catch((error) => error)).message, 'an event of the stream is too large');
  },
  // Tabs: two streams of a page are to each other what those of two tabs are.
  async function a_second_tab_listens_to_the_first_and_takes_over_from_it() {
    const {fake, first, second, say} = await twoTabs();
    equal([first.tabs.leading, second.tabs.leading, second.own], [true, false, null]);
    say([chunk('c')], 2);
    await until(() => second.cursor === 2, 'the second heard the first');
    first.close();
    await until(() => second.connected, 'the second connects');
    equal(fake.streams().at(-1).cursor, '2');
    fake.open.at(-1).enqueue(bytes(frames([stored('abc', 'm'), last()], 3)));
    equal([(await second.done).status, second.view.text, second.seen.ids], ['completed', 'abc', [0, 1, 2, 3, 4]]);
  },
  async function a_tab_that_hangs_loses_the_lead_and_follows_when_it_is_back() {
    const {fake, first, second} = await twoTabs();
    const {tell} = first.tabs;
    first.tabs.tell = () => {};
    second.tabs.heardAt = 0;
    second.tabs.look();
    await until(() => second.connected && second.tabs.leading, 'the second leads');
    first.tabs.tell = tell;
    await until(() => first.tabs && !first.tabs.leading && !first.own, 'the first follows');
    fake.open.at(-1).enqueue(bytes(frames([last()], 2)));
    await Promise.all([first.done, second.done]);
    equal([first.seen.ids, second.seen.ids], [[0, 1, 2], [0, 1, 2]]);
  },
  async function a_tab_that_missed_something_reads_it_by_itself() {
    const {fake, first, second, say} = await twoTabs();
    const {onmessage} = second.tabs.channel;
    let missed = 0;
    second.tabs.channel.onmessage = ({data}) => (missed += data.batch?.length ?? 0);
    say([chunk('c'), chunk('d')], 2);
    await until(() => missed === 2, 'the first told of both');
    second.tabs.channel.onmessage = onmessage;
    say([chunk('e')], 4);
    await until(() => second.connected, 'the second reads what it missed');
    equal(fake.streams().at(-1).cursor, '1');
    fake.open.at(-1).enqueue(bytes(frames([chunk('c'), chunk('d'), chunk('e')], 2)));
    await until(() => second.cursor === 4 && !second.own, 'and listens again');
    say([last()], 5);
    await Promise.all([first.done, second.done]);
    equal(second.seen.ids, [0, 1, 2, 3, 4, 5]);
  },
  async function a_tab_that_reads_slowly_leaves_the_others() {
    const {fake, first, second, say} = await twoTabs();
    const iterator = second[Symbol.asyncIterator]();
    for (let n = 0; n < 12; n += 1) {
      say(Array(100).fill(chunk('x')), 2 + 100 * n);
      await until(() => first.cursor === 101 + 100 * n);
    }
    await until(() => second.tabs === null, 'the second is alone');
    say([last()], 1202);
    await first.done;
    equal((await iterator.next()).value.id, 2);
    for (let n = 3; n < 600; n += 1) equal((await iterator.next()).value.id, n);
    await until(() => second.connected, 'it connects once there is room');
    equal(Number(fake.streams().at(-1).cursor), second.cursor);
    second.close();
  },
  async function people_share_nothing_with_others() {
    const fake = server([[frames([chunk('a')]), null]]);
    const token = (sub) => `x.${btoa(JSON.stringify({sub}))}.y`;
    const streams = [token('ann'), token('bob'), 'ann', 'bob'].map((token) => follow(fake, {}, {token, share: true}));
    for (const stream of streams) await until(() => stream.connected);
    equal(streams.map(({tabs}) => tabs.leading), [true, true, true, true]);
    for (const stream of streams) stream.close();
  },
  // Requests.
  async function a_start_whose_answer_was_lost_is_asked_again_with_the_same_key() {
    const keys = [];
    const fake = server([], (path, headers) => {
      keys.push(headers['Idempotency-Key']);
      return keys.length === 1 ? new Response('', {status: 503}) : {agent_run_id: RUN};
    });
    equal(await client(fake).start('t', {model_name: 'm'}), {agent_run_id: RUN});
    equal([keys.length, keys[0] === keys[1], keys[0].length], [2, true, 32]);
  },
  async function an_answer_that_was_cut_in_its_head_is_no_answer() {
    const rows = [new Response(''), new Response('{"status": "comp'), {status: 'completed', error: null}];
    const fake = server([''], () => rows.shift() ?? {status: 'completed', error: null});
    const stream = follow(fake);
    const waking = setInterval(() => stream.wake.now(), 5);
    equal((await stream.done).status, 'completed');
    clearInterval(waking);
    equal((await client(server([], () => new Response('{}'))).run(RUN)), {});
    equal((await client(server([], () => new Response(''))).request('x', {retries: 0}).catch((error) => error)).status, 0);
  },
  async function a_refusal_says_what_the_server_said() {
    const answer = (body, status, headers) => server([], () => new Response(JSON.stringify(body), {status, headers}));
    const caught = async (fake) => { const error = await client(fake).start('t').catch((error) => error); return [error.status, error.message, error.retryAfter]; };
    equal(await caught(answer({detail: {message: 'Too many.', limit: 3}}, 429, {'Retry-After': '5'})), [429, 'Too many.', 5000]);
    equal(await caught(answer({detail: [{loc: ['body', 'prompt'], msg: 'is missing'}]}, 422)), [422, 'prompt: is missing', null]);
    equal(await caught(answer('x', 500)), [500, 'The server answered 500.', null]);
  },
];

export const run = () => runAll(tests);

export async function runAll(tests) {
  const failed = [];
  for (const test of tests) {
    try {
      await test();
    } catch (error) {
      failed.push(`${test.name}: ${error?.stack ?? error}`);
    }
  }
  return {failed, count: tests.length};
}
