"""aiokafka's receiving of answers, without copies of what was fetched.

aiokafka reads an answer by asyncio's streams: each piece is copied into a buffer that grows, the
whole out of that, and the batches of each partition out of the whole. That costs more than all else
in reading, most of it in memory that is new each time. Here a large answer is received where it
stays, and its batches are views of it: it lives as long as the last of them.

Private API of aiokafka 0.14.0 and of asyncio in Python 3.11, as in `ledger.records`; and CPython
does not say that it makes a byte array without clearing it.
"""

from __future__ import annotations

import asyncio
import ctypes
from types import SimpleNamespace
from typing import Any, Final

from aiokafka import conn

_SMALL: Final = 1 << 16
"""Bytes; what is not larger is read by asyncio's streams."""
_LARGE: Final = 1 << 26
"""As `_SMALL`: aiokafka asks for 50 MiB at most, so this is the length of no answer of Kafka's."""
_LONGEST_STRING: Final = 0x7FFF

_module: Any = conn

_unfilled: Any = ctypes.pythonapi.PyByteArray_FromStringAndSize
_unfilled.argtypes, _unfilled.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object


def receive_in_place() -> None:
    """Let this process's connections to Kafka from now on receive large answers so."""
    _module.AIOKafkaProtocol = _Protocol
    _module.io = SimpleNamespace(BytesIO=_Answer)


class _Reader(asyncio.StreamReader):
    _buffer: bytearray
    _eof: bool
    _rest = memoryview(b"")  # what is still to be filled of a large answer

    async def readexactly(self, n: int) -> Any:
        if not _SMALL < n <= _LARGE or self.exception() is not None:
            return await super().readexactly(n)
        answer = memoryview(_unfilled(None, n))  # all of it is received over what it has
        begun = self._buffer[:n]
        del self._buffer[:n]
        answer[: len(begun)] = begun
        self._rest = answer[len(begun) :]
        try:
            while self._rest:
                if self._eof:
                    raise asyncio.IncompleteReadError(bytes(answer[: -len(self._rest)]), n)
                await self._wait_for_data("readexactly")  # type: ignore[attr-defined]
        finally:
            self._rest = _Reader._rest
        return answer.toreadonly()

    def filled(self, count: int) -> None:
        self._rest = self._rest[count:]
        if not self._rest:
            self._wakeup_waiter()  # type: ignore[attr-defined]

    def feed_data(self, data: Any) -> None:
        if self._rest:  # from a transport that knows of no buffers of ours
            count = min(len(data), len(self._rest))
            self._rest[:count] = data[:count]
            self.filled(count)
            data = data[count:]
        super().feed_data(data)


class _Protocol(conn.AIOKafkaProtocol, asyncio.BufferedProtocol):  # type: ignore[misc]
    def __init__(self, closed: Any, reader: Any, *, loop: Any) -> None:
        reader.__class__ = _Reader  # aiokafka has made it and keeps it
        super().__init__(closed, reader, loop=loop)
        self._piece = memoryview(bytearray(_SMALL))

    def get_buffer(self, sizehint: int) -> memoryview:
        reader = self._stream_reader
        return (reader and reader._rest) or self._piece

    def buffer_updated(self, nbytes: int) -> None:
        reader = self._stream_reader
        if reader and reader._rest:
            reader.filled(nbytes)
        else:
            self.data_received(self._piece[:nbytes])


class _Answer:
    """An answer, to be decoded: what cannot be a string is not copied out of it."""

    def __init__(self, answer: bytes | memoryview) -> None:
        self._rest = memoryview(answer)

    def read(self, size: int) -> bytes | memoryview:
        found, self._rest = self._rest[:size], self._rest[size:]
        return found if size > _LONGEST_STRING else bytes(found)
