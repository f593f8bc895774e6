"""A TCP proxy that cuts, stalls and refuses connections, between a bridge and RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Final

PUBLISHES: Final = "publishes"
CONFIRMS: Final = "confirms"
DIRECTIONS: Final = (PUBLISHES, CONFIRMS)
"""From the bridge to RabbitMQ, and back."""

_CHUNK: Final = 16_384
_LINGER_NOT: Final = struct.pack("ii", 1, 0)  # closing then sends RST and forgets what is unsent


class Proxy:
    """One listening port whose connections lead to a server; what is done concerns all of them.

    The methods may be called from any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Callable[[], int]) -> None:
        """Name the server; `listen` opens the port.

        Args:
            loop: where it runs.
            target: tells the server's port on this machine, anew for each connection.
        """
        self.port = 0
        self._loop = loop
        self._server: asyncio.Server
        self._target = target
        self._links: set[tuple[StreamWriter, StreamWriter]] = set()
        self._flows = {direction: asyncio.Event() for direction in DIRECTIONS}
        self._left: dict[str, int] = {}
        self._refuses = False

    async def listen(self) -> None:
        """Open the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._flow()

    async def close(self) -> None:
        """Close the port and cut what is connected."""
        self._server.close()
        self._cut()

    def cut(self) -> None:
        """Reset all connections, with whatever is on its way."""
        self._loop.call_soon_threadsafe(self._cut)

    def cut_after(self, direction: str, size: int) -> None:
        """Reset all connections as soon as `size` more bytes went in a direction."""
        self._loop.call_soon_threadsafe(self._left.__setitem__, direction, size)

    def stall(self, *directions: str) -> None:
        """Let nothing more through in some directions; connections stay."""
        for direction in directions:
            self._loop.call_soon_threadsafe(self._flows[direction].clear)

    def flow(self) -> None:
        """Let everything through again."""
        self._loop.call_soon_threadsafe(self._flow)

    def refuse(self, refuses: bool) -> None:
        """Reset new connections as soon as they are made, or no longer."""
        self._loop.call_soon_threadsafe(setattr, self, "_refuses", refuses)

    def heal(self) -> None:
        """Take back whatever was done."""
        self.flow()
        self.refuse(False)
        self._loop.call_soon_threadsafe(self._left.clear)

    def _flow(self) -> None:
        for event in self._flows.values():
            event.set()

    def _cut(self) -> None:
        self._left.clear()
        for link in list(self._links):
            for writer in link:
                _reset(writer)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            if self._refuses:
                raise ConnectionRefusedError
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            _reset(writer)
            return
        link = (writer, far_writer)
        self._links.add(link)
        pumps = {
            asyncio.create_task(self._pump(reader, far_writer, PUBLISHES)),
            asyncio.create_task(self._pump(far_reader, writer, CONFIRMS)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.remove(link)
            for pump in pumps:
                pump.cancel()
            for end in link:
                end.close()

    async def _pump(self, reader: StreamReader, writer: StreamWriter, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flows[direction].wait()
                if writer.is_closing():
                    return
                left = self._left.get(direction)
                if left is not None:
                    if len(data) >= left:
                        writer.write(data[:left])
                        self._cut()
                        return
                    self._left[direction] = left - len(data)
                writer.write(data)
                await writer.drain()


def _reset(writer: StreamWriter) -> None:
    """Close a connection as a broken line does, without a farewell."""
    with contextlib.suppress(OSError):  # it is closed already
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()


@contextmanager
def proxies(count: int, target: Callable[[], int]) -> Iterator[list[Proxy]]:
    """Run some proxies to one server, in a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxies", daemon=True)
    thread.start()
    found = [Proxy(loop, target) for _ in range(count)]

    def do(step: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, loop).result(10)

    for proxy in found:
        do(proxy.listen())
    try:
        yield found
    finally:
        for proxy in found:
            do(proxy.close())
        do(_end())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end() -> None:
    """End all that runs in this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
