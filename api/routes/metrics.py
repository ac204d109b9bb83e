"""GET /metrics, for Prometheus: at the root, outside of what accounts may do."""

from asyncio import gather
from itertools import chain

from fastapi import FastAPI, Request, Response

from api.transport import wire_of
from services.errors import NotFound, Unauthenticated
from services.metrics.exposition import CONTENT_TYPE, may_read


def install(app: FastAPI) -> None:
    app.add_route("/metrics", show, include_in_schema=False)


async def show(request: Request) -> Response:
    """For whoever has METRICS_TOKEN; without one, for this machine alone: nobody else learns that it is there.

    Raises: Unauthenticated, NotFound.
    """
    settings = request.app.state.settings.metrics
    if not may_read(settings, peer_of(request), request.headers):
        raise Unauthenticated if settings.token.get_secret_value() else NotFound("Not Found")
    state = request.app.state
    state.sampler.sample()
    known = await gather(state.tally.read(), state.broker_tally.read())
    text = await state.exposition.text(chain(*known))
    return Response(text, media_type=CONTENT_TYPE)


def peer_of(request: Request) -> str:
    """The other end of the connection; what uvicorn says of a client it may have from a proxy (FORWARDED_ALLOW_IPS)."""
    transport = wire_of(request.scope).transport
    named = transport.get_extra_info("peername") if transport else None
    return str(named[0]) if isinstance(named, tuple) else ""
