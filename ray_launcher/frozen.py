"""Read-only mappings, for the fields of frozen options.

``types.MappingProxyType`` would do but for one thing: it cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

__all__ = ["EnvMapping", "FrozenMapping", "SecretMapping"]

_K = TypeVar("_K")
_V_co = TypeVar("_V_co", covariant=True)


class FrozenMapping(Mapping[_K, _V_co]):
    """A mapping that cannot be changed: hashable, picklable, equal to any mapping with the same items.

    Keeps the order of its source, and a copy: changing the source later changes nothing here. ``dict(m)`` and
    ``{**m}`` give a dict.
    """

    def __init__(self, items: Mapping[_K, _V_co]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: _K) -> _V_co:
        return self._items[key]

    def __iter__(self) -> Iterator[_K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[FrozenMapping[_K, _V_co]], tuple[dict[_K, _V_co]]]:
        return type(self), (self._items,)


class EnvMapping(FrozenMapping[str, str]):
    """Environment variables. ``repr()`` shows the names only, since values are often secrets: ``{'TOKEN': '***'}``."""

    def __repr__(self) -> str:
        return repr(dict.fromkeys(self, "***"))


class SecretMapping(FrozenMapping[str, bytes]):
    """Contents of files by name. ``repr()`` shows the names only: ``{'token': '***'}``."""

    def __repr__(self) -> str:
        return repr(dict.fromkeys(self, "***"))
