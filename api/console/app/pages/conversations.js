/** The account's conversations. */

import {button, h, link} from '../dom.js';
import {ago, date} from '../format.js';
import {heading, numbered, pages} from '../listing.js';

/** @param {import('../main.js').Visit} visit */
export function conversations({place, title, go}) {
  title('Conversations');
  const list = pages('Conversations', ['Title', 'Project', 'Changed'], numbered('threads', 'threads', (thread) => [
    link(`/conversations/${thread.thread_id}`, thread.metadata?.title || thread.project?.name || 'Untitled'),
    thread.metadata?.title ? thread.project?.name ?? '' : '',
    h('time', {datetime: thread.updated_at, title: date(thread.updated_at)}, ago(thread.updated_at)),
  ]), 'There is no conversation yet.');
  place.append(heading('Conversations', button('New conversation', () => go('/new'), {class: 'primary'})), list.element);
  return list.load();
}
