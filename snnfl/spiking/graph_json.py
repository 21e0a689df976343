"""A spiking graph as JSON, and back from JSON that may be hostile.

Operations, their arguments and the types of both come from the tables below alone, so that nothing in a file decides
what is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeAlias

from snnfl.spiking.graph import (
    AFFINE_OPS,
    LINEAR_OPS,
    MAX_OPS,
    Affine,
    GraphNode,
    LinearMap,
    MaxPool,
    Spike,
    SpikingGraph,
)

Check: TypeAlias = Callable[[Any], bool]


def encode_graph(graph: SpikingGraph) -> dict[str, Any]:
    """Write a graph as plain dictionaries and lists; a tuple among the arguments becomes ``{"tuple": [...]}``."""
    return {"input": graph.input, "nodes": [_encode(node) for node in graph.nodes]}


def decode_graph(written: Any) -> SpikingGraph:
    """Read a graph that :func:`encode_graph` wrote, equal to the original.

    Nodes must stand in topological order, so that a cycle or a dangling input cannot be.

    Raises:
        ValueError: Naming the first node or field that is wrong, in one line.
    """
    source, nodes = (written.get("input"), written.get("nodes")) if isinstance(written, dict) else (None, None)
    if not _is_name(source) or not isinstance(nodes, list):
        raise ValueError(f"graph={show(written)} has no input or no nodes")
    known: dict[str, GraphNode | None] = {str(source): None}
    for node in map(_decode, nodes):
        _check_inputs(node, known)
        known[node.name] = node
    graph = SpikingGraph(tuple(node for node in known.values() if node is not None), input=str(source))
    if not graph.spikes or isinstance(graph.nodes[-1], MaxPool):
        raise ValueError("the graph has no spiking layer, or ends in a maximum")
    return graph


def show(value: Any) -> str:
    """Write a value in one line of moderate length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_size(value: Any, low: int) -> bool:
    return type(value) is int and low <= value < 2**31


def _sizes(low: int, *lengths: int, none: bool = False) -> Check:
    """Accept a whole number of at least ``low``, or as many as one of ``lengths``."""

    def check(value: Any) -> bool:
        parts = value if isinstance(value, tuple | list) and len(value) in lengths else [value]
        return all((none and part is None) or _is_size(part, low) for part in parts)

    return check


def _tuple(low: int, length: int) -> Check:
    return lambda value: isinstance(value, tuple) and len(value) == length and all(_is_size(v, low) for v in value)


def _is_spatial(value: Any) -> bool:
    return (
        isinstance(value, list)
        and value != []
        and len({*map(str, value)}) == len(value) <= 2
        and all(type(dim) is int and dim in (-2, -1, 2, 3) for dim in value)
    )


def _is_shape(value: Any) -> bool:
    sizes = isinstance(value, list) and 0 < len(value) <= 8 and all(_is_size(size, -1) and size != 0 for size in value)
    return sizes and value.count(-1) <= 1


def _convolution(rank: int) -> dict[str, Check]:
    padding = _tuple(0, rank)
    return {
        "stride": _tuple(1, rank),
        "padding": lambda value: value in ("same", "valid") or padding(value),
        "dilation": _tuple(1, rank),
        "groups": _is_count,
    }


def _pool(rank: int, **more: Check) -> dict[str, Check]:
    sizes, padding = _sizes(1, 1, rank), _sizes(0, 1, rank)
    return {"kernel_size": sizes, "stride": sizes, "padding": padding, "ceil_mode": _is_flag, **more}


_ARGUMENTS: dict[str, dict[str, Check]] = {
    **{f"conv{rank}d": _convolution(rank) for rank in (1, 2)},
    **{f"avg_pool{rank}d": _pool(rank, count_include_pad=_is_flag) for rank in (1, 2)},
    **{f"max_pool{rank}d": _pool(rank, dilation=_sizes(1, 1, rank)) for rank in (1, 2)},
    **{
        f"adaptive_{kind}_pool{rank}d": {"output_size": _sizes(1, rank, none=True)}
        for kind in ("avg", "max")
        for rank in (1, 2)
    },
    "linear": {},
    "scale": {},
    "add": {},
    "concatenate": {"dim": lambda value: value == 1},
    "flatten": {"start_dim": lambda value: value == 1},
    "mean": {"dim": _is_spatial, "keepdim": _is_flag},
    "reshape": {"shape": _is_shape},
}
"""What each operation may be told; the number of its sizes follows from its name."""

_REQUIRED = {"kernel_size", "output_size", "dim", "start_dim", "shape"}
"""What an operation can't do without; a convolution needs all that it may be told."""

_WINDOW = ("kernel_size", "padding", "dilation")

_KINDS: dict[str, tuple[type[GraphNode], Mapping[str, Any]]] = {
    "affine": (Affine, AFFINE_OPS),
    "linear_map": (LinearMap, LINEAR_OPS),
    "max_pool": (MaxPool, MAX_OPS),
    "spike": (Spike, {}),
}

_FIELDS: dict[str, Check] = {
    "name": _is_name,
    "inputs": lambda value: isinstance(value, list) and all(map(_is_name, value)),
    "op": _is_name,
    "arguments": lambda value: isinstance(value, dict),
    "norm": lambda value: value is None or _is_name(value),
    "epsilon": lambda value: value == 0 or _is_positive(value),
    "has_bias": _is_flag,
    "ceiling": lambda value: value is None or _is_positive(value),
}


def _encode(node: GraphNode) -> dict[str, Any]:
    kind = next(kind for kind, (made, _) in _KINDS.items() if type(node) is made)
    written = {field.name: getattr(node, field.name) for field in fields(node)}
    if not isinstance(node, Spike):
        tagged = {key: {"tuple": value} if isinstance(value, tuple) else value for key, value in node.arguments.items()}
        written["arguments"] = tagged
    return {"kind": kind, **written}


def _decode(written: Any) -> GraphNode:
    kind = written.get("kind") if isinstance(written, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"{show(written)} is no node of a spiking graph")
    made, operations = _KINDS[kind]
    name = show(written.get("name"))
    values = {key: value for key, value in written.items() if key != "kind"}
    expected = {field.name for field in fields(made)}
    if values.keys() != expected:
        raise ValueError(f"node {name} has the fields {show(sorted(values))}, expected {sorted(expected)}")
    for key, value in values.items():
        if not _FIELDS[key](value):
            raise ValueError(f"node {name}: {key}={show(value)} is not valid")
    if "op" in values:
        if values["op"] not in operations:
            raise ValueError(f"node {name}: unknown operation {show(values['op'])}; known: {', '.join(operations)}")
        values["arguments"] = _arguments(name, values["op"], values["arguments"])
    return made(**{**values, "inputs": tuple(values["inputs"])})


def _arguments(name: str, op: str, written: dict[str, Any]) -> dict[str, Any]:
    checks = _ARGUMENTS[op]
    missing = (checks.keys() if op.startswith("conv") else _REQUIRED & checks.keys()) - written.keys()
    if missing:
        raise ValueError(f"node {name}: {op} needs {min(missing)}")
    arguments = {}
    for key, value in written.items():
        tagged = isinstance(value, dict) and value.keys() == {"tuple"} and isinstance(value["tuple"], list)
        arguments[key] = tuple(value["tuple"]) if tagged else value
        if key not in checks or not checks[key](arguments[key]):
            raise ValueError(f"node {name}: {op} takes no {show(key)}={show(arguments[key])}")
    if arguments.get("padding") == "same" and set(arguments["stride"]) != {1}:
        raise ValueError(f"node {name}: {op} takes no padding='same' with stride={show(arguments['stride'])}")
    if "kernel_size" in arguments and _is_too_wide(arguments):
        raise ValueError(f"node {name}: {op} takes no padding={show(arguments['padding'])} beyond half of a window")
    return arguments


def _is_too_wide(arguments: Mapping[str, Any]) -> bool:
    """Tell whether a window may lie in a pooling's padding alone, which PyTorch refuses."""

    def per_axis(value: Any) -> list[int]:
        values = [*value] if isinstance(value, tuple | list) else [value]
        return values * (2 // len(values))

    sizes = zip(*(per_axis(arguments.get(key, 1 if key == "dilation" else 0)) for key in _WINDOW), strict=True)
    return any(2 * padding > dilation * (kernel - 1) + 1 for kernel, padding, dilation in sizes)


def _check_inputs(node: GraphNode, known: Mapping[str, GraphNode | None]) -> None:
    name = show(node.name)
    if node.name in known:
        raise ValueError(f"node {name} stands twice in the graph")
    for read in node.inputs:
        if read not in known:
            raise ValueError(f"node {name} reads {show(read)}, which no node before it computes")
        if isinstance(known[read], MaxPool) and not isinstance(node, MaxPool | Spike):
            raise ValueError(f"node {name} reads the maximum {show(read)}, which only a spiking layer may")
    op = node.op if isinstance(node, LinearMap) else None
    if not (node.inputs if op == "concatenate" else len(node.inputs) == (2 if op == "add" else 1)):
        raise ValueError(f"node {name} reads {len(node.inputs)} values")
