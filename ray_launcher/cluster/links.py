"""The links of one spawner: which node a launch goes to, the link that leads there, and another one once it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ray_launcher.cluster.link import Link, Owner
from ray_launcher.cluster.nodes import Node, Nodes
from ray_launcher.cluster.wire import Exit, Started
from ray_launcher.options import Placement


class Links:
    """One link per node that launches have gone to.

    on_news(link, news): see `Link`.  found: the nodes of the agents that an earlier spawner has left, by their names.
    """

    def __init__(
        self, owner: Owner, on_news: Callable[[Link, Started | Exit], None], found: Mapping[str, Node]
    ) -> None:
        self._owner, self._on_news = owner, on_news
        self._nodes = Nodes()
        self._ending = False
        self.by_name: dict[str, Link] = {}  # the agent's, until it is lost
        self.by_node: dict[str, Link] = {}  # the node's id: where launches go
        for name, node in found.items():
            self._add(node, name=name)

    async def place(self, placement: Placement, unwanted: asyncio.Future[Any]) -> Link | None:
        """The link to the node that is chosen, or None once `unwanted` is done. Does not suspend in the usual case.

        Nor does it after the choice: those who waited together would all choose by the same load. Raises
        `NoSuchNodeError` and `NoFittingNodeError`.
        """
        while not unwanted.done():
            node = self._nodes.pick(placement, self._load)
            if node is not None:
                return self._to(node)
            waiting = asyncio.ensure_future(self._nodes.wait_for(placement, self._load))
            try:
                await asyncio.wait((waiting, unwanted), return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    waiting.result()
            finally:
                waiting.cancel()
        return None

    async def agent_of(self, link: Link | None) -> Any:
        """The agent that reaches its node now: another where that one was lost."""
        if link is None:
            return None
        return await (link if self._ending else self._to(link.node)).reachable()

    def renew(self, name: str) -> bool:
        """Renew the lease of the agent of this name. False: it has been taken for lost."""
        link = self.by_name.get(name)
        return link is not None and link.grant()

    async def end(self, grace: float) -> None:
        """End every proc of every node, and the agents; returns when nothing of them is left."""
        self._ending = True
        await asyncio.gather(*(link.end(grace) for link in list(self.by_name.values())))

    def _load(self, node_id: str) -> float:
        link = self.by_node.get(node_id)
        if link is None:
            return 0
        return len(link.launches) if link.in_contact else float("inf")

    def _to(self, node: Node) -> Link:
        return self.by_node.get(node.node_id) or self._add(node)

    def _add(self, node: Node, *, name: str | None = None, suspect: bool = False) -> Link:
        link = Link(self._owner, node, self._on_news, self._lost, name=name, suspect=suspect)
        self.by_node[node.node_id] = self.by_name[link.name] = link
        return link

    def _lost(self, link: Link, joined: bool) -> None:
        node = link.node
        self._nodes.lose(node.node_id)
        self.by_name.pop(link.name, None)
        if self.by_node.get(node.node_id) is link:
            del self.by_node[node.node_id]
            if joined and not self._ending:  # Ray may take it for alive; an agent that starts there tells
                self._add(node, suspect=True)
