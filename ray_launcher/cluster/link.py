"""The spawner's side of one agent: messages out in order, exits in, and what happens when the agent is lost."""

from __future__ import annotations

import asyncio
import pickle
import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_launcher.cluster.agent import Agent
from ray_launcher.cluster.nodes import Node
from ray_launcher.cluster.wire import NAMESPACE, Exit, Launch, Request, SessionInfo, Signal, Started
from ray_launcher.exits import ExitReport
from ray_launcher.port import gone_because

#: Seconds beyond the grace after which an agent that does not answer is given up when the session ends; more than
#: its supervisor, and the mop-up after it, take at most.
GIVE_UP = 40.0
#: Seconds for answers that are on their way when the agent has ended.
LAST_ANSWERS = 5.0


class Link:
    """Starts the agent of `node` and talks to it. `on_news` gets one `Exit` per launch, perhaps a `Started`."""

    def __init__(
        self,
        session: SessionInfo,
        node: Node,
        agent_env: dict[str, Any],
        on_news: Callable[[Started | Exit], None],
        on_lost: Callable[[Link], None],
    ) -> None:
        self.node = node
        self.launches: set[str] = set()  # tokens without an exit
        self._on_news = on_news
        self._on_lost = on_lost
        self._lost = False
        self._delivered = 0
        self._outbox: list[Launch | Request | Signal] = []
        self._mail = asyncio.Event()
        self._sent = self._arrived = 0  # messages
        self._arrivals: list[tuple[int, asyncio.Future[None]]] = []  # who waits for how many to have arrived
        self._emptied: asyncio.Future[None] | None = None
        self.agent: Any = start_agent(session, node, agent_env)
        self._tasks = [asyncio.ensure_future(self._run(loop)) for loop in (self._post, self._poll)]

    def launch(self, message: Launch) -> None:
        """Send; from now on `on_exit` will be called for it, whatever happens."""
        self.launches.add(message.token)
        self._send(message)

    def request(self, message: Request | Signal) -> None:
        """Send, if its launch has not ended."""
        if message.token in self.launches:
            self._send(message)

    async def all_arrived(self) -> None:
        """Return when the agent has everything that has been sent until now, or is lost."""
        if self._arrived < self._sent and not self._lost:
            arrival = asyncio.get_running_loop().create_future()
            self._arrivals.append((self._sent, arrival))
            await arrival

    async def end(self, grace: float) -> None:
        """End every proc of the node and the agent; returns when nothing of them is left."""
        try:
            await asyncio.wait_for(self.agent.end.remote(grace), grace + GIVE_UP)
            if self.launches:  # their ends are on the way
                self._emptied = asyncio.get_running_loop().create_future()
                await asyncio.wait_for(self._emptied, LAST_ANSWERS)
        except (RayError, asyncio.TimeoutError):
            pass  # it is gone, and its supervisor sees to the procs
        for task in self._tasks:
            task.cancel()
        ray.kill(self.agent)
        self._abandon("the session ended")

    def _send(self, message: Launch | Request | Signal) -> None:
        self._sent += 1
        self._outbox.append(message)
        self._mail.set()

    async def _post(self) -> None:
        """One message under way at a time keeps their order; what comes meanwhile makes up the next."""
        while True:
            await self._mail.wait()
            self._mail.clear()
            batch, self._outbox = self._outbox, []
            self._take(await self.agent.post.remote(pickle.dumps(batch), self._delivered))
            self._arrived += len(batch)
            self._tell_arrivals()

    async def _poll(self) -> None:
        while True:
            self._take(await self.agent.poll.remote(self._delivered))

    def _take(self, answer: bytes) -> None:
        for news in pickle.loads(answer):  # noqa: S301  # from our own agent
            if isinstance(news, Exit):
                self._delivered = max(self._delivered, news.sequence)
                self._exited(news)
            elif news.token in self.launches:
                self._on_news(news)

    async def _run(self, loop: Callable[[], Any]) -> None:
        try:
            await loop()
        except RayError as error:
            for task in self._tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            ray.kill(self.agent)  # out of reach, or confused, it may live: what it runs must end
            self._on_lost(self)
            self._abandon(gone_because(error))

    def _exited(self, exit_: Exit) -> None:
        if exit_.token in self.launches:
            self.launches.remove(exit_.token)
            self._on_news(exit_)
            if self._emptied is not None and not self.launches and not self._emptied.done():
                self._emptied.set_result(None)

    def _tell_arrivals(self) -> None:
        while self._arrivals and (self._lost or self._arrivals[0][0] <= self._arrived):
            _, arrival = self._arrivals.pop(0)
            if not arrival.done():
                arrival.set_result(None)

    def _abandon(self, why: str) -> None:
        self._lost = True
        self._tell_arrivals()
        reason = f"the agent of node {self.node} was lost: {why}"
        for token in list(self.launches):
            self._exited(Exit(0, token, ExitReport(None, None, False, reason, ())))


def start_agent(session: SessionInfo, node: Node, runtime_env: dict[str, Any]) -> Any:
    """Create the agent's actor on its node.

    Detached, since an owned one would die with a spawner that only restarts. At nice 0 (Ray's workers have 15), which
    a worker can have from its start without a privilege.
    """
    env_vars = {"RAY_worker_niceness": "0", **runtime_env.get("env_vars", {})}
    name = f"{session.name}-{node.node_id[:16]}-{uuid.uuid4().hex[:8]}"
    return (
        ray.remote(Agent)
        .options(
            name=f"agent-{name}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_concurrency=1000,
            enable_task_events=False,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
            runtime_env={**runtime_env, "env_vars": env_vars},
        )
        .remote(session, name, ray.get_runtime_context().current_actor)
    )
