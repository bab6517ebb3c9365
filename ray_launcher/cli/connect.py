"""Finding the cluster: the one asked for, else a running local one, else one of our own; and leaving it. Quickly."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray

#: Seconds for a cluster to answer at all. Ray itself tries for two minutes, without hearing Ctrl-C.
ANSWER = 10.0
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # preface, empty SETTINGS
_FRAME_HEADER = 9
_SETTINGS = 4
_LONGEST_REASON = 500
_TRACEBACK = 5

_ours: list[bool] = []  # holds something if Ray was started here


class ConnectError(Exception):
    """There is no cluster to run on; the text, one line, says why and what to do."""


def connect(address: str | None, *, start: bool = True) -> None:
    """Connect this process to Ray, or start Ray. None: RAY_ADDRESS, else a running local cluster, else our own.

    start: whether that may be; otherwise there being none is an error.

    Raises `ConnectError`. Ray binds the processes that it starts to the thread that calls this.
    """
    _quieten()
    asked = address or os.environ.get("RAY_ADDRESS") or None
    if asked is not None and "://" in asked:
        raise ConnectError(
            f"{asked} is not the address of a cluster: give HOST:PORT of its head node and run on one of its nodes, "
            "or send the whole command there with `ray job submit`"
        )
    try:
        found = _resolve(asked)
        if found is None or not _answers(found, must=asked is not None, start=start):
            if not start:
                raise ConnectError("no cluster runs on this machine; give its --address (or RAY_ADDRESS)")
            _ours.append(True)
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        else:
            with _stderr_closed():
                ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except ConnectError:
        raise
    except Exception as error:
        raise ConnectError(f"cannot connect to {_name(asked)}: {_one_line(error)}") from error


def leave(code: int) -> None:
    """Return where Ray has to be, and is, shut down; else end this process, for which Ray takes 0.3 s by itself.

    To be called when nothing of ours is left on the cluster.
    """
    if ray.is_initialized() and not _ours:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    ray.shutdown()


def _quieten() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_USAGE_STATS_PROMPT_ENABLED", "0")
    from ray._private import worker  # noqa: PLC0415  # private: kept to this place

    # Ray prints what it thinks of failed tasks on stdout, which is the program's, whatever log_to_driver says.
    worker.print_to_stdstream = lambda *_args, **_options: None


def _resolve(asked: str | None) -> str | None:
    """HOST:PORT; None: no cluster is asked for and none is recorded on this machine. Raises what Ray does."""
    from ray._private import services  # noqa: PLC0415  # private: kept to this place

    found: str | None = services.canonicalize_bootstrap_address(asked)  # type: ignore[arg-type]  # None is fine
    return found


def _answers(found: str, *, must: bool, start: bool) -> bool:
    """Whether a cluster listens there. False only for one that has gone and that nobody asked for (not `must`)."""
    host, _, port = found.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER) as sock:
            spoken = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_http2(sock)
    except ConnectionRefusedError:
        if not must:
            return False
        raise ConnectError(f"no cluster at {found}: the connection was refused; {_remedy(start)}") from None
    except (OSError, ValueError) as error:
        reason = f"no answer within {ANSWER:g} s" if isinstance(error, TimeoutError) else _one_line(error)
        raise ConnectError(f"no cluster at {found}: {reason}; {_remedy(start)}") from None
    if not spoken:
        raise ConnectError(f"no cluster at {found}: what listens there is not Ray; {_remedy(start)}")
    return True


def _speaks_http2(sock: socket.socket) -> bool:
    """Whether the other side is a gRPC server, as the head of a cluster is: it says hello in HTTP/2."""
    sock.sendall(_HTTP2_HELLO)
    header = b""
    while len(header) < _FRAME_HEADER:
        more = sock.recv(_FRAME_HEADER - len(header))
        if not more:
            return False
        header += more
    return header[3] == _SETTINGS


def _remedy(start: bool) -> str:
    right = "give the right --address (or RAY_ADDRESS)"
    return f"{right}, or `--address local` to start Ray here" if start else right


def _name(asked: str | None) -> str:
    return "a cluster" if asked in (None, "auto") else f"the cluster at {asked}"


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Ray's C++ part tells of every attempt on file descriptor 2; there is nothing else to be said meanwhile."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _one_line(error: BaseException) -> str:
    """The cause that Ray saw rather than its own words; of a traceback, which is part of some texts, the end."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    text = " ".join(lines if len(lines) < _TRACEBACK else lines[-1:]) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
