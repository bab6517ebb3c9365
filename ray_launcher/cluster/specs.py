"""What a supervisor is told to start, from the options of a launch and from what the agent knows of its node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from ray_launcher.cluster.accelerators import masks
from ray_launcher.cluster.environment import Environ, additions, base_environ, removals
from ray_launcher.cluster.limits import limits_of
from ray_launcher.cluster.wire import ENDS, Grant, Launch, log_name
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

    def make(self, message: Launch, proc_id: str, opts: LaunchOptions) -> Spec:
        """Of one launch."""
        token = message.token
        base = self.base if opts.inherit_env else {}
        grant = message.grant or _NOTHING
        seen = masks(grant.accelerators) if grant.accelerators else self._masks
        return Spec(
            token=token.encode(),
            program=os.fsencode(opts.program),
            argv=[os.fsencode(opts.program if opts.arg0 is None else opts.arg0), *map(os.fsencode, opts.args)],
            cwd=os.fsencode(self._cwd if opts.cwd is None else os.path.join(self._cwd, opts.cwd)),  # noqa: PTH118
            environ=additions(opts, self.cookie(token), self._raylet_environ, seen, grant.env),
            unset=removals(base, opts.env_remove) if opts.env_remove else [],
            inherit=opts.inherit_env,
            stdout=self.log(proc_id, token, "stdout") if opts.want_stdio else b"",
            stderr=self.log(proc_id, token, "stderr") if opts.want_stdio else b"",
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
