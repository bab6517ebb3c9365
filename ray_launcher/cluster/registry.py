"""Which agents a session has, kept in Ray's own store (the GCS) for a spawner that is started again.

Ray's list of actors does not do: it forgets those that are dead, whose procs somebody may still ask for.
"""

from __future__ import annotations

import pickle

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
        found = {}
        start = self._prefix + b"agent/"
        for key in _internal_kv_list(start, namespace=NAMESPACE):
            value = _internal_kv_get(key, namespace=NAMESPACE)
            if value is not None:
                found[bytes(key)[len(start) :].decode()] = pickle.loads(value)  # noqa: S301  # our own
        return found

    def add(self, name: str, node: Node) -> None:
        """An agent is about to be started."""
        _internal_kv_put(self._key(name), pickle.dumps(node), namespace=NAMESPACE)

    def remove(self, name: str) -> None:
        """Nothing of that agent's is left."""
        _internal_kv_del(self._key(name), namespace=NAMESPACE)
        _internal_kv_del(self._serving(name), namespace=NAMESPACE)
        self.note_silence(name, 0)

    def note_serving(self, name: str) -> None:
        """That agent is about to hand launches on to a supervisor for the first time."""
        _internal_kv_put(self._serving(name), b"yes", namespace=NAMESPACE)

    def has_served(self, name: str) -> bool:
        """Whether something may have run under that agent."""
        return _internal_kv_get(self._serving(name), namespace=NAMESPACE) is not None

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
        keys = _internal_kv_list(self._prefix + b"gang/", namespace=NAMESPACE)
        return list(filter(None, (_internal_kv_get(key, namespace=NAMESPACE) for key in keys)))

    def save_gang(self, uid: str, record: bytes) -> None:
        """Something has been decided about a gang."""
        _internal_kv_put(self._prefix + b"gang/" + uid.encode(), record, namespace=NAMESPACE)

    def drop_gang(self, uid: str) -> None:
        """It is over."""
        _internal_kv_del(self._prefix + b"gang/" + uid.encode(), namespace=NAMESPACE)

    def clear(self) -> None:
        """The session is over."""
        _internal_kv_del(self._prefix, del_by_prefix=True, namespace=NAMESPACE)

    def _key(self, name: str) -> bytes:
        return self._prefix + b"agent/" + name.encode()

    def _serving(self, name: str) -> bytes:
        return self._prefix + b"serving/" + name.encode()

    def _silence(self, name: str) -> bytes:
        return self._prefix + b"silence/" + name.encode()
