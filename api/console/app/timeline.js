/** Where the time of a run went, from its events: in the queue, with the model, with tools, in waits, between attempts. Pure but for the drawing. */

import {h, svg} from './dom.js';
import {duration} from './format.js';
/** @import {RunEvent} from '../longrun.d.ts' */

/**
 * @typedef {{lane: string, label: string, from: number, to: number | null, kind: string}} Span
 */

const LANES = ['queue', 'attempts', 'model', 'tools', 'steps'];
const MOST = 600;
const WIDTH = 1000;
const LEFT = 84;
const HEIGHT = 26;
const TICKS = 5;

export class Timeline {
  /** @param {number | null} createdAt milliseconds */
  constructor(createdAt) {
    this.createdAt = createdAt;
    /** @type {Span[]} */
    this.spans = [];
    /** @type {Map<string, Span>} */
    this.open = new Map();
    this.dropped = 0;
    this.latest = createdAt ?? 0;
    /** @type {number | undefined} */
    this.said = undefined;
    this.attempt = 1;
  }

  /** @param {RunEvent} event */
  fold(event) {
    const at = Date.parse(event.createdAt ?? '') || this.latest;
    this.latest = Math.max(this.latest, at);
    if (event.final) this.endAll(this.latest);
    else if (event.type === 'status') this.foldStatus(event, at);
    else if (event.type === 'assistant' && event.streamStatus === 'complete') {
      const span = this.open.get('model');
      const tokens = event.metadata.usage?.total_tokens;
      if (span && tokens) span.label += `, ${tokens} tokens`;
      this.end('model', at);
    }
    else if (event.type === 'workflow_status' && event.content.step_id) this.foldStep(event, at);
    this.said = Date.parse(event.createdAt ?? '') || this.said;
  }

  /** @private @param {RunEvent} event @param {number} at */
  foldStatus({statusType, content}, at) {
    if (statusType === 'thread_run_start') {
      if (this.createdAt !== null && at > this.createdAt) this.add({lane: 'queue', label: 'waited for a worker', from: this.createdAt, to: at, kind: 'queue'});
      this.begin('attempt', {lane: 'attempts', label: 'attempt 1', kind: 'attempt'}, at);
    } else if (statusType === 'run_resumed') {
      this.endAll(Math.min(this.said ?? at, at)); // the one before ended when it said its last, as far as anybody knows
      this.attempt = Number(content.attempt) || this.attempt + 1;
      this.begin('attempt', {lane: 'attempts', label: `attempt ${this.attempt}: another worker took over`, kind: 'resumed'}, at);
    } else if (statusType === 'assistant_response_start') this.begin('model', {lane: 'model', label: 'model', kind: 'model'}, at);
    else if (statusType === 'finish') this.end('model', at);
    else if (statusType === 'tool_started') this.begin(`tool ${content.tool_call_id}`, {lane: 'tools', label: String(content.function_name ?? 'tool'), kind: 'tool'}, at);
    else if (statusType === 'tool_completed') this.end(`tool ${content.tool_call_id}`, at);
    else if (statusType === 'tool_failed' || statusType === 'tool_error') this.end(`tool ${content.tool_call_id}`, at, 'broken');
  }

  /** @private @param {RunEvent} event @param {number} at */
  foldStep({statusType, content}, at) {
    const key = `step ${content.step_id} ${content.visit ?? ''}`;
    if (statusType === 'step_started') this.begin(key, {lane: 'steps', label: String(content.step_name || content.step_id), kind: 'step'}, at);
    else if (statusType === 'step_completed') this.end(key, at);
    else if (statusType === 'step_failed') this.end(key, at, 'broken');
    else if (statusType === 'step_waiting') this.begin(key, {lane: 'steps', label: `${content.step_name || content.step_id} waits`, kind: 'wait'}, at);
  }

  /** @private @param {string} key @param {Omit<Span, 'from' | 'to'>} span @param {number} at */
  begin(key, span, at) {
    this.end(key, at);
    const made = {...span, from: at, to: null};
    this.open.set(key, made);
    this.add(made);
  }

  /** @private @param {string} key @param {number} at @param {string} [kind] */
  end(key, at, kind) {
    const span = this.open.get(key);
    if (!span) return;
    span.to = at;
    if (kind) span.kind = kind;
    this.open.delete(key);
  }

  /** @private @param {number} at */
  endAll(at) {
    for (const key of [...this.open.keys()]) this.end(key, at);
  }

  /** @private @param {Span} span */
  add(span) {
    this.spans.push(span);
    if (this.spans.length <= MOST) return;
    this.spans.shift();
    this.dropped += 1;
  }

  /** @param {number} now milliseconds @returns {any} */
  draw(now) {
    if (!this.spans.length) return h('p', {class: 'quiet'}, 'Nothing has happened yet.');
    const from = Math.min(...this.spans.map((span) => span.from));
    const to = Math.max(this.open.size ? now : this.latest, from + 1);
    const lanes = LANES.filter((lane) => this.spans.some((span) => span.lane === lane));
    const x = (/** @type {number} */ at) => Math.round(LEFT * 10 + ((at - from) / (to - from)) * (WIDTH - LEFT - 8) * 10) / 10;
    const bottom = lanes.length * HEIGHT;
    const ticks = Array.from({length: TICKS + 1}, (_, nth) => from + ((to - from) * nth) / TICKS);
    const bars = this.spans.map((span) => {
      const [start, end] = [x(span.from), x(span.to ?? now)];
      const y = lanes.indexOf(span.lane) * HEIGHT + 4;
      const words = `${span.label}: ${duration((span.to ?? now) - span.from)}${span.to === null ? ' so far' : ''}`;
      return svg('rect', {class: `bar ${span.kind}`, x: start, y, width: Math.max(end - start, 1.5), height: HEIGHT - 8, rx: 3}, svg('title', {}, words));
    });
    return svg('svg', {class: 'timeline', viewBox: `0 0 ${WIDTH} ${bottom + 22}`, role: 'img', 'aria-label': this.summary(now)},
      lanes.map((lane, nth) => svg('text', {x: 0, y: nth * HEIGHT + HEIGHT / 2 + 4}, lane)),
      ticks.map((at, nth) => [
        svg('line', {class: 'tick', x1: x(at), x2: x(at), y1: 0, y2: bottom}),
        svg('text', {class: 'quiet', x: x(at), y: bottom + 16, 'text-anchor': nth === TICKS ? 'end' : 'middle'}, duration(at - from)),
      ]),
      bars);
  }

  /** In words: how long each lane took. @param {number} now */
  summary(now) {
    const sums = LANES.map((lane) => [lane, this.spans.filter((span) => span.lane === lane).reduce((sum, span) => sum + (span.to ?? now) - span.from, 0)]);
    return `Timeline. ${sums.filter(([, sum]) => sum).map(([lane, sum]) => `${lane}: ${duration(/** @type {number} */ (sum))}`).join(', ')}`;
  }
}
