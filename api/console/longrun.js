/**
 * Longrun in a browser (or in Node): start a run, follow it, stop it. No dependency, no build step; types in longrun.d.ts.
 *
 *     const longrun = new Longrun({token: () => session.token});
 *     const {agent_run_id} = await longrun.initiate({prompt: 'Hello', files: input.files});
 *     const stream = longrun.stream(agent_run_id, {onChange: ({state, view}) => show(state, view.text)});
 *     const {status} = await stream.done;
 */

import {newKey} from './longrun/key.js';
import {detailOf, LongrunError} from './longrun/refusal.js';
import {RunStream} from './longrun/stream.js';
import {backoff, pause, retryAfter} from './longrun/waiting.js';
/** @import {InitiateOptions, Initiated, LongrunOptions, RequestOptions, Run, StartOptions, Started, StreamOptions} from './longrun.d.js' */

export {LongrunError, RunStream};


const RETRIES = 3;
const NEVER = new AbortController().signal;

/** One caller of one installation. */
export class Longrun {
  /** @param {LongrunOptions} options */
  constructor(options = {}) {
    this.options = options;
    const base = options.url ?? new URL('..', import.meta.url).href;
    this.base = `${base.replace(/\/+$/, '')}/api/`;
    /** The token that was used last. @type {string | null} */
    this.token = typeof options.token === 'string' ? options.token : null;
    /** @type {Promise<boolean> | null} */
    this.refreshing = null;
  }

  /**
   * A new conversation: project, thread, first message, files and a run. Sent again when the answer was lost, it still happens once.
   * @param {InitiateOptions} options
   * @returns {Promise<Initiated>}
   */
  initiate({files = [], idempotencyKey = newKey(), signal, ...fields}) {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) {
      if (value === undefined || value === null) continue;
      form.append(name, typeof value === 'object' ? JSON.stringify(value) : String(value));
    }
    for (const file of files) form.append('files', file);
    return this.request('agent/initiate', {method: 'POST', form, idempotencyKey, signal});
  }

  /**
   * A run over a thread. Sent again when the answer was lost, it still happens once.
   * @param {string} threadId
   * @param {StartOptions} options
   * @returns {Promise<Started>}
   */
  start(threadId, {idempotencyKey = newKey(), signal, ...json} = {}) {
    return this.request(`thread/${threadId}/agent/start`, {method: 'POST', json, idempotencyKey, signal});
  }

  /** @param {string} threadId @param {string} text @param {RequestOptions} options @returns {Promise<any>} the message, as it is stored */
  say(threadId, text, options = {}) {
    return this.request(`threads/${threadId}/messages/add`, {...options, method: 'POST', json: {message: text}});
  }

  /** @param {string} runId @param {RequestOptions} options @returns {Promise<{status: string}>} */
  stop(runId, options = {}) {
    return this.request(`agent-run/${runId}/stop`, {retries: RETRIES, ...options, method: 'POST'});
  }

  /** @param {string} runId @param {RequestOptions & {waitSeconds?: number}} options @returns {Promise<Run>} */
  run(runId, {waitSeconds, ...options} = {}) {
    return this.request(`agent-run/${runId}`, {...options, query: {wait_seconds: waitSeconds}});
  }

  /**
   * The messages of a thread, oldest first, page by page.
   * @param {string} threadId
   * @param {RequestOptions} options
   * @returns {Promise<any[]>}
   */
  async messages(threadId, options = {}) {
    const all = [];
    for (let cursor; ; ) {
      const query = {order: 'asc', limit: 1000, cursor};
      const {messages, next_cursor} = await this.request(`threads/${threadId}/messages`, {...options, query});
      all.push(...messages);
      if (!next_cursor) return all;
      cursor = next_cursor;
    }
  }

  /**
   * Follow a run, from its first event or after one, until its end.
   * @param {string} runId
   * @param {StreamOptions} options
   */
  stream(runId, options = {}) {
    return new RunStream(this, runId, options);
  }

  /**
   * Any route, by its path after `/api/`. Reads, and what may be repeated, are tried again while the server is away.
   * @param {string} path
   * @param {RequestOptions} options
   * @returns {Promise<any>} what the answer's JSON says; null for a 204
   * @throws {LongrunError}
   */
  async request(path, options = {}) {
    const {method = 'GET', signal = NEVER, idempotencyKey} = options;
    const retries = options.retries ?? (method === 'GET' || idempotencyKey ? RETRIES : 0);
    for (let attempt = 1, refreshed = false; ; attempt += 1) {
      const headers = await this.headers();
      try {
        return await this.ask(path, options, headers);
      } catch (error) {
        signal.throwIfAborted();
        const refused = error instanceof LongrunError ? error : new LongrunError(0, null, {cause: error});
        if (refused.status === 401 && !refreshed && (await this.refresh(headers.Authorization))) {
          refreshed = true;
          attempt -= 1;
          continue;
        }
        if (attempt > retries || (refused.status && refused.status < 502)) throw refused;
        await pause(Math.max(refused.retryAfter ?? 0, backoff(attempt)), signal);
        signal.throwIfAborted();
      }
    }
  }

  /** @private @param {string} path @param {RequestOptions} options @param {Record<string, string>} caller */
  async ask(path, {method = 'GET', query = {}, json, form, headers = {}, signal, idempotencyKey}, caller) {
    const url = this.url(path, query);
    const response = await this.fetch(url, {
      method,
      headers: {
        ...caller,
        ...(json === undefined ? {} : {'Content-Type': 'application/json'}),
        ...(idempotencyKey ? {'Idempotency-Key': idempotencyKey} : {}),
        ...headers,
      },
      body: json === undefined ? form : JSON.stringify(json),
      signal,
      credentials: this.options.credentials ?? 'same-origin',
      cache: 'no-store',
    });
    if (!response.ok) {
      const wait = retryAfter(response.headers.get('Retry-After'));
      throw new LongrunError(response.status, await detailOf(response), {retryAfter: wait});
    }
    return response.status === 204 ? null : JSON.parse(await response.text()); // one that was cut in its head is 200 and empty
  }

  /** @private @param {URL} url @param {RequestInit} init @returns {Promise<Response>} */
  fetch(url, init) {
    return this.options.fetch ? this.options.fetch(url, init) : globalThis.fetch(url, init);
  }

  /** The address of a route. @param {string} path @param {Record<string, unknown>} query */
  url(path, query = {}) {
    const url = new URL(this.base + path.replace(/^\/+/, ''), globalThis.location?.href);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined && value !== null && value !== '') url.searchParams.set(name, String(value));
    }
    return url;
  }

  /** Who is calling. @returns {Promise<Record<string, string>>} */
  async headers() {
    const {token, apiKey, accountId} = this.options;
    if (typeof token === 'function' && !this.token) this.token = (await token({expired: null})) ?? null;
    return {
      ...(this.token ? {Authorization: `Bearer ${this.token}`} : {}),
      ...(apiKey ? {'X-API-Key': apiKey} : {}),
      ...(accountId ? {'X-Account-Id': accountId} : {}),
    };
  }

  /**
   * A new token for one that was refused; whether there is one. Those who ask meanwhile, or a moment too late, get the same.
   * @param {string | undefined} refused the header that it was sent in
   */
  async refresh(refused) {
    if (this.token && refused && refused !== `Bearer ${this.token}`) return true;
    this.refreshing ??= this.renew().finally(() => (this.refreshing = null));
    return this.refreshing;
  }

  /** @private */
  async renew() {
    const {token} = this.options;
    if (typeof token !== 'function') return false;
    const expired = this.token;
    this.token = (await token({expired})) ?? null;
    return Boolean(this.token) && this.token !== expired;
  }

  /** Whose streams these are: tabs share one only with tabs of the same caller. Null while nobody knows who that is. */
  audience() {
    const {apiKey, accountId} = this.options;
    const who = this.token ? subjectOf(this.token) : apiKey?.split(':')[0];
    return who ? `${this.base} ${who} ${accountId ?? ''}` : null;
  }
}

/** The `sub` of a JWT; of another token something that tells it from others. @param {string} token */
function subjectOf(token) {
  try {
    const claims = JSON.parse(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')));
    if (claims.sub) return String(claims.sub);
  } catch {
    // no JWT
  }
  let hash = 0n;
  for (const char of token) hash = BigInt.asUintN(64, (hash ^ BigInt(char.charCodeAt(0))) * 0x100000001b3n);
  return hash.toString(36);
}
