"""The loop, in every worker, that tells the webhooks of runs how they ended."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from uuid import UUID

from structlog.contextvars import bound_contextvars

from services import metrics
from services.background import repeat
from services.joining import Joined
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.runs.naming import requested_by
from services.secrets import Secrets, SecretUnreadable
from services.webhooks import account_secrets, claims, deliveries, sending
from services.webhooks.account_secrets import AccountSecret
from services.webhooks.claims import Claim, Limits
from services.webhooks.deliveries import Outcome
from worker.process import Process

BATCH = 200
CLAIMED_FOR = 2
"""Times as long as an attempt may take a claim is kept: until its outcome is written."""
WRITES = 5
WRITE_PAUSE_SECONDS = 1.0
NO_ACCOUNT = "The account has no secret to sign with: it was deleted."
SEALED = "The account's secret cannot be opened: no key in SECRETS_KEYS fits."


async def keep_delivering(process: Process) -> None:
    await repeat(Deliveries(process).tick)


class Deliveries:
    """The deliveries of one process."""

    def __init__(self, process: Process) -> None:
        self.process, self.stores, self.settings = process, process.stores, process.settings
        webhooks = self.settings.webhooks
        self.limits = Limits(webhooks.parallel, webhooks.parallel_per_account, webhooks.parallel_per_receiver)
        self.secrets = Secrets.of(self.settings.secrets)
        self.under_way: dict[tuple[UUID, int], Claim] = {}
        self.freed = asyncio.Event()
        """Set when one is over: what waited behind it may begin."""
        self.outcomes = Joined[Outcome, None](partial(deliveries.conclude_all, self.stores.pool))

    async def tick(self) -> None:
        """Whatever is due, then a pause, which ends early when one is over that others may wait behind."""
        self.freed.clear()
        if not self.process.leaving.is_set():
            try:
                await self.deliver_due()
            except PostgresUnreachable as error:
                logger.warning("webhook.postponed", error=repr(error))
        seconds = self.settings.webhooks.poll_interval.total_seconds()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.75, 1.25)):  # noqa: S311 - jitter, no secret
                await self.freed.wait()

    async def deliver_due(self) -> None:
        while await deliveries.note_ended(self.stores.pool, BATCH) == BATCH:
            pass
        while len(self.under_way) < self.limits.all and (claimed := await self.claim()):
            await self.begin(claimed)

    async def claim(self) -> list[Claim]:
        webhooks = self.settings.webhooks
        return await claims.take(
            self.stores.pool,
            self.under_way.values(),
            self.limits,
            lost_after=CLAIMED_FOR * webhooks.timeout,
            most=webhooks.attempts,
        )

    async def begin(self, claimed: Sequence[Claim]) -> None:
        self.under_way |= {(each.agent_run_id, each.attempt): each for each in claimed}
        try:
            accounts = list({each.account_id for each in claimed})
            known = await account_secrets.of_accounts(self.stores.pool, self.secrets, accounts)
        except BaseException:
            for each in claimed:
                self.end(each)
            raise
        for each in claimed:
            self.stores.background.spawn(self.deliver(each, known.get(each.account_id)))

    async def deliver(self, claimed: Claim, secret: AccountSecret | None) -> None:
        with bound_contextvars(agent_run_id=str(claimed.agent_run_id), **requested_by(claimed.request_id or "")):
            try:
                outcome = await self.attempt(claimed, secret)
                came_to = "again" if outcome.state == "pending" else outcome.state
                metrics.webhook_attempt_seconds.labels(came_to).observe(outcome.duration)
                await self.write(outcome)
            finally:
                self.end(claimed)
            log = logger.info if outcome.state == "delivered" else logger.warning
            log(
                "webhook.attempted",
                attempt=claimed.attempt,
                state=outcome.state,
                status_code=outcome.status_code,
                error=outcome.error,
            )

    def end(self, claimed: Claim) -> None:
        del self.under_way[claimed.agent_run_id, claimed.attempt]
        self.freed.set()

    async def attempt(self, claimed: Claim, secret: AccountSecret | None) -> Outcome:
        if secret is None:
            return sending.judged(self.settings.webhooks, claimed, sending.Answer(error=NO_ACCOUNT), 0)
        try:
            keys = secret.keys(self.secrets)
        except SecretUnreadable:
            logger.error("webhook.secret_unreadable", account_id=str(claimed.account_id))
            return sending.judged(self.settings.webhooks, claimed, sending.Answer(error=SEALED), 0)
        return await sending.send(self.settings, claimed, keys)

    async def write(self, outcome: Outcome) -> None:
        """With patience: what is not written is sent again once the claim counts as lost."""
        for number in range(1, WRITES + 1):
            try:
                await self.outcomes.ask(outcome)
            except PostgresUnreachable as error:
                logger.warning("webhook.outcome_unwritten", tries=number, error=repr(error))
                await asyncio.sleep(WRITE_PAUSE_SECONDS)
            else:
                return
