"""The system calls that no process in a sandbox may make."""

import errno
import socket
import tempfile
from functools import cache

from services.sandbox.protocol import SandboxUnavailable

try:
    import pyseccomp
except (ImportError, OSError, RuntimeError) as error:  # no libseccomp on this machine
    pyseccomp, missing = None, str(error)

REFUSED = (
    "mount", "umount", "umount2", "pivot_root", "chroot", "unshare", "setns", "fsopen", "fsconfig", "fsmount",
    "fspick", "move_mount", "open_tree", "mount_setattr", "ptrace", "process_vm_readv", "process_vm_writev",
    "process_madvise", "pidfd_getfd", "kcmp", "kexec_load", "kexec_file_load", "bpf", "perf_event_open",
    "userfaultfd", "keyctl", "add_key", "request_key", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "open_by_handle_at", "name_to_handle_at", "init_module", "finit_module", "delete_module", "reboot",
    "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "settimeofday", "clock_settime",
    "clock_adjtime", "adjtimex", "iopl", "ioperm", "modify_ldt", "lookup_dcookie", "fanotify_init",
    "nfsservctl", "vhangup", "uselib", "personality", "mbind", "migrate_pages", "move_pages", "set_mempolicy",
    "sched_setaffinity", "vmsplice",
)  # fmt: skip
UNCOUNTED = ("memfd_create", "memfd_secret")
"""They hold memory that no process has mapped: the sum over processes would not see it."""
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
CLONE_NAMESPACES = (0x00020000, 0x00000080, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)


@cache
def program() -> bytes:
    """The filter, as the kernel takes it.

    Raises: SandboxUnavailable without libseccomp.
    """
    if pyseccomp is None:
        raise SandboxUnavailable(f"No sandbox: libseccomp cannot be loaded ({missing}); install libseccomp2.")
    made = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for name in REFUSED:
        add(made, refuse, name)
    for name in UNCOUNTED:
        add(made, pyseccomp.ERRNO(errno.ENOSYS), name)
    # Its flags are behind a pointer, which a filter cannot read; C libraries fall back to clone.
    add(made, pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for flag in CLONE_NAMESPACES:
        made.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    for name in ("socket", "socketpair"):
        refuse_families(made, name)
    # A limit of another process, the agent's above all.
    made.add_rule(refuse, "prlimit64", pyseccomp.Arg(0, pyseccomp.NE, 0))
    # TIOCSTI and TIOCLINUX type into a terminal.
    for request in (0x5412, 0x541C):
        made.add_rule(refuse, "ioctl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    return exported(made)


def add(made: "pyseccomp.SyscallFilter", action: int, name: str) -> None:
    try:
        made.add_rule(action, name)
    except (ValueError, OSError):
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
            raise


def refuse_families(made: "pyseccomp.SyscallFilter", name: str) -> None:
    """Every family of sockets but those named: vsock above all is in no network namespace."""
    refuse = pyseccomp.ERRNO(errno.EAFNOSUPPORT)
    ordered = sorted(FAMILIES)
    for low, high in zip([-1, *ordered], [*ordered, None], strict=True):
        for family in range(low + 1, high) if high is not None else ():
            made.add_rule(refuse, name, pyseccomp.Arg(0, pyseccomp.EQ, family))
    made.add_rule(refuse, name, pyseccomp.Arg(0, pyseccomp.GT, ordered[-1]))


def exported(made: "pyseccomp.SyscallFilter") -> bytes:
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
