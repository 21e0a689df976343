"""What a run states of nodes' own data must say all that a server needs of them, and nothing that it cannot know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from snnfl.config.options import OWN, Config, DataConfig

LABEL = "label"
"""The column of a table that holds the class."""

_OF_PUBLIC_DATA = ("partition", "beta", "classes_per_client", "training_images", "test_images")
"""Options that divide one data set, which nodes with data of their own don't share."""


def own_data_mistakes(config: Config) -> Iterator[str]:
    """Yield what is missing or makes no sense where each node has data of its own, a line each."""
    data = config.data
    if data.source != OWN:
        return
    defaults = DataConfig()
    for name in _OF_PUBLIC_DATA:
        if (value := getattr(data, name)) != getattr(defaults, name):
            yield f"data.{name}={value}: data.source=own divides nothing, each node has its own data; leave it out"
    yield from _class_mistakes(data.classes)
    if bool(data.shape) == bool(data.features):
        yield (
            f"data.shape={list(data.shape)}, data.features={list(data.features)}: data.source=own needs one of them: "
            "the shape of a sample, such as [1,28,28], or the names of a table's columns"
        )
        return
    if not 1 <= len(data.sample_shape) <= 4 or min(data.sample_shape) < 1:
        yield f"data.shape={list(data.shape)}: expected [C,H,W], [F], [T,F] or [T,C,H,W], each number at least 1"
        return
    if doubled := _doubled(data.features):
        yield f"data.features={list(data.features)}: {doubled!r} stands there twice; name each column once"
    if LABEL in data.features:
        yield f"data.features={list(data.features)}: '{LABEL}' is the column of the classes; leave it out"
    yield from _statistics_mistakes(data)
    if config.audit.record and not is_pictures(data):
        yield (
            "audit.record=true: an audit compares samples in the range of their values, which data.source=own of shape "
            f"{list(data.sample_shape)} doesn't state; only pictures [C,H,W] have one; set false"
        )


def is_pictures(data: DataConfig) -> bool:
    """Tell whether nodes' own samples are pictures."""
    return len(data.sample_shape) == 3


def channels(data: DataConfig) -> int:
    """Return how many channels or features a sample has, each of which has a mean and a standard deviation."""
    shape = data.sample_shape
    return shape[1] if len(shape) in (2, 4) else shape[0]


def _class_mistakes(classes: Sequence[str]) -> Iterator[str]:
    if len(classes) < 2:
        yield f"data.classes={list(classes)}: data.source=own needs the names of two classes or more, as in [cat, dog]"
    if doubled := _doubled(classes):
        yield f"data.classes={list(classes)}: {doubled!r} stands there twice; name each class once"
    for name in classes:
        if not name.strip() or not name.isprintable() or "/" in name or name[0] in "._":
            yield f"data.classes={list(classes)}: {name!r} is no name of a class's folder; choose another"


def _statistics_mistakes(data: DataConfig) -> Iterator[str]:
    size = channels(data)
    for name, low in (("mean", -math.inf), ("std", 0.0)):
        values = getattr(data, name)
        if len(values) not in (0, 1, size):
            yield f"data.{name}={list(values)}: expected one number, or {size}, one per channel or feature"
        if not all(low < value < math.inf for value in values):
            yield f"data.{name}={list(values)}: expected finite numbers{' above 0' if name == 'std' else ''}"


def _doubled(names: Sequence[str]) -> str | None:
    return next((name for index, name in enumerate(names) if name in names[:index]), None)
