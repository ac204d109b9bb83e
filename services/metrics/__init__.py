"""What processes count and measure, told at /metrics: `metrics.hand_overs.inc()` at the place of the fact.

Labels have few values, all of them ours: no ids, no names that users choose. What happens for each event is counted
once for a batch. What only the database or the broker knows is in `services.tally`.
"""

from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from services.metrics import values as values  # before the first metric is made: it says where numbers are kept

registry = CollectorRegistry()
disable_created_metrics()  # a series more for each counter and histogram, which a group of processes does not tell

FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
USUAL = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SLOW = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LONG = (0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21600.0)


def counter(name: str, says: str, *labels: str, **known: tuple[str, ...]) -> Counter:
    """`known`: labels and all their values, which are told from the beginning.

    Prometheus sees no increase in a series that begins above zero: of what is rare the first would go unnoticed.
    """
    made = Counter(f"longrun_{name}", says, (*labels, *known), registry=registry)
    for told in product(*known.values()) if known else ():
        made.labels(*told)
    return made


def gauge(name: str, says: str, *labels: str) -> Gauge:
    """Of all processes that live, the sum."""
    return Gauge(f"longrun_{name}", says, labels, registry=registry, multiprocess_mode="livesum")


def highest(name: str, says: str, *labels: str) -> Gauge:
    """Of all processes that live, the one that has most."""
    return Gauge(f"longrun_{name}", says, labels, registry=registry, multiprocess_mode="livemax")


def histogram(name: str, says: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"longrun_{name}", says, labels, registry=registry, buckets=buckets)


# Requests and streams.
requests_in_progress = gauge("http_requests_in_progress", "Requests that are being answered, open streams left out.")
request_seconds = histogram(
    "http_request_duration_seconds",
    "From the head of a request to the end of its answer; of a stream to its beginning.",
    USUAL, "method", "route", "status",
)  # fmt: skip
streams_active = gauge("streams_active", "Open event streams.")
streams_opened = counter("streams_opened_total", "Event streams that were opened.")
streams_refused = counter("streams_refused_total", "Event streams that were told to come again.", "reason")
streams_dropped = counter("streams_dropped_total", "Event streams whose reader did not read.")
readers_behind = gauge("stream_readers_behind", "Readers that have not been sent all that is known of their run.")
reader_lag = highest("stream_reader_lag_events", "How many events the slowest reader is behind.")

# Runs.
runs_active = gauge("runs_active", "Runs that are being driven.")
run_claims = counter(
    "run_claims_total",
    "Runs taken up: first, resumed after a hand-over, or taken over.",
    kind=("first", "resumed", "takeover"),
)
run_handovers = counter(
    "run_handovers_total",
    "Runs given back to the queue by their driver.",
    reason=("drain", "parked", "store away"),
)
run_ends = counter("run_ends_total", "Runs whose last event was said.", status=("completed", "failed", "stopped"))
run_queue_seconds = histogram("run_queue_seconds", "From when a run was due until it was first claimed.", SLOW)
run_first_event_seconds = histogram(
    "run_first_event_seconds", "From when a run was due until its first event was readable.", SLOW
)
run_duration_seconds = histogram("run_duration_seconds", "From the first claim of a run to its end.", LONG, "status")
lease_losses = counter(
    "lease_losses_total",
    "Leases that their holder lost.",
    reason=("another holds the lock", "the lock was lost", "the fence was raised", "neither store answered"),
)
sweeper_sent = counter(
    "sweeper_sent_total", "Runs that a sweeper sent again.", reason=("never confirmed", "message lost", "driver dead")
)
sweeper_ended = counter(
    "sweeper_ended_total",
    "Runs that a sweeper ended, or whose end it finished.",
    reason=("end was cut", "expired", "stopped"),
)
sweeper_failures = counter("sweeper_failures_total", "Steps of a sweep that could not be done.", "step")
messages_sent = counter(
    "messages_sent_total",
    "Messages of runs that the broker was asked to take.",
    outcome=("sent", "failed", "outbox full"),
)
messages_waiting = gauge("messages_outbox", "Messages that wait for the broker in a process.")

# Events.
events_appended = counter("events_appended_total", "Events that were appended to the logs of runs.")
events_archived = counter("events_archived_total", "Events that were archived in Postgres.")
append_seconds = histogram("event_append_seconds", "One append of all that is pending in a process.", FAST)
events_pending = gauge("events_pending_bytes", "Bytes of events that are not appended yet.")

# Models and tools.
model_call_seconds = histogram(
    "model_call_duration_seconds", "A call of a model, to the end of its answer.", SLOW, "provider", "model", "outcome"
)
model_first_seconds = histogram(
    "model_first_token_seconds", "A call of a model, to the first it said.", SLOW, "provider", "model"
)
model_tokens = counter("model_tokens_total", "Tokens as providers counted them.", "provider", "model", "kind")
model_cost = counter("model_cost_credits_total", "What calls of models were charged.", "provider", "model")
tool_seconds = histogram("tool_call_duration_seconds", "A call of a tool.", SLOW, "tool", "outcome")

# Schedules and webhooks.
schedule_firings = counter(
    "schedule_firings_total",
    "Times of schedules, by what came of them; nobody was there in time for those that were missed.",
    outcome=("started", "failed", "missed", "skipped"),
)
schedule_late_seconds = histogram(
    "schedule_late_seconds", "From a time of a schedule until what it starts was started.", SLOW
)
schedule_postponed = counter(
    "schedule_postponed_total",
    "Due schedules that were left for a little later.",
    reason=("held", "store away", "broken"),
)
webhook_attempt_seconds = histogram(
    "webhook_attempt_duration_seconds", "An attempt to tell a webhook that a run has ended.", SLOW, "outcome"
)
webhook_lost = counter("webhook_attempts_lost_total", "Deliveries that ended because their last attempt was lost.")
triggers = counter(
    "webhook_triggers_total",
    "Webhooks that came in to start a workflow.",
    outcome=("accepted", "refused", "limited", "declined", "failed"),
)

# Stores.
pool_connections = gauge("postgres_pool_connections", "Connections to Postgres.", "pool", "state")
pool_limit = gauge("postgres_pool_limit", "How many connections to Postgres there may be.", "pool")
pool_wait_seconds = histogram("postgres_pool_wait_seconds", "Waiting for a connection to Postgres.", FAST)
query_seconds = histogram("postgres_query_duration_seconds", "A statement in Postgres.", FAST, "operation")
query_errors = counter("postgres_query_errors_total", "Statements that failed.", "operation", "kind")
redis_connections = gauge("redis_pool_connections", "Connections to Redis that are in use.", "server")
redis_limit = gauge("redis_pool_limit", "How many connections to Redis there may be.", "server")
cache_lookups = counter("cache_lookups_total", "What was asked of a cache.", "cache", "result")

# Processes.
processes = gauge("processes", "Processes that live.")
resident_memory = gauge("process_resident_memory_bytes", "Memory of all processes.")
highest_memory = highest("process_resident_memory_highest_bytes", "Memory of the process that has most.")
cpu_seconds = counter("process_cpu_seconds_total", "Processor time of all processes.")
open_files = highest("process_open_fds", "Open files of the process that has most.")
open_files_limit = highest("process_max_fds", "How many files a process may open.")
loop_lag = highest("event_loop_lag_seconds", "How late the event loop of a process woke of late.")
scrape_errors = counter("metrics_scrape_errors_total", "Scrapes without what only the database knows.")
