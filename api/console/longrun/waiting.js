/** Time: when to come again, and what wakes whoever waits for it. */

export const LONGEST_DELAY = 30_000;
const SHORTEST_DELAY = 500;

/**
 * Milliseconds before the n-th attempt in a row (from 1): doubling, and somewhere in its upper half, so that many
 * readers who lost the same server do not come back at once.
 * @param {number} attempt
 * @param {() => number} random
 */
export function backoff(attempt, random = Math.random) {
  const most = Math.min(LONGEST_DELAY, SHORTEST_DELAY * 2 ** Math.min(attempt - 1, 16));
  return most * (0.5 + random() / 2);
}

/** Around what the server asked for. @param {number} wanted @param {() => number} random */
export const around = (wanted, random = Math.random) => Math.min(wanted, 2 * LONGEST_DELAY) * (0.5 + random());

/**
 * Resolves after so long, at `wake.now()`, or when the signal aborts.
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @param {{now: () => void}} wake
 * @returns {Promise<void>}
 */
export function pause(milliseconds, signal, wake = {now() {}}) {
  return new Promise((resolve) => {
    const timer = setTimeout(over, milliseconds);
    signal.addEventListener('abort', over);
    if (signal.aborted) over();
    wake.now = over;
    function over() {
      clearTimeout(timer);
      signal.removeEventListener('abort', over);
      wake.now = () => {};
      resolve();
    }
  });
}

/** Seconds or a date, as `Retry-After` has them; null when it says neither. @param {string | null} header */
export function retryAfter(header, now = Date.now()) {
  if (!header) return null;
  const milliseconds = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - now;
  return Number.isFinite(milliseconds) ? Math.max(0, milliseconds) : null;
}

export const visible = () => globalThis.document?.visibilityState !== 'hidden';
