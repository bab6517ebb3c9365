"""What a launch is bound and held to, as it travels from the agent to the supervisor: words and numbers only."""

from __future__ import annotations

from ray_launcher.node.protocol import ProtocolError

#: The lists of numbers that CPUs and memory may be bound by.
BINDINGS = ("cpunodebind", "membind", "physcpubind", "cpus")
_LAST_SIGNAL = 64


class Limits:
    """The options' limits under their names there; what is not asked for is empty, or None.

    bind: lists by the names of `BINDINGS`.  rlimits: (soft, hard) by name, -1 for unlimited.
    time, grace, lead: seconds to TERM, from there to KILL, and ahead of TERM for signal `signum`.
    """

    __slots__ = ("bind", "grace", "lead", "nice", "rlimits", "signum", "time", "umask")

    def __init__(
        self,
        *,
        bind: dict[str, str] | None = None,
        rlimits: dict[str, tuple[int, int]] | None = None,
        umask: int | None = None,
        nice: int | None = None,
        time: float | None = None,
        grace: float = 10.0,
        signum: int | None = None,
        lead: float = 0.0,
    ) -> None:
        self.bind, self.rlimits, self.umask, self.nice = bind or {}, rlimits or {}, umask, nice
        self.time, self.grace, self.signum, self.lead = time, grace, signum, lead

    @property
    def before_exec(self) -> bool:
        """Whether the process has to change itself between fork and exec."""
        return bool(self.bind or self.rlimits) or self.umask is not None or self.nice is not None

    def field(self) -> bytes:
        """One field of a frame; b"" where there is no limit at all."""
        items = [f"{name}={value}" for name, value in self.bind.items()]
        items += [f"rlimit.{name}={soft}:{hard}" for name, (soft, hard) in self.rlimits.items()]
        items += [f"{name}={getattr(self, name)}" for name in ("umask", "nice") if getattr(self, name) is not None]
        if self.time is not None:
            items.append(f"time={self.time!r}:{self.grace!r}")
            if self.signum is not None:
                items.append(f"signal={self.signum}:{self.lead!r}")
        return " ".join(items).encode()

    @classmethod
    def parse(cls, field: bytes) -> Limits:
        """Read what `field` wrote. Raises `ProtocolError` for anything else."""
        limits = cls()
        try:
            for item in field.decode("ascii").split():
                limits._take(*item.split("=", 1))
        except (TypeError, ValueError) as error:
            raise ProtocolError("limits that cannot be read") from error
        return limits

    def _take(self, name: str, value: str) -> None:
        if name in BINDINGS:
            self.bind[name] = value
        elif name == "umask":
            self.umask = int(value)
        elif name == "nice":
            self.nice = int(value)
        elif name == "time":
            self.time, self.grace = map(_seconds, value.split(":"))
        elif name == "signal":
            signum, lead = value.split(":")
            self.signum, self.lead = int(signum), _seconds(lead)
            if not 0 < self.signum <= _LAST_SIGNAL:
                raise ValueError("no such signal")
        elif name.startswith("rlimit."):
            soft, hard = map(int, value.split(":"))
            self.rlimits[name.removeprefix("rlimit.")] = soft, hard
        else:
            raise ValueError("an unknown limit")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:  # NaN too
        raise ValueError("no number of seconds")
    return seconds
