"""The hosts themselves: what one on this machine has of a real one, and that they go whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Hosts, Running, needs_hosts
from node_rig import marked, until

PORT = 5000
#: Seconds until all is gone.
GONE = 60.0
LISTEN = f"""
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], {PORT}))
print("listening", flush=True)
while True:
    print(sock.recv(100).decode(), flush=True)
"""
SEND = f"""
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], {PORT}))
"""
#: Makes hosts, starts a tree on one of them, and waits for its own end.
MAKER = """
import sys
from hosts import Hosts
hosts = Hosts("a", "b")
tree = hosts.start(hosts["a"], "sh", "-c", "setsid sleep 9999 & echo up; exec sleep 9999")
assert tree.process.stdout.readline() == b"up\\n"
print(hosts.directory, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pair() -> Iterator[Hosts]:
    needs_hosts()
    with Hosts("a", "b") as hosts:
        yield hosts


@pytest.fixture
def listener(pair: Hosts) -> Iterator[Running]:
    """On host b; writes a line for each datagram."""
    with pair.start(pair["b"], sys.executable, "-c", LISTEN, pair["b"].address) as listener:
        assert heard(listener) == "listening"
        yield listener


def send(hosts: Hosts, text: str) -> None:
    hosts.run(hosts["a"], sys.executable, "-c", SEND, hosts["b"].address, text)


def heard(listener: Running) -> str:
    assert listener.process.stdout is not None
    return listener.process.stdout.readline().decode().strip()


def test_hosts_hear_each_other(pair: Hosts, listener: Running) -> None:
    send(pair, "hello")
    assert heard(listener) == "hello"


@pytest.mark.parametrize("losing, sent, received", [("a", 1.0, 0.0), ("b", 0.0, 1.0)])
def test_what_is_lost_on_the_way_never_arrives(
    pair: Hosts, listener: Running, losing: str, sent: float, received: float
) -> None:
    pair.lose(pair[losing], sent=sent, received=received)
    send(pair, "lost")
    pair.heal(pair[losing])
    send(pair, "sent later")
    assert heard(listener) == "sent later"


@pytest.mark.parametrize("losing, sent, received", [("b", 1.0, 0.0), ("a", 0.0, 1.0)])
def test_loss_in_one_direction_leaves_the_other(
    pair: Hosts, listener: Running, losing: str, sent: float, received: float
) -> None:
    pair.lose(pair[losing], sent=sent, received=received)
    send(pair, "hello")
    assert heard(listener) == "hello"


def test_a_cut_is_for_both_directions(pair: Hosts, listener: Running) -> None:
    for name in ("a", "b"):
        with pair.cut_off(pair[name]):
            send(pair, "lost")
    send(pair, "sent later")
    assert heard(listener) == "sent later"


def test_a_delay_is_kept_and_the_order_too(pair: Hosts, listener: Running) -> None:
    pair.lose(pair["b"], delay=0.5)
    began = time.monotonic()
    send(pair, "first")
    send(pair, "second")
    assert [heard(listener), heard(listener)] == ["first", "second"]
    assert time.monotonic() - began >= 0.5


def test_a_host_sees_its_own_processes_only(pair: Hosts, listener: Running) -> None:
    script = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"
    assert int(pair.run(pair["a"], sys.executable, "-c", script)) == 2  # its init and itself
    assert list(pair["b"].processes()) == [listener.pid]


def test_nothing_is_left_after_use() -> None:
    needs_hosts()
    with Hosts("a", "b") as hosts, hosts.start(hosts["a"], "sh", "-c", "setsid sleep 9999 & echo up") as tree:
        assert heard(tree) == "up"
        assert marked(str(hosts.directory))
    assert not marked(str(hosts.directory))
    assert not hosts.directory.exists()


def test_nothing_is_left_when_who_made_them_is_sigkilled() -> None:
    needs_hosts()
    support = str(Path(__file__).parents[1] / "support")
    script = f"import sys; sys.path.insert(0, {support!r}){MAKER}"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        directory = Path(maker.stdout.readline().decode().strip())
        assert directory.is_dir()
        assert len(marked(str(directory))) >= 4  # the keeper, two processes of the tree, who waits for them
        maker.send_signal(signal.SIGKILL)
    until(lambda: not marked(str(directory)), "no process is left", GONE)
    until(lambda: not directory.exists(), "their directory is gone")
