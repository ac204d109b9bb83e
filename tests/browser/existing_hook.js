/**
 * What the existing frontends' hook does with a run, said anew: read the status and connect only while it is `running`; listen by
 * `onmessage` only; close on the words that say an end; when the stream closes, read the status, and call it an error if
 * that still says `running`; fetch the messages at the end.
 */

export async function follow({api, token, runId, threadId, EventSource}) {
  const headers = {Authorization: `Bearer ${token}`};
  const get = async (path) => (await fetch(`${api}/${path}`, {headers})).json();
  const seen = {outcome: null, connections: 0, ids: [], text: '', longest: '', tools: [], unnamed: true};
  const finalize = async (outcome) => {
    const {messages} = await get(`threads/${threadId}/messages?order=asc`);
    return {...seen, outcome, messages: messages.filter(({type}) => type === 'assistant').map(({content}) => content.content)};
  };

  const before = await get(`agent-run/${runId}`);
  if (before.status !== 'running') return finalize(before.status);
  const said = await new Promise((resolve) => {
    const source = new EventSource(`${api}/agent-run/${runId}/stream?token=${encodeURIComponent(token)}`);
    const end = (words) => {
      source.close();
      resolve(words);
    };
    source.onopen = () => (seen.connections += 1);
    source.onmessage = ({data, lastEventId, type}) => {
      seen.ids.push(Number(lastEventId));
      seen.unnamed &&= type === 'message';
      if (!data || !data.trim()) return;
      if (data.includes('"type":"status"') && data.includes('"status":"completed"')) return end('completed');
      if (data.includes('"type":"status"') && data.includes('thread_run_end')) return end('thread_run_end');
      const event = JSON.parse(data);
      if (event.type === 'status' && (event.status === 'failed' || event.status === 'stopped')) return end(event.status);
      const content = JSON.parse(event.content);
      const metadata = JSON.parse(event.metadata);
      if (event.type === 'assistant' && metadata.stream_status === 'chunk') seen.text += content.content ?? '';
      if (event.type === 'assistant' && metadata.stream_status === 'complete') seen.text = '';
      if (seen.text.length > seen.longest.length) seen.longest = seen.text;
      if (event.type === 'status' && content.status_type?.startsWith('tool_')) seen.tools.push(content.status_type);
    };
    source.onerror = async () => {
      const now = await get(`agent-run/${runId}`).catch(() => ({status: 'running'}));
      if (now.status !== 'running') end(now.status);
      else if (source.readyState === 2) end('closed'); // it gave up for good
    };
  });
  const after = await get(`agent-run/${runId}`);
  seen.said = said;
  return finalize(after.status === 'running' ? 'error: closed while the run goes on' : after.status);
}
