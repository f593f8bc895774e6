"""Large answers are received where they stay, and lost connections are noticed as before."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import conn

from ledger import answers
from ledger.answers import _Answer, _Protocol, _Reader

LARGE = bytes(range(256)) * 1500


@pytest.mark.parametrize("piece", [1000, 65_536, 10_000_000])
@pytest.mark.parametrize("protocol", [_Protocol, conn.AIOKafkaProtocol])
def test_answers_of_all_lengths_arrive_as_they_were_sent(protocol: Any, piece: int) -> None:
    sent = [b"", b"small", LARGE, LARGE[:65_536], LARGE[:65_537], b"x", LARGE * 3, b"end"]
    data = b"".join(struct.pack(">i", len(answer)) + answer for answer in sent)

    async def send(writer: asyncio.StreamWriter) -> None:
        for begin in range(0, len(data), piece):
            writer.write(data[begin : begin + piece])
            await writer.drain()
            await asyncio.sleep(0)

    async def read(reader: Any) -> list[Any]:
        found = []
        for _ in sent:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            found.append(await reader.readexactly(size))
        return found

    found = asyncio.run(_talk(protocol, send, read))
    assert [bytes(answer) for answer in found] == sent
    assert all(memoryview(answer).readonly for answer in found)


@pytest.mark.parametrize("sent", [0, 10, 70_000, len(LARGE) - 1])
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_connection_lost_within_an_answer(sent: int, is_reset: bool) -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(LARGE[:sent])
        await writer.drain()
        await asyncio.sleep(0.05)
        if is_reset:
            writer.get_extra_info("socket").setsockopt(1, 13, struct.pack("ii", 1, 0))
        writer.close()

    async def read(reader: Any) -> BaseException:
        with pytest.raises((EOFError, ConnectionError)) as found:
            await reader.readexactly(len(LARGE))
        with pytest.raises((EOFError, ConnectionError)):
            await reader.readexactly(len(LARGE))
        return found.value

    error = asyncio.run(_talk(_Protocol, send, read))
    if is_reset:
        assert isinstance(error, ConnectionResetError)
    else:
        assert isinstance(error, asyncio.IncompleteReadError)
        assert error.partial == LARGE[:sent]
        assert error.expected == len(LARGE)


def test_reading_that_is_cancelled_within_an_answer() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(LARGE[:70_000])
        await asyncio.sleep(0.1)
        writer.write(b"more")
        await asyncio.sleep(0.1)

    async def read(reader: Any) -> bytes:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(len(LARGE)), 0.05)
        return bytes(await reader.readexactly(4))

    assert asyncio.run(_talk(_Protocol, send, read)) == b"more"


def test_no_memory_is_taken_for_an_answer_of_impossible_length() -> None:
    async def read(reader: Any) -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1 << 30), 0.05)
        return len(reader._rest)

    assert asyncio.run(_talk(_Protocol, lambda _: asyncio.sleep(0.1), read)) == 0


def test_a_transport_with_memory_of_its_own() -> None:
    async def read() -> bytes:
        reader: Any = asyncio.StreamReader()
        reader.__class__ = _Reader
        reading = asyncio.ensure_future(reader.readexactly(len(LARGE)))
        for begin in range(0, len(LARGE), 70_000):
            await asyncio.sleep(0)
            reader.feed_data(LARGE[begin : begin + 70_000] + b"next" * (begin > 300_000))
        found = bytes(await reading)
        assert await reader.readexactly(4) == b"next"
        return found

    assert asyncio.run(read()) == LARGE


def test_what_is_decoded_of_an_answer() -> None:
    answer = _Answer(LARGE)
    assert type(answer.read(10)) is bytes
    found = answer.read(40_000)
    assert type(found) is memoryview
    assert found == LARGE[10:40_010]
    assert answer.read(len(LARGE)) == LARGE[40_010:]
    assert answer.read(1) == b""


def test_what_is_replaced_is_what_aiokafka_uses() -> None:
    before = conn.AIOKafkaProtocol, conn.io
    try:
        answers.receive_in_place()
        names = conn.AIOKafkaConnection.connect.__code__.co_names
        assert "AIOKafkaProtocol" in names
        assert "io" in conn.AIOKafkaConnection._handle_frame.__code__.co_names
    finally:
        conn.AIOKafkaProtocol, conn.io = before


async def _talk(
    protocol: Any,
    send: Callable[[asyncio.StreamWriter], Awaitable[None]],
    read: Callable[[Any], Awaitable[Any]],
) -> Any:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await send(writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=conn.READER_LIMIT, loop=loop)
    closed = loop.create_future()
    transport, _ = await loop.create_connection(
        lambda: protocol(closed, reader, loop=loop), *server.sockets[0].getsockname()
    )
    try:
        return await read(reader)
    finally:
        transport.close()
        server.close()
