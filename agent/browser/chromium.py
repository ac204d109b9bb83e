"""Chromium in a sandbox: a background job of it, which outlives the attempt and ends with the sandbox."""

import asyncio
import re
from dataclasses import dataclass

from services.sandbox.protocol import Job, Sandbox

JOB = "browser"
WIDTH, HEIGHT = 1024, 768
START_WITHIN = 20.0
IDLE_SECONDS = 900
POLL_SECONDS = 0.05
SAID_CHARS = 1_000
NONE_HERE = "there is no Chromium here"
LISTENS = re.compile(rb"DevTools listening on ws://127\.0\.0\.1:(\d{1,5})(/devtools/browser/[0-9A-Za-z-]{1,64})\s")
PROGRAMS = "chromium-headless-shell chromium chromium-browser google-chrome-stable google-chrome"
FLAGS = (
    "--headless",
    "--no-sandbox",  # there is no namespace left to make one of: the sandbox around it is the layer that holds
    "--remote-debugging-port=0",
    "--user-data-dir=/tmp/.browser",
    "--disk-cache-size=33554432",
    f"--window-size={WIDTH},{HEIGHT}",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-crash-reporter",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
    "--password-store=basic",
)
COMMAND = f"""
program=/opt/browser/chromium
[ -x "$program" ] || program=
for name in {PROGRAMS}; do [ -n "$program" ] || program=$(command -v "$name"); done
[ -n "$program" ] || {{ echo "{NONE_HERE}"; exit 127; }}
exec 3<&0
(while [ -n "$(timeout {IDLE_SECONDS} head -c1 <&3)" ]; do :; done; kill -TERM 0) &
"$program" {" ".join(FLAGS)} about:blank </dev/null 3<&- 2>&1 | sed -un 1,200p
"""
"""A job keeps its sandbox from being reaped, so this one ends when nobody has said for a while that it is used. What it
says first is kept: what pages have it say later must not push that out."""


class NoBrowser(Exception):
    """Chromium does not run; the text says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where its DevTools listen, on the loopback of the sandbox."""

    port: int
    path: str


async def endpoint(sandbox: Sandbox) -> Endpoint:
    """That of the Chromium which runs, or else is started. Raises: NoBrowser; what the sandbox raises."""
    running = {job.name for job in await sandbox.jobs() if job.running}
    job = await (sandbox.job(JOB) if JOB in running else sandbox.start_job(JOB, COMMAND))
    try:
        async with asyncio.timeout(START_WITHIN):
            found = await listening(sandbox, job)
    except TimeoutError:
        await end(sandbox)
        raise NoBrowser(f"Chromium did not start within {START_WITHIN:g} seconds.{said(job)}") from None
    await sandbox.write_job(JOB, b".")
    return found


async def listening(sandbox: Sandbox, job: Job) -> Endpoint:
    while not (listens := LISTENS.search(job.output)):
        if not job.running:
            raise NoBrowser(why_not(job))
        await asyncio.sleep(POLL_SECONDS)
        job = await sandbox.job(JOB)
    return Endpoint(int(listens[1]), listens[2].decode())


async def end(sandbox: Sandbox) -> None:
    """End it, with its tabs."""
    if any(job.name == JOB and job.running for job in await sandbox.jobs()):
        await sandbox.kill_job(JOB)


def why_not(job: Job) -> str:
    if NONE_HERE.encode() in job.output:
        return (
            "There is no browser: no Chromium is installed where the sandbox looks. The operator installs Debian's "
            "chromium-headless-shell (or chromium) on the machine or in the sandbox's image, or names the folder of an "
            "unpacked one by SANDBOX_BROWSER."
        )
    return f"Chromium ended as it started (exit code {job.exit_code}).{said(job)}"


def said(job: Job) -> str:
    text = job.output.decode(errors="replace").strip()[-SAID_CHARS:]
    return f" It said:\n{text}" if text else ""
