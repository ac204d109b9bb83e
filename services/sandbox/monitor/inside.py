"""What becomes bubblewrap, and with it the inside of the sandbox."""

import ctypes
import json
import os
import resource
import socket
from typing import Any

OPEN_FILES = 4096
REACHABLE = ["/mnt", "/media"]
BROWSER = "/opt/browser"
MS_BIND, MS_REC, MS_PRIVATE, CLONE_NEWNS = 4096, 16384, 1 << 18, 0x00020000

libc = ctypes.CDLL(None, use_errno=True)


class Inside:
    """The fork that becomes bubblewrap."""

    def __init__(self, config: dict[str, Any], listener: socket.socket, control: socket.socket, log: int) -> None:
        self.config, self.listener, self.control, self.log = config, listener, control, log

    def become(self) -> None:
        config = self.config
        nothing = os.open("/dev/null", os.O_RDONLY)
        for target, source in enumerate((nothing, self.log, self.log)):
            os.dup2(source, target)
        agent = dict(
            config["agent"], listen=inherited(self.listener.fileno()), control=inherited(self.control.fileno())
        )
        program = os.open(config["bwrap"], os.O_RDONLY | os.O_CLOEXEC)
        files = [part for path, text in config["files"].items() for part in ("--ro-bind-data", memory(text), path)]
        archive = memory(bytes.fromhex(config["archive"]["content"]))
        files += ["--ro-bind-data", archive, config["archive"]["path"]]
        if config["uid"]:
            os.chown("workspace", config["uid"], config["uid"])
        os.chmod("workspace", 0o700)  # whoever was in there may have closed it
        workspace, *browser = self.reachable("workspace", *filter(None, [config["browser"]]))
        self.limit()
        if config["uid"]:
            os.setgroups([])
            os.setgid(config["uid"])
            os.setuid(config["uid"])
        arguments = ["bwrap", *config["arguments"], "--bind", workspace, "/workspace", *files]
        arguments += [part for found in browser for part in ("--ro-bind", found, BROWSER)]
        arguments += [
            "--seccomp",
            memory(bytes.fromhex(config["seccomp"])),
            "--remount-ro",
            "/",
            "--chdir",
            "/workspace",
        ]
        os.execve(program, [*arguments, "--", *config["command"], json.dumps(agent)], {"PATH": "/usr/bin:/bin"})

    def reachable(self, *folders: str) -> list[str]:
        """As root: where the project's own user can reach them, though the folders above are closed to it."""
        found = [os.path.realpath(folder) for folder in folders]
        if not self.config["uid"] or libc.unshare(CLONE_NEWNS):
            return found
        call_mount("none", "/", MS_REC | MS_PRIVATE)
        opened = [os.open(folder, os.O_PATH | os.O_CLOEXEC) for folder in found]  # one mount may hide another's folder
        mounted = REACHABLE[: len(found)]
        for descriptor, target in zip(opened, mounted, strict=True):
            call_mount(f"/proc/self/fd/{descriptor}", target, MS_BIND)
        return mounted

    def limit(self) -> None:
        os.sched_setaffinity(0, self.config["cores"])
        for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, OPEN_FILES), *self.by_config()):
            _, hard = resource.getrlimit(kind)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))

    def by_config(self) -> tuple[tuple[int, int], ...]:
        by_user = ((resource.RLIMIT_NPROC, self.config["agent"]["processes"]),) if self.config["uid"] else ()
        return ((resource.RLIMIT_FSIZE, self.config["disk"]), *by_user)


def call_mount(source: str, target: str, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), None, flags, None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def inherited(descriptor: int) -> int:
    os.set_inheritable(descriptor, True)
    return descriptor


def memory(content: str | bytes) -> str:
    """A descriptor that bubblewrap reads `content` from."""
    descriptor = os.memfd_create("longrun", 0)
    os.write(descriptor, content.encode() if isinstance(content, str) else content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return str(descriptor)
