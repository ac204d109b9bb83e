"""Facts about the machine and the servers that a figure depends on, and none that say whose they are."""

import asyncio
import os
import platform
import subprocess
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from pika.frame import decode_frame
from pika.spec import FRAME_END_SIZE, FRAME_HEADER_SIZE
from redis.asyncio import Redis

from services.embedded.environment import CHECKOUT

AMQP_HELLO = b"AMQP\x00\x00\x09\x01"


def machine() -> dict[str, str | float]:
    return {
        "system": system(),
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def system() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def longrun_version() -> str:
    """`0.1.0+1a2b3c4`, with `-dirty` when the checkout differs from its commit."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        commit = subprocess.run(describe, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return str(project["version"])
    return f"{project['version']}+{commit}"


async def server_versions(names: Mapping[str, str]) -> dict[str, str]:
    """Of the stores at the addresses in `names` (`DATABASE_URL`, `REDIS_URL`, perhaps `RABBITMQ_URL`)."""
    versions = {"postgres": await postgres_version(names["DATABASE_URL"]), **await redis_version(names["REDIS_URL"])}
    if "RABBITMQ_URL" in names:
        versions["rabbitmq"] = await rabbitmq_version(names["RABBITMQ_URL"])
    return versions


async def postgres_version(url: str) -> str:
    conn = await asyncpg.connect(url)
    try:
        return str(await conn.fetchval("SHOW server_version")).split()[0]
    finally:
        await conn.close()


async def redis_version(url: str) -> dict[str, str]:
    """Under the server's own name: Valkey says a Redis version too, the one it is compatible with."""
    async with Redis.from_url(url, protocol=2) as redis:
        said = await redis.info("server")
    name = str(said.get("server_name", "redis"))
    return {name: str(said.get(f"{name}_version", said["redis_version"]))}


async def rabbitmq_version(url: str) -> str:
    """From the first frame, which a broker sends before anybody signs in."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(AMQP_HELLO)
        header = await reader.readexactly(FRAME_HEADER_SIZE)
        size = int.from_bytes(header[3:7], "big")
        _, frame = decode_frame(header + await reader.readexactly(size + FRAME_END_SIZE))
        return str(frame.method.server_properties["version"])
    finally:
        writer.close()
