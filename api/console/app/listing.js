/** What pages have in common: states as words, tables, pages of a list, a list of very many lines. */

import {button, h, region, show} from './dom.js';
import {problem} from './format.js';
import {ask} from './session.js';

/** @param {string} state */
export const badge = (state) => h('span', {class: `badge ${state}`}, state);

/** @param {string} title @param {...any} actions */
export const heading = (title, ...actions) => h('div', {class: 'heading'}, h('h1', {}, title), h('div', {class: 'actions'}, actions));

/** @param {Array<[string, any]>} facts */
export const facts = (facts) => h('dl', {class: 'facts'}, facts.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));

/** Say something that is not seen to those who listen. @param {string} text */
export function announce(text) {
  const place = document.getElementById('announce');
  if (place) place.textContent = text;
}

/** A table, and how rows are put into it. @param {string} label @param {string[]} columns */
export function table(label, columns) {
  const body = h('tbody');
  const element = region(label, 'scroll sheet', h('table', {class: 'list'}, h('caption', {class: 'unseen'}, label), h('thead', {}, h('tr', {}, columns.map((name) => h('th', {scope: 'col'}, name)))), body));
  return {
    element,
    body,
    /** @param {any[][]} rows */
    add(rows) {
      body.append(...rows.map((cells) => h('tr', {}, cells.map((cell, nth) => (nth ? h('td', {'data-label': columns[nth]}, cell) : h('th', {scope: 'row'}, cell))))));
      return element;
    },
  };
}

/** How a list is read that has pages with numbers. @param {string} path @param {string} key @param {(each: any) => any[]} row */
export const numbered = (path, key, row) => async (/** @type {string | null} */ cursor) => {
  const page = Number(cursor ?? 1);
  const found = await ask(path, {query: {page, limit: 50, page_size: 50}});
  return {rows: found[key].map(row), next: page * 50 < (found.pagination ?? found).total ? String(page + 1) : null};
};

/**
 * A table that reads one page after the other.
 * @param {string} label
 * @param {string[]} columns
 * @param {(cursor: string | null) => Promise<{rows: any[][], next: string | null}>} read
 * @param {string} none what it says when it is empty
 */
export function pages(label, columns, read, none) {
  const {element, body, add} = table(label, columns);
  const status = h('p', {role: 'status', class: 'quiet'});
  const more = button('Show more', () => void load());
  /** @type {string | null} */
  let cursor = null;
  let generation = 0;
  more.hidden = true;

  async function load() {
    const mine = generation;
    more.disabled = true;
    status.textContent = 'Loading…';
    try {
      const {rows, next} = await read(cursor);
      if (mine !== generation) return;
      cursor = next;
      add(rows);
      element.hidden = !body.childElementCount;
      status.textContent = element.hidden ? none : '';
      more.hidden = next === null;
    } catch (error) {
      if (mine === generation) status.textContent = problem(error);
      more.hidden = false;
    }
    more.disabled = false;
  }

  return {
    element: h('div', {}, element, status, more),
    load,
    again() {
      generation += 1;
      cursor = null;
      show(body);
      return load();
    },
  };
}

const LINE = 26;
const BEYOND = 20;

/**
 * A list of any length: only the lines that are seen are there. Its lines have one height.
 * @param {string} label
 * @param {(nth: number) => any} line the element of a line
 */
export function manyLines(label, line) {
  const spacer = h('div', {class: 'spacer'});
  const seen = h('div', {class: 'seen'});
  const element = region(label, 'many', spacer, seen);
  let count = 0;
  let drawn = '';
  let waiting = false;

  function draw() {
    waiting = false;
    const first = Math.max(Math.floor(element.scrollTop / LINE) - BEYOND, 0);
    const last = Math.min(Math.ceil((element.scrollTop + element.clientHeight) / LINE) + BEYOND, count);
    if (drawn === `${first} ${last}`) return;
    drawn = `${first} ${last}`;
    seen.style.transform = `translateY(${first * LINE}px)`;
    show(seen, Array.from({length: Math.max(last - first, 0)}, (_, nth) => line(first + nth)));
  }

  function later() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  element.addEventListener('scroll', later, {passive: true});
  new ResizeObserver(later).observe(element);
  return {
    element,
    /** @param {number} now how many lines there are @param {boolean} [anew] whether those that are seen have changed */
    set(now, anew = false) {
      const atEnd = element.scrollTop + element.clientHeight >= count * LINE - LINE;
      const follows = atEnd && count > 0;
      count = now;
      if (anew) drawn = '';
      spacer.style.height = `${count * LINE}px`;
      if (follows) element.scrollTop = count * LINE;
      later();
    },
  };
}
