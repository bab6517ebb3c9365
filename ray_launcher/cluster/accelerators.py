"""Which variables make which accelerators visible: what Ray's own accelerator managers would set on this node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

#: Resource name to ids, as Ray assigns them.
Ids = Mapping[str, list[str]]


def assigned_here() -> dict[str, list[str]]:
    """The ids that Ray has assigned to the running task, of every kind of accelerator."""
    import ray  # noqa: PLC0415  # in a task of its own

    ids: dict[str, list[str]] = ray.get_runtime_context().get_accelerator_ids()
    return {name: [str(each) for each in each_ids] for name, each_ids in ids.items() if each_ids}


def masks(ids: Ids) -> dict[str, str]:
    """Variables under which exactly these accelerators are seen, and none of any other kind that the node has.

    Blocks for a moment the first time, when Ray looks for the node's devices. Call it in one thread only: the managers
    write to `os.environ`.
    """
    variables: dict[str, str] = {}
    for name in kinds():
        manager = _manager(name)
        wanted = ids.get(name, [])
        if wanted or name == "GPU" or manager.get_current_node_num_accelerators():
            variables.update(_as_set_by(manager, wanted))
    return variables


def kinds() -> list[str]:
    """The resources that are accelerators to Ray."""
    from ray._private import accelerators  # noqa: PLC0415  # private: kept to this module

    names: set[str] = accelerators.get_all_accelerator_resource_names()
    return sorted(names)


def _manager(resource: str) -> Any:
    """Ray chooses among the makers of GPUs by what it finds on the node."""
    from ray._private import accelerators  # noqa: PLC0415  # the same

    return accelerators.get_accelerator_manager_for_resource(resource)


def _as_set_by(manager: Any, ids: list[str]) -> dict[str, str]:
    name = manager.get_visible_accelerator_ids_env_var()
    plain = {name: ",".join(ids)} if name else {}
    if not ids:
        return plain
    before = dict(os.environ)
    try:
        manager.set_current_process_visible_accelerator_ids(ids)
        changed = {key: value for key, value in os.environ.items() if before.get(key) != value}
        return {**plain, **changed}
    except Exception:  # noqa: BLE001  # Ray would not start a task with these; the ids are right nonetheless
        return plain
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)
