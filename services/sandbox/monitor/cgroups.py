"""Control groups, where they may be made."""

import os
import time
from contextlib import suppress
from typing import Any

SPARE_PROCESSES = 16


class Cgroups:
    """A control group of the sandbox's own, where this process may make one: version 2, else each hierarchy of 1.

    Where it may not, sums are polled and cores assigned, which is done in any case.
    """

    def __init__(self, config: dict[str, Any]) -> None:
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
