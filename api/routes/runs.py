"""Runs: stop, look, list."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from api.answers import as_json
from api.deps import CallerDep, PoolDep, ResourcesDep
from api.paging import MAX_ROWS, LimitQuery, decode_moment, encode_moment
from services import threads
from services.errors import NotFound
from services.runs import stopping, store, waiting
from services.runs.store import ListedRun, Run

router = APIRouter(tags=["runs"])

MAX_STOPS = 1000

Status = Literal["running", "completed", "failed", "stopped"]
Phase = Literal["waiting", "queued", "running", "stopping", "completed", "failed", "stopped"]


class StopRequest(BaseModel):
    ids: list[UUID] = Field(min_length=1, max_length=MAX_STOPS)


class Stopped(BaseModel):
    status: str


class StoppedRun(Stopped):
    id: UUID


class StoppedMany(Stopped):
    agent_runs: list[StoppedRun]


class RunOut(BaseModel):
    id: UUID
    thread_id: UUID
    status: str
    phase: str
    model_name: str
    usage: dict[str, Any]
    started_at: datetime
    completed_at: datetime | None
    error: str | None
    created_at: datetime
    updated_at: datetime


class RunDetail(BaseModel):
    id: UUID
    threadId: UUID
    status: str
    startedAt: datetime
    completedAt: datetime | None
    error: str | None
    phase: str
    model_name: str
    attempt: int
    usage: dict[str, Any]
    metadata: dict[str, Any]


class ActiveRun(BaseModel):
    id: UUID
    thread_id: UUID
    status: str
    phase: str
    started_at: datetime


class RunsOfThread(BaseModel):
    agent_runs: list[RunOut]


class RunPage(RunsOfThread):
    next_cursor: str | None


class ActiveRuns(BaseModel):
    active_runs: list[ActiveRun]


def listed_run(run: ListedRun) -> dict[str, Any]:
    """The fields of RunOut."""
    return {
        "id": run.id,
        "thread_id": run.thread_id,
        "status": run.public_status,
        "phase": run.phase,
        "model_name": run.model_name,
        "usage": run.usage,
        "started_at": run.started_at or run.created_at,
        "completed_at": run.completed_at,
        "error": run.error,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
    }


def shown_detail(run: Run) -> RunDetail:
    return RunDetail(
        id=run.id,
        threadId=run.thread_id,
        status=run.public_status,
        startedAt=run.started_at or run.created_at,
        completedAt=run.completed_at,
        error=run.error,
        phase=run.phase,
        model_name=run.model_name,
        attempt=run.attempt,
        usage=run.usage,
        metadata=run.metadata,
    )


def status_after_stop(run: Run) -> str:
    """A run whose stop is committed can only end `stopped`; one that had ended says how."""
    return run.status if run.final else "stopped"


@router.post("/agent-run/{run_id}/stop")
async def stop_run(run_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Stopped:
    """Answers once the stop is committed; a run that had ended answers its own status."""
    await threads.writable_by_runs(resources.pool, caller.account_id, [run_id])
    return Stopped(status=status_after_stop(await stopping.request_stop(resources.stores, run_id)))


@router.post("/agent-runs/stop")
async def stop_runs(asked: StopRequest, caller: CallerDep, resources: ResourcesDep) -> StoppedMany:
    """All or, when one of them is not the caller's, none."""
    run_ids = list(dict.fromkeys(asked.ids))
    await threads.writable_by_runs(resources.pool, caller.account_id, run_ids)
    stopped = {run.id: run for run in await stopping.request_stops(resources.stores, run_ids)}
    async with resources.pool.acquire() as conn:
        runs = [stopped.get(run_id) or await store.get(conn, run_id) for run_id in run_ids]
    return StoppedMany(
        status="stopped", agent_runs=[StoppedRun(id=run.id, status=status_after_stop(run)) for run in runs if run]
    )


@router.get("/agent-run/{run_id}")
async def get_run(
    run_id: UUID,
    caller: CallerDep,
    resources: ResourcesDep,
    wait_seconds: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)] = 0,
) -> RunDetail:
    """With `wait_seconds`: when the run is final, or when the time is over."""
    await threads.readable_by_run(resources.pool, caller.account_id, run_id)
    if wait_seconds:
        return shown_detail(await waiting.until_final(resources.stores, run_id, wait_seconds))
    run = await store.get(resources.pool, run_id)
    if run is None:
        raise NotFound(threads.MISSING_RUN)
    return shown_detail(run)


@router.get("/thread/{thread_id}/agent-runs", response_model=RunsOfThread)
async def list_runs_of_thread(thread_id: UUID, caller: CallerDep, pool: PoolDep) -> Response:
    async with pool.acquire() as conn:
        thread = await threads.readable(conn, caller.account_id, thread_id)
        runs = await store.list_runs(conn, thread.account_id, thread_id=thread_id, limit=MAX_ROWS)
    return as_json({"agent_runs": [listed_run(run) for run in runs]})


@router.get("/agent-runs", response_model=RunPage)
async def list_runs(
    caller: CallerDep,
    pool: PoolDep,
    status: Status | None = None,
    phase: Phase | None = None,
    thread_id: UUID | None = None,
    project_id: UUID | None = None,
    limit: LimitQuery = 50,
    cursor: str | None = None,
) -> Response:
    """The account's runs, newest first. `status=running` means all that is not final; `phase` is exact."""
    before = None if cursor is None else decode_moment(cursor)
    runs = await store.list_runs(
        pool,
        caller.account_id,
        status=status,
        phase=phase,
        thread_id=thread_id,
        project_id=project_id,
        before=before,
        limit=limit + 1,
    )
    shown, more = runs[:limit], len(runs) > limit
    next_cursor = encode_moment(shown[-1].created_at, shown[-1].id) if more else None
    return as_json({"agent_runs": [listed_run(run) for run in shown], "next_cursor": next_cursor})


@router.get("/agent-runs/active")
async def list_active_runs(caller: CallerDep, pool: PoolDep) -> ActiveRuns:
    runs = await store.list_runs(pool, caller.account_id, status="running", limit=MAX_ROWS)
    return ActiveRuns(
        active_runs=[
            ActiveRun(
                id=run.id,
                thread_id=run.thread_id,
                status=run.public_status,
                phase=run.phase,
                started_at=run.started_at or run.created_at,
            )
            for run in runs
        ]
    )
