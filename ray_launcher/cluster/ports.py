"""Ports of a node that are kept free for procs to come: MASTER_PORT of a gang, until rank 0 is started."""

from __future__ import annotations

import socket

#: At most: of a gang that was ended before it began, nobody comes for its port.
_MOST = 64


class Ports:
    """Kept by name. A port that is bound to goes to nobody else; where it is freed, no connection lingers."""

    def __init__(self) -> None:
        self._kept: dict[str, socket.socket] = {}

    def keep(self, name: str) -> int:
        """A free port; asked again for the same name, the same one."""
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept[name] = _bound()
            while len(self._kept) > _MOST:
                self.give(next(iter(self._kept)))
        port: int = kept.getsockname()[1]
        return port

    def give(self, name: str) -> None:
        """Free the port, for the proc that is started next. Nothing for a name that has none."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.close()


def _bound() -> socket.socket:
    """To every address of the node, of both families where it has both."""
    kept = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
    kept.bind(("", 0))
    return kept
