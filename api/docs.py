"""The page that shows the OpenAPI document: the one answer of the API that a browser may run."""

import re
from base64 import b64encode
from hashlib import sha256

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
ASSETS = "https://cdn.jsdelivr.net"
"""Where the page has Swagger UI from."""
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {assets} 'unsafe-inline'; img-src data: https://fastapi.tiangolo.com;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    app.add_route("/docs", show, include_in_schema=False)


async def show(request: Request) -> Response:
    app: FastAPI = request.app
    page = get_swagger_ui_html(
        openapi_url=f"{request.scope.get('root_path', '').rstrip('/')}{app.openapi_url}", title=app.title
    )
    page.headers["Content-Security-Policy"] = policy_of(bytes(page.body))
    return page


def policy_of(page: bytes) -> str:
    """Its own scripts by their hashes, and those of ASSETS."""
    own = [f"'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in SCRIPT.findall(page)]
    return POLICY.format(scripts=" ".join([ASSETS, *own]), assets=ASSETS)
