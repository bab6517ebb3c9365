"""Clusters that cannot be reached: said in one line, soon."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from ray_launcher.cli import connect
from ray_launcher.cli.connect import ConnectError


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """`connect` silences Ray's."""
    level = logging.getLogger("ray").level
    yield
    logging.getLogger("ray").setLevel(level)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listens on a port of this machine."""
    with socket.create_server(("", 0)) as listener:  # Ray takes 127.0.0.1 for another address of this machine
        yield listener


def refusal(address: str) -> str:
    """Why `connect` gives up, which must be one line."""
    with pytest.raises(ConnectError) as raised:
        connect.connect(address)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_port_where_nobody_listens_is_named_with_the_way_out(listener: socket.socket) -> None:
    address = address_of(listener)
    listener.close()
    assert address.rpartition(":")[2] in refusal(address)
    assert "refused" in refusal(address)
    assert "--address local" in refusal(address)


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b"", b"SSH"])
def test_a_port_where_something_else_listens_is_not_taken_for_ray(listener: socket.socket, answer: bytes) -> None:
    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(answer)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    assert "what listens there is not Ray" in refusal(address_of(listener))
    server.join(20)


def test_a_port_that_never_answers_is_given_up(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "ANSWER", 0.1)
    assert "no answer within 0.1 s" in refusal(address_of(listener))


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_of_another_kind_is_refused_with_the_way_out(address: str) -> None:
    assert "give HOST:PORT" in refusal(address)


def test_an_address_without_a_port_is_refused() -> None:
    assert "somewhere" in refusal("somewhere")


def test_the_environment_names_the_cluster_too(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address_of(listener))
    listener.close()
    with pytest.raises(ConnectError, match="refused"):
        connect.connect(None)
