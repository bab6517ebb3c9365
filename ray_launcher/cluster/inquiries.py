"""What a node agent answers about the procs of its node, and lets others do to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import ObjectRef
from ray.exceptions import RayError

from ray_launcher.callables import Answer, answer_in
from ray_launcher.cluster.follow import read_logs
from ray_launcher.cluster.inputs import Inputs, Taken
from ray_launcher.cluster.keeper import Keeper
from ray_launcher.cluster.logfiles import Piece, since_offset, tail_offset
from ray_launcher.cluster.meter import Meter, Use
from ray_launcher.cluster.ports import Ports
from ray_launcher.cluster.probes import Subject, Verdict, probe
from ray_launcher.cluster.specs import Specs
from ray_launcher.cluster.wire import STREAMS
from ray_launcher.readiness import ReadyWhen


class Inquiries:
    """Each waits until what an agent before this one has left is found."""

    _logs: Path
    _directory: Path
    _keeper: Keeper
    _specs: Specs
    _inputs: Inputs
    _meter: Meter
    _ports: Ports
    _finding: asyncio.Future[None]

    async def read(self, wants: dict[str, tuple[int, str]], timed: bool) -> dict[str, Piece]:
        """New bytes of log files, see `follow.read_logs`.

        `wants` is {file name: (offset, token)}: while the proc of that token lives, there may come more.
        """
        await asyncio.shield(self._finding)
        offsets = {name: offset for name, (offset, _) in wants.items()}
        running = self._keeper.running
        return await read_logs(self._logs, offsets, lambda name: wants[name][1] in running, timed=timed)

    async def begins(self, names: list[str], lines: int | None, since: float | None) -> dict[str, int]:
        """Where the last so many lines of log files begin, and none from before that time: an offset for `read`."""
        paths = {name: self._logs / name for name in names}
        tails = {name: 0 if lines is None else tail_offset(path, lines) for name, path in paths.items()}
        return {name: max(tails[name], since_offset(path, since) if since else 0) for name, path in paths.items()}

    async def put(self, token: str, writer: str, offset: int, data: bytes, last: bool) -> Taken | None:
        """Give a proc something to read, see `Inputs.put`."""
        await asyncio.shield(self._finding)
        return await self._inputs.put(token, writer, offset, data, last)

    async def put_all(self, token: str, data: Sequence[ObjectRef[bytes]]) -> None:
        """Give a proc an object of Ray's to read, and nothing behind it."""
        await asyncio.shield(self._finding)
        try:
            pickled = await data[0]
        except RayError:
            pickled = b""  # its driver is gone
        await self._inputs.put_all(token, pickled)

    async def answer(self, proc_id: str, token: str, _ended: object = None) -> Answer:
        """What the callable of a proc has returned, once that has ended. Raises `CallError`."""
        path = Path(os.fsdecode(self._specs.log(proc_id, token, "value")))
        try:
            data = await asyncio.get_running_loop().run_in_executor(None, path.read_bytes)
        except FileNotFoundError:
            data = b""
        return answer_in(data)

    async def resize(self, token: str, rows: int, columns: int) -> None:
        """Change the size of a proc's terminal, if it has one."""
        await asyncio.shield(self._finding)
        self._keeper.send(b"resize", token.encode(), b"%d" % rows, b"%d" % columns)

    async def remove_logs(self, launches: list[tuple[str, str]]) -> None:
        """Of launches that have ended: (proc_id, token) of each."""
        for proc_id, token in launches:
            self._specs.remove_logs(proc_id, token)

    async def open_port(self, name: str) -> int:
        """A port of this node that nobody else gets until the launch that is granted `name` comes here."""
        return self._ports.keep(name)

    async def probe(
        self, token: str, proc_id: str, ready_when: ReadyWhen, offsets: list[int]
    ) -> tuple[Verdict, list[int]]:
        """Look for a while whether a proc is ready; offsets: how far its logs have been read, also in the answer."""
        await asyncio.shield(self._finding)
        running = self._keeper.running
        started = running.get(token)
        if started is None:
            return "ended", offsets
        logs = [Path(os.fsdecode(self._specs.log(proc_id, token, stream))) for stream in STREAMS]
        address = ray_node().node_ip_address
        return await probe(ready_when, Subject(started.pid, logs, address, lambda: token in running), offsets)

    async def usage(self) -> dict[str, Use]:
        """What the trees of all that runs use, by token."""
        await asyncio.shield(self._finding)
        return await self._meter.read()

    async def supervisor_bytes(self) -> int:
        """The memory of the supervisor and its guard."""
        return await self._meter.supervisor_bytes()

    async def await_gone(self, tokens: list[str]) -> None:
        """Return when nothing is left of the trees of these launches, which have ended."""
        await asyncio.shield(self._finding)
        await asyncio.gather(*map(self._keeper.gone, tokens))

    async def info(self) -> dict[str, Any]:
        """Facts for diagnostics: pid, and where things are."""
        return {"pid": os.getpid(), "directory": str(self._directory), "logs": str(self._logs)}


def ray_node() -> Any:
    """Ray's own description of this node; it has no public name for the log directory."""
    from ray._private import worker  # noqa: PLC0415  # private: kept to this place

    return worker._global_node  # noqa: SLF001
