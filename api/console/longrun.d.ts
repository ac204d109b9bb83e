/** Types of longrun.js. */

export type FinalStatus = 'completed' | 'failed' | 'stopped';

/** `reconnecting` has its n in `stream.attempt`; `error`: the run cannot be followed; `idle`: not yet, or not any more. */
export type RunState = 'idle' | 'connecting' | 'streaming' | 'reconnecting' | FinalStatus | 'error';

export interface LongrunOptions {
  /** Where the installation is, without `/api`; default: where the module came from. */
  url?: string;
  /** An access token, or who gives one. It is asked for once, and again with the one that was refused. */
  token?: string | ((asked: {expired: string | null}) => string | null | Promise<string | null>);
  /** `pk_…:sk_…`, instead of a token; not for pages that others can read. */
  apiKey?: string;
  accountId?: string;
  /** How streams are read: by fetch (default), or by an EventSource with a stream token in its address. */
  transport?: 'fetch' | 'eventsource';
  /** Whether tabs of this browser share one stream per run (default: yes, where there are Web Locks and BroadcastChannel). */
  share?: boolean;
  credentials?: RequestCredentials;
  fetch?: (input: URL | string, init?: RequestInit) => Promise<Response>;
  EventSource?: new (url: string) => EventSource;
}

export interface RequestOptions {
  method?: string;
  query?: Record<string, unknown>;
  json?: unknown;
  form?: FormData;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  idempotencyKey?: string;
  /** How often to try again while the server is away: by default 3 for reads and with an idempotency key, else 0. */
  retries?: number;
}

export interface StartOptions {
  model_name?: string;
  enable_thinking?: boolean;
  reasoning_effort?: 'minimal' | 'low' | 'medium' | 'high';
  stream?: boolean;
  enable_context_manager?: boolean;
  agent_id?: string;
  on_active?: 'stop' | 'reject' | 'queue';
  delay_seconds?: number;
  expires_in?: number;
  priority?: number;
  metadata?: Record<string, unknown>;
  webhook_url?: string;
  /** Default: a new one, so that a start whose answer was lost is not made twice. */
  idempotencyKey?: string;
  signal?: AbortSignal;
}

export interface InitiateOptions extends Omit<StartOptions, 'on_active' | 'expires_in'> {
  prompt: string;
  files?: Iterable<File>;
  is_agent_builder?: boolean;
  target_agent_id?: string;
}

export interface Initiated {
  thread_id: string;
  agent_run_id: string;
  project_id: string;
}

export interface Started {
  agent_run_id: string;
  status: string;
  phase: string;
}

export interface Run {
  id: string;
  threadId: string;
  status: 'running' | FinalStatus;
  phase: string;
  startedAt: string;
  completedAt: string | null;
  error: string | null;
  model_name: string | null;
  attempt: number;
  usage: Record<string, any>;
  metadata: Record<string, any>;
}

/** One event of the stream (docs/protocol.md), with `content` and `metadata` parsed. */
export interface RunEvent {
  id: number;
  type: string;
  statusType: string | null;
  streamStatus: string | null;
  messageId: string | null;
  threadId: string | null;
  createdAt: string | null;
  content: Record<string, any>;
  metadata: Record<string, any>;
  /** The run's status, of its last event; null of all others. */
  final: FinalStatus | null;
  message: string | null;
  /** As it came: JSON. */
  data: string;
}

export interface AnswerPart {
  kind: 'answer';
  key: string;
  text: string;
  reasoning: string;
  /** It is being said. */
  live: boolean;
  messageId: string | null;
  createdAt: string | null;
}

export interface ToolPart {
  kind: 'tool';
  key: string;
  callId: string;
  name: string;
  tag: string | null;
  /** JSON; not whole while `calling`. */
  arguments: string;
  /** `calling`: being written; `called`: stored, not started; `cancelled`: the run ended before the call did. */
  status: 'calling' | 'called' | 'running' | 'completed' | 'failed' | 'error' | 'cancelled';
  /** What it prints while it works; the end of it when it is long. */
  output: string;
  result: string | null;
  messageId: string | null;
  createdAt: string | null;
  startedAt: string | null;
  endedAt: string | null;
}

/** `about`: `user` (the prompt of a workflow's step), `summary`, `mcp_error`, `error`, `workflow_started`, … */
export interface NotePart {
  kind: 'note';
  key: string;
  about: string;
  text: string;
  content: Record<string, any>;
  messageId: string | null;
  createdAt: string | null;
}

export type Part = AnswerPart | ToolPart | NotePart;

/** A visit of a step of a workflow. */
export interface Step {
  key: string;
  stepId: string;
  name: string;
  type: string;
  visit: number;
  /** `started`, `completed`, `failed`, `retrying`, `waiting` */
  status: string;
  startedAt: string | null;
  at?: string | null;
  output?: unknown;
  error?: unknown;
  seconds?: number;
  until?: string;
}

export interface RunView {
  version: number;
  /** In order. A part that is the same object did not change. */
  readonly parts: readonly Part[];
  /** All answers, with an empty line between them. */
  readonly text: string;
  steps: Step[];
  /** Tokens, summed over the answers of this run that were stored. */
  usage: Record<string, number>;
  attempt: number;
  status: FinalStatus | null;
  message: string | null;
  finishReason: string | null;
  threadId: string | null;
  /** How many of the oldest parts were let go. */
  dropped: number;
}

export interface RunEnd {
  status: FinalStatus;
  message: string | null;
  /** Whether all events were seen; if not (of an old run only the last is kept), read the thread's messages. */
  whole: boolean;
}

export interface StreamOptions {
  /** The id of the event after which to begin; default: before the first. */
  after?: number;
  signal?: AbortSignal;
  transport?: 'fetch' | 'eventsource';
  share?: boolean;
  /** Milliseconds of silence after which a connection is given up; the server says something every 15 s (default 40 s). */
  silentAfter?: number;
  limits?: {parts: number; chars: number; toolChars: number; steps: number};
  onEvent?: (event: RunEvent) => void;
  /** At most once a frame; at the end at once. */
  onChange?: (stream: RunStream) => void;
  onState?: (state: RunState, attempt: number) => void;
  onEnd?: (end: RunEnd) => void;
  onError?: (error: Error) => void;
}

export class RunStream implements AsyncIterable<RunEvent> {
  readonly runId: string;
  readonly state: RunState;
  readonly attempt: number;
  readonly cursor: number;
  /** Whether the run goes on, as far as is known. */
  readonly running: boolean;
  readonly over: boolean;
  /** The same object until something changes. */
  readonly view: RunView;
  readonly run: Run | null;
  readonly error: Error | null;
  readonly done: Promise<RunEnd>;
  close(): void;
  [Symbol.asyncIterator](): AsyncIterableIterator<RunEvent>;
}

export class LongrunError extends Error {
  /** 0: the server cannot be reached. */
  readonly status: number;
  readonly detail: unknown;
  /** Milliseconds. */
  readonly retryAfter: number | null;
}

export class Longrun {
  constructor(options?: LongrunOptions);
  readonly options: LongrunOptions;
  initiate(options: InitiateOptions): Promise<Initiated>;
  start(threadId: string, options?: StartOptions): Promise<Started>;
  /** Add a person's message to a thread. */
  say(threadId: string, text: string, options?: RequestOptions): Promise<any>;
  stop(runId: string, options?: RequestOptions): Promise<{status: string}>;
  run(runId: string, options?: RequestOptions & {waitSeconds?: number}): Promise<Run>;
  messages(threadId: string, options?: RequestOptions): Promise<any[]>;
  stream(runId: string, options?: StreamOptions): RunStream;
  /** Any route, by its path after `/api/`: the JSON of its answer. Throws LongrunError. */
  request(path: string, options?: RequestOptions): Promise<any>;
  url(path: string, query?: Record<string, unknown>): URL;
  /** Who is calling, as headers. */
  headers(): Promise<Record<string, string>>;
  /** Ask for a new token after the header of the old one was refused; whether there is one. */
  refresh(refused?: string): Promise<boolean>;
  /** Whose streams these are; null while nobody knows. */
  audience(): string | null;
}
