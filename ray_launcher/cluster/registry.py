"""What a spawner that is started again must know of its session, kept in Ray's own store (the GCS).

Ray's list of actors does not do: it forgets those that are dead, whose procs somebody may still ask for.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

from ray_launcher.cluster.nodes import Node

NAMESPACE = b"ray_launcher"


class Registry:
    """All calls ask the GCS, and block while it cannot be reached."""

    def __init__(self, session: str) -> None:
        self._prefix = f"{session}/".encode()

    def agents(self) -> dict[str, Node]:
        """By their names."""
        return {name.decode(): pickle.loads(value) for name, value in self._items(b"agent/")}  # noqa: S301  # our own

    def add(self, name: str, node: Node) -> None:
        """An agent is about to be started."""
        _internal_kv_put(self._key(name), pickle.dumps(node), namespace=NAMESPACE)

    def remove(self, name: str) -> None:
        """Nothing of that agent's is left."""
        _internal_kv_del(self._key(name), namespace=NAMESPACE)
        _internal_kv_del(self._serving(name), namespace=NAMESPACE)
        self.note_loss(name, owed=False)
        self.note_silence(name, 0)

    def note_serving(self, name: str) -> None:
        """That agent is about to hand launches on to a supervisor for the first time."""
        _internal_kv_put(self._serving(name), b"yes", namespace=NAMESPACE)

    def has_served(self, name: str) -> bool:
        """Whether something may have run under that agent."""
        return _internal_kv_get(self._serving(name), namespace=NAMESPACE) is not None

    def note_loss(self, name: str, *, owed: bool) -> None:
        """Whether that agent alone knows which procs a lost supervisor has taken along."""
        if owed:
            _internal_kv_put(self._loss(name), b"yes", namespace=NAMESPACE)
        else:
            _internal_kv_del(self._loss(name), namespace=NAMESPACE)

    def has_loss(self, name: str) -> bool:
        """Whether it was so when that agent was lost."""
        return _internal_kv_get(self._loss(name), namespace=NAMESPACE) is not None

    def silence(self, name: str) -> float:
        """For how long that agent has been silent at least, in seconds."""
        return float(_internal_kv_get(self._silence(name), namespace=NAMESPACE) or b"0")

    def note_silence(self, name: str, seconds: float) -> None:
        """It has been silent for that long; 0: it is not."""
        if seconds:
            _internal_kv_put(self._silence(name), b"%r" % seconds, namespace=NAMESPACE)
        else:
            _internal_kv_del(self._silence(name), namespace=NAMESPACE)

    def next_generation(self) -> int:
        """How many spawners this session has had before; the first one need not ask."""
        key = self._prefix + b"generation"
        generation = int(_internal_kv_get(key, namespace=NAMESPACE) or b"0") + 1
        _internal_kv_put(key, b"%d" % generation, namespace=NAMESPACE)
        return generation

    def gangs(self) -> list[bytes]:
        """What has been decided about each gang that is not over."""
        return [value for _, value in self._items(b"gang/")]

    def save_gang(self, uid: str, record: bytes) -> None:
        """Something has been decided about a gang."""
        _internal_kv_put(self._prefix + b"gang/" + uid.encode(), record, namespace=NAMESPACE)

    def drop_gang(self, uid: str) -> None:
        """It is over."""
        _internal_kv_del(self._prefix + b"gang/" + uid.encode(), namespace=NAMESPACE)

    def blocks(self) -> dict[int, bytes]:
        """What is remembered of procs that have ended, by number."""
        return {int(name): value for name, value in self._items(b"past/")}

    def save_block(self, number: int, block: bytes) -> None:
        """Some of it."""
        _internal_kv_put(self._prefix + b"past/%d" % number, block, namespace=NAMESPACE)

    def drop_block(self, number: int) -> None:
        """It is forgotten."""
        _internal_kv_del(self._prefix + b"past/%d" % number, namespace=NAMESPACE)

    def launches(self) -> dict[tuple[str, int], bytes]:
        """What has been asked for by a launcher, under a number, and has not ended."""
        found = {}
        for name, value in self._items(b"launch/"):
            launcher, number = name.decode().rsplit("/", 1)
            found[launcher, int(number)] = value
        return found

    def save_launch(self, key: tuple[str, int], payload: bytes) -> None:
        """It has been asked for."""
        _internal_kv_put(self._launch(key), payload, namespace=NAMESPACE)

    def drop_launch(self, key: tuple[str, int]) -> None:
        """It has ended."""
        _internal_kv_del(self._launch(key), namespace=NAMESPACE)

    def clear(self) -> None:
        """The session is over."""
        _internal_kv_del(self._prefix, del_by_prefix=True, namespace=NAMESPACE)

    def _items(self, kind: bytes) -> Iterator[tuple[bytes, bytes]]:
        start = self._prefix + kind
        for key in _internal_kv_list(start, namespace=NAMESPACE):
            value = _internal_kv_get(key, namespace=NAMESPACE)
            if value is not None:  # it may have been dropped meanwhile
                yield bytes(key)[len(start) :], value

    def _launch(self, key: tuple[str, int]) -> bytes:
        launcher, number = key
        return self._prefix + b"launch/%s/%d" % (launcher.encode(), number)

    def _key(self, name: str) -> bytes:
        return self._prefix + b"agent/" + name.encode()

    def _serving(self, name: str) -> bytes:
        return self._prefix + b"serving/" + name.encode()

    def _loss(self, name: str) -> bytes:
        return self._prefix + b"loss/" + name.encode()

    def _silence(self, name: str) -> bytes:
        return self._prefix + b"silence/" + name.encode()
