/** A workflow's definition as a drawing: steps from top to bottom, arrows where one leads; states of a live execution as colours. */

import {svg} from './dom.js';
import {short} from './format.js';

const W = 170;
const H = 46;
const GAP_X = 26;
const GAP_Y = 44;
/** @typedef {{id: string, name?: string, type: string, config?: any, next_steps?: string[], error_handler?: string | null}} Step */
/** @typedef {{from: string, to: string, kind: string}} Arrow */

/** Where steps lead. Pure. @param {Step[]} steps @returns {Arrow[]} */
export function arrowsOf(steps) {
  const known = new Set(steps.map((step) => step.id));
  return steps.flatMap((step) => [
    ...(step.next_steps ?? []).map((to, nth) => ({from: step.id, to, kind: step.type === 'CONDITION' ? (nth ? 'no' : 'yes') : 'next'})),
    ...(step.config?.body ? [{from: step.id, to: step.config.body, kind: 'inside'}] : []),
    ...(Array.isArray(step.config?.branches) ? step.config.branches.map((/** @type {string} */ to) => ({from: step.id, to, kind: 'inside'})) : []),
    ...(step.error_handler ? [{from: step.id, to: step.error_handler, kind: 'error'}] : []),
  ]).filter(({to}) => known.has(to));
}

/** How far from the entry each step is: its longest way, arrows that lead back left out. Pure. @param {Step[]} steps @param {string | null} entry @returns {Map<string, number>} */
export function levelsOf(steps, entry) {
  /** @type {Map<string, string[]>} */
  const leads = new Map(steps.map((step) => [step.id, []]));
  for (const {from, to} of arrowsOf(steps)) leads.get(from)?.push(to);
  /** @type {Map<string, number>} */
  const levels = new Map();
  /** @type {string[]} */
  const order = [];
  const state = new Map();
  const back = new Set();
  const visit = (/** @type {string} */ id) => {
    state.set(id, 'open');
    for (const to of leads.get(id) ?? []) {
      if (state.get(to) === 'open') back.add(`${id} ${to}`);
      else if (!state.has(to)) visit(to);
    }
    state.set(id, 'done');
    order.push(id);
  };
  for (const root of [entry, ...leads.keys()]) if (root && leads.has(root) && !state.has(root)) visit(root);
  for (const id of order.reverse()) {
    const level = levels.get(id) ?? 0;
    levels.set(id, level);
    for (const to of leads.get(id) ?? []) if (!back.has(`${id} ${to}`)) levels.set(to, Math.max(levels.get(to) ?? 0, level + 1));
  }
  return levels;
}

/**
 * @param {Step[]} steps
 * @param {string | null} entry
 * @param {Map<string, {status: string}>} [live] by step
 */
export function graph(steps, entry, live = new Map()) {
  const levels = levelsOf(steps, entry);
  /** @type {Step[][]} */
  const rows = [];
  for (const step of steps) (rows[levels.get(step.id) ?? 0] ??= []).push(step);
  const widest = Math.max(...rows.map((row) => row?.length ?? 0), 1);
  const width = widest * (W + GAP_X) + 80;
  /** @type {Map<string, {x: number, y: number}>} */
  const places = new Map();
  rows.forEach((row, level) => row?.forEach((step, nth) => places.set(step.id, {x: (width - row.length * (W + GAP_X)) / 2 + nth * (W + GAP_X) + GAP_X / 2, y: 8 + level * (H + GAP_Y)})));
  const height = rows.length * (H + GAP_Y) - GAP_Y + 16;
  const arrows = arrowsOf(steps);
  const told = steps.map((step) => `${step.name || step.id} (${step.type}${live.has(step.id) ? `, ${live.get(step.id)?.status}` : ''})`).join(', ');
  return svg('svg', {class: width > 620 ? 'graph wide' : 'graph', viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': `Steps: ${told}`},
    svg('defs', {}, svg('marker', {id: 'tip', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto-start-reverse'}, svg('path', {d: 'M0 0L8 4L0 8z', class: 'tip'}))),
    arrows.map((arrow) => drawArrow(arrow, places, width)),
    steps.map((step) => drawStep(step, /** @type {any} */ (places.get(step.id)), live.get(step.id)?.status ?? '')));
}

/** @param {Arrow} arrow @param {Map<string, {x: number, y: number}>} places @param {number} width */
function drawArrow({from, to, kind}, places, width) {
  const [a, b] = [/** @type {any} */ (places.get(from)), /** @type {any} */ (places.get(to))];
  const [x1, x2] = [a.x + W / 2, b.x + W / 2];
  const down = b.y > a.y;
  const d = down
    ? `M${x1} ${a.y + H}C${x1} ${a.y + H + GAP_Y / 2} ${x2} ${b.y - GAP_Y / 2} ${x2} ${b.y - 2}`
    : `M${a.x + W} ${a.y + H / 2}C${width - 4} ${a.y + H / 2} ${width - 4} ${b.y + H / 2} ${b.x + W + 2} ${b.y + H / 2}`;
  const words = kind === 'next' ? null : svg('text', {class: 'arrow-word', x: (x1 + x2) / 2 + 6, y: (a.y + H + b.y) / 2 + 4}, kind);
  return [svg('path', {class: `arrow ${kind}`, d, 'marker-end': 'url(#tip)'}), down && words];
}

/** @param {Step} step @param {{x: number, y: number}} at @param {string} status */
function drawStep(step, {x, y}, status) {
  return svg('g', {class: `step ${status}`, transform: `translate(${x} ${y})`},
    svg('title', {}, `${step.name || step.id}: ${step.type}${status ? `, ${status}` : ''}`),
    svg('rect', {width: W, height: H, rx: 8}),
    svg('text', {x: 12, y: 20, class: 'name'}, short(step.name || step.id, 20)),
    svg('text', {x: 12, y: 37, class: 'kind'}, `${step.type.toLowerCase()}${status ? ` · ${status}` : ''}`));
}
