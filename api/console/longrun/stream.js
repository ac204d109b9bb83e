/** A run as it is followed: it connects, loses, finds again, and knows the end. */

import {byEventSource, byFetch} from './connection.js';
import {FINAL, readEvent} from './event.js';
import {Queue} from './queue.js';
import {LongrunError} from './refusal.js';
import {TooLarge} from './sse.js';
import {canShare, Tabs} from './tabs.js';
import {View} from './view.js';
import {around, backoff, LONGEST_DELAY, pause, visible} from './waiting.js';
/** @import {Run, RunEnd, RunEvent, RunState, RunView, StreamOptions} from '../longrun.d.ts' */
/** @import {Longrun} from '../longrun.js' */
/** @import {Outcome} from './connection.js' */
/** @import {Batch, Position} from './tabs.js' */


/** The server says something every 15 s. */
export const SILENT_AFTER = 40_000;
const SUSPECT_AFTER = 18_000;
const EVENT_SOURCE_SILENT_AFTER = 60_000;
const LOOK_EVERY = 5_000;
const CHANGE_EVERY = 16;
/** So many answers without an event after the row said that the run has ended, and the row is believed. */
const EMPTY_ANSWERS = 3;
const TOKEN_MARGIN = 60_000;
const REFRESHES = 2;
const LASTING_REFUSALS = new Set([401, 403, 404, 422]);

export class RunStream {
  /** @param {Longrun} longrun @param {string} runId @param {StreamOptions} options */
  constructor(longrun, runId, options = {}) {
    this.longrun = longrun;
    this.runId = runId;
    this.options = options;
    /** @type {RunState} */
    this.state = 'idle';
    /** The n of `reconnecting(n)`: how many attempts since the newest event. */
    this.attempt = 0;
    /** The id of the newest event. */
    this.cursor = options.after ?? -1;
    /** The row, as it was last read; null when there was no need to. @type {Run | null} */
    this.run = null;
    /** @type {Error | null} */
    this.error = null;
    this.folded = new View(options.limits);
    /** @type {Set<Queue>} */
    this.queues = new Set();
    /** @type {Tabs | null} */
    this.tabs = null;
    /** Where the tab that leads is, as far as we heard. */
    this.leaderAt = -1;
    this.alone = true;
    /** @type {AbortController | null} */
    this.own = null;
    /** @type {AbortController | null} */
    this.connection = null;
    this.connected = false;
    this.heardAt = Date.now();
    this.wake = {now() {}};
    /** The header that was sent last. @type {string | undefined} */
    this.sent = undefined;
    this.emptyAnswers = 0;
    /** How many new tokens were refused in a row. */
    this.refreshes = 0;
    /** Whether every event since `after` was seen; of an old run only the last one is kept. */
    this.whole = true;
    /** @type {{token: string, until: number} | null} */
    this.streamToken = null;
    /** @type {ReturnType<typeof setTimeout> | null} */
    this.changing = null;
    this.closed = false;
    /** Resolves with the end of the run; rejects when it cannot be followed, or after `close()`. @type {Promise<RunEnd>} */
    this.done = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.done.catch(() => {});
    options.signal?.addEventListener('abort', () => this.close());
    queueMicrotask(() => this.open());
  }

  /** What there is to see: the same object until it changes. @returns {RunView} */
  get view() {
    return this.folded.snapshot();
  }

  /** Whether nothing more will come. */
  get over() {
    return this.closed || FINAL.has(this.state) || this.state === 'error';
  }

  /** Whether the run goes on, as far as is known. */
  get running() {
    return !this.over && !FINAL.has(this.run?.status ?? '');
  }

  /** Follow no more. The run goes on. */
  close() {
    if (this.over) return;
    this.closed = true;
    this.leave();
    this.say('idle');
    this.reject?.(new DOMException('the stream was closed', 'AbortError'));
  }

  /**
   * Every event from here on, each once, in order. Whoever iterates slowly slows the stream down.
   * @returns {AsyncIterableIterator<RunEvent>}
   */
  [Symbol.asyncIterator]() {
    const queue = new Queue(() => this.wake.now());
    this.queues.add(queue);
    if (this.over) queue.end(this.state === 'error' ? this.error : null);
    return {
      next: () => queue.next(),
      return: async () => {
        this.queues.delete(queue);
        queue.end(null);
        this.wake.now();
        return {done: true, value: undefined};
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  /** @private */
  async open() {
    if (this.over || this.options.signal?.aborted) return this.close();
    this.say('connecting');
    this.listen();
    await this.longrun.headers().catch(() => {}); // who is calling is part of what tabs share
    return this.resume();
  }

  /** Begin, or go on after a sleep. @private */
  resume() {
    if (this.over || this.own || this.tabs) return;
    const audience = this.longrun.audience();
    if (audience && (this.options.share ?? this.longrun.options.share ?? true) && canShare()) this.share(audience);
    else this.needOwn(true);
  }

  /** Let go of connection and lock, as a page must that is put to sleep. @private */
  suspend() {
    this.connectAgain(false);
    this.tabs?.close();
    this.tabs = null;
    this.leaderAt = -1;
    if (this.state === 'streaming' && !this.over) this.say('reconnecting', 1);
  }

  /** @private */
  leave() {
    this.suspend();
    this.forget?.();
    if (this.looking) clearInterval(this.looking);
    for (const queue of this.queues) queue.end(this.error);
  }

  /** @private */
  listen() {
    /** @type {[EventTarget | undefined, string, () => void][]} */
    const heard = [
      [globalThis.window, 'online', () => this.rouse()],
      [globalThis.window, 'offline', () => this.connection?.abort()],
      [globalThis.window, 'pageshow', () => (this.resume(), this.rouse())],
      [globalThis.window, 'pagehide', () => this.suspend()],
      [globalThis.document, 'visibilitychange', () => visible() && this.rouse()],
      [globalThis.document, 'freeze', () => this.suspend()],
      [globalThis.document, 'resume', () => (this.resume(), this.rouse())],
    ];
    for (const [target, name, act] of heard) target?.addEventListener(name, act);
    this.forget = () => heard.forEach(([target, name, act]) => target?.removeEventListener(name, act));
    this.looking = setInterval(() => this.look(), LOOK_EVERY);
  }

  /** Somebody looks, or the network is back: try now, and do not trust a connection that may have died meanwhile. @private */
  rouse() {
    this.wake.now();
    const most = this.transport === 'eventsource' ? EVENT_SOURCE_SILENT_AFTER : SUSPECT_AFTER;
    if (this.connected && Date.now() - this.heardAt > most) this.connection?.abort();
  }

  /** @private */
  look() {
    if (this.full()) this.heardAt = Date.now();
    const most = this.options.silentAfter ?? (this.transport === 'eventsource' ? EVENT_SOURCE_SILENT_AFTER : SILENT_AFTER);
    if (this.connection && Date.now() - this.heardAt > most) this.connection.abort();
  }

  get transport() {
    return this.options.transport ?? this.longrun.options.transport ?? 'fetch';
  }

  // Tabs.

  /** @private @param {string} audience */
  share(audience) {
    this.tabs = new Tabs(`longrun/1 ${audience} ${this.runId}`, {
      position: () => ({last: this.cursor, state: this.state, attempt: this.attempt}),
      onLead: () => this.needOwn(true),
      onAlone: () => this.needOwn(true),
      onFollow: () => this.needOwn(true),
      onBatch: (batch) => this.hearBatch(batch),
      onPosition: (position) => this.hearPosition(position),
    });
  }

  /** @private @param {boolean} alone */
  needOwn(alone) {
    this.alone = alone;
    this.connectAgain(alone || this.cursor < this.leaderAt);
  }

  /** @private @param {Batch} batch */
  hearBatch(batch) {
    if (this.over || !batch.length) return;
    this.leaderAt = Math.max(this.leaderAt, batch[batch.length - 1][0]);
    const next = batch.findIndex(([id]) => id > this.cursor);
    if (next >= 0 && batch[next][0] === this.cursor + 1) this.accept(batch.slice(next));
    if (this.over) return;
    if (this.full()) this.standAlone();
    else this.needOwn(false);
    if (!this.own) this.say('streaming');
  }

  /** @private @param {Position} position */
  hearPosition({last, state, attempt}) {
    if (this.over) return;
    this.leaderAt = Math.max(this.leaderAt, last);
    this.needOwn(false);
    if (!this.own && (state === 'connecting' || state === 'streaming' || state === 'reconnecting')) this.say(state, attempt);
  }

  /** Who iterates here is slower than the others: read at its pace. @private */
  standAlone() {
    this.tabs?.close();
    this.tabs = null;
    this.needOwn(true);
  }

  // The connection of our own.

  /** @private @param {boolean} wanted */
  connectAgain(wanted) {
    if (wanted === Boolean(this.own)) return;
    if (!wanted) {
      this.own?.abort();
      this.own = null;
      return;
    }
    const own = (this.own = new AbortController());
    this.readOn(own.signal).catch((error) => own.signal.aborted || this.fail(error));
  }

  /** Connect until the run has ended or the connection is not wanted any more. @private @param {AbortSignal} signal */
  async readOn(signal) {
    let failures = 0;
    this.emptyAnswers = 0;
    while (!signal.aborted) {
      await this.room(signal);
      const before = this.cursor;
      const outcome = await this.connect(signal);
      if (signal.aborted || this.over) return;
      if (outcome.kind === 'full') continue;
      failures = this.cursor > before ? 1 : failures + 1;
      this.say('reconnecting', failures);
      this.tabs?.sayPosition();
      const delay = await this.judge(outcome, failures, this.cursor > before, signal);
      if (signal.aborted || this.over) return;
      await pause(delay, signal, this.wake);
    }
  }

  /** Wait for whoever iterates; others do not wait with us. @private @param {AbortSignal} signal */
  async room(signal) {
    if (this.full() && this.tabs) this.standAlone();
    while (this.full() && !signal.aborted) await pause(LONGEST_DELAY, signal, this.wake);
  }

  /** @private @returns {boolean} */
  full() {
    return [...this.queues].some((queue) => queue.full);
  }

  /** @private @param {AbortSignal} signal @returns {Promise<Outcome>} */
  async connect(signal) {
    const connection = (this.connection = new AbortController());
    const abort = () => connection.abort();
    signal.addEventListener('abort', abort);
    this.heardAt = Date.now();
    try {
      const reading = await this.reading(connection.signal);
      return await ('EventSource' in reading ? byEventSource(reading) : byFetch(reading));
    } catch (error) {
      if (error instanceof TooLarge) throw error;
      return {kind: 'broken', error};
    } finally {
      signal.removeEventListener('abort', abort);
      if (this.connection === connection) {
        this.connection = null;
        this.connected = false;
      }
    }
  }

  /** @private @param {AbortSignal} signal */
  async reading(signal) {
    const {fetch, credentials, EventSource} = this.longrun.options;
    const url = this.longrun.url(`agent-run/${this.runId}/stream`);
    const reading = {
      url: url.href,
      /** @type {Record<string, string>} */
      headers: {},
      signal,
      onOpen: () => this.opened(signal),
      onAlive: () => this.alive(),
      onFrames: (/** @type {{id: string, data: string}[]} */ frames) => signal.aborted || this.receive(frames),
      full: () => this.full(),
      room: () => this.room(signal),
    };
    if (this.transport === 'eventsource') {
      url.searchParams.set('token', await this.tokenForUrl(signal));
      if (this.cursor >= 0) url.searchParams.set('last_event_id', String(this.cursor));
      return {...reading, url: url.href, EventSource: EventSource ?? globalThis.EventSource};
    }
    const caller = await this.longrun.headers();
    this.sent = caller.Authorization;
    const headers = {...caller, ...(this.cursor >= 0 ? {'Last-Event-ID': String(this.cursor)} : {})};
    return {...reading, headers, fetch: fetch ?? globalThis.fetch.bind(globalThis), credentials: credentials ?? 'same-origin'};
  }

  /** A token that opens this stream only: an address is written into logs. @private @param {AbortSignal} signal */
  async tokenForUrl(signal) {
    if (!this.streamToken || Date.now() > this.streamToken.until) {
      const made = await this.longrun.request(`agent-run/${this.runId}/stream-token`, {method: 'POST', signal});
      this.streamToken = {token: made.token, until: Date.now() + made.expires_in * 1000 - TOKEN_MARGIN};
    }
    return this.streamToken.token;
  }

  /** @private @param {AbortSignal} signal */
  opened(signal) {
    if (signal.aborted || this.over) return;
    this.connected = true;
    this.refreshes = 0;
    this.say('streaming');
    this.tabs?.sayPosition();
  }

  /** @private */
  alive() {
    if (Date.now() - this.heardAt > 1_000) this.tabs?.sayPosition();
    this.heardAt = Date.now();
  }

  /**
   * What to do about the end of a connection; the milliseconds until the next.
   * @private @param {Outcome} outcome @param {number} failures @param {boolean} heard @param {AbortSignal} signal
   */
  async judge(outcome, failures, heard, signal) {
    const usual = outcome.retry && outcome.comment?.endsWith('reconnect') ? around(outcome.retry) : backoff(failures);
    if (heard) this.emptyAnswers = 0;
    if (outcome.kind !== 'refused') this.giveUpOn(outcome.error);
    if (this.over) return usual;
    if (outcome.kind === 'refused') return this.judgeRefusal(outcome, usual, signal);
    if (outcome.kind === 'broken' && this.transport !== 'eventsource') return usual;
    this.streamToken = null;
    return (await this.readRow(outcome, signal)) ? Math.min(usual, backoff(1)) : usual;
  }

  /** @private @param {Outcome} outcome @param {number} usual @param {AbortSignal} signal */
  async judgeRefusal({status = 0, retry, error}, usual, signal) {
    if (status === 401 && this.refreshes < REFRESHES && (await this.longrun.refresh(this.sent))) {
      this.refreshes += 1;
      return 0;
    }
    if (!signal.aborted && LASTING_REFUSALS.has(status)) this.fail(new LongrunError(status, error));
    return retry ? around(retry) : usual;
  }

  /**
   * The stream ended without a last event: what does the row say? Whether the run has ended.
   * @private @param {Outcome} outcome @param {AbortSignal} signal
   */
  async readRow(outcome, signal) {
    let run;
    try {
      run = this.run = await this.longrun.run(this.runId, {signal, retries: 0});
    } catch (error) {
      this.giveUpOn(error);
      return false;
    }
    if (signal.aborted || this.over || !FINAL.has(run.status)) return false;
    this.emptyAnswers += 1;
    if (outcome.kind === 'read' || this.emptyAnswers >= EMPTY_ANSWERS) {
      this.whole &&= outcome.kind === 'read';
      this.finish(run.status, run.error);
    }
    return true;
  }

  /** @private @param {unknown} error */
  giveUpOn(error) {
    if (LASTING_REFUSALS.has(/** @type {{status?: number}} */ (error)?.status ?? 0)) this.fail(/** @type {Error} */ (error));
  }

  // What is heard.

  /** @private @param {{id: string, data: string}[]} frames */
  receive(frames) {
    /** @type {Batch} */
    const news = [];
    for (const {id, data} of frames) {
      if (/^\d{1,15}$/.test(id) && Number(id) > (news.at(-1)?.[0] ?? this.cursor)) news.push([Number(id), data]);
    }
    if (!news.length) return;
    this.tabs?.sayBatch(news);
    this.accept(news);
    if (!this.over && this.tabs && !this.alone && this.cursor >= this.leaderAt) this.needOwn(false);
  }

  /** @private @param {Batch} batch */
  accept(batch) {
    for (const [id, data] of batch) {
      if (this.over) return;
      const event = readEvent(id, data);
      this.whole &&= id === this.cursor + 1;
      this.cursor = id;
      this.folded.fold(event);
      for (const queue of this.queues) queue.push(event);
      this.call(this.options.onEvent, event);
      if (event.final) this.finish(event.final, event.message);
    }
    this.change();
  }

  /** @private @param {string} status @param {string | null} message */
  finish(status, message) {
    if (this.over) return;
    const state = /** @type {RunEnd['status']} */ (status);
    if (!this.folded.status) {
      this.folded.fold({...readEvent(this.cursor, '{}'), type: 'status', final: state, message});
    }
    const end = {status: state, message, whole: this.whole};
    this.say(state);
    this.leave();
    this.resolve?.(end);
    this.call(this.options.onEnd, end);
  }

  /** @private @param {Error} error */
  fail(error) {
    if (this.over) return;
    this.error = error;
    this.say('error');
    this.leave();
    this.reject?.(error);
    this.call(this.options.onError, error);
  }

  /** @private @param {RunState} state */
  say(state, attempt = 0) {
    if (state === this.state && attempt === this.attempt) return;
    if (this.over && !this.closed && state !== 'error' && !FINAL.has(state)) return;
    this.state = state;
    this.attempt = attempt;
    this.call(this.options.onState, state, attempt);
    this.change();
  }

  /** Tell of changes at most once a frame, of an end at once. @private */
  change() {
    if (!this.options.onChange) return;
    if (this.over) {
      if (this.changing) clearTimeout(this.changing);
      this.changing = null;
      this.call(this.options.onChange, this);
    } else {
      this.changing ??= setTimeout(() => {
        this.changing = null;
        this.call(this.options.onChange, this);
      }, CHANGE_EVERY);
    }
  }

  /** A callback that fails is its owner's to hear of; the stream goes on. @private @param {((...values: any[]) => void) | undefined} callback @param {any[]} values */
  call(callback, ...values) {
    try {
      callback?.(...values);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }
}
