"""Model name → provider: ask it, and again when asking again can help."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter
from typing import Self

from httpx2 import AsyncClient

from agent.catalog import PROVIDERS, Provider, resolve_model, split
from agent.context import ContextTooLong, RunFailed
from agent.llm import anthropic_dialect, demo, openai_dialect
from agent.llm.chunk import Chunk, Usage
from agent.llm.errors import sentence, too_long, wait_before_retry
from agent.llm.failures import CallFailed
from agent.llm.request import ModelRequest
from agent.models import family
from services import metrics
from services.errors import Unprocessable
from services.log import logger
from services.settings import Settings

DIALECTS = {"openai": openai_dialect.stream, "anthropic": anthropic_dialect.stream}


async def stream(settings: Settings, http: AsyncClient, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
    """The answer of the model that `request` names; close the iterator to hang up on the provider.

    A call that fails before it said anything is repeated up to LLM_MAX_RETRIES times if that can help.
    Raises: RunFailed with the sentence for the user.
    """
    named = replace(request, model=check_name(settings, request.model))
    prefix, _ = split(named.model)
    require_key(settings, named)
    answer = demo.stream(named) if prefix == "demo" else ask_provider(settings, http, PROVIDERS[prefix], named)
    with Measure(prefix, family(named.model)) as measure:
        async with aclosing(answer):
            async for chunk in answer:
                if measure.waits:
                    measure.hear(chunk)
                if chunk.usage:
                    measure.usage = chunk.usage
                yield chunk
        measure.outcome = "ok"


class Measure:
    """One call: how long it took until the model said something and until the end, and its tokens."""

    def __init__(self, *labels: str) -> None:
        self.labels, self.begun = labels, perf_counter()
        self.waits, self.outcome = True, "failed"
        self.usage: Usage | None = None

    def hear(self, chunk: Chunk) -> None:
        if chunk.speaks:
            self.waits = False
            metrics.model_first_seconds.labels(*self.labels).observe(perf_counter() - self.begun)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind and issubclass(kind, (GeneratorExit, asyncio.CancelledError)):
            self.outcome = "left"  # nobody wanted the rest
        metrics.model_call_seconds.labels(*self.labels, self.outcome).observe(perf_counter() - self.begun)
        for name, tokens in (self.usage.counted() if self.usage else {}).items():
            if name != "total_tokens":
                metrics.model_tokens.labels(*self.labels, name.removesuffix("_tokens")).inc(tokens)


def check_name(settings: Settings, name: str) -> str:
    try:
        return resolve_model(settings, name)
    except Unprocessable as error:
        raise RunFailed(str(error.detail)) from error


def require_key(settings: Settings, request: ModelRequest) -> None:
    """Raises: RunFailed. A call that is not made is not measured."""
    provider = PROVIDERS.get(split(request.model)[0])
    if provider and provider.needs_key and not provider.key(settings):
        raise RunFailed(f"{request.model} needs a key: set {provider.key_name}.")


async def ask_provider(
    settings: Settings, http: AsyncClient, provider: Provider, request: ModelRequest
) -> AsyncGenerator[Chunk, None]:
    spoke, failures = False, 0
    while True:
        try:
            async with aclosing(DIALECTS[provider.dialect](settings, http, provider, request)) as answer:
                async for chunk in answer:
                    spoke = spoke or chunk.speaks
                    yield chunk
            return
        except CallFailed as error:
            failures += 1
            log = logger.bind(model=request.model, failures=failures, error=repr(error.__cause__ or error))
            wait = None if spoke or failures > settings.models.max_retries else wait_before_retry(error, failures)
            if wait is None:
                log.warning("model.failed")
                told = sentence(error, settings, provider, request.model, spoke=spoke)
                raise (ContextTooLong if too_long(error) else RunFailed)(told) from error
            log.info("model.retried", wait=wait)
        await asyncio.sleep(wait * random.uniform(1.0, 1.25))  # noqa: S311 - jitter, not a secret
