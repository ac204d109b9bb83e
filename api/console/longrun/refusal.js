/** Answers that are no: what they say, and as an error. */

const MAX_CHARS = 64 * 1024;

export class LongrunError extends Error {
  /**
   * @param {number} status of the answer; 0 when there was none
   * @param {unknown} detail what the answer says: a sentence, an object with `message`, or the list of a 422
   * @param {{retryAfter?: number | null, cause?: unknown}} more `retryAfter` in milliseconds
   */
  constructor(status, detail, {retryAfter = null, cause} = {}) {
    super(sentence(status, detail), {cause});
    this.name = 'LongrunError';
    this.status = status;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }
}

/** The `detail` of an answer that is no; null when it says none that can be read. @param {Response} response */
export async function detailOf(response) {
  try {
    return JSON.parse((await response.text()).slice(0, MAX_CHARS)).detail ?? null;
  } catch {
    return null;
  }
}

/** @param {number} status @param {any} detail @returns {string} */
function sentence(status, detail) {
  if (typeof detail === 'string' && detail) return detail;
  if (typeof detail?.message === 'string') return detail.message;
  if (Array.isArray(detail) && detail.length) {
    return detail.map(({loc, msg}) => `${Array.isArray(loc) ? loc.slice(1).join('.') : ''}: ${msg}`).join('; ');
  }
  return status ? `The server answered ${status}.` : 'The server cannot be reached.';
}
