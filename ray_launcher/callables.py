"""Run a Python callable as a program: what `LaunchOptions.from_callable` puts into a launch.

The callable travels pickled in environment variables, which no process listing shows and no file keeps.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from typing import Any

#: Linux takes at most 128 KiB in one environment string (MAX_ARG_STRLEN of the kernel), and 6 MiB in all of them.
_CHUNK = 96 << 10
_LIMIT = 1 << 20
_VARIABLE = "RAY_LAUNCHER_CALLABLE_"

#: Needs cloudpickle and nothing of this package, whose import would bring Ray's and cost a third of a second. What the
#: callable returns goes to a file beside that of stdout.
_LOADER = f"""\
import base64, os, cloudpickle
log, parts = os.path.realpath("/proc/self/fd/1"), []
while (name := f"{_VARIABLE}{{len(parts)}}") in os.environ:
    parts.append(os.environ.pop(name))
fn, args, kwargs = cloudpickle.loads(base64.b85decode("".join(parts)))
del parts
value = cloudpickle.dumps(fn(*args, **kwargs))
if log.endswith(".out"):
    with open(log[:-4] + ".value.part", "wb") as file:
        file.write(value)
    os.rename(log[:-4] + ".value.part", log[:-4] + ".value")
"""


def launch_fields(fn: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `LaunchOptions` that calls `fn(*args, **kwargs)`: program, args, env.

    Raises TypeError for what is not callable or cannot be pickled, ValueError when the pickle exceeds 1 MiB.
    """
    import cloudpickle  # noqa: PLC0415  # the words need the standard library only, until this is called

    if not callable(fn):
        raise TypeError(f"fn must be callable, not {type(fn).__name__}")
    try:
        pickled = cloudpickle.dumps((fn, args, kwargs))
    except Exception as error:
        raise TypeError(
            f"fn or its arguments cannot be pickled: {error}; pass what can be, or a file's name"
        ) from error
    if len(pickled) > _LIMIT:
        raise ValueError(
            f"fn and its arguments are {len(pickled)} bytes pickled, {_LIMIT} can travel; pass large data in a file"
        )
    text = base64.b85encode(pickled).decode()
    chunks = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
    env = {f"{_VARIABLE}{number}": chunk for number, chunk in enumerate(chunks)}
    return {"program": sys.executable, "args": ("-c", _LOADER), "env": env}
