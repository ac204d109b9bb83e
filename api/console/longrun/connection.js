/** One connection to a run's stream, from a cursor until it ends, however it ends. */

import {detailOf} from './refusal.js';
import {Parser, TooLarge} from './sse.js';
import {retryAfter} from './waiting.js';

/**
 * What a connection came to. `closed`: by the server, in good order; `read`: there is nothing after the cursor (204);
 * `refused`: a status; `broken`: by the network, by us, or nobody can say; `full`: whoever reads is behind.
 * @typedef {{kind: 'closed' | 'read' | 'refused' | 'broken' | 'full', status?: number, retry?: number | null,
 *   comment?: string, error?: unknown}} Outcome
 *
 * @typedef {object} Reading
 * @property {string} url
 * @property {Record<string, string>} headers
 * @property {AbortSignal} signal
 * @property {() => void} onOpen
 * @property {(frames: {id: string, data: string}[]) => void} onFrames
 * @property {() => void} onAlive something arrived, if only a comment
 * @property {() => boolean} full whether whoever reads has enough for now
 * @property {() => Promise<void>} room until that is not so any more
 */

const EVENT_STREAM = 'text/event-stream';

/**
 * By fetch: with headers, and with the reader's own pace.
 * @param {Reading & {fetch: (url: string, init: RequestInit) => Promise<Response>, credentials: RequestCredentials}} reading
 * @returns {Promise<Outcome>}
 */
export async function byFetch({url, headers, signal, onOpen, onFrames, onAlive, full, room, fetch, credentials}) {
  /** @type {Response} */
  let response;
  try {
    response = await fetch(url, {headers: {...headers, Accept: EVENT_STREAM}, signal, credentials, cache: 'no-store'});
  } catch (error) {
    return {kind: 'broken', error};
  }
  if (response.status === 204) return {kind: 'read'};
  if (!response.ok) {
    const error = await detailOf(response);
    return {kind: 'refused', status: response.status, error, retry: retryAfter(response.headers.get('Retry-After'))};
  }
  if (!response.body || !response.headers.get('Content-Type')?.startsWith(EVENT_STREAM)) {
    await response.body?.cancel().catch(() => {});
    return {kind: 'broken', error: new Error('the answer is no event stream')};
  }
  onOpen();
  const reader = response.body.getReader();
  const parser = new Parser();
  let comment = '';
  /** @type {number | null} */
  let retry = null;
  try {
    for (;;) {
      const {done, value} = await reader.read();
      if (done) return {kind: 'closed', retry, comment};
      const parsed = parser.feed(value);
      retry = parsed.retry ?? retry;
      comment = parsed.comments.at(-1) ?? comment;
      onAlive();
      if (parsed.frames.length) onFrames(parsed.frames);
      if (full()) await room();
    }
  } catch (error) {
    if (error instanceof TooLarge) throw error;
    return {kind: 'broken', error};
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * By an EventSource, whose URL has a token in it. It never connects again by itself: its URL would be stale by then.
 * It tells neither statuses nor comments, so that what it came to is `broken` unless it is known.
 * @param {Reading & {EventSource: new (url: string) => EventSource}} reading
 * @returns {Promise<Outcome>}
 */
export function byEventSource({url, signal, onOpen, onFrames, onAlive, full, EventSource}) {
  return new Promise((resolve) => {
    const source = new EventSource(url);
    signal.addEventListener('abort', () => end({kind: 'broken'}), {once: true});
    if (signal.aborted) end({kind: 'broken'});
    source.onopen = () => {
      onAlive();
      onOpen();
    };
    source.onmessage = (/** @type {MessageEvent} */ message) => {
      onAlive();
      onFrames([{id: message.lastEventId, data: message.data}]);
      if (full()) end({kind: 'full'});
    };
    source.onerror = () => end({kind: 'broken'});

    /** @param {Outcome} outcome */
    function end(outcome) {
      source.close();
      resolve(outcome);
    }
  });
}
