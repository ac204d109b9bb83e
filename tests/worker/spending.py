"""Runs that spend credits while they are cut off at any statement or await, taken over, stopped, and out of credit."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import cycle
from typing import Any
from uuid import UUID, uuid4

from httpx2 import AsyncClient

from agent import charges, loop
from agent.context import RunContext, RunFailed, RunStopped
from agent.llm.chunk import Chunk, ToolCallPart, Usage
from agent.llm.request import ModelRequest
from services.billing import ledger, prices, reserves
from services.billing.credits import MARGIN, CreditsGate
from services.postgres import Pool, Unreachable
from services.runs import lifecycle
from services.runs.fence import Fence, FenceLost
from services.runs.store import Run
from services.settings import BillingSettings, Price, Settings
from tests.agent.seeds import RecordingLog
from tests.services.runs import seeds
from tests.services.runs.fuse import Fuse, Killed, fused_pool

MODEL = "openai/scripted"
PRICE = Price.model_validate({"input": 3, "output": 15, "cached_input": "0.3", "reasoning": "15.000001"})
BILLING = BillingSettings(kind="credits", prices={"openai/*": PRICE})
MOST_ANSWERED = 4000
SOON = timedelta(milliseconds=1)
FATES = ("peace", "dies", "breaks", "cancelled", "stopped", "overtaken")
SWEEP_SECONDS = 0.5
ATTEMPTS = 6
"""After so many a run is left in peace, so that it ends."""

WATCH = """
CREATE TABLE balances_seen (account_id uuid, balance bigint, reserved bigint);
CREATE FUNCTION see_balance() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO balances_seen VALUES (NEW.account_id, NEW.balance, NEW.reserved); RETURN NULL; END $$;
CREATE TRIGGER see_balance AFTER INSERT OR UPDATE ON credit_balances FOR EACH ROW EXECUTE FUNCTION see_balance();
"""


class Watching(CreditsGate):
    """Remembers the largest reserve that was asked for."""

    def __init__(self) -> None:
        super().__init__(BILLING)
        self.largest = 0

    async def reserve(self, conn: Any, fence: Fence, call: Any) -> Any:
        amount = prices.most(PRICE, int(call.prompt_tokens * MARGIN), call.most_answered)
        self.largest = max(self.largest, amount)
        return await super().reserve(conn, fence, call)


@dataclass
class Spenders:
    """Some accounts and their runs; `seen` counts what became of attempts, so that a test knows what it tested."""

    pool: Pool
    http: AsyncClient
    settings: Settings
    dice: random.Random
    gate: Watching = field(default_factory=Watching)
    fates: Iterator[str] = field(default_factory=lambda: cycle(FATES))
    seen: Counter[str] = field(default_factory=Counter)
    failed: set[UUID] = field(default_factory=set)
    """Runs of which a call failed: text of it that was kept is free, also when another attempt went on."""
    ghosts: set["asyncio.Task[str]"] = field(default_factory=set)

    async def scripted(self, _settings: Settings, _http: AsyncClient, request: ModelRequest) -> AsyncGenerator[Chunk]:
        """A few turns that call a tool, then words; now and then it breaks off."""
        dice = self.dice
        for word in range(dice.randrange(1, 6)):
            yield Chunk(text=f"word {word} ")
            await asyncio.sleep(0)
        if dice.random() < 0.03:
            raise RunFailed("The connection broke off.")
        turn = sum(said["role"] == "tool" for said in request.messages)
        acts = turn < 2 and dice.random() < 0.7
        if acts:
            yield Chunk(tool_calls=(ToolCallPart(0, f"call_{uuid4().hex}", "task_list", '{"tasks": []}'),))
        usage = self.usage(request)
        yield Chunk(finish_reason="tool_calls" if acts else "stop", usage=usage)

    def usage(self, request: ModelRequest) -> Usage:
        dice = self.dice
        sent = int(request.expected_tokens * dice.uniform(0.5, 1.45))
        cached = dice.randrange(sent + 1)
        said = dice.randrange(1, MOST_ANSWERED)
        return Usage(sent, said, sent + said, cached, 0, dice.randrange(said))

    async def make_accounts(self, count: int, granted: tuple[int, int]) -> list[UUID]:
        """Each with credits between the two."""
        await self.pool.execute(WATCH)
        made = []
        for _ in range(count):
            place = await seeds.make_place(self.pool)
            await ledger.grant(self.pool, place.account_id, self.dice.randrange(*granted))
            made.append(place.account_id)
        return made

    async def make_run(self, account_id: UUID) -> Run:
        """On a thread of its own, so that the runs of an account are parallel."""
        return await seeds.make_run(self.pool, await seeds.make_place(self.pool, account_id), model=MODEL)

    async def spend(self, account_id: UUID) -> None:
        """One run, from its start to its end, over as many attempts as it takes."""
        run = await self.make_run(account_id)
        for number in range(100):
            attempt = await self.claim(run)
            if attempt is None:
                break
            ended = await self.attempt(attempt, peaceful=number >= ATTEMPTS)
            self.seen[ended] += 1
        row = await seeds.row_of(self.pool, run.id)
        assert row.final, row
        self.seen[row.status] += 1
        await self.pool.execute("UPDATE agent_runs SET closed_at = now() WHERE id = $1", run.id)

    async def claim(self, run: Run) -> Run | None:
        """None once it has ended."""
        now = await seeds.age(self.pool, run.id, "heartbeat_at")
        return None if now.final else await lifecycle.claim(self.pool, now, "worker", dead_after=SOON)

    async def attempt(self, run: Run, *, peaceful: bool) -> str:
        """Drive it until it ends, dies, is stopped, or is overtaken; how."""
        fuse = Fuse()
        fate = "peace" if peaceful else next(self.fates)
        if fate in ("dies", "breaks"):
            left = self.dice.randrange(1, self.dice.choice((3, 16)))
            fuse.light(left, "dies" if fate == "dies" else "breaks", after=self.dice.random() < 0.5)
        ctx = RunContext(
            run, Fence(run.id, run.attempt, "worker"), RecordingLog(), fused_pool(self.pool, fuse), self.http,
            self.settings, gate=self.gate,
        )  # fmt: skip
        work = asyncio.create_task(self.drive(ctx))
        if fate in ("cancelled", "stopped", "overtaken"):
            await self.wait_a_little(work)
        if work.done() or fate in ("peace", "dies", "breaks"):
            return await work
        if fate == "overtaken":
            self.ghosts.add(work)
            return fate
        work.cancel()
        with suppress(asyncio.CancelledError):
            return await work
        return await self.stop(ctx) if fate == "stopped" else fate

    async def wait_a_little(self, work: "asyncio.Task[str]") -> None:
        await asyncio.wait({work}, timeout=self.dice.uniform(0, 0.06))

    async def drive(self, ctx: RunContext) -> str:
        """As worker.runner and worker.endings do."""
        try:
            ending = await self.outcome(ctx)
            if ending != "completed":
                await loop.keep_draft(ctx)
            await charges.settle_rest(ctx)
            await lifecycle.end(ctx.pool, ctx.fence, ending, error=None, usage=ctx.usage)
            return "ended"
        except Killed:
            return "died"
        except FenceLost:
            return "lost"
        except Unreachable:
            return "handed over"

    async def outcome(self, ctx: RunContext) -> str:
        try:
            await loop.run_agent(ctx)
            return "completed"
        except RunStopped:
            self.seen["out of credit"] += 1
            return "stopped"
        except RunFailed:
            self.failed.add(ctx.run.id)
            return "failed"

    async def stop(self, ctx: RunContext) -> str:
        """Somebody asked for it: the text so far is kept, unless the run had ended."""
        try:
            await loop.keep_draft(ctx)
            await charges.settle_rest(ctx)
        except FenceLost:
            return "ended before it was stopped"
        await lifecycle.end(self.pool, ctx.fence, "stopped", error=None, usage={})
        return "stopped by a person"

    async def all(self, accounts: list[UUID], runs: int, at_once: int) -> None:
        turns = asyncio.Semaphore(at_once)

        async def one(account_id: UUID) -> None:
            async with turns:
                await self.spend(account_id)

        sweeping = asyncio.create_task(self.keep_freeing())
        async with asyncio.TaskGroup() as group:
            for number in range(runs):
                group.create_task(one(accounts[number % len(accounts)]))
        sweeping.cancel()
        self.seen.update(f"ghost {ended}" for ended in await asyncio.gather(*self.ghosts))

    async def keep_freeing(self) -> None:
        """What the sweeper does about reserves, while runs wait for what the dead have reserved."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await reserves.free_dead(self.pool, timedelta(seconds=SWEEP_SECONDS), 200)

    async def free(self) -> None:
        """The same, an hour later."""
        await self.pool.execute("UPDATE credit_reserves SET created_at = now() - interval '1 hour'")
        while await reserves.free_dead(self.pool, timedelta(minutes=1), 200):
            pass

    async def check(self) -> None:
        await self.check_balances()
        await self.check_bills()

    async def check_balances(self) -> None:
        assert not await self.pool.fetch("SELECT * FROM credit_reserves"), "reserves were left"
        wrong = await self.pool.fetch(
            """
            SELECT b.*, l.amount FROM credit_balances b
            JOIN (SELECT account_id, sum(amount) AS amount FROM credit_ledger GROUP BY 1) l USING (account_id)
            WHERE b.reserved <> 0 OR b.balance <> l.amount
            """
        )
        assert not wrong, wrong
        lowest = await self.pool.fetchval("SELECT min(balance) FROM balances_seen")
        assert lowest > -self.gate.largest, (lowest, self.gate.largest)

    async def check_bills(self) -> None:
        """Each usage that a provider told and that was stored is billed once, and nothing else but words cut off."""
        stored = await self.pool.fetch("SELECT * FROM messages WHERE type = 'assistant'")
        bills = await self.pool.fetch("SELECT * FROM credit_ledger WHERE kind = 'debit'")
        counted = {row["message_id"]: row["metadata"]["usage"] for row in stored if "usage" in row["metadata"]}
        billed = [row for row in bills if not row["estimated"]]
        assert len(billed) == len({row["message_id"] for row in billed}), "a usage was billed twice"
        assert {row["message_id"]: row["usage"] for row in billed} == counted
        assert -sum(row["amount"] for row in billed) == sum(prices.cost(PRICE, usage) for usage in counted.values())
        cut = {row["message_id"] for row in stored if row["metadata"].get("interrupted")}
        estimated = {row["message_id"] for row in bills if row["estimated"]}
        unbilled = [row for row in stored if row["message_id"] in cut - estimated]
        assert estimated <= cut
        assert {row["agent_run_id"] for row in unbilled} <= self.failed, "only a call that failed is free"
