/** Values as people read them. Pure. */

const DATE = new Intl.DateTimeFormat(undefined, {dateStyle: 'medium', timeStyle: 'medium'});
const SHORT = new Intl.DateTimeFormat(undefined, {month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit'});
const NUMBER = new Intl.NumberFormat();
const AGO = new Intl.RelativeTimeFormat(undefined, {numeric: 'auto'});
/** @type {Array<[number, Intl.RelativeTimeFormatUnit]>} */
const UNITS = [[86_400, 'day'], [3_600, 'hour'], [60, 'minute']];

/** @param {string | null | undefined} when */
export const date = (when) => (when ? DATE.format(new Date(when)) : '—');
/** @param {string | null | undefined} when */
export const shortDate = (when) => (when ? SHORT.format(new Date(when)) : '—');
/** @param {number | null | undefined} value */
export const number = (value) => (value === null || value === undefined ? '—' : NUMBER.format(value));

/** “3 minutes ago”. @param {string} when @param {number} [now] milliseconds */
export function ago(when, now = Date.now()) {
  const seconds = (Date.parse(when) - now) / 1000;
  for (const [size, unit] of UNITS) if (Math.abs(seconds) >= size) return AGO.format(Math.round(seconds / size), unit);
  return AGO.format(Math.round(seconds), 'second');
}

/** @param {number} milliseconds */
export function duration(milliseconds) {
  const seconds = Math.max(milliseconds, 0) / 1000;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 90) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Between two times of the API; to now while there is no second. @param {string} from @param {string | null} [to] */
export const between = (from, to) => duration((to ? Date.parse(to) : Date.now()) - Date.parse(from));

/** @param {string} text @param {number} most */
export const short = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

/** JSON, indented if it is some; else the text. @param {unknown} value */
export function pretty(value) {
  if (typeof value !== 'string') return JSON.stringify(value, null, 2) ?? '';
  try {
    return JSON.stringify(JSON.parse(value), null, 2);
  } catch {
    return value;
  }
}

/** What is wrong, as a sentence. @param {any} error */
export const problem = (error) => String(error?.message ?? error);
