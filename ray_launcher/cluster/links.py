"""The links of one spawner: the one that leads to a node, how busy that is, and another one once it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ray_launcher.cluster.link import Link, Owner
from ray_launcher.cluster.nodes import Node, Nodes
from ray_launcher.cluster.wire import Exit, Started


class Links:
    """One link per node that launches have gone to.

    on_news(link, news): see `link.Host`.  found: the nodes of the agents that an earlier spawner has left, by name.
    """

    def __init__(
        self, owner: Owner, on_news: Callable[[Link, Started | Exit], None], found: Mapping[str, Node]
    ) -> None:
        self._owner, self._on_news = owner, on_news
        self.nodes = Nodes()
        self._ending = False
        self.by_name: dict[str, Link] = {}  # the agent's, until it is lost
        self.by_node: dict[str, Link] = {}  # the node's id: where launches go
        links = [self._add(node, name=name) for name, node in found.items()]
        for link in sorted(links, key=lambda link: link.silence, reverse=True):  # a node may have been lost before
            self.by_node[link.node.node_id] = link

    def load(self, node_id: str) -> float:
        """How many procs we have on a node; infinite for one that is not to be used now.

        The first there counts for half a proc more: its agent would have to be started.
        """
        link = self.by_node.get(node_id)
        if link is None:
            return 0.5
        return len(link.launches) if link.in_contact else float("inf")

    def begin(self, node: Node, name: str) -> None:
        """An agent of this name is being started there."""
        self._add(node, name=name, begun=True)

    def to(self, node: Node) -> Link:
        """The link that leads there."""
        return self.by_node.get(node.node_id) or self._add(node)

    async def open_port(self, node: Node, name: str) -> int | None:
        """A port there that nobody else gets until a launch that is granted `name` comes; None: the node is lost."""
        port: int | None = await self.to(node).ask("open_port", name)
        return port

    async def agent_of(self, link: Link | None) -> Any:
        """The agent that reaches its node now: another where that one was lost."""
        if link is None:
            return None
        return await (link if self._ending else self.to(link.node)).reachable()

    async def agent_on(self, node_id: str | None) -> Any:
        """The agent that reaches the node of this id now; None: it is none of the cluster's any more."""
        link = self.by_node.get(node_id or "")
        node = None if link is not None or node_id is None else await self.nodes.find(node_id)
        return await self.agent_of(link if node is None or self._ending else self.to(node))

    async def agent_there(self, node_id: str | None) -> Any:
        """The agent of the node of this id, if it has one that is in contact now."""
        link = self.by_node.get(node_id or "")
        return None if link is None or not link.in_contact else await link.reachable()

    async def renew(self, name: str, clock: float) -> bool:
        """Renew the lease of the agent of this name; clock: its own. False: it has been taken for lost."""
        link = self.by_name.get(name)
        return link is not None and await link.renew(clock)

    async def end(self, grace: float) -> None:
        """End every proc of every node, and the agents; returns when nothing of them is left."""
        self._ending = True
        await asyncio.gather(*(link.end(grace) for link in list(self.by_name.values())))

    def _add(self, node: Node, **facts: Any) -> Link:
        link = Link(self._owner, node, self, **facts)
        self.by_node[node.node_id] = self.by_name[link.name] = link
        return link

    def on_news(self, link: Link, news: Started | Exit) -> None:
        """See `link.Host`."""
        self._on_news(link, news)

    def on_leaving(self, link: Link) -> None:
        """See `link.Host`."""
        self.nodes.lose(link.node.node_id, for_good=True)

    def on_lost(self, link: Link, joined: bool) -> None:
        """See `link.Host`."""
        node = link.node
        self.nodes.lose(node.node_id)
        self.by_name.pop(link.name, None)
        if self.by_node.get(node.node_id) is link:
            del self.by_node[node.node_id]
            if joined and not self._ending:  # Ray may take it for alive; an agent that starts there tells
                self._add(node, suspect=True)
