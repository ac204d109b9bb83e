/** An idempotency key. Of random bytes, as `crypto.randomUUID` is there on secure pages only. */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
