/** Events that wait for whoever iterates over a stream. */
/** @import {RunEvent} from '../longrun.d.ts' */

const QUEUE_EVENTS = 1_000;
const QUEUE_CHARS = 8 * 1024 * 1024;

/** It is never cut: while it is full, nobody reads on. */
export class Queue {
  /** @param {() => void} onRoom */
  constructor(onRoom) {
    this.onRoom = onRoom;
    /** @type {RunEvent[]} */
    this.events = [];
    this.chars = 0;
    this.ended = false;
    this.wasFull = false;
    /** @type {Error | null} */
    this.error = null;
    /** @type {{resolve: (result: IteratorResult<RunEvent>) => void, reject: (error: Error) => void}[]} */
    this.asking = [];
  }

  get full() {
    return this.events.length >= QUEUE_EVENTS || this.chars >= QUEUE_CHARS;
  }

  /** @param {RunEvent} event */
  push(event) {
    const asking = this.asking.shift();
    if (asking) return asking.resolve({done: false, value: event});
    this.events.push(event);
    this.chars += event.data.length;
    return undefined;
  }

  /** @param {Error | null} error */
  end(error) {
    if (this.ended) return;
    this.ended = true;
    this.error = error;
    for (const {resolve, reject} of this.asking.splice(0)) error ? reject(error) : resolve({done: true, value: undefined});
  }

  /** @returns {Promise<IteratorResult<RunEvent>>} */
  next() {
    const event = this.events.shift();
    if (event) {
      this.wasFull ||= this.full || this.events.length + 1 >= QUEUE_EVENTS;
      this.chars -= event.data.length;
      if (this.wasFull && this.events.length < QUEUE_EVENTS / 2 && this.chars < QUEUE_CHARS / 2) {
        this.wasFull = false;
        this.onRoom();
      }
      return Promise.resolve({done: false, value: event});
    }
    if (this.error) return Promise.reject(this.error);
    if (this.ended) return Promise.resolve({done: true, value: undefined});
    return new Promise((resolve, reject) => this.asking.push({resolve, reject}));
  }
}
