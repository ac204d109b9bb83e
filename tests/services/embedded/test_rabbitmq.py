"""The private RabbitMQ node."""

import asyncio
from pathlib import Path

import pika
import pytest

from services.embedded import rabbitmq
from services.embedded.state import State
from services.embedded.supervisor import Supervisor

LOOPBACK = {"0100007F", "00000000000000000000000001000000"}
"""127.0.0.1 and ::1, as the kernel prints them on a little-endian machine."""


async def start(supervisor: Supervisor, state: State) -> None:
    for spec in await rabbitmq.prepare(state):
        await supervisor.start(spec)


def exchange(address: str, *, publish: bool) -> bytes | None:
    connection = pika.BlockingConnection(pika.URLParameters(address))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True)
        if publish:
            channel.basic_publish("", "kept", b"hello", pika.BasicProperties(delivery_mode=2))
            return None
        _, _, body = channel.basic_get("kept", auto_ack=True)
        return bytes(body) if body else None
    finally:
        connection.close()


@pytest.mark.slow
async def test_it_keeps_messages_over_a_restart(supervisor: Supervisor, state: State) -> None:
    await start(supervisor, state)
    address = rabbitmq.url(state.port("rabbitmq"), state.password)
    await asyncio.to_thread(exchange, address, publish=True)
    await supervisor.stop_all()
    await start(supervisor, state)
    assert await asyncio.to_thread(exchange, address, publish=False) == b"hello"


async def test_a_consumer_may_take_a_day(state: State) -> None:
    await rabbitmq.prepare(state)
    assert "consumer_timeout = 86400000\n" in (state.folder / "rabbitmq" / "rabbitmq.conf").read_text()


async def test_it_listens_on_the_loopback_only(supervisor: Supervisor, state: State) -> None:
    await start(supervisor, state)
    ports = {state.port(name) for name in ("rabbitmq", "epmd", "rabbitmq-distribution")}
    listening = listeners()
    assert {port for _, port in listening} >= ports
    assert {address for address, port in listening if port in ports} <= LOOPBACK


def listeners() -> set[tuple[str, int]]:
    """(address in hexadecimal, port) of every listening TCP socket, IPv6 included."""
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            _, local, _, status, *_ = line.split()
            if status == "0A":
                address, port = local.split(":")
                found.add((address, int(port, 16)))
    return found
