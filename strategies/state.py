"""The state of any Flower strategy as JSON and arrays, and back into a strategy that was freshly built.

Flower's strategies keep their state in attributes: the momentum of FedAvgM, the moments of FedAdam, the clipping norm
of a differential-privacy wrapper and, inside it, the strategy that it wraps. What has a known type is packed, exactly;
functions are left to the constructor; anything else is an error, for whatever is left out would be forgotten silently.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

from snnfl.config import ConfigError
from strategies.arrays import tensor_of

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
"""Attributes that the configuration alone decides, such as how metrics are aggregated."""

DTYPES = {"bool", "float16", "float32", "float64", *(f"{kind}{n}" for kind in ("int", "uint") for n in (8, 16, 32, 64))}


@dataclass(frozen=True, kw_only=True)
class StrategyState:
    """The packed attributes of a strategy.

    Attributes:
        kind: Name of its class.
        attributes: By name; that of a strategy within is a :class:`StrategyState` too.
    """

    kind: str
    attributes: Mapping[str, Any]


_CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "ArrayRecord": lambda pairs: ArrayRecord(dict(pairs)),
    "MetricRecord": lambda pairs: MetricRecord(dict(pairs)),
    "ConfigRecord": lambda pairs: ConfigRecord(dict(pairs)),
}

_LEAVES: dict[str, Callable[[NDArray[Any]], Any]] = {
    "ndarray": lambda array: array,
    "scalar": lambda array: array[()],
    "Tensor": torch.from_numpy,
    "Array": Array,
    "bytes": lambda array: array.tobytes(),
}


def pack(value: Any, path: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """Write a value as JSON; arrays go elsewhere and are named in it.

    Args:
        value: ``None``, a truth value, a number, text, bytes, a NumPy array or scalar, a CPU tensor, an ``Array``, one
            of Flower's records, a strategy, or a list, tuple or dictionary of such. Two references to one object become
            two equal objects.
        path: Where the value stands, for names and errors.
        arrays: Receives the arrays.

    Raises:
        ConfigError: For a value of any other type.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return {kind.__name__: [pack(item, f"{path}.{n}", arrays) for n, item in enumerate(value)]}
    if kind in (dict, ArrayRecord, MetricRecord, ConfigRecord):
        items = value.items()
        return {kind.__name__: [[pack(k, path, arrays), pack(v, f"{path}.{k}", arrays)] for k, v in items]}
    if isinstance(value, Strategy):
        attributes = {name: item for name, item in vars(value).items() if not isinstance(item, FUNCTIONS)}
        return {"Strategy": [kind.__name__, pack(attributes, path, arrays)]}
    leaf, array = _as_array(value, path)
    name = path if path not in arrays else f"{path}#{len(arrays)}"
    arrays[name] = array
    return {leaf: name}


def unpack(packed: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the value that :func:`pack` was given; a strategy comes back as its :class:`StrategyState`."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind in _LEAVES:
        return _LEAVES[kind](arrays[content])
    if kind == "Strategy":
        return StrategyState(kind=content[0], attributes=unpack(content[1], arrays))
    if kind in ("list", "tuple"):
        return _CONTAINERS[kind](unpack(item, arrays) for item in content)
    return _CONTAINERS[kind]((unpack(k, arrays), unpack(v, arrays)) for k, v in content)


def restore(strategy: Strategy, state: StrategyState) -> None:
    """Give a freshly built strategy, and those within it, the attributes that it had.

    Raises:
        ConfigError: If the state is that of another kind of strategy.
    """
    if type(strategy).__name__ != state.kind:
        raise ConfigError(f"the checkpoint holds the state of {state.kind}, the run builds {type(strategy).__name__}")
    for name, value in state.attributes.items():
        if isinstance(value, StrategyState):
            restore(getattr(strategy, name), value)
        else:
            setattr(strategy, name, value)


def remember(strategy: Strategy) -> Callable[[], None]:
    """Return a function that gives a strategy, and those within it, the attributes back that they have now.

    Flower's strategies put new arrays in the place of old ones; what is changed in place stays changed.
    """
    attributes = dict(vars(strategy))
    within = [remember(value) for value in attributes.values() if isinstance(value, Strategy)]

    def put_back() -> None:
        vars(strategy).clear()
        vars(strategy).update(attributes)
        for each in within:
            each()

    return put_back


def _as_array(value: Any, path: str) -> tuple[str, NDArray[Any]]:
    """Return the kind of a leaf and its values."""
    kind = type(value)
    if isinstance(value, Array):
        leaf, array = "Array", tensor_of(value).numpy()
    elif kind is np.ndarray:
        leaf, array = "ndarray", value
    elif isinstance(value, np.generic):
        leaf, array = "scalar", np.asarray(value)
    elif kind is bytes:
        leaf, array = "bytes", np.frombuffer(value, np.uint8)
    elif kind is Tensor and value.device.type == "cpu" and value.layout is torch.strided and not value.requires_grad:
        leaf, array = "Tensor", value.numpy()
    else:
        raise _unknown(path, kind.__name__)
    if array.dtype.name not in DTYPES or not array.dtype.isnative:
        raise _unknown(path, f"{kind.__name__} of {array.dtype}")
    return leaf, array


def _unknown(path: str, what: str) -> ConfigError:
    return ConfigError(f"{path} is a {what}, which no checkpoint can hold; set run.keep_checkpoints=0 to run without")
