/**
 * Markdown as elements: headings, lists, quotes, code, tables, emphasis, links. HTML stays text; nothing is loaded; links lead
 * to http, https and mailto only. A text that grows is rendered anew from the block that changed.
 */

import {h, region} from './dom.js';

// Every pattern takes time in proportion to its text, whoever wrote that: no two parts in a row can match the same characters.
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s([^]*)/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s([^]*)/;
const QUOTE = /^ {0,3}> ?/;
const INDENTED = /^ {4}/;
const RULED = /^:?-+:?$/;
const INLINE = /(?<!`)(`+)(?!`)([^]{1,5000}?)(?<!`)\1(?!`)|\[([^\]\n]{0,500})\]\(([^()\s]{1,2000}(?:\([^()\s]{0,500}\)[^()\s]{0,500})?)\)|(\*\*|__)(?=\S)([^]{1,1000}?\S)\5|(\*|_)(?=\S)([^*_\n]{0,1000}?\S)\7(?!\w)|~~(?=\S)([^]{1,1000}?\S)~~|\bhttps?:\/\/[^\s<>()[\]"']{1,2000}/g;
/** With its slashes: `https:x` is an address of our own. */
const SAFE = /^(https?:\/\/|mailto:)/i;
const DEEPEST = 8;
/** A block that is longer is shown as it is, and so is what follows so much of a text: nobody formats it, and every piece is an element. */
const LONGEST = 20_000;
const MOST = 200_000;
const PIECE = 8_000;
const MOST_BLOCKS = 3_000;
const PLAIN = '\0';

/** Show a text in an element; blocks that are as they were stay. @param {any} element @param {string} text */
export function render(element, text) {
  const blocks = blocksOf(text.slice(0, MOST));
  const rest = blocks.splice(MOST_BLOCKS).join('\n\n') + text.slice(MOST);
  if (rest) blocks.push(PLAIN + rest);
  const before = element.blocks ?? [];
  let same = 0;
  while (same < before.length && before[same] === blocks[same]) same += 1;
  const [was, now, grows] = [before[same], blocks[same], element.lastChild?.grows];
  if (was && grows && same === before.length - 1 && now?.startsWith(was) && !(grows.fence && closes(now.slice(now.lastIndexOf('\n') + 1), grows.fence))) {
    pour(grows, now.slice(was.length));
    same += 1;
  }
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
  /** What the first of the lines begins. */
  let kind = '';
  const close = () => {
    if (lines.length) blocks.push(lines.join('\n'));
    lines = [];
  };
  for (const line of text.split(/\r?\n/)) {
    if (fence) {
      lines.push(line);
      if (closes(line, fence)) {
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
      if (lines.length && kind === 'list') lines.push('');
      else close();
    } else {
      const next = kindOf(line);
      if (lines.length && (kind === 'list' ? leaves(lines, line, next) : next !== kind)) close();
      if (!lines.length) kind = next;
      lines.push(line);
    }
  }
  close();
  return blocks;
}

/** @param {string} line */
function kindOf(line) {
  if (ITEM.test(line)) return 'list';
  if (QUOTE.test(line)) return 'quote';
  if (INDENTED.test(line)) return 'code';
  const cut = line.trim();
  return cut.length > 1 && cut.startsWith('|') && cut.endsWith('|') ? 'table' : 'text';
}

/** Whether a line is no more of a list: text after an empty line, or an item of the other sort. @param {string[]} lines @param {string} line @param {string} kind */
function leaves(lines, line, kind) {
  if (/^\s/.test(line)) return false;
  return kind === 'list' ? /^\d/.test(line) !== /^ *\d/.test(lines[0]) : lines.at(-1) === '';
}

/** Whether a line is the end of what a fence began. @param {string} line @param {string} fence */
function closes(line, fence) {
  const cut = line.trim();
  return cut.startsWith(fence) && cut === fence[0].repeat(cut.length);
}

/** @param {string} source @param {number} depth @returns {any} */
function blockOf(source, depth) {
  if (source.startsWith(PLAIN)) return plain(source.slice(1));
  const lines = source.split('\n');
  const fence = FENCE.exec(lines[0]);
  if (fence) return code(lines, fence[1], fence[2]);
  if (source.length > LONGEST) return plain(source);
  const heading = HEADING.exec(lines[0]);
  if (heading) return h(`h${Math.min(heading[1].length + 2, 6)}`, {}, inline(heading[2].trim().replace(/(^| )#+$/, ''), depth));
  if (RULE.test(lines[0])) return h('hr');
  const kind = kindOf(lines[0]);
  if (kind === 'quote' && depth < DEEPEST) return h('blockquote', {}, nested(lines.map((line) => line.replace(QUOTE, '')).join('\n'), depth));
  if (kind === 'list' && depth < DEEPEST) return list(lines, depth);
  if (kind === 'code') return code(['', ...lines.map((line) => line.replace(INDENTED, '')), '```'], '```', '');
  if (kind === 'table' && lines.length > 1 && cellsOf(lines[1]).every((cell) => RULED.test(cell))) return table(lines, depth);
  return h('p', {}, lines.map((line, nth) => [nth ? h('br') : null, inline(line, depth)]));
}

/** @param {string} source @param {number} depth */
const nested = (source, depth) => blocksOf(source).map((block) => blockOf(block, depth + 1));

/** @param {string[]} lines @param {string} fence @param {string} language */
function code(lines, fence, language) {
  const closed = lines.length > 1 && closes(lines[lines.length - 1], fence);
  const body = lines.slice(1, closed ? -1 : undefined).join('\n');
  const text = h('code');
  const element = h('pre', {tabindex: '0', role: 'group', 'aria-label': `Code ${language.trim()}`.trim()}, text);
  if (!closed && lines.length > 1) element.grows = text;
  Object.assign(text, {fence, gap: /\n/});
  pour(text, body);
  return element;
}

/** @param {string} text */
function plain(text) {
  const element = h('pre', {class: 'wrap'});
  element.grows = Object.assign(element, {gap: /\s/});
  pour(element, text);
  return element;
}

/** Put a text at the end of an element, in pieces that end in a gap: what grows is laid out anew, and that takes as long as it is. @param {any} element @param {string} text */
function pour(element, text) {
  while (text) {
    if (!element.room) {
      element.tail = element.tail ? element.appendChild(h('div')) : element;
      element.room = PIECE;
    }
    const end = text.slice(element.room - 1).search(element.gap);
    const piece = end < 0 ? text : text.slice(0, element.room + end);
    if (element.tail.firstChild) element.tail.firstChild.appendData(piece);
    else element.tail.append(piece);
    element.room = end < 0 ? Math.max(element.room - piece.length, 1) : 0;
    text = text.slice(piece.length);
  }
}

/** @param {string[]} lines @param {number} depth */
function list(lines, depth) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[0]));
  const indent = first[1].length;
  /** @type {string[][]} */
  const items = [];
  const margin = new RegExp(`^ {0,${Math.min(indent + 4, 99)}}`);
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent + 1) items.push([item[3].trimStart()]);
    else items.at(-1)?.push(line.replace(margin, ''));
  }
  const ordered = /\d/.test(first[2]);
  const made = items.map((item) => h('li', {}, tight(item.join('\n').trim(), depth)));
  return h(ordered ? 'ol' : 'ul', ordered ? {start: parseInt(first[2], 10)} : {}, made);
}

/** An item of one line needs no paragraph. @param {string} source @param {number} depth */
const tight = (source, depth) => (source.includes('\n') ? nested : inline)(source, depth);

/** @param {string} line */
const cellsOf = (line) => line.trim().replace(/^\||\|$/g, '').split('|').map((cell) => cell.trim());

/** @param {string[]} lines @param {number} depth */
function table(lines, depth) {
  const head = h('tr', {}, cellsOf(lines[0]).map((cell) => h('th', {scope: 'col'}, inline(cell, depth))));
  const rows = lines.slice(2).map((line) => h('tr', {}, cellsOf(line).map((cell) => h('td', {}, inline(cell, depth)))));
  return region('Table', 'scroll', h('table', {}, h('thead', {}, head), h('tbody', {}, rows)));
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
