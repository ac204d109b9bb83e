"""Ports on the loopback interface."""

import random
import socket

from services.embedded.console import EmbeddedError

# Below the kernel's range for outgoing connections, so that a remembered port is still free at the next start.
LOWEST, HIGHEST = 20_000, 32_000


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    try:
        claim(host, port)
    except OSError:
        return False
    return True


def claim(host: str, port: int) -> None:
    """Bind `host:port` and let go of it again. Raises OSError when that is not possible."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)


def pick(taken: set[int]) -> int:
    """A free port that is not in `taken`."""
    candidates = random.SystemRandom().sample(range(LOWEST, HIGHEST), 200)
    for port in candidates:
        if port not in taken and is_free(port):
            return port
    raise EmbeddedError(f"no free port found between {LOWEST} and {HIGHEST}")


def require_free(host: str, port: int) -> None:
    """Raises: EmbeddedError naming the flag to change when `host:port` cannot be listened on."""
    try:
        claim(host, port)
    except socket.gaierror as error:
        raise EmbeddedError(f"cannot listen on {host!r}: {error.strerror} (choose another with --host)") from None
    except PermissionError:
        raise EmbeddedError(f"not allowed to listen on port {port} (choose another with --port)") from None
    except OSError as error:
        if error.errno == 98:
            raise EmbeddedError(f"port {port} on {host} is in use (choose another with --port)") from None
        raise EmbeddedError(f"cannot listen on {host}:{port}: {error.strerror} (see --host, --port)") from None
