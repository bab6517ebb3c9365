"""Checks at the door: each takes an argument as a user wrote it and gives back its plain, picklable value.

Called by ``options`` and ``limits`` only. ``where`` names the argument in messages, as in ``LaunchOptions.args[2]``. A
wrong type raises TypeError, a wrong value ValueError, each with the way out.

Values of arguments never appear in messages, because they may be secrets; names of variables and resources do.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, cast

_T = TypeVar("_T")
_Number = TypeVar("_Number", int, float)

# U+DC80..U+DCFF stand for undecodable bytes (os.fsdecode) and turn into them again; other surrogates are no bytes.
_NOT_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_NUMBER_LIST = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
_SHOWN_CHARS = 80


def entry_of(where: str, name: str) -> str:
    """The name of one entry of a mapping: ``LaunchOptions.env['A=B']``."""
    shown = name if len(name) <= _SHOWN_CHARS else name[:_SHOWN_CHARS] + "…"
    return f"{where}[{shown!r}]"


def os_text(where: str, value: object) -> str:
    """A str that the operating system can take: no NUL, lone surrogates only where they stand for bytes."""
    plain = _text(where, value)
    if _NOT_BYTES.search(plain):
        raise ValueError(f"{where} contains a lone surrogate, which cannot be encoded; write os.fsdecode(the bytes)")
    return plain


def path(where: str, value: object) -> str:
    """An ``os_text``, also that of an ``os.PathLike``."""
    return os_text(where, type(value).__fspath__(value) if isinstance(value, os.PathLike) else value)


def utf8_text(where: str, value: object) -> str:
    """A str that UTF-8 can encode: no NUL, no lone surrogate."""
    plain = _text(where, value)
    if _SURROGATES.search(plain):
        raise ValueError(f"{where} contains a lone surrogate, which cannot be encoded; use plain characters")
    return plain


def _text(where: str, value: object) -> str:
    if isinstance(value, bytes):
        raise TypeError(f"{where} must be str, not bytes; write os.fsdecode(...)")
    if not isinstance(value, str):
        raise TypeError(f"{where} must be str, not {_type(value)}; give a str")
    plain = str.__str__(value)  # exact, whatever subclass it was
    if "\0" in plain:
        raise ValueError(f"{where} contains a NUL character, which no program can receive; remove it")
    return plain


def not_empty(check: Callable[[str, object], str], where: str, value: object) -> str:
    """What ``check`` makes of the value, with at least one character."""
    plain = check(where, value)
    if not plain:
        raise ValueError(f"{where} is empty; give at least one character")
    return plain


def word(where: str, value: object) -> str:
    """At least one character of UTF-8 text."""
    return not_empty(utf8_text, where, value)


def store(instance: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass, which there is one way to do."""
    object.__setattr__(instance, name, value)


def optional(check: Callable[[str, object], _T], where: str, value: object) -> _T | None:
    """None, or what ``check`` makes of the value."""
    return None if value is None else check(where, value)


def many(check: Callable[[str, object], str], where: str, value: object) -> tuple[str, ...]:
    """Any iterable, each item checked. A lone str is refused: it would be taken apart into characters."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{where} must be a list or tuple of str, not a single {_type(value)}; put it into brackets")
    if not isinstance(value, Iterable):
        raise TypeError(f"{where} must be a list or tuple of str, not {_type(value)}")
    return tuple(check(f"{where}[{index}]", item) for index, item in enumerate(value))


def mapping(
    check_name: Callable[[str, object], str], check: Callable[[str, object], _T], where: str, value: object
) -> dict[str, _T]:
    """Any mapping, each name and value checked; a name has at least one character."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be a mapping, not {_type(value)}; write a dict, {{}} for none")
    names = {not_empty(check_name, f"{where}: a name", name): name for name in value}
    return {plain: check(entry_of(where, plain), value[name]) for plain, name in names.items()}


def flag(where: str, value: object) -> bool:
    """True or False, and nothing that is merely true or false."""
    if not isinstance(value, bool):
        raise TypeError(f"{where} must be True or False, not {_type(value)}; write bool(...)")
    return value


def count(where: str, value: object) -> int:
    """A whole number, 0 or more, of any type with ``__index__``."""
    return _not_negative(where, _whole(where, value))


def within(where: str, value: object, lowest: int, highest: int, show: Callable[[int], str] = str) -> int:
    """A whole number in a range, of any type with ``__index__``. ``show``: how to write its ends."""
    plain = _whole(where, value)
    if not lowest <= plain <= highest:
        raise ValueError(f"{where} is out of range; write a number from {show(lowest)} to {show(highest)}")
    return plain


def number(where: str, value: object) -> int | float:
    """A finite number, 0 or more; whole-number types come back as int, all others as float."""
    plain = seconds(where, value)
    if math.isinf(plain):
        raise ValueError(f"{where} must be finite; write a number")
    return operator.index(value) if isinstance(value, numbers.Integral) else plain


def seconds(where: str, value: object) -> float:
    """A number, 0 or more, infinity included, as float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where} must be a number, not {_type(value)}; write an int or float")
    try:
        plain = float(value)
    except OverflowError:
        raise ValueError(f"{where} is too large for a float; write a smaller number") from None
    if math.isnan(plain):
        raise ValueError(f"{where} is NaN; write a number")
    return _not_negative(where, plain) + 0.0  # -0.0 becomes 0.0


def number_list(where: str, value: object) -> str:
    """Numbers and ascending ranges with commas between, as numactl and taskset take them: ``0-3,8``."""
    listed = utf8_text(where, value)
    if not _NUMBER_LIST.fullmatch(listed):
        raise ValueError(
            f"{where} must list numbers (5 digits at most) and ranges, with commas and no spaces; write it as '0-3,8'"
        )
    for part in listed.split(","):
        first, _, last = part.partition("-")
        if last and int(first) > int(last):
            raise ValueError(f"{where} has a descending range; write the smaller number first")
    return listed


def _whole(where: str, value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{where} must be an int, not bool; write a whole number")
    try:
        return operator.index(cast("int", value))
    except TypeError:
        raise TypeError(f"{where} must be an int, not {_type(value)}; write a whole number") from None


def _not_negative(where: str, value: _Number) -> _Number:
    if value < 0:
        raise ValueError(f"{where} must not be negative; write 0 or more")
    return value


def _type(value: object) -> str:
    return "None" if value is None else type(value).__qualname__
