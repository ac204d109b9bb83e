/** Events → what there is to see of a run: text, reasoning, tool calls, steps, usage. Pure, and bounded. */

import {objectOf} from './event.js';
/** @import {AnswerPart, NotePart, Part, RunEvent, RunView, Step, ToolPart} from '../longrun.d.ts' */

/**
 * @typedef {RunView} Snapshot
 */

export const LIMITS = {parts: 5_000, chars: 16 * 1024 * 1024, toolChars: 256 * 1024, steps: 1_000};
const COUNTED = ['prompt_tokens', 'completion_tokens', 'total_tokens', 'cached_tokens', 'reasoning_tokens'];

/**
 * Folds events into parts. A part that changes is replaced by a new object, so that one that is the same was not changed.
 * Beyond the limits the oldest parts go, and `dropped` counts them.
 */
export class View {
  constructor(limits = LIMITS) {
    this.limits = limits;
    /** @type {Part[]} */
    this.parts = [];
    /** Key → index in `parts` plus `dropped`. @type {Map<string, number>} */
    this.places = new Map();
    /** @type {Map<string, Step>} */
    this.steps = new Map();
    this.chars = 0;
    this.dropped = 0;
    this.nextKey = 0;
    /** The key of the answer that is being said. @type {string | null} */
    this.live = null;
    /** @type {Record<string, number>} */
    this.usage = {};
    this.attempt = 1;
    /** @type {'completed' | 'failed' | 'stopped' | null} */
    this.status = null;
    /** @type {string | null} */
    this.message = null;
    /** @type {string | null} */
    this.finishReason = null;
    /** @type {string | null} */
    this.threadId = null;
    this.version = 0;
    /** @type {Snapshot | null} */
    this.last = null;
  }

  /** @param {RunEvent} event */
  fold(event) {
    this.version += 1;
    this.threadId ??= event.threadId;
    if (event.final) {
      this.status = event.final;
      this.message = event.message;
      this.settle(event);
    } else if (event.type === 'assistant') this.foldAnswer(event);
    else if (event.type === 'tool') this.foldResult(event);
    else if (event.type === 'status') this.foldStatus(event);
    else if (event.type === 'workflow_status') this.foldStep(event);
    else if (event.type === 'user') this.note(event, 'user', textOf(event.content.content));
    else if (event.type === 'summary') this.note(event, 'summary', textOf(event.content.content));
    this.trim();
  }

  /** The same object until something changes. @returns {Snapshot} */
  snapshot() {
    if (this.last?.version !== this.version) {
      const parts = this.parts.slice();
      this.last = {
        version: this.version,
        parts,
        get text() {
          return parts.flatMap((part) => (part.kind === 'answer' && part.text ? [part.text] : [])).join('\n\n');
        },
        steps: [...this.steps.values()],
        usage: {...this.usage},
        attempt: this.attempt,
        status: this.status,
        message: this.message,
        finishReason: this.finishReason,
        threadId: this.threadId,
        dropped: this.dropped,
      };
    }
    return /** @type {Snapshot} */ (this.last);
  }

  /** @private @param {RunEvent} event */
  foldAnswer(event) {
    const {content} = event;
    const text = textOf(content.content);
    const reasoning = textOf(content.reasoning_content);
    if (event.streamStatus === 'chunk') {
      const live = this.live && this.answer(this.live);
      if (live) this.put({...live, text: live.text + text, reasoning: live.reasoning + reasoning});
      else this.live = this.put(this.newAnswer(event, text, reasoning));
      return;
    }
    const known = event.messageId && this.answer(event.messageId);
    if (known) this.put({...known, text, reasoning, live: false});
    else this.store(event, text, reasoning);
    for (const call of callsOf(event)) this.foldCall(event, call.id, call.name, call.arguments);
  }

  /** The stored row takes the place of the chunks before it. @private @param {RunEvent} event @param {string} text @param {string} reasoning */
  store(event, text, reasoning) {
    const live = this.live && this.answer(this.live);
    const part = live || this.newAnswer(event, '', '');
    this.live = null;
    this.put({...part, text, reasoning, live: false, messageId: event.messageId});
    if (event.messageId) this.places.set(event.messageId, /** @type {number} */ (this.places.get(part.key)));
    const usage = objectOf(event.metadata.usage);
    for (const name of COUNTED) if (Number.isFinite(usage[name])) this.usage[name] = (this.usage[name] ?? 0) + usage[name];
  }

  /** @private @param {RunEvent} event @param {string} text @param {string} reasoning @returns {AnswerPart} */
  newAnswer(event, text, reasoning) {
    const key = `answer-${this.nextKey++}`;
    return {kind: 'answer', key, text, reasoning, live: true, messageId: null, createdAt: event.createdAt};
  }

  /** @private @param {string} key @returns {AnswerPart | null} */
  answer(key) {
    const part = this.at(key);
    return part?.kind === 'answer' ? part : null;
  }

  /** @private @param {RunEvent} event */
  foldStatus(event) {
    const {content, statusType} = event;
    if (statusType === 'run_resumed') this.resume(event);
    else if (statusType === 'finish') this.finishReason = textOf(content.finish_reason) || null;
    else if (statusType === 'tool_call_chunk') this.foldCallChunk(event);
    else if (statusType === 'mcp_error' || statusType === 'error') this.note(event, statusType, textOf(content.message));
    else if (statusType?.startsWith('tool_')) this.foldTool(event, statusType.slice('tool_'.length));
  }

  /** What was not stored is void: the text that was being said, and calls that were being written. @private @param {RunEvent} event */
  resume(event) {
    this.attempt = Number(event.content.attempt) || this.attempt + 1;
    this.live = null;
    this.keep((part) => !(part.kind === 'answer' && part.live) && !(part.kind === 'tool' && part.status === 'calling'));
  }

  /** @private @param {RunEvent} event */
  foldCallChunk(event) {
    const {content} = event;
    const call = this.tool(event);
    if (!call || call.status !== 'calling') return;
    this.put({...call, arguments: head(call.arguments + textOf(objectOf(objectOf(content.tool_call_chunk).function).arguments), this.limits.toolChars)});
  }

  /** A call as it stands in a stored answer. @private @param {RunEvent} event @param {string} id @param {string} name @param {string} given */
  foldCall(event, id, name, given) {
    const call = this.at(`tool-${id}`);
    const known = call?.kind === 'tool' ? call : newTool(event, id, name, null);
    this.put({
      ...known,
      name: known.name || name,
      arguments: head(given, this.limits.toolChars),
      status: known.status === 'calling' ? 'called' : known.status,
    });
  }

  /** @private @param {RunEvent} event @param {string} kind */
  foldTool(event, kind) {
    const call = this.tool(event);
    if (!call) return;
    if (kind === 'started') this.put({...call, status: 'running', output: '', startedAt: event.createdAt, endedAt: null});
    else if (kind === 'output') this.put({...call, output: tail(call.output + textOf(event.content.output), this.limits.toolChars)});
    else if (kind === 'completed' || kind === 'failed' || kind === 'error') this.put({...call, status: kind, endedAt: event.createdAt});
  }

  /** The call that a status is about; made when it is new. @private @param {RunEvent} event @returns {ToolPart | null} */
  tool({content, ...event}) {
    const id = textOf(content.tool_call_id);
    if (!id) return null;
    const call = this.at(`tool-${id}`);
    if (call?.kind === 'tool') return call;
    return newTool(/** @type {RunEvent} */ ({content, ...event}), id, textOf(content.function_name), textOf(content.xml_tag_name) || null);
  }

  /** A stored result. @private @param {RunEvent} event */
  foldResult(event) {
    const {content, metadata} = event;
    const id = textOf(metadata.tool_call_id) || textOf(content.tool_call_id);
    if (!id) return;
    const found = this.at(`tool-${id}`);
    const name = textOf(metadata.function_name) || textOf(content.name);
    const call = found?.kind === 'tool' ? found : newTool(event, id, name, textOf(metadata.xml_tag_name) || null);
    const status = metadata.tool_status;
    const known = status === 'completed' || status === 'failed' || status === 'error';
    this.put({
      ...call,
      result: head(resultOf(content), this.limits.toolChars),
      messageId: event.messageId,
      status: known ? status : call.status,
      endedAt: call.endedAt ?? event.createdAt,
    });
  }

  /** @private @param {RunEvent} event */
  foldStep(event) {
    const {content, statusType} = event;
    if (!content.step_id) {
      this.note(event, statusType ?? 'workflow_status', textOf(content.message) || textOf(content.error));
      return;
    }
    const key = `${content.step_id}:${content.visit ?? 1}`;
    const known = this.steps.get(key) ?? {key, stepId: String(content.step_id), name: '', type: '', visit: 1, status: '', startedAt: event.createdAt};
    this.steps.set(key, {
      ...known,
      name: textOf(content.step_name) || known.name,
      type: textOf(content.step_type) || known.type,
      visit: Number(content.visit) || known.visit,
      status: (statusType ?? '').replace(/^step_/, ''),
      at: event.createdAt,
      ...('output' in content ? {output: content.output} : {}),
      ...('error' in content ? {error: content.error} : {}),
      ...('seconds' in content ? {seconds: Number(content.seconds)} : {}),
      ...('until' in content ? {until: textOf(content.until)} : {}),
    });
    if (this.steps.size > this.limits.steps) this.steps.delete(/** @type {string} */ (this.steps.keys().next().value));
  }

  /** @private @param {RunEvent} event @param {string} about @param {string} text */
  note(event, about, text) {
    const key = event.messageId ?? `note-${this.nextKey++}`;
    if (this.at(key)) return;
    this.put({kind: 'note', key, about, text, content: event.content, messageId: event.messageId, createdAt: event.createdAt});
  }

  /** Nothing is being said, called or done any more. @private @param {RunEvent} event */
  settle(event) {
    this.live = null;
    for (const part of this.parts) {
      if (part.kind === 'answer' && part.live) this.put({...part, live: false});
      else if (part.kind === 'tool' && ['calling', 'called', 'running'].includes(part.status)) this.put({...part, status: 'cancelled', endedAt: event.createdAt});
    }
  }

  /** @private @param {string} key @returns {Part | undefined} */
  at(key) {
    const place = this.places.get(key);
    return place === undefined ? undefined : this.parts[place - this.dropped];
  }

  /** Put a part where the one with its key is, else at the end. @private @param {Part} part @returns {string} its key */
  put(part) {
    const place = this.places.get(part.key);
    if (place === undefined) {
      this.places.set(part.key, this.parts.push(part) - 1 + this.dropped);
      this.chars += charsOf(part);
    } else {
      this.chars += charsOf(part) - charsOf(this.parts[place - this.dropped]);
      this.parts[place - this.dropped] = part;
    }
    return part.key;
  }

  /** @private @param {(part: Part) => boolean} wanted */
  keep(wanted) {
    this.parts = this.parts.filter(wanted);
    this.index();
  }

  /** @private */
  trim() {
    let surplus = Math.max(0, this.parts.length - this.limits.parts);
    let chars = this.chars;
    for (const part of this.parts.slice(0, surplus)) chars -= charsOf(part);
    while (chars > this.limits.chars && surplus < this.parts.length - 1) chars -= charsOf(this.parts[surplus++]);
    if (!surplus) return;
    for (const part of this.parts.splice(0, surplus)) {
      this.places.delete(part.key);
      if (part.messageId) this.places.delete(part.messageId);
    }
    this.dropped += surplus;
    this.chars = chars;
  }

  /** @private */
  index() {
    this.places.clear();
    this.chars = 0;
    this.parts.forEach((part, place) => {
      this.places.set(part.key, place + this.dropped);
      if (part.kind === 'answer' && part.messageId) this.places.set(part.messageId, place + this.dropped);
      this.chars += charsOf(part);
    });
  }
}

/** @param {RunEvent} event @param {string} id @param {string} name @param {string | null} tag @returns {ToolPart} */
function newTool(event, id, name, tag) {
  return {
    kind: 'tool', key: `tool-${id}`, callId: id, name, tag, arguments: '', status: 'calling', output: '', result: null,
    messageId: null, createdAt: event.createdAt, startedAt: null, endedAt: null,
  };
}

/** The calls of a stored answer, native and written in XML. @param {RunEvent} event */
function callsOf({content, metadata}) {
  const native = Array.isArray(content.tool_calls) ? content.tool_calls : [];
  const written = Array.isArray(metadata.xml_tool_calls) ? metadata.xml_tool_calls : [];
  return [...native, ...written].map(objectOf).flatMap((call) => {
    const called = objectOf(call.function);
    const id = textOf(call.id) || textOf(call.tool_call_id);
    const given = called.arguments ?? call.arguments ?? '';
    const name = textOf(called.name) || textOf(call.function_name) || textOf(call.name);
    return id ? [{id, name, arguments: typeof given === 'string' ? given : JSON.stringify(given)}] : [];
  });
}

/** The words of a result: a native one says them, one of an XML call has them in JSON. @param {Record<string, any>} content */
function resultOf(content) {
  const result = objectOf(objectOf(objectOf(content.content).tool_execution).result);
  if (!('success' in result)) return textOf(content.content);
  return textOf(result.success ? result.output : result.error);
}

/** @param {unknown} value @returns {string} */
function textOf(value) {
  if (typeof value === 'string') return value;
  if (value === null || value === undefined) return '';
  if (Array.isArray(value)) return value.map((part) => textOf(objectOf(part).text ?? part)).join('');
  return JSON.stringify(value);
}

/** @param {Part} part */
function charsOf(part) {
  if (part.kind === 'answer') return part.text.length + part.reasoning.length;
  if (part.kind === 'tool') return part.arguments.length + part.output.length + (part.result?.length ?? 0);
  return part.text.length;
}

/** @param {string} text @param {number} most */
const head = (text, most) => (text.length > most ? text.slice(0, most) : text);
/** @param {string} text @param {number} most */
const tail = (text, most) => (text.length > most ? text.slice(-most) : text);
