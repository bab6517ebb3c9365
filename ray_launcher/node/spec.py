"""What one launch execs, as it travels from the agent to the supervisor: bytes only, ready for the kernel."""

from __future__ import annotations

from ray_launcher.node import inputs
from ray_launcher.node.limits import Limits
from ray_launcher.node.protocol import ProtocolError

_TOKEN_BYTES = 1024
#: Fields before those that are counted.
_FIXED = 9


class Spec:
    """One program to run.

    token: the launch's own name, unique for ever.  program: a path, or a name to look up on the child's PATH.
    argv: all of it, argv[0] included.  cwd: b"" for the supervisor's own.
    environ: `NAME=VALUE` items that are added to the base environment; unset: names first taken out of it;
    inherit: False starts from nothing instead of the base.
    stdout, stderr: files to create and append to; b"" discards.  tail_lines: how much of stderr to report.
    note: the agent's own, told to the agent that comes after it.  limits: what it is bound and held to.
    stdin: b"" for one that is at its end; b"pipe"; b"terminal ROWS COLUMNS" for one that is stdout and stderr as well,
    and the controlling one: what it shows goes to `stdout`.
    log_limit: bytes that are kept of each of those files; 0 for all.
    """

    __slots__ = (
        "argv",
        "cwd",
        "environ",
        "inherit",
        "limits",
        "log_limit",
        "note",
        "program",
        "stderr",
        "stdin",
        "stdout",
        "tail_lines",
        "token",
        "unset",
    )

    def __init__(
        self,
        *,
        token: bytes,
        program: bytes,
        argv: list[bytes],
        cwd: bytes = b"",
        environ: list[bytes] | None = None,
        unset: list[bytes] | None = None,
        inherit: bool = True,
        stdout: bytes = b"",
        stderr: bytes = b"",
        tail_lines: int = 100,
        note: bytes = b"",
        limits: Limits | None = None,
        stdin: bytes = b"",
        log_limit: int = 0,
    ) -> None:
        self.token, self.program, self.argv, self.cwd = token, program, argv, cwd
        self.environ, self.unset, self.inherit = environ or [], unset or [], inherit
        self.stdout, self.stderr, self.tail_lines, self.note = stdout, stderr, tail_lines, note
        self.limits, self.stdin, self.log_limit = limits, stdin, log_limit

    def fields(self) -> list[bytes]:
        """The fields of this launch's frame, behind the verb."""
        counts = b"%d %d %d %d %d %d" % (
            len(self.argv),
            len(self.environ),
            len(self.unset),
            self.inherit,
            self.tail_lines,
            self.log_limit,
        )
        limits = b"" if self.limits is None else self.limits.field()
        stdio = self.stdin, self.stdout, self.stderr
        fixed = [self.token, self.note, self.program, self.cwd, *stdio, limits, counts]
        return [*fixed, *self.argv, *self.environ, *self.unset]

    @classmethod
    def from_fields(cls, fields: list[bytes]) -> Spec:
        """Read what `fields` wrote. Raises `ProtocolError` for anything else."""
        try:
            token, note, program, cwd, stdin, stdout, stderr, limits, counts = fields[:_FIXED]
            n_argv, n_environ, n_unset, inherit, tail_lines, log_limit = map(int, counts.split())
        except ValueError as error:
            raise ProtocolError("a launch that lacks fields") from error
        if not 0 < len(token) <= _TOKEN_BYTES:
            raise ProtocolError("a launch without a usable token")
        if (
            min(n_argv - 1, n_environ, n_unset, tail_lines, log_limit) < 0
            or len(fields) != _FIXED + n_argv + n_environ + n_unset
        ):
            raise ProtocolError("a launch whose counts do not add up")
        inputs.check(stdin)
        environ = fields[_FIXED + n_argv : _FIXED + n_argv + n_environ]
        if not all(b"=" in item for item in environ):
            raise ProtocolError("an environment item without '='")
        return cls(
            token=token,
            program=program,
            argv=fields[_FIXED : _FIXED + n_argv],
            cwd=cwd,
            environ=environ,
            unset=fields[_FIXED + n_argv + n_environ :],
            inherit=bool(inherit),
            stdout=stdout,
            stderr=stderr,
            tail_lines=tail_lines,
            note=note,
            limits=Limits.parse(limits) if limits else None,
            stdin=stdin,
            log_limit=log_limit,
        )

    def environment(self, base: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """The child's whole environment."""
        env = dict(base) if self.inherit else {}
        for name in self.unset:
            env.pop(name, None)
        env.update(item.split(b"=", 1) for item in self.environ)  # type: ignore[misc]  # pairs, as checked above
        env.pop(b"", None)  # "=VALUE" can be inherited but not handed on
        return env
