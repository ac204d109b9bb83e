/** Tests of the console's parts, run in a page like those of the client; the API is made of answers. */

import {composer} from '/console/app/composer.js';
import {button, form, h} from '/console/app/dom.js';
import {render} from '/console/app/markdown.js';
import {conversation} from '/console/app/pages/conversation.js';
import {Parts} from '/console/app/parts.js';
import {runPage} from '/console/app/pages/run.js';
import {byDay, byModel} from '/console/app/pages/usage.js';
import {session, signIn, signOut, tokenOfAddress} from '/console/app/session.js';
import {Timeline} from '/console/app/timeline.js';
import {readEvent} from '/console/longrun/event.js';
import {bytes, chunk, equal, frames, last, quickest, runAll, status, stored, until} from '/unit.js';

const THREAD = '22222222-2222-2222-2222-222222222222';
const RUN = '11111111-1111-1111-1111-111111111111';
const OFTEN = 20_000;
/** Five times what a page may stand still for. */
const LONGEST_MS = 1000;

const shown = (text) => {
  const element = h('div');
  render(element, text);
  return element;
};
const html = (text) => shown(text).innerHTML.replace(/ (rel|target|tabindex|role|aria-label|class|scope)="[^"]*"/g, '');
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const row = (n, type, text, more = {}) => ({
  message_id: `m${n}`, thread_id: THREAD, type, content: {role: type, content: text}, metadata: {}, created_at: `2026-01-01T00:00:${String(n).padStart(2, '0')}Z`, ...more,
});

/** Pages in a document, with an API that answers by `METHOD path`: a value, a status, or a function of the request. */
function stage(answers) {
  const asked = [];
  const controllers = [];
  const real = globalThis.fetch;
  globalThis.fetch = async (url, init = {}) => {
    const {pathname} = new URL(url);
    const name = `${init.method ?? 'GET'} ${pathname.replace('/api/', '').replace(THREAD, 'T').replace(RUN, 'R')}`;
    asked.push({name, key: init.headers?.['Idempotency-Key'], body: init.body});
    let answer = answers[name];
    if (typeof answer === 'function') answer = await answer(init);
    if (answer instanceof Error) throw new TypeError('network');
    if (answer instanceof Response) return answer;
    if (typeof answer === 'number') return new Response('{"detail": "no"}', {status: answer});
    if (typeof answer === 'string') {
      const body = new ReadableStream({start(controller) {
        controllers.push(controller);
        controller.enqueue(bytes(answer));
        init.signal?.addEventListener('abort', () => { try { controller.error(new DOMException('aborted', 'AbortError')); } catch {} });
      }});
      return new Response(body, {headers: {'Content-Type': 'text/event-stream'}});
    }
    return new Response(JSON.stringify(answer ?? {}), {status: answer === undefined ? 404 : 200});
  };
  const leaving = new AbortController();
  const place = h('div');
  document.body.append(place);
  const went = [];
  signIn('a.b.c');
  const left = [];
  session.leave = (why) => left.push(why);
  return {
    asked, answers, place, went, left, controllers,
    visit: {place, title() {}, signal: leaving.signal, go: (to) => went.push(to), args: []},
    count: (name) => asked.filter((each) => each.name === name).length,
    leave: () => leaving.abort(),
    end() {
      leaving.abort();
      place.remove();
      globalThis.fetch = real;
      session.leave = () => {};
      signOut();
    },
  };
}

/** A conversation whose runs are what `more` says. */
async function talk(more = {}, thread = {}) {
  const set = stage({
    'GET threads/T': {metadata: {title: 'Talk'}, recent_agent_runs: [], ...thread},
    'GET threads/T/messages': {messages: [], next_cursor: null},
    'GET billing/available-models': {models: []},
    'GET agents': {agents: []},
    'POST threads/T/messages/add': {},
    'POST thread/T/agent/start': {agent_run_id: RUN},
    'GET agent-run/R/stream': frames([chunk('Hel')]),
    ...more,
  });
  await conversation({...set.visit, args: [THREAD]});
  const form = set.place.querySelector('form');
  const prompt = form.querySelector('textarea');
  return {
    ...set,
    send: async (text) => {
      prompt.value = text;
      form.requestSubmit();
      await until(() => !prompt.readOnly, 'it was sent or refused');
    },
    problem: () => form.querySelector('[role=alert]').textContent,
    prompt,
  };
}

const HOSTILE = {
  'runs of backticks': `a${'`'.repeat(OFTEN)}b`,
  'backticks of all lengths': Array.from({length: 190}, (_, n) => '`'.repeat(n + 1)).join('a'),
  'links that do not end': `[](${'a'.repeat(OFTEN)}`,
  'brackets': '['.repeat(OFTEN),
  'links begun': '[a]('.repeat(OFTEN / 4),
  'strong begun': '__a '.repeat(OFTEN / 4),
  'emphasis begun': '*a _b '.repeat(OFTEN / 6),
  'stars': `a${'*'.repeat(OFTEN)}`,
  'struck': '~~a '.repeat(OFTEN / 4),
  'a heading of spaces': `# a${' '.repeat(OFTEN)}b`,
  'a heading and separators': `#${' '.repeat(OFTEN)}a\u2028b`,
  'a fence of spaces': `\`\`\`${' '.repeat(OFTEN)}\``,
  'an item of spaces': `- ${' '.repeat(OFTEN)}a\u2028b`,
  'a rule of spaces': `- -${' '.repeat(OFTEN)}- - x`,
  'a table ruled with spaces': `|a|\n${' '.repeat(OFTEN)}|${' '.repeat(OFTEN)}|x|`,
  'a table whose rule does not end': `|a|\n|-${' '.repeat(OFTEN)}x|`,
  'one line of a megabyte': 'word '.repeat(200_000),
  'a megabyte of hashes': `${'#'.repeat(1_000_000)} a`,
  'a megabyte of spaces': `# a${' '.repeat(1_000_000)}b`,
  'a long first line of many': `|${'a'.repeat(100_000)}\n${'b\n'.repeat(50_000)}`,
  'very many words in stars': '*a* '.repeat(300_000),
  'very many paragraphs': 'a\n\n'.repeat(300_000),
  'quotes in quotes': `${'>'.repeat(OFTEN)} a`,
  'lists in lists': Array.from({length: 300}, (_, n) => `${' '.repeat(2 * n)}- a`).join('\n'),
  'items on one line': `${'- '.repeat(OFTEN / 2)}a`,
  'emphasis in emphasis': `${'**_'.repeat(3000)}a${'_**'.repeat(3000)}`,
};

const tests = [
  ...Object.entries(HOSTILE).map(([name, text]) => ({
    [`hostile_markdown: ${name}`]() {
      let element;
      const took = quickest(() => (element = shown(text)), LONGEST_MS);
      if (took > LONGEST_MS) throw new Error(`${Math.round(took)} ms`);
      if (element.querySelectorAll('*').length > 20_000) throw new Error('too many elements');
      if (element.textContent.replace(/\W/g, '').length < text.replace(/\W/g, '').length * 0.9) throw new Error('text was lost');
    },
  })[`hostile_markdown: ${name}`]),
  function markdown_is_what_people_write() {
    equal(html('# C#\n## Two ##\ntext **bold** *it* `a*b*` ``c`d`` ~~no~~'), '<h3>C#</h3><h4>Two</h4><p>text <strong>bold</strong> <em>it</em> <code>a*b*</code> <code>c`d</code> <del>no</del></p>');
    equal(html('- a\n- b\n  - c\n\n3. x\n4. y\n\nend'), '<ul><li>a</li><li><p>b</p><ul><li>c</li></ul></li></ul><ol start="3"><li>x</li><li>y</li></ol><p>end</p>');
    equal(html('| a | b |\n| - | :-: |\n| 1 | 2 |'), '<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>');
    equal(html('```js\na\n\n# b\n```\nafter'), '<pre><code>a\n\n# b</code></pre><p>after</p>');
    equal(html('> said\n\n---\n\n[x](https://a.test/b_(c)) https://d.test/e'), '<blockquote><p>said</p></blockquote><hr><p><a href="https://a.test/b_(c)">x</a> <a href="https://d.test/e">https://d.test/e</a></p>');
  },
  function links_lead_out_and_nowhere_else() {
    const targets = ['javascript:alert(1)', 'JaVaScRiPt:alert(1)', ' javascript:alert(1)', 'java&#10;script:alert(1)', '\u0001javascript:alert(1)', 'javascript&colon;alert(1)', 'data:text/html,x', 'vbscript:x', 'file:///etc/passwd', 'blob:x', '//evil.test', '#token=x', '/api/x',
      'https:#token=x', 'https:/console/x', 'http:docs', 'view-source:x', '\u200bjavascript:alert(1)'];
    for (const target of targets) {
      for (const text of [`[x](${target})`, `<${target}>`, `[![y](${target})](${target})`, `**[x](${target})**`]) {
        equal([text, [...shown(text).querySelectorAll('a, img')].map((each) => each.href)], [text, []]);
      }
    }
    const [link] = shown('[x](https://a.test/?b=1)').querySelectorAll('a');
    equal([link.href, link.target, link.rel.includes('noopener'), link.rel.includes('noreferrer')], ['https://a.test/?b=1', '_blank', true, true]);
  },
  function a_text_that_grows_keeps_the_blocks_that_did_not_change() {
    const element = shown('# A\n\none');
    const [first] = element.children;
    render(element, '# A\n\none two');
    equal([element.firstChild === first, element.lastChild.textContent], [true, 'one two']);
  },
  function a_long_text_that_grows_is_in_pieces_of_which_only_the_last_one_changes() {
    const words = Array.from({length: 40_000}, (_, n) => `word${n % 97} `);
    const lines = Array.from({length: 8_000}, (_, n) => `line ${n % 97}\n`);
    for (const [before, pieces, after, whole] of [['', words, '', words.join('').trim()], ['```js\n', lines, '```\n\nend', `${lines.join('').trimEnd()}end`]]) {
      const element = h('div');
      let text = before;
      const made = new Set();
      for (let n = 0; n < pieces.length; n += 997) {
        render(element, (text += pieces.slice(n, n + 997).join('')));
        made.add(element.lastChild);
        const long = [...element.querySelectorAll('div')].map((each) => each.textContent.length).filter((length) => length > 9_000);
        equal(long, []);
      }
      if (made.size > 12) throw new Error(`made anew ${made.size} times`);
      equal(element.textContent.trim(), text.slice(before.length).trim());
      render(element, text + after);
      equal(element.textContent.trim(), whole);
      const anew = shown(text + after);
      equal(element.textContent, anew.textContent);
    }
  },
  function usage_is_summed_by_day_and_by_model() {
    const days = byDay([['2026-01-14T23:59:59Z', 2, 'completed'], ['2026-01-14T00:00:00Z', 1, 'failed'], ['2026-01-01T05:00:00Z', 1, 'completed'], ['2025-12-31T05:00:00Z', 9, 'completed']], Date.parse('2026-01-14T12:00:00Z'));
    equal([days.length, days[0], days.at(-1)], [14, {day: '2026-01-01', sum: 1, kinds: {completed: 1}}, {day: '2026-01-14', sum: 3, kinds: {completed: 2, failed: 1}}]);
    const use = (model, tokens, cost) => ({created_at: '', model, tokens, cost});
    equal(byModel([use('a', 1, 2), use('__proto__', 0, 0), use('b', 5, 0), use('a', 2, 3)]), [{model: 'b', count: 1, tokens: 5, cost: 0}, {model: 'a', count: 2, tokens: 3, cost: 5}, {model: '__proto__', count: 1, tokens: 0, cost: 0}]);
  },
  function what_a_model_asks_in_tags_is_shown_without_them() {
    const shows = (text) => {
      const parts = new Parts();
      parts.set([{kind: 'answer', key: 'a', text, reasoning: '', live: false, messageId: null, createdAt: null}]);
      return parts.element.textContent.replace('Reasoning', '').trim();
    };
    equal(shows('Done.\n\n<ask attachments="a.md">What *next*?'), 'Done.What next?');
    equal(shows('<complete>All is done.</complete>\n'), 'All is done.');
    equal(shows('Say `<ask>` to ask.'), 'Say <ask> to ask.');
    for (const text of ['\n<ask>\n<ask '.repeat(OFTEN), '\n<ask '.repeat(OFTEN)]) { // of the second none is ever whole
      if (quickest(() => shows(text), LONGEST_MS) > LONGEST_MS) throw new Error('it takes long');
    }
  },
  // Sending.
  async function a_message_whose_run_was_refused_is_said_once_however_often_it_is_sent() {
    for (const code of [402, 409, 429]) {
      const page = await talk({'POST thread/T/agent/start': code});
      await page.send('Hello');
      equal([page.prompt.value, page.problem()], ['Hello', 'no']);
      page.answers['POST thread/T/agent/start'] = {agent_run_id: RUN};
      await page.send('Hello');
      equal([page.count('POST threads/T/messages/add'), page.count('POST thread/T/agent/start'), page.prompt.value], [1, 2, '']);
      await page.send('Hello');
      equal(page.count('POST threads/T/messages/add'), 2);
      page.end();
    }
  },
  async function a_message_whose_answer_was_lost_is_not_said_twice() {
    const page = await talk({'POST threads/T/messages/add': new Error()});
    await page.send('Hello');
    equal(page.prompt.value, 'Hello');
    page.answers['GET threads/T/messages'] = {messages: [row(1, 'user', 'Hello')], next_cursor: null};
    await page.send('Hello');
    equal([page.count('POST threads/T/messages/add'), page.count('POST thread/T/agent/start')], [1, 1]);
    page.end();
    const other = await talk({'POST threads/T/messages/add': new Error()});
    await other.send('Hello');
    other.answers['POST threads/T/messages/add'] = {};
    await other.send('Hello');
    equal([other.count('POST threads/T/messages/add'), other.count('POST thread/T/agent/start')], [2, 1]);
    other.end();
  },
  async function whoever_leaves_while_a_run_is_started_follows_nothing() {
    let go;
    const page = await talk({'POST thread/T/agent/start': () => new Promise((resolve) => (go = resolve))});
    const sent = page.send('Hello');
    await until(() => go);
    page.leave();
    go({agent_run_id: RUN});
    await sent;
    await wait(50);
    equal([page.count('POST thread/T/agent/start'), page.count('GET agent-run/R/stream')], [1, 0]);
    page.end();
  },
  async function whoever_leaves_between_message_and_run_still_gets_the_run() {
    let go;
    const page = await talk({'POST threads/T/messages/add': () => new Promise((resolve) => (go = resolve))});
    const sent = page.send('Hello');
    await until(() => go);
    page.leave();
    go({});
    await sent;
    equal(page.count('POST thread/T/agent/start'), 1);
    page.end();
  },
  async function the_same_task_again_has_the_same_key_and_another_a_new_one() {
    const set = stage({'GET billing/available-models': {models: []}, 'GET agents': {agents: []}});
    const keys = [];
    let refuse = true;
    const write = composer({label: 'x', files: true, submit: async ({key}) => { keys.push(key); if (refuse) throw new Error('no'); }});
    set.place.append(write.element);
    const send = async (text) => {
      write.text.value = text;
      write.element.requestSubmit();
      write.element.requestSubmit();
      await until(() => !write.text.readOnly);
    };
    await send('a');
    refuse = false;
    await send('a');
    await send('a');
    await send('b');
    equal([keys.length, keys[0] === keys[1], new Set(keys).size], [4, true, 3]);
    set.end();
  },
  // What is shown.
  async function what_was_read_before_the_end_does_not_take_the_place_of_the_end() {
    const late = [];
    const page = await talk({}, {recent_agent_runs: [{id: RUN, status: 'completed'}]});
    const answer = row(2, 'assistant', 'Hello.', {metadata: {thread_run_id: RUN}});
    page.answers['GET threads/T/messages'] = () => (late.length ? {messages: [answer, row(1, 'user', 'Hi')], next_cursor: null} : new Promise((resolve) => late.push(resolve)));
    await page.send('Hi');
    await until(() => page.place.textContent.includes('Hel'));
    page.controllers.at(-1).enqueue(bytes(frames([stored('Hello.', 'm2'), last()], 1)));
    await until(() => page.place.dataset.state === 'completed' && page.place.querySelectorAll('.said').length === 1);
    late[0]({messages: [row(1, 'user', 'Hi')], next_cursor: null});
    await wait(50);
    equal([...page.place.querySelectorAll('.answer > .markdown')].map((each) => each.textContent).filter(Boolean), ['Hello.']);
    page.end();
  },
  async function earlier_messages_are_read_when_somebody_wants_them() {
    const pages = {null: {messages: [row(3, 'user', 'three')], next_cursor: 'x'}, x: {messages: [row(2, 'user', 'two'), row(1, 'user', 'one')], next_cursor: null}};
    let given = null;
    const page = await talk({'GET threads/T/messages': () => pages[given]});
    const texts = () => [...page.place.querySelectorAll('.said')].map((each) => each.textContent);
    equal(texts(), ['three']);
    given = 'x';
    const more = [...page.place.querySelectorAll('button')].find((each) => each.textContent.includes('earlier'));
    more.click();
    await until(() => texts().length === 3);
    equal([texts(), more.hidden], [['one', 'two', 'three'], true]);
    given = null;
    pages.null = {messages: [row(4, 'user', 'four'), row(3, 'user', 'three')], next_cursor: 'x'};
    await page.send('four');
    await until(() => texts().length === 4);
    equal([texts(), more.hidden], [['one', 'two', 'three', 'four'], true]);
    page.end();
  },
  async function a_page_that_was_left_scrolls_nothing() {
    const page = await talk({}, {recent_agent_runs: [{id: RUN, status: 'running'}]});
    page.leave();
    page.place.style.height = '5000px';
    scrollTo(0, 0);
    await wait(100);
    equal(document.scrollingElement.scrollTop, 0);
    page.end();
  },
  async function a_run_that_ended_is_never_shown_as_running_again() {
    const reads = [];
    const run = {id: RUN, threadId: THREAD, phase: 'running', status: 'running', startedAt: '2026-01-01T00:00:00Z', completedAt: null, usage: {}, attempt: 1, error: null};
    const set = stage({
      'GET agent-run/R': () => (reads.length ? new Promise((resolve) => reads.push(resolve)) : (reads.push(null), run)),
      'GET thread/T/agent-runs': {agent_runs: []},
      'GET agent-run/R/stream': frames([status('thread_run_start'), last()]),
    });
    await runPage({...set.visit, args: [RUN]});
    await until(() => reads.length === 3, 'the start and the end are read');
    reads[2]({...run, phase: 'completed', status: 'completed', completedAt: '2026-01-01T00:00:01Z'});
    await until(() => set.place.querySelector('.badge').textContent === 'completed');
    reads[1](run);
    await wait(30);
    equal(set.place.querySelector('.badge').textContent, 'completed');
    set.end();
  },
  async function a_run_shows_what_it_cost_and_that_its_connection_is_lost() {
    const run = {id: RUN, threadId: THREAD, status: 'running', phase: 'running', model_name: 'm', startedAt: '2026-01-01T00:00:00Z', completedAt: null, error: null, attempt: 1, usage: {total_tokens: 7}, metadata: {}};
    const log = (run_id, cost) => ({agent_run_id: run_id, estimated_cost: cost});
    const set = stage({
      'GET agent-run/R': run,
      'GET thread/T/agent-runs': {agent_runs: []},
      'GET billing/usage-logs': {logs: [log(RUN, 1.5), log('another', 9), log(RUN, 2)], has_more: false},
      'GET agent-run/R/stream': frames([status('thread_run_start')]),
    });
    await runPage({...set.visit, args: [RUN]});
    const wrong = set.place.querySelector('[role=alert]');
    await until(() => set.place.querySelector('.kind'));
    set.controllers[0].close();
    await until(() => wrong.textContent.includes('trying again'), 'it says that the connection is lost');
    set.answers['GET agent-run/R/stream'] = frames([status('thread_run_start'), last('completed')]);
    set.answers['GET agent-run/R'] = {...run, phase: 'completed', status: 'completed', completedAt: '2026-01-01T00:00:01Z'};
    await until(() => set.place.querySelector('.facts').textContent.includes('Credits3.5'), 'its cost is shown');
    equal([wrong.textContent, set.place.querySelector('.badge').textContent], ['', 'completed']);
    set.end();
  },
  function the_timeline_tells_the_tokens_of_a_call() {
    const timeline = new Timeline(null);
    const said = [status('thread_run_start'), status('assistant_response_start'), stored('Hello', 'm1', {usage: {total_tokens: 42}})];
    for (const [n, data] of said.entries()) timeline.fold(readEvent(n, data));
    equal(timeline.spans.find(({lane}) => lane === 'model').label, 'model, 42 tokens');
  },
  function a_time_that_is_none_draws_no_nonsense() {
    const timeline = new Timeline(Date.parse('2026-01-01T00:00:00Z'));
    for (const [n, kind] of ['thread_run_start', 'assistant_response_start'].entries()) timeline.fold(readEvent(n, status(kind).replace('2026-01-01T00:00:00Z', 'yesterday')));
    equal(timeline.draw(Date.parse('2026-01-01T00:01:00Z')).outerHTML.includes('NaN'), false);
  },
  // Who is signed in.
  async function a_token_that_is_refused_in_mid_stream_signs_out_once() {
    const page = await talk({'GET agent-run/R': {status: 'running'}}, {recent_agent_runs: [{id: RUN, status: 'running'}]});
    await until(() => page.place.textContent.includes('Hel'));
    page.answers['GET agent-run/R/stream'] = 401;
    page.controllers.at(-1).close();
    await until(() => page.left.length);
    equal([page.left.length, session.token, sessionStorage.length], [1, null, 0]);
    page.end();
  },
  async function a_late_refusal_of_who_was_here_before_signs_nobody_out() {
    const set = stage({});
    let go;
    set.answers['GET agents'] = () => new Promise((resolve) => (go = resolve));
    const asked = session.longrun.request('agents').catch(() => {});
    await until(() => go);
    signIn('d.e.f', 'another');
    go(401);
    await asked;
    equal([session.token, set.left], ['d.e.f', []]);
    set.end();
  },
  function a_token_leaves_the_address_whatever_it_is() {
    for (const [hash, token] of [['#token=a.b.c', 'a.b.c'], ['#token=pk%5Fa%3Ask', 'pk_a:sk'], ['#token=%', '%'], ['#token=', ''], ['#/runs', null], ['', null]]) {
      history.replaceState(null, '', `/blank${hash}`);
      equal([hash, tokenOfAddress()], [hash, token]);
      equal(location.href.includes('token'), false);
    }
    history.replaceState(null, '', '/blank');
  },
  // Twice.
  async function what_is_pressed_twice_is_done_once() {
    let count = 0;
    const press = button('x', async () => { count += 1; await wait(20); });
    press.click();
    press.click();
    const sheet = form([], 'Send', async () => { count += 10; await wait(20); throw new Error('broke'); });
    document.body.append(sheet);
    sheet.requestSubmit();
    sheet.requestSubmit();
    await until(() => sheet.textContent.includes('broke'));
    equal(count, 11);
    sheet.requestSubmit();
    equal([count, sheet.querySelector('[role=alert]').textContent], [21, '']);
    sheet.remove();
  },
];

export const run = () => runAll(tests);
