"""The application: `uvicorn --factory api.app:create_app`."""

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from api import access, docs, document, errors, pages
from api.body_limit import BodyLimit
from api.connections import guard
from api.deps import Resources
from api.headers import SecurityHeaders
from api.hosts import KnownHosts
from api.open_streams import Streams
from api.recheck import Recheck
from api.requests import Request
from api.routes import (
    accounts,
    agents,
    api_keys,
    billing,
    executions,
    health,
    mcp,
    metrics,
    projects,
    qstash,
    runs,
    sandboxes,
    schedules,
    starts,
    streams,
    threads,
    triggers,
    webhooks,
    workflow_webhooks,
    workflows,
)
from api.transport import keep_wire, release
from services import log, reporting
from services.billing import gate_of
from services.http import open_client
from services.jwks import KeySet
from services.known_keys import KnownKeys
from services.log import logger
from services.metrics.exposition import open_exposition
from services.projects import wants_network
from services.rate_limit import RateLimit
from services.runs.sampling import Sampler, keep_sampling
from services.runs.stores import Stores, open_stores
from services.sandbox.providers import make_provider
from services.secrets import Secrets
from services.settings import Settings, load
from services.tally import BrokerTally, Tally
from services.tokens import AccessTokens
from services.tracing import UNTRACED, Tracing, open_tracing

ROUTE_MODULES = (
    health,
    starts,
    runs,
    streams,
    threads,
    projects,
    agents,
    billing,
    sandboxes,
    mcp,
    accounts,
    api_keys,
    executions,
    workflows,
    webhooks,
    workflow_webhooks,
    triggers,
    schedules,
    qstash,
)

COLLECTIONS = (10_000, 20, 20)
"""How many more objects there must be for a young collection, and how many of each for one of the next age."""


class Longrun(FastAPI):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard(scope, receive, self.state.settings.api)
        wire = keep_wire(scope, send)
        if wire is None:
            await super().__call__(scope, receive, send)
            return
        request = Request(scope, self.state.tracing)
        try:
            await super().__call__(scope, receive, request.heard_by(send))
        finally:
            request.over()
        del request
        if wire.go_on:
            go_on, wire.go_on = wire.go_on, None
            release(scope)
            await go_on()

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = document.complete(super().openapi())
        return self.openapi_schema


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API of one process; its resources open with the lifespan."""
    if settings is None:
        collect_rarely()
        settings = load()
    log.configure(settings)
    reporting.start(settings)
    app = Longrun(
        title="Longrun",
        version="0.1.0",
        lifespan=lifespan,
        middleware=middleware(settings),
        docs_url=None,  # ours has a policy of its own
        redoc_url=None,
        generate_unique_id_function=document.operation_id,
    )
    app.state.settings = settings
    app.state.tracing = UNTRACED
    docs.install(app)
    pages.install(app)
    errors.install(app)
    access.require_declared(routes.router for routes in ROUTE_MODULES)
    for routes in ROUTE_MODULES:
        app.include_router(routes.router, prefix="/api")
    metrics.install(app)
    for routes in (schedules, qstash):
        app.include_router(routes.router, prefix="/api/v1", include_in_schema=False)
    return app


def collect_rarely() -> None:
    """A full collection looks at all that thousands of streams hold and stops every one of them for as long.

    What is imported by now is never looked at again; nearly everything else goes by its reference count.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)


def middleware(settings: Settings) -> list[Middleware]:
    """The outermost first: an answer of the boundary has its CORS headers too, and every answer those of security."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.api.cors_origins,
        allow_credentials=settings.api.cors_credentials,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Retry-After", "X-Request-ID"],
    )
    hosts = Middleware(KnownHosts, names=settings.api.allowed_hosts)
    return [
        Middleware(SecurityHeaders, settings=settings.api),
        *([hosts] if settings.api.allowed_hosts else ()),
        *([cors] if settings.api.cors_origins else ()),
        Middleware(errors.Boundary),
        Middleware(BodyLimit, max_bytes=settings.api.max_body_bytes),
    ]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        tracing = app.state.tracing = await stack.enter_async_context(open_tracing(settings, of_runs=False))
        stack.push_async_callback(reporting.flush)
        app.state.exposition = stack.enter_context(open_exposition(settings.metrics, "api"))
        stores = await enter_stores(settings, stack, tracing)
        log.name_process(stores.instance_id)
        app.state.tally, app.state.broker_tally = Tally(stores.upkeep), BrokerTally(stores.dispatch.publisher)
        stack.push_async_callback(app.state.tally.close)
        open_streams = Streams(settings.streams, stores.shards, stores.pool)
        open_streams.open()
        stack.push_async_callback(open_streams.close)
        app.state.sampler = Sampler(stores, open_streams.sample)
        stores.background.spawn(keep_sampling(app.state.sampler))
        recheck = Recheck(open_streams, stores.upkeep)
        recheck.open()
        stack.push_async_callback(recheck.close)
        sandboxes = make_provider(settings.sandbox, partial(wants_network, stores.pool))
        app.state.resources = Resources(
            settings,
            stores,
            open_streams,
            sandboxes,
            Secrets.of(settings.secrets),
            gate_of(settings),
            await enter_access_tokens(settings, stack),
            enter_known_keys(stores, stack),
            enter_rate_limit(stores, stack),
        )
        logger.info("api.started", instance_id=stores.instance_id)
        yield


async def enter_access_tokens(settings: Settings, stack: AsyncExitStack) -> AccessTokens:
    """With the issuer's keys where there is one; they are fetched when the first token needs them."""
    if not settings.auth.jwks_url:
        return AccessTokens(settings.auth)
    key_set = KeySet(settings.auth, await stack.enter_async_context(open_client(settings)))
    stack.push_async_callback(key_set.close)
    return AccessTokens(settings.auth, key_set)


def enter_known_keys(stores: Stores, stack: AsyncExitStack) -> KnownKeys:
    known_keys = KnownKeys(stores.settings.api_keys, stores.pool, stores.shards.home.redis, stores.shards.home.channels)
    known_keys.open()
    stack.push_async_callback(known_keys.close)
    return known_keys


def enter_rate_limit(stores: Stores, stack: AsyncExitStack) -> RateLimit:
    rate_limit = RateLimit(stores.settings.limits, stores.upkeep, stores.shards.home.redis)
    rate_limit.open()
    stack.push_async_callback(rate_limit.close)
    return rate_limit


async def enter_stores(settings: Settings, stack: AsyncExitStack, tracing: Tracing) -> Stores:
    """The stores; without their first connections while Postgres is away, so that the API starts and says 503."""
    try:
        return await stack.enter_async_context(open_stores(settings, tracing=tracing))
    except errors.Unreachable as error:
        logger.warning("api.postgres_unreachable", error=repr(error))
        return await stack.enter_async_context(open_stores(settings, pool_min=0, tracing=tracing))
