/**
 * Markdown as elements: headings, lists, quotes, code, tables, emphasis, links. HTML stays text; nothing is loaded; links lead
 * to http, https and mailto only. A text that grows is rendered anew from the block that changed.
 */

import {h} from './dom.js';

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const INDENTED = /^ {4}/;
const ROW = /^\s*\|.*\|\s*$/;
const RULED = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = /(`+)([\s\S]{0,5000}?[^`])\1(?!`)|\[([^\]\n]{0,500})\]\(([^()\s]{1,2000}(?:\([^()\s]*\))?[^()\s]*)\)|(\*\*|__)(?=\S)([\s\S]{1,1000}?\S)\5|(\*|_)(?=\S)([^*_\n]{0,1000}?\S)\7(?!\w)|~~(?=\S)([\s\S]{1,1000}?\S)~~|\bhttps?:\/\/[^\s<>()[\]"']{1,2000}/g;
const SAFE = /^(https?:|mailto:)/i;
const DEEPEST = 8;
/** What is longer is shown as it is: nobody formats so much, and patterns would take long over it. */
const LONGEST = 50_000;

/** Show a text in an element; blocks that are as they were stay. @param {any} element @param {string} text */
export function render(element, text) {
  const blocks = blocksOf(text);
  const before = element.blocks ?? [];
  let same = 0;
  while (same < before.length && before[same] === blocks[same]) same += 1;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const block of blocks.slice(same)) element.append(blockOf(block, 0));
  element.blocks = blocks;
}

/** The sources of the blocks of a text. @param {string} text @returns {string[]} */
export function blocksOf(text) {
  /** @type {string[]} */
  const blocks = [];
  /** @type {string[]} */
  let lines = [];
  let fence = '';
  const close = () => {
    if (lines.length) blocks.push(lines.join('\n'));
    lines = [];
  };
  for (const line of text.split(/\r?\n/)) {
    if (fence) {
      lines.push(line);
      if (line.trim().startsWith(fence) && !line.trim().slice(fence.length).replace(new RegExp(`^${fence[0]}+`), '')) {
        fence = '';
        close();
      }
      continue;
    }
    const opened = FENCE.exec(line);
    if (opened) {
      close();
      fence = opened[1];
      lines.push(line);
    } else if (HEADING.test(line) || RULE.test(line)) {
      close();
      blocks.push(line);
    } else if (!line.trim()) {
      if (lines.length && ITEM.test(lines[0])) lines.push('');
      else close();
    } else if (lines.at(-1) === '' && !ITEM.test(line) && !/^\s/.test(line)) {
      close();
      lines.push(line);
    } else if (lines.length && kindOf(lines[0]) !== 'list' && kindOf(line) !== kindOf(lines[0])) {
      close();
      lines.push(line);
    } else lines.push(line);
  }
  close();
  return blocks;
}

/** @param {string} line */
function kindOf(line) {
  if (ITEM.test(line)) return 'list';
  if (QUOTE.test(line)) return 'quote';
  if (INDENTED.test(line)) return 'code';
  return ROW.test(line) ? 'table' : 'text';
}

/** @param {string} source @param {number} depth @returns {any} */
function blockOf(source, depth) {
  const lines = source.split('\n');
  const fence = FENCE.exec(lines[0]);
  if (fence) return code(lines, fence[1], fence[2]);
  if (source.length > LONGEST) return h('pre', {}, source);
  const heading = HEADING.exec(lines[0]);
  if (heading) return h(`h${Math.min(heading[1].length + 2, 6)}`, {}, inline(heading[2], depth));
  if (RULE.test(lines[0])) return h('hr');
  const kind = kindOf(lines[0]);
  if (kind === 'quote' && depth < DEEPEST) return h('blockquote', {}, nested(lines.map((line) => line.replace(QUOTE, '')).join('\n'), depth));
  if (kind === 'list' && depth < DEEPEST) return list(lines, depth);
  if (kind === 'code') return code(['', ...lines.map((line) => line.replace(INDENTED, '')), '```'], '```', '');
  if (kind === 'table' && lines.length > 1 && RULED.test(lines[1])) return table(lines, depth);
  return h('p', {}, lines.map((line, nth) => [nth ? h('br') : null, inline(line, depth)]));
}

/** @param {string} source @param {number} depth */
const nested = (source, depth) => blocksOf(source).map((block) => blockOf(block, depth + 1));

/** @param {string[]} lines @param {string} fence @param {string} language */
function code(lines, fence, language) {
  const closed = lines.length > 1 && lines.at(-1)?.trim().startsWith(fence);
  const body = lines.slice(1, closed ? -1 : undefined).join('\n');
  return h('pre', {tabindex: '0', 'aria-label': `Code ${language}`.trim()}, h('code', {}, body));
}

/** @param {string[]} lines @param {number} depth */
function list(lines, depth) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[0]));
  const indent = first[1].length;
  /** @type {string[][]} */
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent + 1) items.push([item[3]]);
    else items.at(-1)?.push(line.replace(new RegExp(`^ {0,${indent + 4}}`), ''));
  }
  const ordered = /\d/.test(first[2]);
  const made = items.map((item) => h('li', {}, tight(item.join('\n').trim(), depth)));
  return h(ordered ? 'ol' : 'ul', ordered ? {start: parseInt(first[2], 10)} : {}, made);
}

/** An item of one line needs no paragraph. @param {string} source @param {number} depth */
function tight(source, depth) {
  return source.includes('\n') ? nested(source, depth) : inline(source, depth);
}

/** @param {string[]} lines @param {number} depth */
function table(lines, depth) {
  const cells = (/** @type {string} */ line) => line.trim().replace(/^\||\|$/g, '').split('|').map((cell) => cell.trim());
  const head = h('tr', {}, cells(lines[0]).map((cell) => h('th', {scope: 'col'}, inline(cell, depth))));
  const rows = lines.slice(2).map((line) => h('tr', {}, cells(line).map((cell) => h('td', {}, inline(cell, depth)))));
  return h('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Table'}, h('table', {}, h('thead', {}, head), h('tbody', {}, rows)));
}

/** @param {string} text @param {number} depth @returns {any[]} */
function inline(text, depth) {
  if (depth > DEEPEST) return [text];
  /** @type {any[]} */
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    parts.push(text.slice(end, found.index), span(found, depth));
    end = found.index + found[0].length;
  }
  parts.push(text.slice(end));
  return parts.filter((part) => part !== '');
}

/** @param {RegExpMatchArray} found @param {number} depth @returns {any} */
function span(found, depth) {
  const [whole, ticks, coded, label, target, , strong, , em, struck] = found;
  if (ticks) return h('code', {}, coded.trim() || coded);
  if (target !== undefined) return SAFE.test(target) ? anchor(target, inline(label, depth + 1)) : whole;
  if (strong !== undefined) return h('strong', {}, inline(strong, depth + 1));
  if (em !== undefined) return h('em', {}, inline(em, depth + 1));
  if (struck !== undefined) return h('del', {}, inline(struck, depth + 1));
  return anchor(whole, whole);
}

/** @param {string} href @param {any} text */
const anchor = (href, text) => h('a', {href, rel: 'noopener noreferrer nofollow ugc', target: '_blank'}, text);
