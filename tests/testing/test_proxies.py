"""A proxy changes its connections at once when a test requests it."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Generator

import pytest

from asyncjobs.testing import TcpProxy

PATIENCE = 20.0


class Echo:
    """A server that answers each message in capitals until its client disconnects."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.heard: list[bytes] = []
        self.ended = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        threads: list[threading.Thread] = []
        while (client := self.socket.accept()[0]).getpeername()[1] != self.closer:
            threads.append(threading.Thread(target=self._serve, args=(client,)))
            threads[-1].start()
        client.close()
        for thread in threads:
            thread.join()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(4096):
                    self.heard.append(data)
                    client.sendall(data.upper())
            except ConnectionResetError:
                self.heard.append(b"reset")
        self.ended.release()

    closer = 0

    def close(self) -> None:
        with socket.socket() as last:
            last.bind(("127.0.0.1", 0))
            self.closer = last.getsockname()[1]
            last.connect(("127.0.0.1", self.port))
            self._thread.join()
        self.socket.close()


@pytest.fixture
def echo() -> Generator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Generator[TcpProxy]:
    with TcpProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Generator[socket.socket]:
    with connected(proxy) as client:
        assert said(client, b"hello") == b"HELLO"
        yield client


def connected(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)


def said(client: socket.socket, words: bytes) -> bytes:
    client.sendall(words)
    return client.recv(4096)


def test_data_passes_both_ways(proxy: TcpProxy, client: socket.socket) -> None:
    assert said(client, b"again") == b"AGAIN"
    assert proxy.connections == 1


def test_large_data_passes_completely(client: socket.socket) -> None:
    data = bytes(range(97, 123)) * 50_000
    threading.Thread(target=client.sendall, args=(data,)).start()
    got = b""
    while len(got) < len(data):
        got += client.recv(65536)
    assert got == data.upper()


def test_a_cut_resets_both_ends_and_allows_new_connections(
    proxy: TcpProxy, client: socket.socket, echo: Echo
) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        said(client, b"anyone?")
    assert echo.ended.acquire(timeout=PATIENCE)
    assert echo.heard[-1] == b"reset"
    with connected(proxy) as again:
        assert said(again, b"hello") == b"HELLO"


def test_new_connections_are_refused_while_old_ones_stay(
    proxy: TcpProxy, client: socket.socket
) -> None:
    for _ in range(2):
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        assert said(client, b"still here") == b"STILL HERE"
        proxy.accept()
        with connected(proxy) as again:
            assert said(again, b"hello") == b"HELLO"


def test_a_stalled_proxy_holds_data_back(
    proxy: TcpProxy, client: socket.socket, echo: Echo
) -> None:
    proxy.stall()
    client.sendall(b"slowly")
    with connected(proxy) as other:
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert echo.heard == [b"hello"]
        proxy.flow()
        client.settimeout(PATIENCE)
        assert client.recv(4096) == b"SLOWLY"
        assert said(other, b"hello") == b"HELLO"


def test_a_stalled_connection_can_be_cut(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.stall()
    client.sendall(b"never")
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_the_server_gets_the_request_of_a_lost_answer(
    proxy: TcpProxy, client: socket.socket, echo: Echo
) -> None:
    proxy.lose(1, spare=[b"SELECT 1"])
    assert said(client, b"SELECT 1") == b"SELECT 1"
    with pytest.raises(ConnectionResetError):
        said(client, b"COMMIT")
    assert echo.heard[-2:] in ([b"COMMIT", b"reset"], [b"SELECT 1", b"COMMIT"])
    assert proxy.to_lose == 0


def test_a_half_closed_client_reads_eof_and_can_still_write(
    proxy: TcpProxy, client: socket.socket, echo: Echo
) -> None:
    proxy.half_close()
    assert said(client, b"one more") == b""
    client.shutdown(socket.SHUT_WR)
    assert echo.ended.acquire(timeout=PATIENCE)
    assert echo.heard == [b"hello", b"one more"]


def test_eof_of_a_client_is_passed_on(client: socket.socket, echo: Echo) -> None:
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert client.recv(4096) == b"LAST WORDS"
    assert client.recv(1) == b""
    assert echo.ended.acquire(timeout=PATIENCE)


def test_a_client_that_disconnects_early_causes_no_error(
    echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    with TcpProxy("127.0.0.1", echo.port) as proxy:
        proxy.delay = 0.05
        with connected(proxy) as client:
            client.sendall(b"hello")
        assert echo.ended.acquire(timeout=PATIENCE)
        with connected(proxy) as later:
            assert said(later, b"hello") == b"HELLO"
    gc.collect()  # asyncio then logs exceptions that were never retrieved
    assert caplog.text == ""


def test_a_delay_holds_data_back(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.delay = 0.1
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        said(client, b"slowly")
    client.settimeout(PATIENCE)
    assert client.recv(4096) == b"SLOWLY"


def test_an_unreachable_server_resets_the_connection() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with (
            TcpProxy("127.0.0.1", nobody.getsockname()[1]) as proxy,
            pytest.raises(ConnectionResetError),  # possibly already when connecting
            connected(proxy) as client,
        ):
            said(client, b"anyone?")


def test_a_url_leads_through_the_proxy(proxy: TcpProxy) -> None:
    url = proxy.through("postgresql://ann:s%40crt@db.example:5432/app?sslmode=disable")
    assert url == f"postgresql://ann:s%40crt@127.0.0.1:{proxy.port}/app?sslmode=disable"


def test_a_proxy_only_works_inside_its_block() -> None:
    with pytest.raises(RuntimeError, match="outside"):
        TcpProxy("127.0.0.1", 1).cut()


def test_a_connection_that_was_just_accepted_is_closed_with_the_proxy() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        for _ in range(20):
            with TcpProxy("127.0.0.1", server.getsockname()[1]) as proxy:
                clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(2)]
            for client in clients:
                client.close()
    gc.collect()  # reports what was left open, and that is an error
