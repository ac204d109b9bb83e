/** Who is signed in: a token in this tab's storage, and the client that speaks with it. */

import {Longrun} from '../longrun.js';

const TOKEN = 'longrun.token';
const ACCOUNT = 'longrun.account';

/** `who` is here, or was here last. @type {{token: string | null, account: string | null, longrun: Longrun | null, who: string | null, leave: (why?: string) => void}} */
export const session = {token: null, account: null, longrun: null, who: null, leave: () => {}};

/** The token of the address (`#token=…`, which no server sees), which is taken out of it. */
export function tokenOfAddress() {
  const given = /^#token=([^&]*)/.exec(location.hash);
  if (!given) return null;
  history.replaceState(null, '', location.pathname);
  try {
    return decodeURIComponent(given[1]);
  } catch {
    return given[1];
  }
}

/** Go on as before a reload. @returns {boolean} whether there was somebody */
export function begin() {
  const known = sessionStorage.getItem(TOKEN);
  if (known) signIn(known, sessionStorage.getItem(ACCOUNT));
  return known !== null;
}

/** Whoever comes after somebody else begins anew: the address is that of a thing of theirs. @param {string} token @param {string | null} [account] */
export function signIn(token, account = null) {
  session.token = token;
  session.account = account;
  sessionStorage.setItem(TOKEN, token);
  if (account) sessionStorage.setItem(ACCOUNT, account);
  else sessionStorage.removeItem(ACCOUNT);
  const isKey = token.startsWith('pk_') && token.includes(':');
  const longrun = (session.longrun = new Longrun({...(isKey ? {apiKey: token} : {token}), ...(account ? {accountId: account} : {}), fetch: judged}));
  const who = longrun.audience();
  if (session.who && session.who !== who) history.replaceState(null, '', location.pathname);
  session.who = who;

  /** A token that is refused signs out, whatever asked; a late answer to whoever was here before does not. @param {URL | string} url @param {RequestInit} [init] */
  async function judged(url, init) {
    const response = await fetch(url, init);
    if (response.status === 401 && session.longrun === longrun) signOut('This token is not accepted, or not any more.');
    return response;
  }
}

/** @param {string} [why] */
export function signOut(why) {
  sessionStorage.removeItem(TOKEN);
  sessionStorage.removeItem(ACCOUNT);
  session.token = session.account = session.longrun = null;
  session.leave(why);
}

/** Ask a route. @param {string} path @param {import('../longrun.d.ts').RequestOptions} [options] @returns {Promise<any>} */
export const ask = async (path, options) => client().request(path, options);

/** @returns {Longrun} */
export function client() {
  if (!session.longrun) throw new Error('nobody is signed in');
  return session.longrun;
}
