"""Descriptions in files that somebody has changed: one place of a JSON value, by hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

from snnfl.spiking.storage import NetworkFileError

Network = TypeVar("Network")

JUNK = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2**40, 10**400, 1.5, float("inf"), "", "x", "\ud800\n", [], {}, [[]], ["conv1"]),
        *("input", "conv1", "add", "spike", "affine", "linear_map", "max_pool", "conv2d", "flatten", "scale", "mean"),
        *("slice", "pad", "permute", "interpolate", "conv_transpose2d", "max_pool2d", "squeeze", "image_shape"),
        *({"tuple": [1, 1]}, {"tuple": 1}, [1, 2], [[0, 1, None]], [0, 2, 1, 3], -1, 2),
    ]
)


def read_if_whole(load: Callable[[Path], Network], path: Path) -> Network | None:
    """Read a network's file; ``None`` if it is refused, which takes a :class:`NetworkFileError` of one line."""
    try:
        return load(path)
    except NetworkFileError as error:
        refusal = str(error)
    assert refusal.startswith(f"{path}: ")
    assert "\n" not in refusal
    return None


def mutate(value: Any, data: st.DataObject) -> Any:
    """Change one place of a JSON value: another value there, one entry less, or two entries swapped."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 9)) == 0:
        return data.draw(JUNK)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = data.draw(st.sampled_from(keys))
    action = data.draw(st.sampled_from(["descend", "descend", "descend", "descend", "delete", "swap"]))
    if action == "delete":
        del value[key]
    elif action == "swap":
        other = data.draw(st.sampled_from(keys))
        value[key], value[other] = value[other], value[key]
    else:
        value[key] = mutate(value[key], data)
    return value
