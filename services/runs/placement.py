"""Where a run lives when there are several Redis servers: chosen from its id, by rendezvous hashing."""

from collections.abc import Sequence
from hashlib import blake2b
from uuid import UUID


def choose(names: Sequence[str], run_id: UUID) -> str:
    """The name of the run's server: the one with the greatest hash beside this id.

    The order of the names does not count. A name that is added takes over its share of the ids and moves no other; one
    that is removed leaves its share to the others. The hash is BLAKE2b of 8 bytes over the name and the id's 16 bytes.
    """
    return names[0] if len(names) == 1 else max(names, key=lambda name: weight(name, run_id))


def weight(name: str, run_id: UUID) -> bytes:
    return blake2b(name.encode() + run_id.bytes, digest_size=8).digest()
