/** Who is signed in: a token in this tab's storage, and the client that speaks with it. */

import {Longrun} from '../longrun.js';

const TOKEN = 'longrun.token';
const ACCOUNT = 'longrun.account';

/** @type {{token: string | null, account: string | null, longrun: Longrun | null, leave: (why?: string) => void}} */
export const session = {token: null, account: null, longrun: null, leave: () => {}};

/** Take the token of the address (`#token=…`, which no server sees), or the one of before. @returns {boolean} whether there is one */
export function begin() {
  const given = /^#token=([^&]+)/.exec(location.hash);
  if (given) {
    history.replaceState(null, '', location.pathname);
    signIn(decodeURIComponent(given[1]));
  } else {
    const known = sessionStorage.getItem(TOKEN);
    if (known) signIn(known, sessionStorage.getItem(ACCOUNT));
  }
  return session.longrun !== null;
}

/** @param {string} token @param {string | null} [account] */
export function signIn(token, account = null) {
  session.token = token;
  session.account = account;
  sessionStorage.setItem(TOKEN, token);
  if (account) sessionStorage.setItem(ACCOUNT, account);
  else sessionStorage.removeItem(ACCOUNT);
  const isKey = token.startsWith('pk_') && token.includes(':');
  session.longrun = new Longrun({...(isKey ? {apiKey: token} : {token}), ...(account ? {accountId: account} : {})});
}

/** @param {string} [why] */
export function signOut(why) {
  sessionStorage.removeItem(TOKEN);
  sessionStorage.removeItem(ACCOUNT);
  session.token = session.account = session.longrun = null;
  session.leave(why);
}

/** Ask a route; a token that is refused signs out. @param {string} path @param {import('../longrun.d.ts').RequestOptions} [options] @returns {Promise<any>} */
export async function ask(path, options) {
  try {
    return await client().request(path, options);
  } catch (error) {
    if (/** @type {any} */ (error).status === 401) signOut('The token is not accepted any more. Sign in again.');
    throw error;
  }
}

/** @returns {Longrun} */
export function client() {
  if (!session.longrun) throw new Error('nobody is signed in');
  return session.longrun;
}
