"""The limits among the launch options, as the supervisor reads them."""

from __future__ import annotations

from ray_launcher.node.limits import BINDINGS, Limits
from ray_launcher.options import LaunchOptions


def limits_of(opts: LaunchOptions) -> Limits | None:
    """None where nothing is asked for: such a launch is the cheapest."""
    lists = {name: getattr(opts.proc_bind, name, None) for name in BINDINGS}
    signum, lead = opts.pre_kill_signal or (None, 0.0)
    limits = Limits(
        bind={name: listed for name, listed in lists.items() if listed is not None},
        rlimits=dict(opts.rlimits),  # type: ignore[arg-type]  # stored as (soft, hard)
        umask=opts.umask,
        nice=opts.nice,
        time=opts.time_limit,
        grace=opts.time_limit_grace,
        signum=signum,
        lead=lead,
    )
    return limits if limits.field() else None
