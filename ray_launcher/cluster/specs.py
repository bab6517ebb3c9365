"""What a supervisor is told to start, from the options of a launch and from what the agent knows of its node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from ray_launcher.cluster.accelerators import masks
from ray_launcher.cluster.environment import Environ, additions, base_environ, removals
from ray_launcher.cluster.inside import surroundings
from ray_launcher.cluster.limits import limits_of
from ray_launcher.cluster.wire import ENDS, Grant, Inside, Launch, log_name
from ray_launcher.node import marks
from ray_launcher.node.spec import Spec
from ray_launcher.options import LaunchOptions

_NOTHING = Grant({}, {})


class Specs:
    """Of one agent, `name`. logs: Ray's directory for them.  asked: what its runtime_env sets."""

    def __init__(self, session: str, name: str, logs: Path, raylet_environ: Environ, asked: Mapping[str, str]) -> None:
        self._session, self._name, self._logs = session, name, logs
        self._raylet_environ = raylet_environ
        self._masks = masks({})
        self.base = base_environ(os.environb, raylet_environ, asked, self._masks)
        self._cwd = str(Path.cwd())

    def make(
        self,
        message: Launch,
        proc_id: str,
        opts: LaunchOptions,
        secrets: str | None = None,
        inside: Inside | None = None,
    ) -> Spec:
        """Of one launch. secrets: the directory where its are. Raises `InsideError`."""
        token = message.token
        base, home = self.base if opts.inherit_env else {}, self._cwd
        grant = message.grant or _NOTHING
        granted = grant.env if secrets is None else {**grant.env, "RAY_LAUNCHER_SECRETS": secrets}
        seen = masks(grant.accelerators) if grant.accelerators else self._masks
        own: list[bytes] = []
        if inside is not None:
            environ, home = surroundings(inside)
            seen = {name: os.fsdecode(environ[key]) for name in seen if (key := os.fsencode(name)) in environ}
            base = environ if opts.inherit_env else {}
            left_out = set(removals(base, opts.env_remove))
            own = [name + b"=" + value for name, value in base.items() if name not in left_out]
        return Spec(
            token=token.encode(),
            program=os.fsencode(opts.program),
            argv=[os.fsencode(opts.program if opts.arg0 is None else opts.arg0), *map(os.fsencode, opts.args)],
            cwd=os.fsencode(home if opts.cwd is None else os.path.join(home, opts.cwd)),  # noqa: PTH118
            environ=own + additions(opts, self.cookie(token), self._raylet_environ, seen, granted),
            unset=removals(base, opts.env_remove) if opts.env_remove and inside is None else [],
            inherit=opts.inherit_env and inside is None,
            stdin=_stdin(opts),
            stdout=self.log(proc_id, token, "stdout") if opts.want_stdio else b"",
            stderr=self.log(proc_id, token, "stderr") if opts.want_stdio and not opts.tty else b"",
            tail_lines=opts.tail_lines,
            note=message.note,
            limits=limits_of(opts),
            log_limit=opts.log_limit or 0,
        )

    def log(self, proc_id: str, token: str, stream: str) -> bytes:
        """The path of a launch's log file."""
        return os.fsencode(f"{self._logs}/{log_name(self._session, proc_id, token, stream)}")

    def remove_logs(self, proc_id: str, token: str) -> None:
        """Of a launch that has ended."""
        for stream in ENDS:
            log = self.log(proc_id, token, stream)
            for path in (log, marks.path_of(log)):
                with contextlib.suppress(OSError):
                    Path(os.fsdecode(path)).unlink()

    def cookie(self, token: str) -> str:
        """A launch's, in the environment of its processes."""
        return f"{self._session}/{self._name.removeprefix(self._session + '-')}/{token}"


def _stdin(opts: LaunchOptions) -> bytes:
    if opts.tty:
        return b"terminal %d %d" % opts.tty_size
    return b"pipe" if opts.want_stdin else b""
