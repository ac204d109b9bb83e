"""Every attack of an agent's code on what is around its sandbox, and the layer that held."""

import asyncio
import errno
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pyseccomp
import pytest

from services.sandbox import places, syscalls
from services.sandbox.bubblewrap import Bubblewrap
from services.sandbox.monitor.processes import below
from services.sandbox.protocol import Sandbox, SandboxFailed
from tests.conftest import named
from tests.services.sandbox import attacks
from tests.services.sandbox.conftest import MIB, soon


async def outcomes(sandbox: Sandbox, script: str, timeout: float = 60.0) -> dict[str, str]:
    """Run a script; each line that it printed, by its first word."""
    await sandbox.write_file("attack.py", script.encode())
    done = await sandbox.exec("python3 /workspace/attack.py", timeout=timeout)
    assert done.exit_code == 0, done
    return dict(line.split(" ", 1) for line in done.output.decode().splitlines())


@pytest.fixture
def secret() -> Iterator[str]:
    with tempfile.NamedTemporaryFile(prefix="secret-") as file:
        Path(file.name).chmod(0o644)
        yield file.name


async def test_the_mount_namespace_hides_the_hosts_files_and_leaves_nothing_to_write(
    attacked: Sandbox, secret: str
) -> None:
    seen = await outcomes(attacked, attacks.FILES.format(secret=secret))
    assert set(seen.values()) <= {"No such file or directory", "Permission denied", "Read-only file system"}, seen
    assert seen["/usr/bin/planted"] == "Read-only file system"
    assert seen[secret] == "No such file or directory"


async def test_the_pid_namespace_hides_the_hosts_processes(attacked: Sandbox) -> None:
    own = [os.getpid(), os.getppid()]
    seen = await outcomes(attacked, attacks.PROCESSES.format(pids=f"{own[0] + 100_000}, {own[1] + 100_000}"))
    assert int(seen["visible"]) < 100
    listed = await attacked.exec("ps -e -o pid= | wc -l; cat /proc/*/cmdline | tr '\\0' ' '")
    assert b"pytest" not in listed.output


async def test_the_environment_of_the_host_does_not_come_in(attacked: Sandbox) -> None:
    environment = (await attacked.exec("env; cat /proc/1/environ")).output
    assert b"DATABASE_URL" not in environment
    assert b"REDIS" not in environment


async def test_the_network_namespace_holds_redis_the_metadata_address_and_abstract_sockets_off(
    attacked: Sandbox,
) -> None:
    name = f"longrun-{uuid4()}"
    port = urlsplit(named("REDIS_URL")).port
    with socket.socket(socket.AF_UNIX) as listener, socket.create_connection(("127.0.0.1", port or 0)):
        listener.bind(f"\0{name}")
        listener.listen()
        seen = await outcomes(attacked, attacks.NETWORK.format(port=port, abstract=name))
    assert seen == {
        "127.0.0.1": "Connection refused",
        "169.254.169.254": "Network is unreachable",
        "10.0.0.1": "Network is unreachable",
        "1.1.1.1": "Network is unreachable",
        "abstract": "Connection refused",
    }


async def test_the_system_call_filter_refuses_vsock_and_every_other_family_but_three(attacked: Sandbox) -> None:
    seen = await outcomes(attacked, attacks.FAMILIES)
    refused = f"-1 {errno.EAFNOSUPPORT}"
    assert seen == {
        **dict.fromkeys(("vsock", "netlink", "packet", "alg", "xdp", "wide"), refused),
        **dict.fromkeys(("inet", "inet6", "unix"), "0 0"),
    }


async def test_the_system_call_filter_refuses_mounts_namespaces_tracing_and_the_kernels_back_doors(
    attacked: Sandbox,
) -> None:
    seen = await outcomes(attacked, attacks.CALLS)
    not_there = {name: seen.pop(name) for name in ("clone3", "memfd_create")}
    assert set(seen.values()) == {f"-1 {errno.EPERM}"}, seen
    assert set(not_there.values()) == {f"-1 {errno.ENOSYS}"}
    assert len(seen) > 20


async def test_no_capability_is_left_and_no_program_gives_any_back(attacked: Sandbox) -> None:
    status = (await attacked.exec("cat /proc/self/status")).output.decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


async def test_the_kernels_limit_on_user_namespaces_holds_should_the_filter_not(
    monkeypatch: pytest.MonkeyPatch, provider: Bubblewrap, project_id: UUID
) -> None:
    everything = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    everything.add_rule(pyseccomp.ERRNO(errno.EPERM), "reboot")
    monkeypatch.setattr(syscalls, "program", lambda: syscalls.exported(everything))
    sandbox = await provider.open(project_id)
    refused = await sandbox.exec("unshare --user true; unshare --mount true")
    assert b"unshare failed: No space left on device" in refused.output
    assert b"unshare failed: Operation not permitted" in refused.output


async def test_the_limit_on_processes_stops_a_fork_bomb_and_the_deadline_clears_it(attacked: Sandbox) -> None:
    await attacked.write_file("bomb.py", attacks.FORK_BOMB.encode())
    began = time.monotonic()
    bombing = asyncio.create_task(attacked.exec("python3 bomb.py", timeout=1.5))
    await asyncio.sleep(1.0)
    assert (await attacked.usage()).processes <= 64
    assert (await bombing).exit_code is None
    assert time.monotonic() - began < 60
    assert (await attacked.exec("echo fine")).output == b"fine\n"
    assert (await attacked.usage()).processes == 1


@pytest.mark.parametrize("script", [attacks.MEMORY, attacks.SHARED_MEMORY], ids=["private", "shared"])
async def test_the_monitor_kills_what_takes_too_much_memory_within_two_seconds(attacked: Sandbox, script: str) -> None:
    await attacked.write_file("memory.py", script.encode())
    began = time.monotonic()
    try:
        done = await attacked.exec("python3 memory.py", timeout=20)
        assert done.exit_code == 137
        told = done.output.decode()
    except SandboxFailed as ended:  # the kernel may take the agent too, while shared pages are still being freed
        told = str(ended)
    assert "used more than its 192 MiB of memory" in told
    assert time.monotonic() - began < 5 * 2.0
    await soon(lambda: is_fine(attacked))


async def is_fine(sandbox: Sandbox) -> bool:
    with suppress(SandboxFailed):
        return (await sandbox.exec("echo fine")).output == b"fine\n"
    return False


async def test_the_size_of_tmpfs_bounds_memory_that_no_process_holds(attacked: Sandbox) -> None:
    fill = "for i in 1 2; do head -c 40M /dev/zero > /tmp/large-$i; head -c 40M /dev/zero > /dev/shm/large-$i; done"
    assert (await attacked.exec(fill)).output.count(b"No space left on device") == 2


async def test_the_monitor_ends_a_sandbox_whose_memory_belongs_to_no_process(attacked: Sandbox) -> None:
    await attacked.write_file("segments.py", attacks.SEGMENTS.encode())
    with suppress(SandboxFailed):
        await attacked.exec("python3 segments.py")

    async def given_back() -> bool:
        with suppress(SandboxFailed):
            return (await attacked.usage()).memory_bytes < 60 * MIB
        return False

    await soon(given_back)
    assert b"0x" not in (await attacked.exec("ipcs -m")).output


async def test_the_monitor_stops_writing_past_the_disk_limit_and_deleting_still_works(attacked: Sandbox) -> None:
    await attacked.write_file("disk.py", attacks.DISK.encode())
    done = await attacked.exec("python3 disk.py", timeout=20)
    assert done.exit_code == 137
    assert b"more than its 48 MiB: delete files first" in done.output
    assert (await attacked.usage()).disk_bytes < 200 * MIB
    refused = await attacked.exec("echo more > more")
    assert refused.exit_code
    assert b"delete files first" in refused.output
    with pytest.raises(SandboxFailed, match="delete files first"):
        await attacked.write_file("more", b"more")
    await attacked.exec("rm -f large-*")

    async def writable() -> bool:
        return (await attacked.exec("echo more > more && cat more")).output == b"more\n"

    await soon(writable)


async def test_the_limit_on_file_size_stops_one_large_file_at_once(attacked: Sandbox) -> None:
    done = await attacked.exec("trap '' XFSZ; head -c 60M /dev/zero > large; stat -c %s large")
    assert int(done.output.split()[-1]) <= 48 * MIB


async def test_links_out_of_the_workspace_lead_nowhere_but_into_the_sandboxs_own_view(
    attacked: Sandbox, secret: str
) -> None:
    outside = Path(secret).parent
    await attacked.exec(f"ln -s {secret} file; ln -s {outside} folder; ln -s / root; ln -s /etc/passwd passwd")
    with pytest.raises(SandboxFailed, match="no file"):
        await attacked.read_file("file")
    assert b"agent" in await attacked.read_file("passwd")
    with pytest.raises(SandboxFailed):
        await attacked.write_file("root/usr/planted", b"")
    await attacked.write_file("file", b"mine")
    assert os.stat(secret).st_size == 0
    await attacked.write_file("folder/planted", b"in the sandbox's own /tmp")
    assert not (outside / "planted").exists()
    await attacked.delete_file("folder")
    assert outside.is_dir()
    assert {info.path for info in await attacked.list_files("root", depth=1) if info.path.endswith("root")} == set()


async def test_removing_a_sandbox_follows_no_link(provider: Bubblewrap, project_id: UUID, folder: Path) -> None:
    outside = folder / "outside"
    outside.mkdir()
    sandbox = await provider.open(project_id)
    await sandbox.exec(f"ln -s {outside} link; mkdir shut; touch shut/file; chmod 0 shut")
    await provider.delete(project_id)
    assert outside.is_dir()
    assert not places.of(provider.root, project_id).folder.exists()


async def test_the_disk_that_is_counted_is_none_that_a_link_leads_to(attacked: Sandbox) -> None:
    await attacked.exec("for i in $(seq 50); do ln -s /usr usr-$i; done")
    assert (await attacked.usage()).disk_bytes < MIB


@pytest.mark.parametrize("clear_subreaper", [False, True], ids=["plain", "clearing the subreaper"])
async def test_the_agent_kills_the_daemons_that_a_command_leaves_over(attacked: Sandbox, clear_subreaper: bool) -> None:
    script = attacks.DAEMON.format(clear_subreaper=clear_subreaper, lingers=0.2)
    await attacked.write_file("daemon.py", script.encode())
    count = "ps -e -o args= | grep -c '[l]eft-over'"
    done = await attacked.exec(f"python3 daemon.py & wait; until [ $({count}) = 3 ]; do sleep 0.02; done; {count}")
    assert done.output == b"3\n"
    assert (await attacked.exec(count)).output == b"0\n"
    assert (await attacked.usage()).processes == 1


async def test_a_command_that_is_killed_takes_its_daemons_with_it(attacked: Sandbox) -> None:
    script = attacks.DAEMON.format(clear_subreaper=True, lingers=100)
    await attacked.write_file("daemon.py", script.encode())
    assert (await attacked.exec("python3 daemon.py", timeout=0.5)).exit_code is None
    assert (await attacked.usage()).processes == 1


async def test_the_kernel_shields_the_agent_from_the_commands_it_runs(attacked: Sandbox) -> None:
    seen = await outcomes(attacked, attacks.AGENT)
    assert set(seen.values()) == {"Permission denied"}
    assert (await attacked.exec("echo fine")).output == b"fine\n"


async def test_each_project_has_a_user_of_its_own_when_root_starts_it_and_else_the_starters(
    provider: Bubblewrap,
) -> None:
    users = set()
    for project_id in (uuid4(), uuid4()):
        await provider.open(project_id)
        place = places.of(provider.root, project_id)
        users.add(place.workspace.stat().st_uid)
        users |= {os.stat(f"/proc/{pid}").st_uid for pid in below(place.monitor() or 0)}
    if os.geteuid():
        assert users == {os.geteuid()}
    else:
        assert len(users) == 2
        assert min(users) >= provider.settings.uid_base
