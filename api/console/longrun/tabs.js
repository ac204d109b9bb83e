/** Tabs of one browser that read the same run: one of them leads and has the connection, the others listen to it. */

import {visible} from './waiting.js';

/**
 * @typedef {[id: number, data: string][]} Batch
 * @typedef {{last: number, state: string, attempt: number}} Position
 * @typedef {object} Tab what the reader of this tab does
 * @property {() => Position} position
 * @property {() => void} onLead it has to connect
 * @property {() => void} onFollow another one leads from now on
 * @property {(batch: Batch) => void} onBatch
 * @property {(position: Position) => void} onPosition of the one that leads
 * @property {() => void} onAlone nobody leads who can be heard, at least for the moment
 */

const ANSWER_WITHIN = 400;
const LOOK_EVERY = 2_000;
const SILENT_AFTER = 45_000;
const SLOW_AFTER = 8_000;
const HIDDEN_FACTOR = 3;

export const canShare = () => Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel);

/** The browser gives the lock to the next tab when the one that holds it goes, whatever way; a hung one loses it. */
export class Tabs {
  /** @param {string} name of what is shared, and for whom @param {Tab} tab */
  constructor(name, tab) {
    this.name = name;
    this.tab = tab;
    this.me = String(Math.random()).slice(2);
    this.leading = false;
    /** @type {string | null} */
    this.leader = null;
    this.heardAt = Date.now();
    /** What the leader said last of itself. */
    this.slow = false;
    this.others = false;
    this.closed = false;
    this.waiting = new AbortController();
    this.release = () => {};
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = (message) => this.hear(message.data);
    this.tell({kind: 'join'});
    this.queue();
    this.first = setTimeout(() => this.leader || this.leading || this.tab.onAlone(), ANSWER_WITHIN);
    this.timer = setInterval(() => this.look(), LOOK_EVERY * (0.75 + Math.random() / 2));
  }

  close() {
    clearTimeout(this.first);
    clearInterval(this.timer);
    this.closed = true;
    this.waiting.abort();
    this.release();
    this.channel.close();
  }

  /** As the leader: what arrived. @param {Batch} batch */
  sayBatch(batch) {
    if (this.leading && this.others) this.tell({kind: 'batch', batch});
  }

  /** As the leader: where we are, and that we are there. */
  sayPosition() {
    if (this.leading && this.others) this.tell({kind: 'position', ...this.tab.position(), hidden: !visible()});
  }

  /** Wait for the lock, or take it. @private @param {boolean} steal */
  queue(steal = false) {
    this.waiting.abort();
    const waiting = (this.waiting = new AbortController());
    const options = steal ? {steal} : {signal: waiting.signal};
    navigator.locks.request(this.name, options, () => this.lead(waiting)).catch(() => {
      if (waiting === this.waiting) this.demote();
    });
  }

  /** @private @param {AbortController} waiting @returns {Promise<void>} */
  lead(waiting) {
    if (this.closed || waiting !== this.waiting) return Promise.resolve();
    return new Promise((release) => {
      this.release = release;
      this.leading = true;
      this.leader = this.me;
      this.tell({kind: 'position', ...this.tab.position(), hidden: !visible()});
      this.tab.onLead();
    });
  }

  /** The lock was taken from us, or cannot be had. @private */
  demote() {
    if (this.closed) return;
    const led = this.leading;
    this.leading = false;
    this.release();
    if (!led) return this.tab.onAlone();
    this.leader = null;
    this.heardAt = Date.now();
    this.tab.onFollow();
    this.tell({kind: 'join'});
    return this.queue();
  }

  /** @private @param {any} said */
  hear(said) {
    this.others = true;
    if (said.kind === 'join') {
      this.sayPosition();
      return;
    }
    if (this.leading) return;
    this.heardAt = Date.now();
    if (said.from !== this.leader) {
      this.leader = said.from;
      this.tell({kind: 'join'});
    }
    if (said.kind === 'batch') {
      this.slow = false;
      this.tab.onBatch(said.batch);
    } else {
      this.slow = said.hidden && said.state !== 'streaming';
      this.tab.onPosition({last: said.last, state: said.state, attempt: said.attempt});
    }
  }

  /** Take over from a leader that says nothing any more, or that the browser lets sleep while it should connect. @private */
  look() {
    if (this.leading || !this.leader) return;
    const most = this.slow && visible() ? SLOW_AFTER : SILENT_AFTER * (visible() ? 1 : HIDDEN_FACTOR);
    if (Date.now() - this.heardAt < most) return;
    this.heardAt = Date.now();
    this.queue(true);
  }

  /** @private @param {Record<string, unknown>} words */
  tell(words) {
    this.channel.postMessage({...words, from: this.me});
  }
}
