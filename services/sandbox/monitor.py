"""What stands outside one sandbox: starts it, watches its memory and disk, and ends with it.

A process of its own, which belongs to no worker: only the standard library, few imports, no event loop. It reads its
configuration from standard input, says `ready` or what is wrong on standard output, and goes on in the background.
"""

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

POLL = 0.25
DISK_POLL = 0.5
DISK_AT_LEAST_EVERY = 30.0
START_WITHIN = 10.0
OPEN_FILES = 4096
OVER_FOR = 4
SPARE_PROCESSES = 16
MS_BIND, MS_REC, MS_PRIVATE, CLONE_NEWNS = 4096, 16384, 1 << 18, 0x00020000
MIB = 1024 * 1024
PAGE = resource.getpagesize()
LEAST_FILE = 4096
"""What a file counts at least: empty ones use up the file system too."""
DEEPEST = 250
UNCOUNTABLE = sys.maxsize

Config = dict[str, Any]


class Stopped(Exception):
    pass


def main() -> None:
    config: Config = json.load(sys.stdin)
    os.chdir(config["folder"])
    alive = hold_alive()
    if os.fork():
        os._exit(0)
    os.ftruncate(alive, 0)
    os.pwrite(alive, str(os.getpid()).encode(), 0)
    signal.signal(signal.SIGTERM, stop)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Monitor(config).live()


def hold_alive() -> int:
    """The lock that says that this sandbox runs, and the pid to stop it with."""
    alive = os.open("alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse("another one runs already")
    return alive


def refuse(why: str) -> NoReturn:
    with suppress(OSError):
        os.write(1, why.encode())
    os._exit(1)


def stop(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the next one would break off the end
    raise Stopped


class Monitor:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.control, self.inner = socket.socketpair()
        self.hidden = 0
        self.over = 0
        self.full = False
        self.program = 0
        self.disk_seen, self.disk_at, self.disk_free = 0, 0.0, 0
        self.disk_pause = DISK_POLL
        self.buffer = b""
        self.cgroups = Cgroups(config)
        self.uplink = Uplink(config)

    def live(self) -> None:
        why = ""
        try:
            self.start()
            self.watch()
        except Stopped:
            pass
        except Ended as ended:
            why = str(ended)
        except Exception as error:  # noqa: BLE001 - the boundary of this process: the next call is told
            why = f"its monitor failed ({error!r})"
        finally:
            self.finish(why)

    def start(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink("ended")
        listener = listen()
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.cgroups.make()
        self.program = os.fork()
        if self.program == 0:
            try:
                self.cgroups.enter()
                Inside(self.config, listener, self.inner, log).become()
            except OSError as error:
                os.write(log, f"{error}\n".encode())
            os._exit(126)
        self.inner.close()
        listener.close()
        self.until_ready()

    def until_ready(self) -> None:
        deadline = time.monotonic() + START_WITHIN
        while not self.heard(0.05):
            if self.gone() or time.monotonic() > deadline:
                self.give_up()
        if self.config["uplink"] and not self.uplink.opened(self.program):
            self.give_up()
        os.write(1, b"ready")
        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        os.close(nothing)

    def give_up(self) -> NoReturn:
        self.kill()
        self.cgroups.remove()
        with open("log", "rb") as file:
            said = file.read(2000).decode(errors="replace").strip()
        refuse(said or "it did not become ready")

    def heard(self, seconds: float) -> bool:
        """Wait for what the agent says; whether it said that it is ready."""
        ready = False
        if not select.select([self.control], [], [], seconds)[0]:
            return ready
        data = self.control.recv(4096)
        if not data:
            time.sleep(0.01)  # it has ended; so will the program, in a moment
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            ready = ready or "ready" in said
            self.hidden = int(said.get("hidden", self.hidden))
        return ready

    def tell(self, **what: str) -> None:
        with suppress(OSError):
            self.control.sendall(json.dumps(what).encode() + b"\n")

    def gone(self) -> bool:
        return os.waitpid(self.program, os.WNOHANG)[0] != 0

    def watch(self) -> None:
        while not self.gone():
            self.heard(POLL)
            self.uplink.watch()
            self.watch_memory()
            self.watch_disk()
        if self.cgroups.killed():
            raise Ended(f"the sandbox used more than its {self.config['memory'] // MIB} MiB of memory")

    def watch_memory(self) -> None:
        limit = self.config["memory"]
        if self.cgroups.killed():
            self.tell(notice=f"killed: the sandbox used more than its {limit // MIB} MiB of memory")
        if self.hidden > limit * 0.8:  # only segments that outlive their makers come to that much
            raise Ended(f"the sandbox used more than its {limit // MIB} MiB of memory")
        sizes = {pid: resident(pid) for pid in below(self.program)}
        if sum(sizes.values()) + self.hidden <= limit:
            self.over = 0
            return
        sizes = {pid: proportional(pid, size) for pid, size in sizes.items()}
        used = sum(sizes.values()) + self.hidden
        if used <= limit:
            self.over = 0
            return
        self.over += 1
        why = f"the sandbox used more than its {limit // MIB} MiB of memory"
        biggest = max(commands(self.program), key=lambda pid: sizes.get(pid, 0), default=0)
        if self.over > OVER_FOR or sizes.get(biggest, 0) < limit // 20:
            raise Ended(why)
        self.tell(notice=f"killed: {why}")
        with suppress(ProcessLookupError):
            os.kill(biggest, signal.SIGKILL)

    def watch_disk(self) -> None:
        """Files are counted when the file system has grown enough for the limit to be passed, and now and then."""
        now, limit = time.monotonic(), self.config["disk"]
        if now - self.disk_at < self.disk_pause:
            return
        room = os.statvfs("workspace")
        free = room.f_bfree * room.f_frsize + room.f_ffree * LEAST_FILE
        grown = self.disk_free - free
        fresh = self.disk_at and now - self.disk_at < DISK_AT_LEAST_EVERY
        if fresh and not self.full and self.disk_seen + grown < limit * 0.9:
            return
        self.disk_seen, self.disk_free = disk_used("workspace") + nameless(commands(self.program)), free
        self.disk_at = time.monotonic()
        self.disk_pause = max(DISK_POLL, 5 * (self.disk_at - now))
        self.judge_disk(limit)

    def judge_disk(self, limit: int) -> None:
        full = self.disk_seen > limit
        if full == self.full:
            return
        self.full = full
        why = f"the workspace holds {self.disk_seen // MIB} MiB, more than its {limit // MIB} MiB: delete files first"
        if self.disk_seen >= UNCOUNTABLE:
            why = f"the workspace has folders in folders, more than {DEEPEST} deep: delete them first"
        self.tell(disk_full=why if full else "", notice=f"killed: {why}")
        if full:
            for pid in commands(self.program):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        self.uplink.end()
        with suppress(OSError, ChildProcessError):
            os.kill(self.program, signal.SIGKILL)
            os.waitpid(self.program, 0)

    def finish(self, why: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink("s")
        if why:
            with open("ended", "w") as file:
                file.write(why)
        if self.program:
            self.control.close()
            for pid in below(self.program):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.kill()
        self.cgroups.remove()


class Uplink:
    """The sandbox's way to the internet, where its project has one: a process outside, which ends with this one.

    Without it the sandbox's network namespace has no way out, so when it dies the sandbox has no network any more.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.process = 0
        self.hold = -1

    def opened(self, program: int) -> bool:
        """Start it for the sandbox below `program`; whether it works."""
        ready, ready_there = os.pipe()
        exit_there, self.hold = os.pipe()
        for descriptor in (ready_there, exit_there):
            os.set_inheritable(descriptor, True)
        uplink = self.config["uplink"]
        told = {"slirp": uplink["slirp"], "libraries": uplink["libraries"], "uid": self.config["uid"]}
        told |= {"pid": below(program)[0], "ready": ready_there, "exit": exit_there}
        command = [sys.executable, "-I", "-S", "-c", uplink["program"], json.dumps(told)]
        log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        streams = [(os.POSIX_SPAWN_DUP2, log, number) for number in (1, 2)]
        self.process = os.posix_spawn(sys.executable, command, {}, file_actions=streams)
        for descriptor in (log, ready_there, exit_there):
            os.close(descriptor)
        said = os.read(ready, 1) if select.select([ready], [], [], START_WITHIN)[0] else b""
        os.close(ready)
        return said == b"1"

    def watch(self) -> None:
        if self.process and os.waitpid(self.process, os.WNOHANG)[0]:
            self.process = 0
            with open("log", "a") as log:
                log.write("its network has ended: slirp4netns is gone\n")

    def end(self) -> None:
        if self.hold >= 0:
            os.close(self.hold)
        if self.process:
            with suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        self.process, self.hold = 0, -1


class Cgroups:
    """A control group of the sandbox's own, where this process may make one: version 2, else each hierarchy of 1.

    Where it may not, sums are polled and cores assigned, which is done in any case.
    """

    def __init__(self, config: Config) -> None:
        self.name = f"longrun-{os.path.basename(config['folder'])}"
        quota = str(int(config["cpus"] * 100_000))
        most = str(config["agent"]["processes"] + SPARE_PROCESSES)
        memory = str(config["memory"])
        self.second = {"memory.max": memory, "memory.swap.max": "0", "pids.max": most, "cpu.max": f"{quota} 100000"}
        self.first = {
            "memory": {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
            "pids": {"pids.max": most},
            "cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": quota},
        }
        self.folders: list[str] = []
        self.kills = 0

    def make(self) -> None:
        places, own = mounts(), memberships()
        if "" in own and "cgroup2" in places:
            here = places["cgroup2"] + own[""]
            for above in (os.path.dirname(here.rstrip("/")), here):
                if above.startswith(places["cgroup2"]) and self.made(above, self.second, "memory.max"):
                    return
        for controller, limits in self.first.items():
            if controller in own and controller in places:
                self.made(places[controller] + own[controller], limits, next(iter(limits)))

    def made(self, above: str, limits: dict[str, str], needed: str) -> bool:
        folder = f"{above}/{self.name}"
        try:
            os.makedirs(folder, exist_ok=True)
            write(f"{folder}/{needed}", limits[needed])
        except OSError:
            with suppress(OSError):
                os.rmdir(folder)
            return False
        for name, value in limits.items():
            with suppress(OSError):  # swap and processor time are not accounted everywhere
                write(f"{folder}/{name}", value)
        self.folders.append(folder)
        return True

    def enter(self) -> None:
        for folder in self.folders:
            write(f"{folder}/cgroup.procs", "0")

    def killed(self) -> bool:
        """Whether the kernel has killed for memory since this was last asked."""
        before, self.kills = self.kills, 0
        for path in (f"{folder}/{name}" for folder in self.folders for name in ("memory.events", "memory.oom_control")):
            with suppress(OSError), open(path) as file:
                self.kills += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        return self.kills > before

    def remove(self) -> None:
        deadline = time.monotonic() + 1.0
        for folder in self.folders:
            while True:
                try:
                    os.rmdir(folder)
                except OSError:
                    if os.path.isdir(folder) and time.monotonic() < deadline:
                        time.sleep(0.01)
                        continue
                break


def mounts() -> dict[str, str]:
    """Where control groups are mounted, by `cgroup2` or by controller."""
    found = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, kind = line.partition(" - ")
            if kind.startswith("cgroup2 "):
                found["cgroup2"] = fields.split()[4]
            elif kind.startswith("cgroup "):
                found |= dict.fromkeys(kind.split()[2].split(","), fields.split()[4])
    return found


def memberships() -> dict[str, str]:
    """The control groups of this process, by controller; that of version 2 by the empty name."""
    with open("/proc/self/cgroup") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    return {controller: path for _, controllers, path in lines for controller in controllers.split(",")}


def write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


class Ended(Exception):
    """The whole sandbox is to end; the text says why."""


def listen() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    with suppress(FileNotFoundError):
        os.unlink("s")
    listener.bind("s")  # relative: a path in a socket's address has at most 107 bytes
    os.chmod("s", 0o600)
    listener.listen(128)
    return listener


class Inside:
    """The fork that becomes bubblewrap."""

    def __init__(self, config: Config, listener: socket.socket, control: socket.socket, log: int) -> None:
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
        if config["uid"]:
            os.chown("workspace", config["uid"], config["uid"])
        os.chmod("workspace", 0o700)  # whoever was in there may have closed it
        workspace = self.reachable_workspace()
        self.limit()
        if config["uid"]:
            os.setgroups([])
            os.setgid(config["uid"])
            os.setuid(config["uid"])
        arguments = ["bwrap", *config["arguments"], "--bind", workspace, "/workspace", *files]
        arguments += [
            "--seccomp",
            memory(bytes.fromhex(config["seccomp"])),
            "--remount-ro",
            "/",
            "--chdir",
            "/workspace",
        ]
        os.execve(program, [*arguments, "--", *config["command"], json.dumps(agent)], {"PATH": "/usr/bin:/bin"})

    def reachable_workspace(self) -> str:
        """As root: where the project's own user can reach it, though its folder is closed to all others."""
        workspace = os.path.realpath("workspace")
        if not self.config["uid"] or libc.unshare(CLONE_NEWNS):
            return workspace
        call_mount("none", "/", MS_REC | MS_PRIVATE)
        call_mount(workspace, "/mnt", MS_BIND)
        return "/mnt"

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


def below(root: int) -> list[int]:
    """All processes below `root`: orphans in a pid namespace come to its first process, which is below it too."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    waiting += (children := [int(each) for each in file.read().split()])
                    found += children
    return found


def commands(root: int) -> list[int]:
    """All processes below `root` but the agent, which is the first one."""
    return below(root)[1:]


def resident(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/statm") as file:
        fields = file.read().split()
        return int(fields[1]) * PAGE if fields else 0
    return 0


def proportional(pid: int, otherwise: int) -> int:
    """Its share of the memory that it has mapped; one that has just ended holds none."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (ProcessLookupError, FileNotFoundError):
        return 0
    except OSError:
        return otherwise


def disk_used(folder: str) -> int:
    """Bytes on disk below a folder, whose links are not followed, however they change meanwhile."""
    total = 0
    for path, folders, files, descriptor in os.fwalk(folder):
        if path.count("/") - folder.count("/") > DEEPEST:
            return UNCOUNTABLE
        for name in (*files, *folders):
            with suppress(OSError):
                information = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                once = 1 if stat.S_ISDIR(information.st_mode) else information.st_nlink
                total += max(information.st_blocks * 512, LEAST_FILE) // once
    return total


def nameless(pids: list[int]) -> int:
    """Bytes on disk of files that were deleted and that a process still has open."""
    device, sizes = os.stat("workspace").st_dev, dict[int, int]()
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    information = os.stat(f"/proc/{pid}/fd/{name}")
                    if information.st_nlink == 0 and information.st_dev == device:
                        sizes[information.st_ino] = information.st_blocks * 512
    return sum(sizes.values())


libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    main()
