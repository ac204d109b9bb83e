"""What every answer tells a browser about how it may be read, framed and kept."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.settings import ApiSettings

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""An answer is data of somebody's: no browser runs it, frames it, guesses what it is, or keeps it."""


class SecurityHeaders:
    """Adds to an answer what it does not say otherwise itself, as it begins: what follows passes no layer of ours."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        if seconds := int(settings.hsts.total_seconds()):
            self.added.append((b"strict-transport-security", b"max-age=%d" % seconds))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in self.added if each[0] not in said)]
            await send(message)

        await self.app(scope, receive, send_with_headers)
