"""What an agent hands on to its supervisor: launches, and requests for what runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence

from ray_launcher.cluster.inside import InsideError
from ray_launcher.cluster.keeper import Keeper
from ray_launcher.cluster.ports import Ports
from ray_launcher.cluster.secrets import Secrets
from ray_launcher.cluster.specs import Specs
from ray_launcher.cluster.wire import Launch, Request, Signal, Started
from ray_launcher.node.client import Client, SupervisorError
from ray_launcher.node.protocol import ProtocolError


class Orders:
    """Of one agent; a launch that cannot be handed on has failed."""

    def __init__(self, keeper: Keeper, specs: Specs, secrets: Secrets, ports: Ports) -> None:
        self._keeper, self._specs, self._secrets, self._ports = keeper, specs, secrets, ports

    async def hand_on(self, batch: Sequence[Launch | Request | Signal], wanted: Callable[[], bool]) -> None:
        """In order, and return when the supervisor has them.

        wanted: False where the spawner has joined anew meanwhile. It has been told that these never came, and has
        them launched again, or elsewhere.
        """
        failure, supervisor = "", None
        try:
            supervisor = await self._keeper.supervisor()
        except (SupervisorError, OSError) as error:
            failure = f"no supervisor on the node: {error}"
        if not wanted():
            return
        for message in batch:
            if not isinstance(message, Launch):
                self._request(message)
            elif supervisor is not None:
                self._launch(supervisor, message)
            else:
                self._keeper.failed(message.token, message.note, failure)
        await self._keeper.synced()

    def _request(self, message: Request | Signal) -> None:
        token = message.token.encode()
        if isinstance(message, Signal):
            sender, number = message.key
            self._keeper.send(b"signal", token, b"%d" % message.signum, sender.encode(), b"%d" % number)
        elif message.timeout is None:
            self._keeper.send(b"kill", token)
        else:
            self._keeper.send(b"terminate", token, b"%r" % message.timeout)

    def _launch(self, supervisor: Client, message: Launch) -> None:
        token = message.token
        if token in self._keeper.running:
            return  # sent again
        proc_id, opts, *more = pickle.loads(message.payload)  # noqa: S301  # from our own spawner
        try:
            secrets = self._secrets.put(token, opts.secrets) if opts.secrets else None
            spec = self._specs.make(message, proc_id, opts, secrets, *more[1:])
            if message.grant is not None and message.grant.port is not None:
                self._ports.give(message.grant.port)
            self._keeper.launch(supervisor, Started(token, 0, 0.0, message.note), spec)
        except ProtocolError as error:
            text = f"{opts.program}: arguments and environment are too long for exec (E2BIG): {error}"
            self._keeper.failed(token, message.note, text, code=126)
        except OSError as error:
            self._keeper.failed(token, message.note, f"cannot write the proc's secrets: {error.strerror}")
        except InsideError as error:
            self._keeper.failed(token, message.note, str(error))
