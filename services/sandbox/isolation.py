"""What a sandbox sees of the machine, as bubblewrap's arguments."""

from pathlib import Path

from services.sandbox import uplink
from services.sandbox.protocol import SandboxUnavailable

AGENT = "/run/sandbox/agent"
USER = 1000
PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")
TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
ETC = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "fonts", "java-17-openjdk", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "localtime", "magic", "mime.types", "os-release", "debian_version", "pki", "python3", "python3.11",
    "ssl/certs", "ssl/openssl.cnf", "terminfo", "chromium", "ImageMagick-6",
)  # fmt: skip
ENVIRONMENT = {
    "PATH": "/workspace/.local/bin:/usr/local/bin:/usr/bin:/bin",
    "HOME": "/workspace",
    "USER": "agent",
    "LOGNAME": "agent",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
MIB = 1024 * 1024
SHARED_MEMORY = 64 * MIB


def arguments(memory: int) -> list[str]:
    """Everything but the workspace, the files of `files()` and the system call filter."""
    namespaces = ["user", "pid", "ipc", "uts", "net"]
    made = [f"--unshare-{name}" for name in namespaces]
    made += [
        "--unshare-cgroup-try",
        "--disable-userns",
        "--assert-userns-disabled",
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
    ]
    made += ["--hostname", "sandbox", "--uid", str(USER), "--gid", str(USER), "--clearenv"]
    for name, value in ENVIRONMENT.items():
        made += ["--setenv", name, value]
    made += ["--ro-bind", "/usr", "/usr", *top_folders(), *etc_files()]
    made += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--perms",
        "1777",
        "--size",
        str(min(SHARED_MEMORY, memory // 4)),
        "--tmpfs",
        "/dev/shm",
    ]
    made += ["--remount-ro", "/dev", "--perms", "1777", "--size", str(memory // 4), "--tmpfs", "/tmp"]
    return [*made, "--dir", "/run/sandbox", "--dir", "/var", "--symlink", "/tmp", "/var/tmp"]


def top_folders() -> list[str]:
    made: list[str] = []
    for path in (Path("/", name) for name in TOP):
        if path.is_symlink():
            made += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            made += ["--ro-bind", str(path), str(path)]
    return made


def etc_files() -> list[str]:
    return [part for name in ETC for part in ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")]


def files(*, network: bool = False) -> dict[str, str]:
    """Files made for the sandbox, by path."""
    resolver = {"/etc/resolv.conf": f"nameserver {uplink.RESOLVER}\n"} if network else {}
    return {
        **resolver,
        "/etc/passwd": f"root:x:0:0::/:/bin/sh\nagent:x:{USER}:{USER}:agent:/workspace:/bin/bash\n",
        "/etc/group": f"root:x:0:\nagent:x:{USER}:\n",
        "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }


def command() -> list[str]:
    """The agent's command; its configuration is one more argument. Raises: SandboxUnavailable."""
    return [python(), "-I", "-S", AGENT]


def python() -> str:
    """The machine's own Python, which every user and every sandbox can reach.

    Raises: SandboxUnavailable when there is none.
    """
    for path in PYTHONS:
        if Path(path).exists():
            return path
    raise SandboxUnavailable(f"No sandbox: there is none of {', '.join(PYTHONS)}; install python3.")
