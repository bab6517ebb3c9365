"""Run a Python callable as a program: what `LaunchOptions.from_callable` puts into a launch, and the answer it leaves.

The callable travels pickled in environment variables, which no process listing shows and no file keeps, or on stdin.
"""

from __future__ import annotations

import binascii
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

from ray_launcher.errors import CallError, describe_exception

#: Linux takes at most 128 KiB in one environment string (MAX_ARG_STRLEN of the kernel), and 6 MiB in all of them.
_CHUNK = 96 << 10
_VARIABLE = "RAY_LAUNCHER_CALLABLE_"
#: Bytes of a pickled callable that go into the environment.
LIMIT = 1 << 20

#: What an answer starts with: the pickled value follows; or the pickled (traceback in words, pickled exception or
#: None); or why the value cannot be pickled.
_VALUE, _RAISED, _STUCK = b"v", b"e", b"u"
NO_ANSWER = "the call has left no answer"

#: The interpreter's start is what a short call takes, so it imports next to nothing: not even all of pickle, nor
#: cloudpickle until something is pickled with it; and not this package, whose import would bring Ray's and cost a third
#: of a second. Nothing is left in `__main__` that pickle could find there by its name. The answer goes to a file beside
#: that of stdout.
_LOADER = f"""\
def _run():
    import _pickle, binascii, io, os, sys
    log, parts = os.path.realpath("/proc/self/fd/1"), []
    while (name := f"{_VARIABLE}{{len(parts)}}") in os.environ:
        parts.append(os.environ.pop(name))
    def packed(value):
        try:
            return _pickle.dumps(value, 5)
        except Exception:
            import cloudpickle
            return cloudpickle.dumps(value)
    def answer(kind, data):
        if log.endswith(".out"):
            with open(log[:-4] + ".value.part", "wb") as file:
                file.write(kind)
                file.write(data)
            os.rename(log[:-4] + ".value.part", log[:-4] + ".value")
    def raised(error):
        import traceback
        trace = error.__traceback__
        text = "".join(traceback.format_exception(type(error), error, trace and trace.tb_next))
        try:
            data = packed(error)
            _pickle.loads(data)
        except Exception:
            data = None
        return packed((text.encode(errors="backslashreplace").decode(), data))
    try:
        file = io.BytesIO(binascii.a2b_base64("".join(parts)) if parts else sys.stdin.buffer.read())
        parts.clear()
        sys.path += [each for each in _pickle.load(file) if each not in sys.path]
        fn, args, kwargs = _pickle.load(file)
        file.close()
        value = fn(*args, **kwargs)
    except Exception as error:
        answer({_RAISED!r}, raised(error))
        raise
    try:
        data = packed(value)
    except Exception as error:
        text = f"{{type(value).__qualname__}}: {{error}}"
        answer({_STUCK!r}, text.encode(errors="backslashreplace"))
        raise TypeError("what the callable returned cannot be pickled: " + text) from error
    answer({_VALUE!r}, data)
_run()
"""


class RemoteError(Exception):
    """The traceback, in words, of what a callable raised in its own interpreter: the cause of the exception here."""

    def __str__(self) -> str:
        return "\n" + super().__str__()


class Answer:
    """The answer of a callable that has returned. Unpickling it gives the value."""

    def __init__(self, pickled: memoryview) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[pickle.PickleBuffer]]:
        return pickle.loads, (pickle.PickleBuffer(self._pickled),)


def pickled_call(fn: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """What the loader reads. Raises TypeError for what is not callable or cannot be pickled."""
    import cloudpickle  # noqa: PLC0415  # the words need the standard library only, until this is called

    if not callable(fn):
        raise TypeError(f"fn must be callable, not {type(fn).__name__}")
    try:
        pickled: bytes = cloudpickle.dumps((fn, args, kwargs))
    except Exception as error:
        raise TypeError(
            f"fn or its arguments cannot be pickled: {describe_exception(error)}; pass what can be, or a file's name"
        ) from error
    return pickle.dumps([os.path.abspath(each) for each in sys.path]) + pickled  # noqa: PTH100  # may be no directory


def launch_fields(fn: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `LaunchOptions` that calls `fn(*args, **kwargs)`: program, args, env.

    Raises TypeError for what is not callable or cannot be pickled, ValueError when the pickle exceeds 1 MiB.
    """
    pickled = pickled_call(fn, args, kwargs)
    if len(pickled) > LIMIT:
        raise ValueError(
            f"fn and its arguments are {len(pickled)} bytes pickled, {LIMIT} can travel in options; use "
            "RayProcLauncher.call, or pass large data in a file"
        )
    return fields_of(pickled)


def fields_of(pickled: bytes | None) -> dict[str, Any]:
    """The same for what is pickled. None: it comes on stdin."""
    text = "" if pickled is None else binascii.b2a_base64(pickled, newline=False).decode()
    chunks = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
    env = {f"{_VARIABLE}{number}": chunk for number, chunk in enumerate(chunks)}
    stdin = {"want_stdin": True} if pickled is None else {}
    return {"program": sys.executable, "args": ("-c", _LOADER), "env": env, **stdin}


def answer_in(data: bytes) -> Answer:
    """Of the bytes that the loader has left; b"": none. Raises `CallError` where they are no value; see `raise_here`.

    Nothing of the callable's is unpickled.
    """
    if data[:1] == _VALUE:
        return Answer(memoryview(data)[1:])
    if data[:1] == _RAISED:
        text, _ = pickle.loads(data[1:])  # noqa: S301  # text and bytes, from our own loader
        error = CallError(f"the call raised {text.rstrip().rpartition(chr(10))[2]}")
        error.raised = data[1:]
        raise error
    if data[:1] == _STUCK:
        raise CallError(f"what the call returned cannot be pickled: {data[1:].decode()}")
    raise CallError(NO_ANSWER)


def raise_here(error: CallError) -> None:
    """Raise what the callable raised, with its traceback as the cause; nothing where it did not.

    Raises `CallError` for an exception that cannot come here.
    """
    if error.raised is None:
        return
    text, pickled = pickle.loads(error.raised)  # noqa: S301  # as above
    try:
        raised = None if pickled is None else pickle.loads(pickled)  # noqa: S301  # our own proc's
    except Exception:  # noqa: BLE001  # its class is not here
        raised = None
    raise (raised if isinstance(raised, Exception) else error) from RemoteError(text.rstrip())
