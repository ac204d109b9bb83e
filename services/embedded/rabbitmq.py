"""A private RabbitMQ node: the machine's own programs, or Debian's packages unpacked beside the state."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.embedded import debian, probes
from services.embedded.child import Spec
from services.embedded.console import EmbeddedError
from services.embedded.environment import CHECKOUT, for_a_server
from services.embedded.state import State

CACHE = CHECKOUT / ".longrun" / "cache"
ERLANG = (
    "asn1", "base", "crypto", "eldap", "ftp", "inets", "mnesia", "os-mon", "parsetools", "public-key",
    "runtime-tools", "snmp", "ssl", "syntax-tools", "tftp", "tools", "xmerl",
)  # fmt: skip
PACKAGES = ("rabbitmq-server", *(f"erlang-{part}" for part in ERLANG))
# Debian's wrapper on PATH changes the user; these are the programs behind it.
SERVER_GLOBS = ("lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server", "lib/rabbitmq/bin/rabbitmq-server")
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Programs:
    server: Path
    epmd: Path


def url(port: int, password: str) -> str:
    return f"amqp://longrun:{password}@127.0.0.1:{port}/%2F"


async def prepare(state: State) -> list[Spec]:
    """Find or unpack the programs and say how Erlang's port mapper and the node are started, in this order.

    Raises: EmbeddedError when the machine has no RabbitMQ and Debian's packages cannot be fetched.
    """
    programs = installed(Path("/usr")) or on_path() or await unpacked(state)
    folder = state.folder_named("rabbitmq")
    refuse_spaces(programs.server, folder)
    port, epmd_port = state.port("rabbitmq"), state.port("epmd")
    env = node_environment(programs, state, folder, epmd_port)
    write_configuration(folder, port, state.password)
    epmd = Spec(
        name="epmd",
        argv=[programs.epmd, "-address", "127.0.0.1", "-port", str(epmd_port)],
        env=env,
        cwd=folder,
        log=state.log("epmd"),
        ready=probes.listening(epmd_port),
    )
    node = Spec(
        name="rabbitmq",
        argv=[programs.server],
        env=env,
        cwd=folder,
        log=state.log("rabbitmq"),
        ready=probes.rabbitmq(port),
        ready_within=90.0,
        stop_within=30.0,
    )
    return [epmd, node]


def refuse_spaces(*paths: Path) -> None:
    for path in paths:
        if " " in str(path):
            raise EmbeddedError(f"RabbitMQ's own scripts fail below a folder with a space in its name: {path}")


def installed(prefix: Path) -> Programs | None:
    servers = first_of(prefix, SERVER_GLOBS)
    mappers = first_of(prefix, ("lib/erlang/erts-*/bin/epmd", "bin/epmd"))
    return Programs(servers, mappers) if servers and mappers else None


def first_of(prefix: Path, patterns: Sequence[str]) -> Path | None:
    return next((path for pattern in patterns for path in sorted(prefix.glob(pattern))), None)


def on_path() -> Programs | None:
    server, epmd = shutil.which("rabbitmq-server"), shutil.which("epmd")
    return Programs(Path(server).resolve(), Path(epmd)) if server and epmd else None


async def unpacked(state: State) -> Programs:
    root = await debian.unpack(PACKAGES, CACHE / "rabbitmq", state.log("apt"), adapt=relocate)
    programs = installed(root / "usr")
    assert programs, "the packages hold both programs"
    return programs


def relocate(unpacking: Path, final: Path) -> None:
    """Have the scripts of Erlang look below `final` instead of /usr."""
    for script in (*unpacking.glob("usr/lib/erlang/bin/*"), *unpacking.glob("usr/lib/erlang/erts-*/bin/*")):
        if script.is_symlink() or not script.is_file() or not script.read_bytes().startswith(b"#!"):
            continue
        script.write_text(script.read_text().replace("ROOTDIR=/usr/lib/erlang", f'ROOTDIR="{final}/usr/lib/erlang"'))


def node_environment(programs: Programs, state: State, folder: Path, epmd_port: int) -> dict[str, str]:
    erlang = programs.epmd.resolve().parents[2] / "bin"
    return for_a_server(
        {
            "PATH": f"{erlang}:{for_a_server()['PATH']}",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # A name with an address needs no name service, which a container may lack.
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_NODENAME": "longrun@127.0.0.1",
            "RABBITMQ_DIST_PORT": str(state.port("rabbitmq-distribution")),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            # Without it a shell stays between us and the node and the pid would not be the node's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
    )


def write_configuration(folder: Path, port: int, password: str) -> None:
    """`consumer_timeout` (ms): by default a run of half an hour loses its channel and with it every unacked message."""
    configuration = folder / "rabbitmq.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"listeners.tcp.local = 127.0.0.1:{port}\n"
        f"consumer_timeout = {DAY_MS}\n"
        "default_user = longrun\n"
        f"default_pass = {password}\n"
        "log.console = true\n"
    )
    (folder / "enabled_plugins").write_text("[].\n")
