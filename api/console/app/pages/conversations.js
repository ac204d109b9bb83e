/** The account's conversations. */

import {button, link} from '../dom.js';
import {ago, date} from '../format.js';
import {h} from '../dom.js';
import {heading, pages} from '../listing.js';
import {ask} from '../session.js';

const SIZE = 50;

/** @param {import('../main.js').Visit} visit */
export function conversations({place, title, go}) {
  title('Conversations');
  const list = pages('Conversations', ['Title', 'Project', 'Changed'], async (cursor) => {
    const page = Number(cursor ?? 1);
    const {threads, pagination} = await ask('threads', {query: {page, limit: SIZE}});
    const rows = threads.map((/** @type {any} */ thread) => [
      link(`/conversations/${thread.thread_id}`, thread.metadata?.title || thread.project?.name || 'Untitled'),
      thread.project?.name ?? '',
      h('time', {datetime: thread.updated_at, title: date(thread.updated_at)}, ago(thread.updated_at)),
    ]);
    return {rows, next: page < pagination.pages ? String(page + 1) : null};
  }, 'There is no conversation yet.');
  place.append(heading('Conversations', button('New conversation', () => go('/new'), {class: 'primary'})), list.element);
  return list.load();
}
