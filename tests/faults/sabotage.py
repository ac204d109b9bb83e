"""Mechanisms broken on purpose: for each, the smallest break and a test that must notice it."""

from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Break:
    """`old` becomes `new` in `file`; `test` fails then."""

    what: str
    file: str
    old: str
    new: str
    test: str

    def apply(self, root: Path) -> None:
        """Raises: ValueError when the mechanism no longer reads like this, so that the list is kept true."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {text.count(self.old)} times: {self.old}")
        path.write_text(text.replace(self.old, self.new))


LOG, TAILS, LIFECYCLE, LEASE = (
    f"tests/services/runs/test_{name}.py" for name in ("event_log", "tails", "lifecycle", "lease")
)
SWEEPER, BROKER = "tests/worker/test_sweeper.py", "tests/services/test_broker.py"
PUBLISHER = "tests/services/test_publisher.py"
STARTING, KEYS = "tests/services/runs/test_starting.py", "tests/services/runs/test_idempotency.py"
SLOTS, RATE = "tests/services/runs/test_slots.py", "tests/services/test_rate_limit.py"
PARALLEL = "tests/api/test_parallel_starts.py"
STEPS = "tests/agent/workflows/test_crashes.py"

BREAKS = (
    Break(
        "no fence in Redis",
        "services/runs/log_script.py",
        "    elseif owner ~= ARGV[at] then verdicts[log] = 'lost'\n",
        "",
        f"{LOG}::test_nothing_is_appended_once_the_lock_is_in_other_hands",
    ),
    Break(
        "no fence in Postgres",
        "services/runs/lifecycle.py",
        "usage = usage || $5, completed_at = now(), updated_at = now()\n        WHERE id = $1 AND attempt = $2",
        "usage = usage || $5, completed_at = now(), updated_at = now()\n        WHERE id = $1 AND $2 = $2",
        f"{LIFECYCLE}::test_a_fence_that_was_raised_refuses_the_end",
    ),
    Break(
        "no fence taken from the row when the lock is missing",
        "services/runs/log_mender.py",
        "if not await self.leases.retake(log.fence):",
        "if not await self.redis.set(log.lock, log.owner, ex=60):",
        f"{LOG}::test_a_missing_lock_refuses_an_append_once_the_fence_was_raised",
    ),
    Break(
        "no sweeper",
        "worker/sweeper.py",
        "    for step in STEPS:\n",
        "    for step in STEPS[:0]:\n",
        f"{SWEEPER}::test_a_message_that_was_never_confirmed_is_sent_again_after_a_while",
    ),
    Break(
        "a sweeper that takes the run of a live driver",
        "worker/sweeper.py",
        "if not locked]",
        "]",
        f"{SWEEPER}::test_the_run_of_a_dead_driver_is_sent_only_when_its_lock_is_gone",
    ),
    Break(
        "LRANGE before SUBSCRIBE, and nothing read after it",
        "services/runs/tails.py",
        """\
            await self.channels.add(keys.news(run_id), tail.listener)
        except BaseException:
            self.leave(reader)
            raise
        self.mark(tail)
""",
        """\
            await self.read_news([tail])
            await self.channels.add(keys.news(run_id), tail.listener)
        except BaseException:
            self.leave(reader)
            raise
""",
        f"{TAILS}::test_the_last_word_said_while_a_reader_subscribes_is_heard_at_once",
    ),
    Break(
        "nothing is read again after a reconnect",
        "services/runs/tail.py",
        "on_reset=lambda: mark(self)",
        "on_reset=lambda: None",
        f"{TAILS}::test_what_nobody_announced_is_found_when_the_subscription_comes_back",
    ),
    Break(
        "acks of stale delivery tags",
        "services/broker.py",
        "        if message.consumer is self:\n",
        "        if True:\n",
        f"{BROKER}::test_an_ack_of_an_earlier_channel_is_dropped",
    ),
    Break(
        "a publisher that keeps a broken connection",
        "services/publisher.py",
        "            del self.broker.connection\n",
        "            pass\n",
        f"{PUBLISHER}::test_a_publisher_that_idles_through_an_outage_sends_and_asks_again_when_rabbitmq_is_back",
    ),
    Break(
        "no refill of a list that Redis lost",
        "services/runs/log_script.py",
        "    elseif length < expected then verdicts[log] = 'short'\n",
        "",
        f"{LOG}::test_a_flush_of_redis_between_two_appends_changes_no_id_and_no_byte",
    ),
    Break(
        "a repeated append that is not recognised",
        "services/runs/log_script.py",
        "    elseif length > expected then verdicts[log] = 'longer'\n",
        "",
        f"{LOG}::test_an_append_whose_answer_was_lost_is_not_doubled",
    ),
    Break(
        "ids given out that no row reserves",
        "services/runs/log_writer.py",
        "        if not whole and not log.ended and earlier > log.length:\n",
        "        if False:\n",
        f"{LOG}::test_ids_that_nobody_remembers_become_void",
    ),
    Break(
        "a stop that another end may overtake",
        "services/runs/lifecycle.py",
        "            status = CASE WHEN stop_requested_at IS NULL THEN $3 ELSE 'stopped' END,\n"
        "            error = CASE WHEN stop_requested_at IS NULL THEN $4 END,\n            usage",
        "            status = $3, error = $4, usage",
        f"{LIFECYCLE}::test_a_stop_that_returned_first_can_only_end_stopped",
    ),
    Break(
        "a lock that is not renewed",
        "services/runs/lease.py",
        "        await self.renew_locks(self.in_order())\n",
        "",
        f"{LEASE}::test_the_lock_has_a_ttl_and_is_renewed_while_held",
    ),
    Break(
        "heartbeats that wait for a connection behind the agents",
        "services/runs/stores.py",
        "shards = make_shards(settings, upkeep, instance_id)",
        "shards = make_shards(settings, pool, instance_id)",
        f"{LEASE}::test_whoever_uses_up_the_pool_stops_no_heartbeat_and_no_archive",
    ),
    Break(
        "starts of one project that do not take turns",
        "services/runs/starting.py",
        "    allowed = await slots.take_turns(conn, new.account_id, new.project_id, limits)\n",
        "    allowed = slots.NO_LIMIT\n",
        f"{PARALLEL}::test_of_many_that_reject_one_is_accepted_and_the_others_are_told_which",
    ),
    Break(
        "starts of one account that do not take turns",
        "services/runs/slots.py",
        "CASE WHEN allowed > 0 THEN pg_advisory_xact_lock({LOCK}) END",
        "allowed > 0",
        f"{SLOTS}::test_starts_of_an_account_take_turns_and_those_without_a_limit_do_not",
    ),
    Break(
        "a delayed run that needs no slot",
        "services/runs/slots.py",
        "OR allowed = 0 OR place <= allowed)",
        "OR true)",
        f"{SLOTS}::test_a_delayed_run_holds_no_slot_and_waits_for_one_when_it_is_due",
    ),
    Break(
        "a rate limit that counts from the minute's beginning",
        "services/rate_limit.py",
        "tonumber(oldest) + window - now or 0",
        "window - now % window or 0",
        f"{RATE}::test_what_is_a_minute_old_does_not_count_and_what_is_younger_does",
    ),
    Break(
        "a run that is claimed out of its turn",
        "services/runs/lifecycle.py",
        "              AND NOT {EARLIER_UNFINISHED}\n            RETURNING",
        "            RETURNING",
        f"{PARALLEL}::test_many_that_queue_run_one_after_the_other_first_in_first_out",
    ),
    Break(
        "no index that lets one run of a project be running",
        "migrations/versions/0002_starts.py",
        "CREATE UNIQUE INDEX agent_runs_one_running",
        "CREATE INDEX agent_runs_one_running",
        f"{LIFECYCLE}::test_of_two_runs_that_are_claimed_in_one_instant_out_of_turn_one_is_claimed",
    ),
    Break(
        "a delayed run that stops the others before it is due",
        "services/runs/starting.py",
        "return not self.delay",
        "return True",
        f"{STARTING}::test_a_delayed_run_stops_nothing_before_it_is_due",
    ),
    Break(
        "a delayed run that is not judged when it is due",
        "worker/sweeper.py",
        "    judge_due,\n",
        "",
        f"{SWEEPER}::test_a_delayed_run_stops_the_others_when_it_is_due_and_begins_after_them",
    ),
    Break(
        "a delayed run that is judged while a start is under way",
        "services/runs/starting.py",
        "    if not await slots.has_turn(conn, project_id, limits) or not",
        "    if not",
        f"{STARTING}::test_a_start_in_progress_when_a_delay_ends_is_judged_too",
    ),
    Break(
        "an idempotency key that is claimed after its run was made",
        "services/runs/starting.py",
        """\
        known_id = await idempotency.claim(conn, key, run_id) if key else run_id
        if known_id != run_id:
            known = await store.get(conn, known_id)
            assert known, "a key goes with its run"
            return known
        started = await make(conn, run_id)
""",
        """\
        started = await make(conn, run_id)
        known_id = await idempotency.claim(conn, key, run_id) if key else run_id
        if known_id != run_id:
            known = await store.get(conn, known_id)
            assert known
            return known
""",
        f"{PARALLEL}::test_many_with_one_key_are_one_run",
    ),
    Break(
        "an idempotency key that does not remember what was asked for",
        "services/runs/idempotency.py",
        'if row["fingerprint"] != asked.fingerprint:',
        "if False:",
        f"{KEYS}::test_a_key_with_another_request_is_refused_naming_the_run",
    ),
    Break(
        "a run that expires after it was begun",
        "worker/sweeper.py",
        "status = 'queued' AND started_at IS NULL AND expires_at",
        "status = 'queued' AND expires_at",
        f"{SWEEPER}::test_a_run_that_was_begun_and_handed_over_never_expires",
    ),
    Break(
        "a message that is sent again without its priority",
        "services/runs/dispatch.py",
        "            priority=run.priority,\n",
        "            priority=5,\n",
        f"{SWEEPER}::test_a_message_that_is_sent_again_keeps_its_priority",
    ),
    Break(
        "a step that is made again although nobody knows whether it happened",
        "agent/workflows/engine.py",
        "        if begun and not repeatable and not is_paused(begun):\n",
        "        if False:\n",
        f"{STEPS}::test_wherever_a_worker_dies_what_must_not_be_repeated_is_not",
    ),
    Break(
        "an outcome of a step that is not written down",
        "services/workflow_steps.py",
        "            status = excluded.status, output = excluded.output",
        "            output = excluded.output",
        f"{STEPS}::test_wherever_a_worker_dies_what_must_not_be_repeated_is_not",
    ),
    Break(
        "a deletion that does not look again for runs once it has the turn",
        "api/removal.py",
        "            if await store.lock_all(conn, **place):\n",
        "            if await store.lock_all(conn, **place) is not None:\n",
        "tests/api/test_threads.py::test_a_run_that_began_while_what_it_is_in_was_being_deleted_is_stopped_first",
    ),
    Break(
        "an execution that begins before it has the turn of its project",
        "services/workflow_executions.py",
        "    if workflow.project_id:  # its turn",
        "    if False:  # its turn",
        "tests/api/test_executions.py"
        "::test_an_execution_that_begins_while_its_project_is_deleted_and_the_deletion_do_not_wait_for_each_other",
    ),
)


def table() -> str:
    """For docs/reliability.md."""
    rows = "".join(f"| {one.what} | `{one.file}` | `{one.test}` |\n" for one in BREAKS)
    return f"| broken | in | noticed by |\n| --- | --- | --- |\n{rows}"
