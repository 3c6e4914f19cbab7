"""A TCP proxy on the loopback that counts what passes: bytes as an application hands them to the sockets.

Everything above TCP is counted (HTTP framing, polling, heartbeats); the headers of TCP and IP are not.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_CHUNK = 65536  # bytes


@dataclass
class Passed:
    """Bytes of one connection so far: up from its client to the server behind the proxy, down back to it."""

    up: int = 0
    down: int = 0


class CountingProxy:
    """Forwards every connection to one port of 127.0.0.1 and counts.

    Attributes:
        port: where it listens on 127.0.0.1, chosen by the system.
        connections: one count for each connection, in the order they were made; it grows.
    """

    port: int
    connections: list[Passed]

    def __init__(self, target: int) -> None:
        self.connections = []
        self._target = target
        self._serving: set[asyncio.Task[None] | None] = set()  # asyncio itself holds tasks by weak references
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counting-proxy", daemon=True)

    def totals(self) -> Passed:
        """Return the bytes of all connections so far."""
        seen = list(self.connections)
        return Passed(sum(each.up for each in seen), sum(each.down for each in seen))

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port = int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Close every connection and the port."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = Passed()
        self.connections.append(passed)
        task = asyncio.current_task()
        self._serving.add(task)
        writers = [writer]
        try:
            with suppress(OSError, asyncio.CancelledError):  # a side that is gone, or our own end
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
                writers.append(there_writer)
                await asyncio.gather(
                    _pump(reader, there_writer, passed, "up"), _pump(there_reader, writer, passed, "down")
                )
        finally:
            self._serving.discard(task)
            for each in writers:
                each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Passed, way: str) -> None:
    """Forward until the sender is done; then say so to the receiver, who may still answer."""
    while chunk := await reader.read(_CHUNK):
        setattr(passed, way, getattr(passed, way) + len(chunk))
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


@contextmanager
def counting_proxy(target: int) -> Iterator[CountingProxy]:
    """Run a proxy in front of a port of 127.0.0.1 and end it.

    Args:
        target: the port.
    """
    proxy = CountingProxy(target)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
