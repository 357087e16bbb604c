"""A door into a cluster's network namespace: listens on 127.0.0.1 outside, connects inside.

A socket belongs to the namespace in which it was made. So this process binds its listening sockets first, then
moves into the cluster's namespace, and every connection that it opens from then on is made there. It is run
as a file, on its own, and imports nothing of the project.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000
CHUNK = 1 << 16


def enter(namespace: str) -> None:
    """Move this process into a network namespace.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns", namespace)
    finally:
        os.close(descriptor)


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass bytes on until the source ends, then say so to the sink; a broken side ends both."""
    try:
        while chunk := await source.read(CHUNK):
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
    except OSError:
        sink.close()


async def forward(target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    try:
        there_reader, there_writer = await asyncio.open_connection(*target)
    except OSError:
        writer.close()
        return
    try:
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))
    finally:
        there_writer.close()
        writer.close()


async def serve(doors: list[tuple[socket.socket, tuple[str, int]]]) -> None:
    """Serve every door for ever."""
    servers = []
    for listening, target in doors:

        async def handle(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int] = target
        ) -> None:
            await forward(target, reader, writer)

        servers.append(await asyncio.start_server(handle, sock=listening))
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main(arguments: list[str]) -> None:
    """Run with NAMESPACE and any number of PORT=ADDRESS:PORT."""
    namespace, *pairs = arguments
    doors = []
    for pair in pairs:
        port, _, target = pair.partition("=")
        host, _, there = target.rpartition(":")
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", int(port)))
        listening.listen(128)
        doors.append((listening, (host, int(there))))
    enter(namespace)
    asyncio.run(serve(doors))


if __name__ == "__main__":
    main(sys.argv[1:])
