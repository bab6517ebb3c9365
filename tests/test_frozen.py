"""Read-only mappings."""

from __future__ import annotations

import copy
import pickle

import pytest

from ray_launcher.frozen import EnvMapping, FrozenMapping


def test_a_frozen_mapping_equals_a_dict_with_the_same_items() -> None:
    assert FrozenMapping({"a": 1}) == {"a": 1}
    assert FrozenMapping({"a": 1}) != {"a": 2}


def test_equal_frozen_mappings_have_equal_hashes_in_any_order() -> None:
    assert hash(FrozenMapping({"a": 1, "b": 2})) == hash(FrozenMapping({"b": 2, "a": 1}))


def test_a_frozen_mapping_has_no_way_to_set_or_delete() -> None:
    mapping = FrozenMapping({"a": 1})
    with pytest.raises(TypeError):
        mapping["a"] = 2  # type: ignore[index]
    with pytest.raises(TypeError):
        del mapping["a"]  # type: ignore[attr-defined]


def test_changing_the_source_changes_nothing() -> None:
    source = {"a": 1}
    mapping = FrozenMapping(source)
    source["a"] = 2
    assert mapping == {"a": 1}


@pytest.mark.parametrize("mapping", [FrozenMapping({"b": "1", "a": "2"}), EnvMapping({"b": "1", "a": "2"})])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_class_items_and_order(mapping: FrozenMapping[str, str], protocol: int) -> None:
    restored = pickle.loads(pickle.dumps(mapping, protocol))
    assert type(restored) is type(mapping)
    assert list(restored.items()) == list(mapping.items())


def test_a_deep_copy_is_equal() -> None:
    assert copy.deepcopy(EnvMapping({"a": "1"})) == {"a": "1"}


def test_unpacking_gives_a_plain_dict() -> None:
    assert {**EnvMapping({"a": "1"}), "b": "2"} == {"a": "1", "b": "2"}


def test_the_repr_of_an_environment_shows_names_only() -> None:
    assert repr(EnvMapping({"TOKEN": "s3cret"})) == str(EnvMapping({"TOKEN": "s3cret"})) == "{'TOKEN': '***'}"
