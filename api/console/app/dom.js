/** Elements without markup: what others wrote becomes text nodes and attributes, never HTML. */

import {problem} from './format.js';

const SVG = 'http://www.w3.org/2000/svg';

/**
 * An element. `on…` of the properties are listeners, `class` and `data-…`, `aria-…` and the like attributes; false and null are left out.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...any} children nodes, texts, arrays of them; null and false are left out
 * @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  return fill(dress(document.createElement(tag), properties), children);
}

/** @param {string} tag @param {Record<string, any>} [properties] @param {...any} children @returns {any} */
export function svg(tag, properties = {}, ...children) {
  return fill(dress(document.createElementNS(SVG, tag), properties), children);
}

/** @param {any} element @param {Record<string, any>} properties */
function dress(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'value' || name === 'checked' || name === 'disabled' || name === 'open') element[name] = value;
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  return element;
}

/** @param {any} element @param {any[]} children */
function fill(element, children) {
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Put these after what an element has. @param {Element} element @param {...any} children */
export const add = (element, ...children) => fill(element, children);

/** Put these in the place of what an element has. @param {Element} element @param {...any} children */
export function show(element, ...children) {
  element.replaceChildren();
  return fill(element, children);
}

/** A link to a page of the console. @param {string} to @param {any} text @param {Record<string, any>} [properties] */
export const link = (to, text, properties = {}) => h('a', {href: `#${to}`, ...properties}, text);

/** What it does is done once at a time. @param {string} label @param {() => any} act @param {Record<string, any>} [properties] */
export function button(label, act, properties = {}) {
  return h('button', {type: 'button', onclick: once(act), ...properties}, label);
}

/** @param {(...given: any[]) => any} act */
function once(act) {
  let busy = false;
  return async (/** @type {any[]} */ ...given) => {
    if (busy) return;
    busy = true;
    try {
      await act(...given);
    } finally {
      busy = false;
    }
  };
}

/** A form that is sent once at a time, and says what was wrong with it. @param {any[]} fields @param {string} label @param {() => Promise<void>} send */
export function form(fields, label, send) {
  const said = wrong();
  const sendOnce = once(async () => {
    said.textContent = '';
    await send().catch((error) => (said.textContent = problem(error)));
  });
  const onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    return sendOnce();
  };
  return h('form', {class: 'card', onsubmit}, fields, said, h('button', {class: 'primary'}, label));
}

/** Where what is wrong is said, and heard. @param {...any} words */
export const wrong = (...words) => h('p', {role: 'alert', class: 'problem'}, words);

/** What may be wider than its place: keys scroll it. @param {string} label @param {string} kind @param {...any} children */
export const region = (label, kind, ...children) => h('div', {class: kind, tabindex: '0', role: 'region', 'aria-label': label}, children);

/** A text as it is. @param {string} label @param {string} text @param {string} [kind] */
export const pre = (label, text, kind) => h('pre', {class: kind, tabindex: '0', 'aria-label': label}, text);

/** A labelled control. @param {string} label @param {any} control @param {string} [hint] */
export function field(label, control, hint) {
  const id = control.id || (control.id = `field-${(field.count += 1)}`);
  return h('div', {class: 'field'}, h('label', {for: id}, label), control, hint && h('small', {}, hint));
}
field.count = 0;

/** @param {Record<string, any>} properties @param {Array<[string, string]>} options @param {string} [chosen] */
export function select(properties, options, chosen = '') {
  const made = options.map(([value, text]) => h('option', {value, selected: value === chosen}, text));
  return h('select', properties, made);
}
