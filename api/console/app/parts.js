/** What is said and done in a conversation, as elements; one that did not change is not touched. */

import {h, pre, show} from './dom.js';
import {between, pretty, short} from './format.js';
import {render} from './markdown.js';
/** @import {AnswerPart, NotePart, Part, ToolPart} from '../longrun.d.ts' */

const SHOWN_CHARS = 20_000;
/** What a model says to people by a call in tags; it may not be whole yet. */
const ASKED = /(^|\n)<(ask|complete)(?: [^>\n]{0,1000})?>([^]*?)(?:<\/\2>\s*)?$/;
const NOTES = {mcp_error: 'MCP server', error: 'Error', summary: 'Summary of what came before', workflow_started: 'Workflow started', workflow_completed: 'Workflow completed', workflow_failed: 'Workflow failed'};


/** A list of parts that follows a view. */
export class Parts {
  constructor() {
    this.element = h('div', {class: 'parts'});
    /** @type {Map<string, {part: Part, element: any, update: (part: any) => void}>} */
    this.known = new Map();
    this.timer = 0;
  }

  /** @param {readonly Part[]} parts */
  set(parts) {
    const keys = new Set(parts.map((part) => part.key));
    for (const [key, {element}] of this.known) {
      if (keys.has(key)) continue;
      element.remove();
      this.known.delete(key);
    }
    /** @type {Element | null} */
    let place = this.element.firstElementChild;
    for (const part of parts) {
      /** @type {any} */
      const known = this.known.get(part.key) ?? this.add(part);
      if (known.part !== part) {
        known.part = part;
        known.update(part);
      }
      if (known.element === place) place = place?.nextElementSibling ?? null;
      else this.element.insertBefore(known.element, place);
    }
    this.keepTime();
  }

  /** @private @param {Part} part */
  add(part) {
    const made = part.kind === 'answer' ? answer() : part.kind === 'tool' ? tool() : note();
    const known = {part: /** @type {any} */ (null), ...made};
    this.known.set(part.key, known);
    return known;
  }

  /** Tools that work show for how long. @private */
  keepTime() {
    const working = () => [...this.known.values()].filter(({part}) => part.kind === 'tool' && part.status === 'running');
    if (!working().length) this.close();
    else this.timer ||= setInterval(() => working().forEach(({part, update}) => update(part)), 500);
  }

  close() {
    clearInterval(this.timer);
    this.timer = 0;
  }
}

function answer() {
  const thought = h('div', {class: 'markdown'});
  const reasoning = h('details', {class: 'reasoning'}, h('summary', {}, 'Reasoning'), thought);
  const text = h('div', {class: 'markdown'});
  const element = h('article', {class: 'answer', 'aria-label': 'Agent'}, reasoning, text);
  reasoning.addEventListener('toggle', () => reasoning.open && render(thought, reasoning.said ?? ''));
  return {
    element,
    /** @param {AnswerPart} part */
    update(part) {
      element.setAttribute('aria-busy', String(part.live));
      element.classList.toggle('live', part.live);
      reasoning.hidden = !part.reasoning;
      reasoning.said = part.reasoning;
      if (reasoning.open) render(thought, part.reasoning);
      render(text, part.text.replace(ASKED, '$1$3'));
      element.hidden = !part.text && !part.reasoning && !part.live;
    },
  };
}

function tool() {
  const name = h('code');
  const state = h('span', {class: 'state'});
  const took = h('span', {class: 'quiet'});
  const body = h('div', {class: 'body'});
  const element = h('details', {class: 'tool'}, h('summary', {}, name, state, took), body);
  /** @type {ToolPart | null} */
  let latest = null;
  element.addEventListener('toggle', () => latest && fillTool(element, body, latest));
  return {
    element,
    /** @param {ToolPart} part */
    update(part) {
      latest = part;
      element.dataset.status = part.status;
      if (name.textContent !== part.name) name.textContent = part.name || 'tool';
      if (state.textContent !== part.status) state.textContent = part.status;
      took.textContent = part.startedAt ? between(part.startedAt, part.endedAt ?? (part.status === 'running' ? null : part.startedAt)) : '';
      fillTool(element, body, part);
    },
  };
}

/** @param {any} element @param {any} body @param {ToolPart} part */
function fillTool(element, body, part) {
  if (!element.open || body.part === part) return;
  body.part = part;
  show(body, piece('Arguments', part.arguments && pretty(part.arguments)), piece('Output', part.result === null ? part.output : ''), piece('Result', part.result && pretty(part.result)));
}

/** @param {string} label @param {string | null} text */
const piece = (label, text) => (text ? [h('h4', {}, label), pre(label, short(text, SHOWN_CHARS))] : null);

function note() {
  const element = h('article');
  return {
    element,
    /** @param {NotePart} part */
    update(part) {
      element.className = part.about === 'user' ? 'said' : `note ${part.about}`;
      if (part.about === 'user') element.setAttribute('aria-label', 'You');
      const label = /** @type {Record<string, string>} */ (NOTES)[part.about];
      const text = h('div', {class: 'plain'}, part.text);
      show(element, part.about === 'summary' ? h('details', {}, h('summary', {}, label), text) : [label && h('strong', {}, `${label} `), text]);
    },
  };
}

/** At most a quarter of the time goes into drawing, however much there is to draw. @param {() => void} draw */
export function paced(draw) {
  let timer = 0;
  let rest = 0;
  return () => {
    timer ||= setTimeout(() => {
      timer = 0;
      const began = performance.now();
      draw();
      rest = 4 * performance.now() - 3 * began;
    }, Math.max(rest - performance.now(), 0));
  };
}
