"""``Placement``: where a proc runs, and what it holds there. See `options` for how it is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ray_launcher import checks
from ray_launcher.frozen import FrozenMapping

GpuMask: TypeAlias = Literal["proc", "node", "inherit"]

_GPU_MASKS = ("proc", "node", "inherit")
_OWN_FIELDS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
_SMALLEST_SHARE = 0.0001


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a proc runs and what it holds there. The names and units are Ray's.

    Without any resource the proc runs on any node, or on the one that ``node_id`` or ``label_selector`` names, and
    holds nothing.

    Raises TypeError or ValueError, naming the argument. Quantities are finite and not negative; a share is at least
    0.0001, and more than one GPU means whole GPUs (source: ``_validate_resource_quantity`` in Ray's
    ``ray_option_utils.py``).
    """

    num_cpus: float = 0
    """CPUs; shares are fine."""
    num_gpus: float = 0
    """GPUs; a share below 1, or a whole number."""
    memory: float = 0
    """Bytes."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources: name to quantity. Stored as a read-only mapping."""
    label_selector: Mapping[str, str] = field(default_factory=dict)
    """Node labels: name to value or Ray's expressions (``"!x"``, ``"in(a,b)"``). Stored as a read-only mapping."""
    node_id: str | None = None
    """Hex id of the node, as ``ray.nodes()`` gives it."""
    timeout: float | None = None
    """Seconds to wait for the resources; None, or infinity, which is stored as None: for ever."""
    gpu_mask: GpuMask | None = None
    """GPUs that the proc sees: its own (``"proc"``), all of its gang on the node (``"node"``), or what the node has
    (``"inherit"``). None: ``"proc"`` for a single proc, ``"node"`` in a gang."""

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus", "memory"):
            checks.store(self, name, _quantity(f"Placement.{name}", getattr(self, name)))
        _check_whole_gpus(self.num_gpus)
        checks.store(self, "resources", _resources(self.resources))
        labels = checks.mapping(checks.utf8_text, checks.utf8_text, "Placement.label_selector", self.label_selector)
        checks.store(self, "label_selector", FrozenMapping(labels))
        checks.store(self, "node_id", checks.optional(checks.word, "Placement.node_id", self.node_id))
        checks.store(self, "timeout", _optional_wait("Placement.timeout", self.timeout))
        checks.store(self, "gpu_mask", checks.optional(_gpu_mask, "Placement.gpu_mask", self.gpu_mask))


def _quantity(where: str, value: object) -> int | float:
    quantity = checks.number(where, value)
    if 0 < quantity < _SMALLEST_SHARE:
        raise ValueError(f"{where} is smaller than the smallest share; write 0, or {_SMALLEST_SHARE} or more")
    return quantity


def _check_whole_gpus(num_gpus: float) -> None:
    if num_gpus > 1 and num_gpus != math.floor(num_gpus):
        raise ValueError("Placement.num_gpus must be whole above 1; write a whole number, or a share below 1")


def _resources(value: object) -> FrozenMapping[str, int | float]:
    resources = checks.mapping(checks.utf8_text, _quantity, "Placement.resources", value)
    for name in resources.keys() & _OWN_FIELDS.keys():
        where = checks.entry_of("Placement.resources", name)
        raise ValueError(f"{where} has a field of its own; write Placement({_OWN_FIELDS[name]}=...)")
    return FrozenMapping(resources)


def _optional_wait(where: str, value: object) -> float | None:
    wait = checks.optional(checks.seconds, where, value)
    return None if wait == math.inf else wait


def _gpu_mask(where: str, value: object) -> str:
    mask = checks.utf8_text(where, value)
    if mask not in _GPU_MASKS:
        raise ValueError(f"{where} is not known; write one of {', '.join(map(repr, _GPU_MASKS))}, or None")
    return mask
