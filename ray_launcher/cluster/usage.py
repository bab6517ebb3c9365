"""What procs use, asked of all agents of a session at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ray_launcher.cluster.link import Link
from ray_launcher.cluster.links import Links
from ray_launcher.cluster.roster import Proc
from ray_launcher.usage import ProcUsage

#: Seconds for the agents to answer; what those that are late have is not told.
_ANSWER = 3.0


async def usage_of(links: Links, procs: Iterable[Proc]) -> list[ProcUsage]:
    """What each of these procs uses: one call for each node that has any."""
    procs = list(procs)
    busy = {proc.link for proc in procs if proc.link is not None and proc.link in links.by_name.values()}
    uses = await _asked(busy, "usage")
    found = []
    for proc in procs:
        use = None if proc.link is None else (uses.get(proc.link) or {}).get(proc.token)
        found.append(ProcUsage(proc.info()) if use is None else ProcUsage(proc.info(), *use))
    return found


async def supervisors_of(links: Links) -> dict[str, float]:
    """Bytes that supervisors and guards take, by the address of the node."""
    found: dict[str, float] = {}
    for link, size in (await _asked(set(links.by_name.values()), "supervisor_bytes")).items():
        found[link.node.ip] = found.get(link.node.ip, 0.0) + size
    return found


async def _asked(links: set[Link], method: str) -> dict[Link, Any]:
    """What their agents answer, of those that do in time."""
    asked = {link: asyncio.ensure_future(link.ask(method)) for link in links}
    if asked:
        _, late = await asyncio.wait(asked.values(), timeout=_ANSWER)
        for each in late:
            each.cancel()
    return {
        link: answer.result()
        for link, answer in asked.items()
        if answer.done() and not answer.cancelled() and not answer.exception() and answer.result() is not None
    }
