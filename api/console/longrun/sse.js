/** Bytes of an event stream → events. Pure; https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream */

/**
 * @typedef {{id: string, data: string, event: string}} Frame
 * @typedef {{frames: Frame[], retry: number | null, comments: string[]}} Parsed
 */

export const MAX_EVENT_CHARS = 16 * 1024 * 1024;
const MAX_COMMENTS = 100;

export class TooLarge extends Error {}

/** Reads a stream piece by piece; pieces may end anywhere, in the middle of a character or of a `\r\n` too. */
export class Parser {
  constructor(maxEventChars = MAX_EVENT_CHARS) {
    this.maxEventChars = maxEventChars;
    this.decoder = new TextDecoder();
    /** Pieces of the line that has not ended: joined once, when it does. @type {string[]} */
    this.line = [];
    this.lineChars = 0;
    this.afterReturn = false;
    this.id = '';
    /** @type {string[]} */
    this.data = [];
    this.dataChars = 0;
    this.event = '';
  }

  /**
   * What these bytes complete.
   * @param {Uint8Array} bytes
   * @returns {Parsed}
   * @throws {TooLarge}
   */
  feed(bytes) {
    return this.read(this.decoder.decode(bytes, {stream: true}));
  }

  /** @param {string} text @returns {Parsed} */
  read(text) {
    /** @type {Parsed} */
    const parsed = {frames: [], retry: null, comments: []};
    const ends = /\r\n|\n|\r/g;
    let start = this.afterReturn && text.startsWith('\n') ? 1 : 0;
    if (text) this.afterReturn = text.endsWith('\r');
    ends.lastIndex = start;
    for (let end = ends.exec(text); end; end = ends.exec(text)) {
      this.hold(text.slice(start, end.index));
      const line = this.line.join('');
      this.line = [];
      this.lineChars = 0;
      this.take(line, parsed);
      start = ends.lastIndex;
    }
    this.hold(text.slice(start));
    return parsed;
  }

  /** @private @param {string} piece */
  hold(piece) {
    if (!piece) return;
    this.lineChars += piece.length;
    if (this.lineChars + this.dataChars > this.maxEventChars) throw new TooLarge('an event of the stream is too large');
    this.line.push(piece);
  }

  /** @private @param {string} line @param {Parsed} parsed */
  take(line, parsed) {
    if (!line) return this.dispatch(parsed);
    const colon = line.indexOf(':');
    if (colon === 0) {
      if (parsed.comments.length < MAX_COMMENTS) parsed.comments.push(line.slice(1).trimStart());
      return undefined;
    }
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1);
    if (name === 'data') {
      this.data.push(value);
      this.dataChars += value.length + 1;
    } else if (name === 'event') this.event = value;
    else if (name === 'id' && !value.includes('\0')) this.id = value;
    else if (name === 'retry' && /^\d{1,9}$/.test(value)) parsed.retry = Number(value);
    return undefined;
  }

  /** @private @param {Parsed} parsed */
  dispatch(parsed) {
    if (this.data.length) parsed.frames.push({id: this.id, data: this.data.join('\n'), event: this.event});
    this.data = [];
    this.dataChars = 0;
    this.event = '';
  }
}
