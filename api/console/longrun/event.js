/** A frame of the stream → what it says. Pure; docs/protocol.md, "The stream". */
/** @import {RunEvent} from '../longrun.d.ts' */

export const FINAL = new Set(['completed', 'failed', 'stopped']);

/**
 * @param {number} id
 * @param {string} data
 * @returns {RunEvent}
 */
export function readEvent(id, data) {
  const said = objectOf(data);
  const content = objectOf(said.content);
  const metadata = objectOf(said.metadata);
  const type = typeof said.type === 'string' ? said.type : 'unknown';
  return {
    id,
    type,
    statusType: typeof content.status_type === 'string' ? content.status_type : null,
    streamStatus: typeof metadata.stream_status === 'string' ? metadata.stream_status : null,
    messageId: typeof said.message_id === 'string' ? said.message_id : null,
    threadId: typeof said.thread_id === 'string' ? said.thread_id : null,
    createdAt: typeof said.created_at === 'string' ? said.created_at : null,
    content,
    metadata,
    final: finalStatus(type, said),
    message: typeof said.message === 'string' ? said.message : null,
    data,
  };
}

/** @param {string} type @param {Record<string, any>} said */
function finalStatus(type, said) {
  return type === 'status' && !('sequence' in said) && FINAL.has(said.status) ? said.status : null;
}

/**
 * The object that a value is, or is the JSON of; `{}` for anything else: a foreign producer may say what it likes.
 * @param {unknown} value
 * @returns {Record<string, any>}
 */
export function objectOf(value) {
  if (typeof value === 'string') {
    try {
      value = JSON.parse(value);
    } catch {
      return {};
    }
  }
  return value !== null && typeof value === 'object' && !Array.isArray(value) ? value : {};
}
