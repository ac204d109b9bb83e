"""`./dev run`: one whole instance, from empty ports to a link for the browser."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from services.embedded import ports, processes, sandboxes, stores
from services.embedded.child import until
from services.embedded.console import Console, EmbeddedError
from services.embedded.environment import CHECKOUT, for_our_code
from services.embedded.processes import Shape
from services.embedded.state import DEFAULT, State
from services.embedded.supervisor import Supervisor, together


async def run(supervisor: Supervisor, state: State, shape: Shape, wanted: stores.Wanted) -> int:
    """Start everything, say where it is, and keep it running until cancelled."""
    began, console = time.monotonic(), supervisor.console
    refuse_production(wanted)
    ports.require_free(shape.host, shape.port)
    console.say(f"longrun: state in {state.folder}")
    names = await stores.start(supervisor, state, wanted)
    names |= await sandboxes.prepare(console, state, wanted.given)
    names["ENVIRONMENT"] = wanted.given.environment or "development"
    names["PUBLIC_URL"] = wanted.given.public_url or shape.url
    shows = ports.is_free(shape.preview_port, shape.host)
    names["PREVIEW_URL"] = wanted.given.preview_url or (shape.preview_url if shows else "")
    with console.step("api", f"and {shape.workers} workers of {shape.threads} threads, BROKER={names['BROKER']}"):
        token, *_ = await together(
            account_token("dev", names),
            supervisor.start(processes.workers(state, shape, names)),
            supervisor.start(processes.api(state, shape, names)),
        )
    if shows:
        await supervisor.start(processes.preview(state, shape, names))
    else:
        console.say(f"  preview    none: port {shape.preview_port} is in use (choose another with --preview-port)")
    state.announce(os.getppid(), shape.url, names)
    welcome(console, state.folder, shape.url, str(token), time.monotonic() - began)
    await asyncio.Event().wait()
    return 0


def refuse_production(wanted: stores.Wanted) -> None:
    """The servers that come with us are for development: on one disk, without backups. Raises: EmbeddedError."""
    missing = wanted.embedded if wanted.given.environment == "production" else []
    if missing:
        raise EmbeddedError(
            f"ENVIRONMENT=production, and {' and '.join(missing)} not set: the servers that ./dev run starts itself are"
            " for development"
        )


async def account_token(account: str, names: dict[str, str]) -> str:
    """A signed token for the account of that name, made when there is none.

    Raises: EmbeddedError when the database refuses.
    """
    process = signing(account, names)
    await until(lambda: process.poll() is not None)
    signed, error = process.communicate()
    if process.returncode:
        raise EmbeddedError(f"no token could be made for account {account!r}:\n{error.strip()}")
    return signed.strip()


def signing(account: str, names: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "services.embedded.token", account],
        env=for_our_code(names),
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def welcome(console: Console, folder: Path, url: str, token: str, seconds: float) -> None:
    state = "" if folder == DEFAULT else f" --state {folder}"
    header = f'-H "Authorization: Bearer $(./dev token{state})"'
    console.say(f"ready {url}")
    console.say(f"  after    {seconds:.1f} s; logs in {folder / 'logs'}")
    console.say(f"  browser  {url}/#token={token}")
    console.say(f"  try      curl -s {url}/api/agent/initiate {header} -F prompt='Hello'")
    console.say(f"  token    {token}")
    console.say("  stop     Ctrl-C")
