/** The frame of the console: who is signed in, where one is, and what there is. */

import {button, field, form, h, link, show, wrong} from './dom.js';
import {problem} from './format.js';
import {agentPage, agentsPage} from './pages/agents.js';
import {conversation, newConversation} from './pages/conversation.js';
import {conversations} from './pages/conversations.js';
import {healthPage} from './pages/health.js';
import {runPage} from './pages/run.js';
import {runsPage} from './pages/runs.js';
import {schedulePage, schedulesPage} from './pages/schedules.js';
import {usagePage} from './pages/usage.js';
import {executionPage, workflowPage, workflowsPage} from './pages/workflows.js';
import {LongrunError} from '../longrun.js';
import {ask, begin, session, signIn, signOut, tokenOfAddress} from './session.js';

/**
 * A page fills `place`, says its title, and gives back what is to be done when one leaves it. `signal` is aborted then.
 * @typedef {{place: any, title: (text: string) => void, signal: AbortSignal, args: string[], go: (to: string) => void}} Visit
 * @typedef {(visit: Visit) => void | Promise<void>} Page
 */

/** By the first word of an address: a list, and one of it. @type {Record<string, Array<Page | null>>} */
const PAGES = {
  new: [newConversation],
  conversations: [conversations, conversation],
  runs: [runsPage, runPage],
  agents: [agentsPage, agentPage],
  workflows: [workflowsPage, workflowPage],
  executions: [null, executionPage],
  schedules: [schedulesPage, schedulePage],
  usage: [usagePage],
  health: [healthPage],
};
const PLACES = ['Conversations', 'Runs', 'Agents', 'Workflows', 'Schedules', 'Usage', 'Health'];

const LOCAL = /^(localhost|127(\.\d+){3}|\[::1\])$/;

const app = /** @type {HTMLElement} */ (document.getElementById('app'));
/** @type {AbortController | null} */
let visit = null;

function frame() {
  const menu = button('Menu', () => showMenu(!nav.classList.contains('open')), {id: 'menu', 'aria-expanded': 'false', 'aria-controls': 'nav'});
  const accounts = h('select', {'aria-label': 'Account', hidden: true});
  const brand = () => link('/new', 'Longrun', {class: 'brand'});
  const nav = h('nav', {id: 'nav', 'aria-label': 'Console'}, brand(),
    link('/new', 'New conversation', {class: 'button primary'}),
    h('ul', {}, PLACES.map((text) => h('li', {}, link(`/${text.toLowerCase()}`, text)))),
    h('div', {class: 'foot'}, accounts, h('a', {href: 'docs', target: '_blank', rel: 'noopener'}, 'API reference'), button('Sign out', () => signOut())));
  const main = h('main', {id: 'main', tabindex: '-1'});
  const announce = h('div', {id: 'announce', class: 'unseen', role: 'status'});
  show(app, h('header', {class: 'top'}, menu, brand()), nav, main, h('p', {id: 'problem', role: 'alert', class: 'problem'}), announce);
  void listAccounts(accounts);
}

/** On a narrow screen. @param {boolean} open */
function showMenu(open) {
  document.getElementById('nav')?.classList.toggle('open', open);
  document.getElementById('menu')?.setAttribute('aria-expanded', String(open));
}

/** @param {any} choice */
async function listAccounts(choice) {
  const {accounts} = await ask('accounts').catch(() => ({accounts: []}));
  if (accounts.length < 2) return;
  const own = accounts.find((/** @type {any} */ each) => each.personal);
  for (const each of accounts) choice.append(h('option', {value: each.account_id, selected: each.account_id === (session.account ?? own?.account_id)}, each.name));
  choice.hidden = false;
  choice.addEventListener('change', () => {
    signIn(session.token ?? '', choice.value);
    location.hash = '#/conversations';
  });
}

/** @param {Visit} visit */
function nowhere({place, title}) {
  title('Nothing here');
  show(place, h('h1', {}, 'There is nothing here'), h('p', {}, link('/new', 'Begin a conversation')));
}

async function route() {
  if (!session.longrun) return;
  if (!document.getElementById('main')) frame();
  const path = location.hash.slice(1) || '/new';
  const [, name, id] = /^\/(\w+)(?:\/([\w-]+))?$/.exec(path) ?? [];
  visit?.abort();
  visit = new AbortController();
  const {signal} = visit;
  const main = /** @type {any} */ (document.getElementById('main'));
  const place = h('div', {class: 'page'});
  delete main.dataset.shown;
  show(main, place);
  scrollTo(0, 0);
  /** @type {any} */ (document.getElementById('problem')).textContent = '';
  showMenu(false);
  for (const each of /** @type {any} */ (document.querySelectorAll('nav li a'))) each.ariaCurrent = `#${path}`.startsWith(each.hash) ? 'page' : null;
  const title = (/** @type {string} */ text) => {
    if (!signal.aborted) document.title = `${text} · Longrun`;
  };
  const go = (/** @type {string} */ to) => {
    if (!signal.aborted) location.hash = `#${to}`;
  };
  try {
    await (PAGES[name]?.[id ? 1 : 0] ?? nowhere)({place, title, signal, args: [id], go});
  } catch (error) {
    if (!signal.aborted && session.longrun) show(place, h('h1', {}, 'This cannot be shown'), wrong(problem(error)), button('Try again', () => void route()));
  }
  if (signal.aborted) return;
  main.dataset.shown = path;
  if (document.activeElement === document.body) main.focus({preventScroll: true});
}

/** @param {string} [why] @param {string} [given] */
function signInPage(why, given = '') {
  visit?.abort();
  document.title = 'Sign in · Longrun';
  const token = h('textarea', {rows: 4, required: true, autocomplete: 'off', spellcheck: 'false', value: given});
  const sheet = form([
    h('h1', {}, 'Sign in to Longrun'),
    field('Access token or API key', token, 'As `./dev token` prints it, or your issuer; it stays in this tab.'),
  ], 'Sign in', async () => {
    signIn(token.value.replace(/\s/g, ''));
    try {
      await session.longrun?.request('threads', {query: {limit: 1}, retries: 0});
      frame();
      await route();
    } catch (error) {
      if (!session.longrun) return;
      const written = token.value;
      signOut();
      signInPage(problem(error), written);
    }
  });
  sheet.querySelector('[role=alert]').textContent = why ?? '';
  show(app, h('main', {id: 'sign-in', tabindex: '-1'}, sheet));
  token.focus();
}

/**
 * Whoever opens a link with a token becomes its owner: on this machine (`./dev run`) at once, anywhere else only after a
 * press of the button, as the link may be anybody's.
 */
function arrive() {
  const given = tokenOfAddress();
  if (given === null) return void route();
  if (!LOCAL.test(location.hostname)) {
    signOut();
    return signInPage('', given);
  }
  show(app);
  signIn(given);
  return void route();
}

session.leave = signInPage;
addEventListener('hashchange', arrive);
addEventListener('unhandledrejection', (event) => {
  const place = document.getElementById('problem');
  if (!(event.reason instanceof LongrunError) || !place) return;
  event.preventDefault();
  place.textContent = problem(event.reason);
});
document.querySelector('.skip')?.addEventListener('click', (event) => {
  event.preventDefault();
  /** @type {any} */ (document.querySelector('main'))?.focus();
});
begin();
arrive();
if (!app.firstChild) signInPage();
