"""How an option is declared: its default, its documentation, its range."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeAlias

FlatValue: TypeAlias = bool | int | float | str
"""What Flower's ``run_config`` can carry."""


class ConfigError(ValueError):
    """A mistake in a configuration, in one line: the key, the value, what was expected, the nearest name."""


def option(
    default: Any, *, doc: str, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """Declare a field with its documentation and its range.

    Args:
        default: Default value.
        doc: One line, with the unit or the source.
        low: Smallest value allowed.
        high: Largest value allowed.
        above: The value must be strictly larger than this.

    Returns:
        A dataclass field. :func:`validate` enforces the range.
    """
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "above": above})


def nearest(name: str, known: Sequence[str], *, listing: bool = True) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar known name, else the list of all known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if listing else ""
