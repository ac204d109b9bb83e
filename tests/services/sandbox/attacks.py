"""What attackers inside a sandbox run: each prints what came of it, one `name: outcome` per line."""

FILES = """
import os
for path in ({secret!r}, "/root", "/etc/shadow", "/proc/1/root{secret}", "/home", "/var/lib", "/sys/kernel"):
    try:
        os.listdir(path) if os.path.isdir(path) else open(path).read()
        print(path, "reached")
    except OSError as error:
        print(path, error.strerror)
for path in ("/usr/bin/planted", "/etc/planted", "/planted", "/dev/planted"):
    try:
        open(path, "w")
        print(path, "written")
    except OSError as error:
        print(path, error.strerror)
"""

PROCESSES = """
import os
print("visible", max(int(name) for name in os.listdir("/proc") if name.isdigit()))
for pid in ({pids}):
    try:
        os.kill(pid, 9)
        print(pid, "killed")
    except OSError as error:
        print(pid, error.strerror)
"""

NETWORK = """
import socket
for host, port in (("127.0.0.1", {port}), ("169.254.169.254", 80), ("10.0.0.1", 80), ("1.1.1.1", 53)):
    made = socket.socket()
    made.settimeout(1)
    try:
        made.connect((host, port))
        print(host, "connected")
    except OSError as error:
        print(host, error.strerror or "timed out")
made = socket.socket(socket.AF_UNIX)
try:
    made.connect("\\0{abstract}")
    print("abstract", "connected")
except OSError as error:
    print("abstract", error.strerror)
"""

FAMILIES = """
import socket
for name, family, kind in (("vsock", 40, 1), ("netlink", 16, 3), ("packet", 17, 3), ("alg", 38, 5), ("xdp", 44, 3),
                           ("wide", 40 | 1 << 32, 1)):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    came = libc.syscall(41, ctypes.c_long(family), kind, 0)
    print(name, came, ctypes.get_errno())
for name, family in (("inet", 2), ("inet6", 10), ("unix", 1)):
    socket.socket(family, 1).close()
    print(name, 0, 0)
"""

CALLS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = dict(mount=165, umount2=166, pivot_root=155, chroot=161, unshare=272, setns=308, ptrace=101,
    process_vm_readv=310, process_vm_writev=311, kexec_load=246, bpf=321, perf_event_open=298, userfaultfd=323,
    keyctl=250, add_key=248, request_key=249, io_uring_setup=425, open_by_handle_at=304, init_module=175,
    open_tree=428, move_mount=429, fsopen=430, pidfd_getfd=438, mount_setattr=442)
for name, number in NUMBERS.items():
    ctypes.set_errno(0)
    print(name, libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno())
NEW_USER, NEW_NET, CHILD = 0x10000000, 0x40000000, 17
MORE = dict(clone_user=(56, NEW_USER | CHILD, 0, 0, 0, 0), clone_net=(56, NEW_NET | CHILD, 0, 0, 0, 0),
    clone3=(435, 0, 0), memfd_create=(319, b"x", 0))
for name, arguments in MORE.items():
    ctypes.set_errno(0)
    came = libc.syscall(*arguments)
    if came == 0:
        libc._exit(0)
    print(name, came, ctypes.get_errno())
"""

FORK_BOMB = """
import os, time
print("started", flush=True)
while True:
    try:
        os.fork()
    except OSError as error:
        time.sleep(0.001)
"""

MEMORY = """
import time
kept = []
while True:
    kept.append(bytearray(8 * 1024 * 1024))
    time.sleep(0.005)
"""

SHARED_MEMORY = """
import mmap, time
kept = []
while True:
    kept.append(mmap.mmap(-1, 8 * 1024 * 1024))
    kept[-1].write(b"x" * 8 * 1024 * 1024)
    time.sleep(0.005)
"""

DISK = """
import os, time
number = 0
while True:
    number += 1
    with open(f"/workspace/large-{number}", "wb") as file:
        file.write(os.urandom(1 << 20) * 4)
    time.sleep(0.02)
"""

DAEMON = """
import ctypes, os, time
if {clear_subreaper}:
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            for descriptor in range(3):
                os.close(descriptor)
            os.execve("/bin/sleep", ["left-over", "1000"], {{}})
        os._exit(0)
time.sleep({lingers})
"""

AGENT = """
import os, signal
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    os.kill(1, number)
for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/fd"):
    try:
        os.listdir(path) if path.endswith("fd") else open(path, "rb")
        print(path, "opened")
    except OSError as error:
        print(path, error.strerror)
import resource
try:
    resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))
    print("limits", "changed")
except PermissionError as error:
    print("limits", "Permission denied")
"""

SEGMENTS = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
size = 8 * 1024 * 1024
while True:
    segment = libc.shmget(0, size, 0o1600)
    address = libc.shmat(segment, None, 0)
    ctypes.memset(address, 1, size)
    libc.shmdt(ctypes.c_void_p(address))
    time.sleep(0.01)
"""

REACH = """
import socket
from concurrent.futures import ThreadPoolExecutor
INTERFACE = socket.if_nametoindex("tap0").to_bytes(4, "big")
HOP = lambda address: bytes([131, 7, 4]) + socket.inet_aton(address) + bytes([1])  # loose source route
WAYS = dict(
    plain=lambda made, host: None,
    device=lambda made, host: made.setsockopt(socket.SOL_SOCKET, 25, b"tap0\\0"),
    index=lambda made, host: made.setsockopt(socket.IPPROTO_IP, 50, INTERFACE),
    source=lambda made, host: made.setsockopt(socket.IPPROTO_IP, 4, HOP(host)),
)
def attempt(way, host, port):
    made = socket.socket()
    made.settimeout(1.0)
    try:
        WAYS[way](made, host)
        made.connect(("45.83.64.2" if way == "source" else host, port))
        return "connected"
    except OSError as error:
        return error.strerror or "timed out"
    finally:
        made.close()
with ThreadPoolExecutor(24) as pool:
    tried = {{(way, host): pool.submit(attempt, way, host, port) for host, port in {targets} for way in WAYS}}
    for (way, host), outcome in tried.items():
        print(f"{{way}}/{{host}}", outcome.result())
"""

GROUPS = """
import socket
for group in {groups}:
    for way in ("plain", "bound"):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            if way == "bound":
                made.bind(("10.0.2.100", 0))
                made.setsockopt(socket.SOL_SOCKET, 25, b"tap0\\0")
                made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.0.2.100"))
            made.sendto(b"anybody", (group, {port}))
            print(f"{{way}}/{{group}}", "sent")
        except OSError as error:
            print(f"{{way}}/{{group}}", error.strerror)
        made.close()
"""
