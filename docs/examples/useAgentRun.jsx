// A React hook (18 or newer) over api/console/longrun.js, and a component that uses it.
import {useCallback, useEffect, useMemo, useState, useSyncExternalStore} from 'react';
import {Longrun} from './longrun.js';

const IDLE = {state: 'idle', attempt: 0, running: false, view: {text: '', parts: [], usage: {}}, error: null};
const nothing = () => () => {};

/** Follow a run (null: none) until its end or until the component goes; the same run in other tabs costs no connection. */
export function useAgentRun(longrun, runId) {
  const store = useMemo(() => (runId ? storeOf(longrun, runId) : null), [longrun, runId]);
  const shown = useSyncExternalStore(store ? store.subscribe : nothing, store ? store.get : () => IDLE);
  const stop = useCallback(() => runId && longrun.stop(runId), [longrun, runId]);
  return {...shown, stop};
}

function storeOf(longrun, runId) {
  let shown = IDLE;
  return {
    get: () => shown,
    subscribe(tell) {
      const stream = longrun.stream(runId, {
        onChange: ({state, attempt, running, view, error}) => {
          shown = {state, attempt, running, view, error};
          tell();
        },
      });
      return () => stream.close();
    },
  };
}

export function Conversation({url, getToken, threadId, runId: first}) {
  const longrun = useMemo(() => new Longrun({url, token: getToken}), [url, getToken]);
  const [runId, setRunId] = useState(first);
  const [messages, setMessages] = useState([]);
  const run = useAgentRun(longrun, runId);
  useEffect(() => {
    if (!run.running) longrun.messages(threadId).then(setMessages);
  }, [longrun, threadId, runId, run.running]);
  const send = async (text) => {
    await longrun.say(threadId, text);
    setRunId((await longrun.start(threadId)).agent_run_id);
  };
  return (
    <>
      {messages.map((message) => <p key={message.message_id}>{message.content.content}</p>)}
      {run.running && run.view.parts.map((part) => <p key={part.key}>{part.kind === 'tool' ? `${part.name}: ${part.status}` : part.text}</p>)}
      {run.state === 'reconnecting' && <p role="status">Reconnecting ({run.attempt}) …</p>}
      {run.running && <button onClick={run.stop}>Stop</button>}
      <form action={(form) => send(form.get('text'))}><input name="text" required /></form>
    </>
  );
}
