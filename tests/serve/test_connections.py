"""A server whose clients open connections and send nothing, or do not read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is an extra")
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from c3tools.serve.connections import TimedProtocol

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"
LONG = 40 * 2**20  # bytes; more than the system keeps for a client that does not read
Connect = Callable[[], socket.socket]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """A function that connects to a server with short time limits."""
    import uvicorn

    async def answer(request: Request) -> PlainTextResponse:
        with suppress(ClientDisconnect):
            await request.body()
        return PlainTextResponse("x" * LONG if request.url.path == "/long" else "answer")

    monkeypatch.setattr(TimedProtocol, "waiting_seconds", 1)
    monkeypatch.setattr(TimedProtocol, "most_connections", 20)
    methods = ["GET", "POST"]
    app = Starlette(routes=[Route(path, answer, methods=methods) for path in ("/", "/long")])
    config = uvicorn.Config(
        app, http=TimedProtocol, lifespan="off", log_level="error", timeout_keep_alive=60
    )
    server = uvicorn.Server(config)
    clients: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()

        def connection() -> socket.socket:
            clients.append(socket.create_connection(address, timeout=60))
            return clients[-1]

        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield connection
        for client in clients:
            client.close()  # the server waits for uploads before it ends
        server.should_exit = True
        thread.join()


def read_answer(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"answer"):
        received += connection.recv(4096)
    return received


def is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", REQUEST[:20], REQUEST[:-2]])
def test_a_connection_without_a_whole_request_ends(connect: Connect, sent: bytes) -> None:
    connection = connect()
    connection.sendall(sent)
    assert is_ended(connection)


def test_a_connection_ends_whose_request_comes_byte_by_byte(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(OSError):
        for _ in range(400):
            connection.sendall(b"x")
            time.sleep(0.05)


@pytest.mark.parametrize("sent", [b"", REQUEST[:20]])
def test_a_connection_without_a_next_request_ends(connect: Connect, sent: bytes) -> None:
    connection = connect()
    connection.sendall(REQUEST)
    read_answer(connection)
    connection.sendall(sent)
    assert is_ended(connection)


def test_a_connection_stays_for_requests_that_come_in_time(connect: Connect) -> None:
    connection = connect()
    for _ in range(4):
        connection.sendall(REQUEST)
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        time.sleep(0.2)


@pytest.mark.parametrize("sent", [b"", UPLOAD])
def test_half_open_connections_leave_room_for_requests(connect: Connect, sent: bytes) -> None:
    half_open = []
    for _ in range(50):
        half_open.append(connect())
        half_open[-1].sendall(sent)
    connection = connect()
    connection.sendall(REQUEST)
    assert read_answer(connection).startswith(b"HTTP/1.1 200")
    assert is_ended(half_open[0])


def read_slowly(connection: socket.socket, seconds: float) -> int:
    """Read what comes for some seconds, then the rest; return how many bytes came."""
    received = 0
    end = time.monotonic() + seconds
    while block := connection.recv(2**18):
        received += len(block)
        if time.monotonic() < end:
            time.sleep(0.05)
    return received


def test_a_long_answer_that_is_read_slowly_is_sent_whole(connect: Connect) -> None:
    connection = connect()
    connection.sendall(
        REQUEST.replace(b"/", b"/long", 1).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    assert read_slowly(connection, 3) > LONG


def test_a_connection_ends_whose_answer_is_not_read(connect: Connect) -> None:
    connection = connect()
    connection.sendall(REQUEST.replace(b"/", b"/long", 1))
    time.sleep(4)
    assert read_slowly(connection, 0) < LONG
