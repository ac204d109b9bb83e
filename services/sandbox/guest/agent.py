"""The calls of all connections: who may speak, what is asked, and what is answered."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from . import files
from .background import spawn
from .calls import Call
from .commands import Commands
from .fences import Fences
from .jobs import Jobs
from .notices import Notices
from .paths import WORKSPACE
from .ports import Ports
from .processes import END_WITHIN, Processes, give_up
from .usage import usage
from .wire import BEGUN, JSON, Answer, Failed, Lost, read_frame

UNHEARD = ("status", "end_when_idle")
"""What the reaper asks, which keeps no sandbox awake."""


class Agent:
    def __init__(self, config: Answer) -> None:
        self.processes, self.notices = Processes(), Notices()
        self.fences = Fences(config["fences"])
        self.jobs = Jobs(self.processes, self.notices, self.touch)
        self.calls: dict[asyncio.Task[Any], Call] = {}
        self.heard = time.monotonic()
        self.operations = self.table()

    def table(self) -> dict[str, Callable[..., Awaitable[Answer]]]:
        """What can be asked: each is given the call, and what was asked with it."""
        commands = Commands(self.processes, self.notices)
        return {
            "hello": self.hello,
            "status": self.status,
            "end_when_idle": self.end_when_idle,
            "exec": commands.execute,
            "pipe": commands.pipe,
            "start_job": self.jobs.start,
            "job": self.jobs.show,
            "jobs": self.jobs.show_all,
            "write_job": self.jobs.write,
            "kill_job": self.jobs.kill,
            "read_file": files.read,
            "write_file": partial(files.write, self.notices),
            "delete_file": files.delete,
            "list_files": files.list_folder,
            "stat_file": files.look_at,
            "usage": usage,
            "connect": Ports().connect,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One call, from its question to its answer."""
        call, task = Call(reader, writer), asyncio.current_task()
        assert task
        try:
            kind, payload = await read_frame(reader)
            call.asked = json.loads(payload)
            if kind != JSON or call.asked.get("op") not in self.operations:
                raise Failed(f"there is no operation {call.asked.get('op')!r}")
            await self.heed(call)
            self.calls[task] = call
            await call.say(BEGUN, b"")
            await self.perform(call)
        except Lost as error:
            await refuse(call, "fence", str(error))
        except (Failed, OSError) as error:
            await refuse(call, "failed", str(error))
        except asyncio.IncompleteReadError:
            pass
        except asyncio.CancelledError:
            await refuse(call, "fence", "a later attempt drives this project")
        except Exception as error:  # noqa: BLE001 - the boundary of one call: its caller waits for an answer
            await refuse(call, "failed", f"the sandbox cannot do this: {error}")
        finally:
            self.calls.pop(task, None)
            if call.asked.get("op") not in UNHEARD:
                self.touch()
            spawn(let_go(call))

    async def heed(self, call: Call) -> None:
        """The fence of a call. A new one ends what older ones have in the foreground; jobs go on."""
        if not call.asked.get("fence"):
            return
        call.fenced = True
        run, attempt = call.asked["fence"]
        if not self.fences.admit(run, attempt):
            return
        older = [task for task, other in self.calls.items() if other.fenced]
        for task in older:
            task.cancel()
        if older:
            await asyncio.wait(older, timeout=END_WITHIN)

    async def perform(self, call: Call) -> None:
        operation = self.operations[call.asked["op"]]
        if not os.access(WORKSPACE, os.R_OK | os.W_OK | os.X_OK):
            os.chmod(WORKSPACE, 0o700)  # a command closed it
        answer = await operation(call, **call.asked.get("with", {}))
        await call.answer(answer)
        if answer.get("ended"):
            give_up("it was idle")

    def touch(self) -> None:
        self.heard = time.monotonic()

    @property
    def idle(self) -> float:
        """Seconds since somebody spoke, or a job ended."""
        return time.monotonic() - self.heard

    async def hello(self, call: Call) -> Answer:
        return {}

    async def status(self, call: Call) -> Answer:
        return {"idle": self.idle, "jobs": self.jobs.running}

    async def end_when_idle(self, call: Call, seconds: float) -> Answer:
        """Ends the sandbox, once this is answered, unless somebody spoke to it or a job runs."""
        busy = self.jobs.running or self.idle < seconds or len(self.calls) > 1
        return {"ended": not busy}


async def let_go(call: Call) -> None:
    """Close once the caller has: closing before it has sent all would take the answer from it."""
    await call.gone()
    call.writer.close()


async def refuse(call: Call, kind: str, text: str) -> None:
    with suppress(OSError):
        await call.answer({"error": kind, "text": text})
