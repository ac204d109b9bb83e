"""Executes a workflow: walks its graph, writes every step down before the next, goes on where an attempt left off."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from agent import loop as agent_loop
from agent import profile
from agent.context import RunContext, RunFailed, RunParked
from agent.equipment import equipped
from agent.workflows import acts, checking, expressions, inputs, news, values
from agent.workflows.acts import ACTS, Act
from agent.workflows.bounds import Budget, ExpressionFailed
from agent.workflows.configs import (
    MAX_WAIT_SECONDS,
    ConditionConfig,
    InputConfig,
    LoopConfig,
    ParallelConfig,
    TransformConfig,
    WaitConfig,
)
from agent.workflows.definition import Definition, Step
from agent.workflows.expressions import BadExpression
from agent.workflows.failures import Broken, StepFailed
from agent.workflows.inputs import BadInput
from agent.workflows.journal import Journal
from agent.workflows.values import Frame, TooLarge
from services.log import logger
from services.workflow_steps import Outcome, Visit

MAX_VISITS = 10_000
MAX_PAUSE_SECONDS = 60.0
RETOLD = 10
"""How many of the newest steps are told again by an attempt that takes over: what was last said may be lost."""
CUT = (
    "Step {title} was cut off while it was under way: whether it took effect is not known, and it is not repeatable, "
    "so it was not made again."
)


async def run_workflow(ctx: RunContext) -> None:
    """Drive one execution to its end, or until it has to wait.

    Raises: RunFailed, RunStopped with the sentence for the user; RunParked; FenceLost.
    """
    journal = await Journal.open(ctx)
    definition = Definition.model_validate(journal.execution.definition)
    for visit in journal.newest:
        add_usage(ctx, visit.usage)
    if not journal.visits:
        await ctx.log.append(news.of_workflow("workflow_started", journal.execution, ctx.run.id))
    try:
        if journal.execution.deterministic:
            await within_its_time(ctx, definition, journal)
        else:
            await agent_loop.run_agent(ctx)
    except RunFailed as failed:
        said = news.of_workflow("workflow_failed", journal.execution, ctx.run.id, error=str(failed))
        await ctx.log.append(said)
        raise
    await ctx.log.append(news.of_workflow("workflow_completed", journal.execution, ctx.run.id))


async def within_its_time(ctx: RunContext, definition: Definition, journal: Journal) -> None:
    """Raises: as `run_workflow`."""
    most = definition.max_execution_time
    left = most - ctx.run.worked.total_seconds()
    try:
        async with asyncio.timeout(max(left, 0)) as limit, tools_of(ctx, definition):
            await Engine(ctx, definition, journal).run()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise RunFailed(f"The workflow was ended: it worked for longer than {most} seconds.") from error


@asynccontextmanager
async def tools_of(ctx: RunContext, definition: Definition) -> AsyncIterator[None]:
    """The tools that the steps need; MCP servers only for those that may call them."""
    if definition.types & {"AGENT", "MCP_TOOL"}:
        async with equipped(ctx):
            yield
        return
    if "TOOL" in definition.types and ctx.tools is None:
        ctx.tools = (await profile.load(ctx)).tools
    yield


def add_usage(ctx: RunContext, usage: dict[str, Any], known: dict[str, Any] | None = None) -> None:
    """Add tokens to those of the run, but for those that are `known`."""
    for name, tokens in usage.items():
        ctx.usage[name] = ctx.usage.get(name, 0) + tokens - (known or {}).get(name, 0)


class Engine:
    """One attempt at an execution. What was written down is not done again: walking past it is all that is left."""

    def __init__(self, ctx: RunContext, definition: Definition, journal: Journal) -> None:
        self.ctx, self.definition, self.journal = ctx, definition, journal
        self.regions = checking.read(definition).regions
        self.values = journal.values
        self.visited = 0
        self.speaking = asyncio.Lock()
        """Held by the AGENT step whose turn it is: a thread is one conversation."""
        self.kinds: dict[str, Callable[[Step, Frame, Visit | None], Awaitable[Outcome]]] = {
            "INPUT": self.take_inputs,
            "CONDITION": self.decide,
            "TRANSFORM": self.transform,
            "LOOP": self.go_round,
            "PARALLEL": self.branch_out,
            "WAIT": self.wait,
            **dict.fromkeys(ACTS, self.act),
        }

    async def run(self) -> None:
        """Raises: RunFailed, RunStopped, RunParked, FenceLost."""
        for visit in self.journal.newest[-RETOLD:]:
            await self.tell_end(self.definition.by_id[visit.step_id], visit)
        try:
            await self.walk(cast(str, self.definition.entry_point), Frame())
        except Broken as broken:
            step = self.definition.by_id[broken.step_id]
            raise RunFailed(f"Step {step.title} failed: {broken}") from broken

    async def walk(self, entry: str, frame: Frame) -> None:
        """The steps of a region that are reached, each after all that lead to it. Raises: Broken."""
        reached = {entry}
        for step_id in self.regions[entry].order:
            if step_id in reached:
                reached.update(await self.visit(self.definition.by_id[step_id], frame))

    async def visit(self, step: Step, frame: Frame) -> list[str]:
        """See to it that a step has been done; where to go from it. Raises: Broken."""
        self.visited += 1
        if self.visited > MAX_VISITS:
            raise RunFailed(f"The workflow was ended: it took more than {MAX_VISITS:,} steps.")
        visit = self.journal.find(step.id, frame)
        if visit is None or visit.status == "running":
            visit = await self.perform(step, frame, visit)
        if visit.status == "failed":
            if step.error_handler is None:
                raise Broken(step.id, visit.error or "")
            return [step.error_handler]
        if step.type == "CONDITION":
            return step.next_steps[:1] if visit.output["result"] else step.next_steps[1:2]
        return step.next_steps

    async def perform(self, step: Step, frame: Frame, begun: Visit | None) -> Visit:
        """Do a step and write down how it ended."""
        if begun is None:
            await self.tell(news.of_step("step_started", step, frame.visit, self.journal.execution, self.ctx.run.id))
        try:
            outcome = await self.kinds[step.type](step, frame, begun)
            self.values.make_room(step.id, outcome.output, outcome.sets)
        except (StepFailed, TooLarge, BadExpression, ExpressionFailed) as failed:
            outcome = Outcome("failed", error=str(failed))
        visit = await self.journal.end(step.id, frame, outcome)
        await self.tell_end(step, visit)
        return visit

    async def tell(self, event: Any) -> None:
        await self.ctx.log.append(event)

    async def tell_end(self, step: Step, visit: Visit) -> None:
        await self.tell(news.of_ended(step, visit, self.journal.execution, self.ctx.run.id))

    def value(self, text: str, frame: Frame, budget: Budget | None = None) -> Any:
        """Raises: ExpressionFailed."""
        return expressions.evaluate(text, self.values.scope(frame), budget)

    async def take_inputs(self, step: Step, frame: Frame, begun: Visit | None) -> Outcome:
        told = cast(InputConfig, step.told)
        try:
            given = inputs.read(Definition(steps=[step]), self.values.variables)
        except BadInput as error:
            raise StepFailed(f"The variable {error}.", again=False) from error
        taken = values.kept({variable.name: given[variable.name] for variable in told.variables})
        return Outcome("completed", taken, sets=taken)

    async def decide(self, step: Step, frame: Frame, begun: Visit | None) -> Outcome:
        told = cast(ConditionConfig, step.told)
        return Outcome("completed", {"result": expressions.holds(self.value(told.expression, frame))})

    async def transform(self, step: Step, frame: Frame, begun: Visit | None) -> Outcome:
        told = cast(TransformConfig, step.told)
        budget = Budget()
        output = self.value(told.expression, frame, budget) if told.expression is not None else None
        sets = {name: self.value(text, frame, budget) for name, text in told.set.items()}
        return Outcome("completed", values.kept(output), sets=values.kept(sets))

    async def go_round(self, step: Step, frame: Frame, begun: Visit | None) -> Outcome:
        """Each iteration is written down as it begins, with what those before it gave."""
        told = cast(LoopConfig, step.told)
        if begun is None:
            items = None if told.over is None else self.items(told, frame)
            begun = await self.journal.begin(step.id, frame, {} if items is None else {"items": items})
        items, done = begun.inputs.get("items"), begun.output or {"begun": 0, "results": []}
        results: list[Any] = done["results"]
        iteration = max(done["begun"] - 1, 0)
        while iteration < done["begun"] or self.goes_on(told, items, iteration, frame):
            inside = frame.inside(iteration, items[iteration] if items is not None else None)
            if iteration >= done["begun"]:
                progress = values.kept({"begun": iteration + 1, "results": results})
                await self.journal.note(step.id, frame, Outcome("running", progress))
            await self.walk_inside(told.body, inside)
            results = [*results, self.value(told.collect, inside)] if told.collect is not None else results
            iteration += 1
        return Outcome("completed", values.kept({"iterations": iteration, "results": results}))

    def items(self, told: LoopConfig, frame: Frame) -> list[Any]:
        found = self.value(told.over or "", frame)
        if not isinstance(found, list):
            raise StepFailed(f"{told.over} is not a list.", again=False)
        if len(found) > told.max_iterations:
            raise StepFailed(f"{told.over} has {len(found)} items, more than {told.max_iterations}.", again=False)
        return found

    def goes_on(self, told: LoopConfig, items: list[Any] | None, iteration: int, frame: Frame) -> bool:
        if items is not None:
            return iteration < len(items)
        holds = expressions.holds(self.value(told.condition or "", frame.inside(iteration, None)))
        if holds and iteration >= told.max_iterations:
            raise StepFailed(f"{told.condition} still holds after {iteration} iterations.", again=False)
        return holds

    async def walk_inside(self, entry: str, frame: Frame) -> None:
        """As `walk`, for a region inside of a step, which fails with it."""
        try:
            await self.walk(entry, frame)
        except Broken as broken:
            title = self.definition.by_id[broken.step_id].title
            raise StepFailed(f"Step {title} failed: {broken}", again=False) from broken

    async def branch_out(self, step: Step, frame: Frame, begun: Visit | None) -> Outcome:
        """Raises: StepFailed; RunParked when nothing is left to do but to wait."""
        told = cast(ParallelConfig, step.told)
        if begun is None:
            await self.journal.begin(step.id, frame, {})
        failed = await self.join(told, frame)
        if failed:
            words = "; ".join(f"{entry}: {error}" for entry, error in failed.items())
            raise StepFailed(words[:2_000], again=False)
        return Outcome("completed", {"branches": told.branches})

    async def join(self, told: ParallelConfig, frame: Frame) -> dict[str, str]:
        """Walk all branches, so many at a time; what failed in them. The first failure may cancel the others."""
        free = asyncio.Semaphore(told.max_concurrency)

        async def walk(entry: str) -> None:
            async with free:
                await self.walk_inside(entry, frame)

        tasks = {asyncio.create_task(walk(entry)): entry for entry in told.branches}
        failed: dict[str, str] = {}
        parked: list[datetime] = []
        try:
            for ended in asyncio.as_completed(tasks):
                try:
                    await ended
                except StepFailed as error:
                    failed[next(entry for task, entry in tasks.items() if is_failed(task, error))] = str(error)
                    if told.failure == "first":
                        return failed
                except RunParked as error:
                    parked.append(error.until)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if parked:
            raise RunParked(min(parked))
        return failed

    async def wait(self, step: Step, frame: Frame, begun: Visit | None) -> Outcome:
        """Raises: RunParked until the time has come."""
        if begun is None:
            begun = await self.begin_wait(step, frame)
        until = begun.wake_at
        assert until
        if not await self.journal.is_due(until):
            said = {"until": until.isoformat()}
            execution, run_id = self.journal.execution, self.ctx.run.id
            await self.tell(news.of_step("step_waiting", step, frame.visit, execution, run_id, **said))
            raise RunParked(until)
        return Outcome("completed", {"until": until.isoformat()})

    async def begin_wait(self, step: Step, frame: Frame) -> Visit:
        told = cast(WaitConfig, step.told)
        scope = self.values.scope(frame)
        if told.seconds is not None:
            wait = seconds_of(acts.rendered(told.seconds, scope))
            return await self.journal.begin(step.id, frame, {"seconds": wait}, wait=timedelta(seconds=wait))
        until = moment_of(told.until if isinstance(told.until, datetime) else acts.rendered(told.until, scope))
        return await self.journal.begin(step.id, frame, {"until": until.isoformat()}, until=until)

    async def act(self, step: Step, frame: Frame, begun: Visit | None) -> Outcome:
        """Do what reaches beyond the execution: once, or again where that does no harm."""
        repeatable = acts.is_repeatable(self.ctx, step)
        if begun and not repeatable and not is_paused(begun):
            raise RunFailed(CUT.format(title=step.title))
        scope = self.values.scope(frame)
        visit = begun or await self.journal.begin(step.id, frame, values.kept(acts.inputs_of(step, scope)))
        tries, spent = visit.tries, dict[str, Any]()
        while True:
            doing = Act(self.ctx, step, self.journal.execution.execution_id, frame.visit, visit.inputs, scope)
            try:
                output = values.kept(await self.done(doing))
                return Outcome("completed", output, usage=doing.usage, tries=tries)
            except (StepFailed, TooLarge) as failed:
                tries += 1
                failure = Outcome("failed", usage=doing.usage, error=str(failed), tries=tries)
                if not self.is_tried_again(step, failed, tries, repeatable):
                    return failure
            finally:
                add_usage(self.ctx, doing.usage, spent)
                spent = doing.usage
            await self.pause(step, frame, failure)
            if not repeatable:  # from here on it is under way again
                await self.journal.note(step.id, frame, Outcome("running", tries=tries))

    async def done(self, doing: Act) -> Any:
        if doing.step.type != "AGENT":
            return await ACTS[doing.step.type](doing)
        async with self.speaking:
            return await ACTS["AGENT"](doing)

    def is_tried_again(self, step: Step, failed: Exception, tries: int, repeatable: bool) -> bool:
        if not isinstance(failed, StepFailed):
            return False
        usual = 0 if step.type == "AGENT" else self.definition.max_retries
        most = usual if step.told.retries is None else step.told.retries
        return tries <= most and failed.again and (repeatable or failed.harmless)

    async def pause(self, step: Step, frame: Frame, failed: Outcome) -> None:
        """Written down first: whoever takes over knows that nothing is under way."""
        seconds = min(step.told.retry_delay_seconds * 2 ** (failed.tries - 1), MAX_PAUSE_SECONDS)
        await self.journal.note(step.id, frame, replace(failed, status="running"))
        said = {"error": failed.error, "tries": failed.tries, "seconds": seconds}
        execution, run_id = self.journal.execution, self.ctx.run.id
        await self.tell(news.of_step("step_retrying", step, frame.visit, execution, run_id, **said))
        logger.info("workflow.step_retried", step=step.id, tries=failed.tries, error=failed.error)
        await asyncio.sleep(seconds)


def is_paused(visit: Visit) -> bool:
    """Whether a visit that has begun is known not to be under way: its last try failed, and did no harm."""
    return visit.error is not None


def is_failed(task: "asyncio.Task[None]", error: Exception) -> bool:
    return task.done() and not task.cancelled() and task.exception() is error


def seconds_of(value: Any) -> float:
    """Raises: StepFailed."""
    try:
        seconds = float(value)
    except (TypeError, ValueError) as error:
        raise StepFailed(f"{value!r} is no number of seconds.", again=False) from error
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise StepFailed(f"A wait must be from 0 to {MAX_WAIT_SECONDS} seconds, not {seconds:g}.", again=False)
    return seconds


def moment_of(value: Any) -> datetime:
    """A time, in UTC where it names no zone. Raises: StepFailed."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moment.astimezone(UTC)  # as the stores keep it: the first and the last days have no such time everywhere
    except (ValueError, OverflowError) as error:
        raise StepFailed(f"{value!r} is no time in ISO 8601.", again=False) from error
    if moment > datetime.now(UTC) + timedelta(seconds=MAX_WAIT_SECONDS):
        raise StepFailed(f"{moment.isoformat()} is more than {MAX_WAIT_SECONDS // 86_400} days ahead.", again=False)
    return moment
