"""What the arguments of an operation may be: checks of values that may come from a hostile file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any], bool]

FARTHEST = 2**16
"""Sizes that a graph may ask for beyond those of its values: of an up-sampling or a padding."""


def is_count(value: Any) -> bool:
    """Accept a whole number of at least 1."""
    return is_size(value, 1)


def is_flag(value: Any) -> bool:
    """Accept a truth value."""
    return type(value) is bool


def is_number(value: Any) -> bool:
    """Accept a finite number."""
    return type(value) in (int, float) and -1e30 < value < 1e30


def is_positive(value: Any) -> bool:
    """Accept a positive number."""
    return is_number(value) and value > 0


def is_name(value: Any) -> bool:
    """Accept a text that isn't empty."""
    return isinstance(value, str) and value != ""


def is_size(value: Any, low: int, high: int = 2**31) -> bool:
    """Accept a whole number from ``low`` to below ``high``."""
    return type(value) is int and low <= value < high


def is_dimension(value: Any) -> bool:
    """Accept a dimension that isn't the first, which is that of the batch; counted from either end."""
    return is_size(value, -8, 8) and value != 0


def sizes(low: int, *lengths: int, none: bool = False, high: int = 2**31) -> Check:
    """Accept a whole number of at least ``low``, or as many as one of ``lengths``; or ``None`` in place of any."""

    def check(value: Any) -> bool:
        parts = value if isinstance(value, tuple | list) and len(value) in lengths else [value]
        return all((none and part is None) or is_size(part, low, high) for part in parts)

    return check


def fixed(low: int, length: int) -> Check:
    """Accept a tuple of ``length`` whole numbers of at least ``low``."""
    return lambda value: isinstance(value, tuple) and len(value) == length and all(is_size(v, low) for v in value)


def one_of(*values: Any) -> Check:
    """Accept one of some values, of its own type."""
    return lambda value: any(type(value) is type(each) and value == each for each in values)


def some(check: Check, *, most: int = 8) -> Check:
    """Accept a list of one to ``most`` values that all pass a check."""
    return lambda value: isinstance(value, list) and 0 < len(value) <= most and all(map(check, value))


def optional(check: Check) -> Check:
    """Accept ``None`` too."""
    return lambda value: value is None or check(value)
