"""What a container may do, as the Docker Engine API takes it. Pure."""

from services.sandbox.isolation import SHARED_MEMORY
from services.sandbox.protocol import WORKSPACE, Spec

SHARED = "/run/sandbox"
PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where python3 is looked for: nowhere that the last life of the sandbox could write."""
OPEN_FILES = 4096


def configuration(image: str, user: int, spec: Spec, processes: int, shared: str, volume: str) -> dict[str, object]:
    """The body of a create request; the agent and what it begins with lie in the folder that both share."""
    return {
        "Image": image,
        "Entrypoint": ["python3", "-I", "-S", f"{SHARED}/agent"],
        "Cmd": [f"{SHARED}/begin"],
        "User": f"{user}:{user}",
        "WorkingDir": WORKSPACE,
        "Env": [f"PATH={PATH}"],
        "Hostname": "sandbox",
        "Labels": {"longrun.sandbox": volume},
        "NetworkDisabled": not spec.network,
        "HostConfig": limits(spec, processes)
        | {
            "NetworkMode": "bridge" if spec.network else "none",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": False,
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={spec.memory_bytes // 4}"},  # noqa: S108 - inside
            "ShmSize": min(SHARED_MEMORY, spec.memory_bytes // 4),
            "Mounts": [
                {"Type": "volume", "Source": volume, "Target": WORKSPACE},
                {"Type": "bind", "Source": shared, "Target": SHARED},
            ],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
        },
    }


def limits(spec: Spec, processes: int) -> dict[str, object]:
    by_process = {"core": 0, "nofile": OPEN_FILES, "fsize": spec.disk_bytes, "nproc": processes}
    return {
        "NanoCpus": round(spec.cpus * 1e9),
        "Memory": spec.memory_bytes,
        "MemorySwap": spec.memory_bytes,
        "PidsLimit": processes,
        "Ulimits": [{"Name": name, "Soft": most, "Hard": most} for name, most in by_process.items()],
    }
