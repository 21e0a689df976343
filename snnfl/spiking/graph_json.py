"""A spiking graph as JSON, and back from JSON that may be hostile.

Operations, their arguments and the types of both come from tables alone, those of :mod:`.node_operations` and
:mod:`.linear_maps`, so that nothing in a file decides what is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from snnfl.spiking.checks import Check, is_flag, is_name, is_positive, is_size, some
from snnfl.spiking.graph import Affine, GraphNode, LinearMap, MaxPool, Spike, SpikingGraph
from snnfl.spiking.linear_maps import LINEAR_OPS
from snnfl.spiking.node_operations import AFFINE_OPS, MAX_OPS, NodeOperation


def encode_graph(graph: SpikingGraph) -> dict[str, Any]:
    """Write a graph as plain dictionaries and lists; a tuple among the arguments becomes ``{"tuple": [...]}``."""
    written: dict[str, Any] = {"input": graph.input, "nodes": [_encode(node) for node in graph.nodes]}
    return written if graph.image_shape is None else {**written, "image_shape": [*graph.image_shape]}


def decode_graph(written: Any) -> SpikingGraph:
    """Read a graph that :func:`encode_graph` wrote, equal to the original.

    Nodes must stand in topological order, so that a cycle or a dangling input cannot be.

    Raises:
        ValueError: Naming the first node or field that is wrong, in one line.
    """
    source, nodes = (written.get("input"), written.get("nodes")) if isinstance(written, dict) else (None, None)
    if not is_name(source) or not isinstance(nodes, list):
        raise ValueError(f"graph={show(written)} has no input or no nodes")
    shape = written.get("image_shape")
    if shape is not None and not some(lambda size: is_size(size, 1))(shape):
        raise ValueError(f"image_shape={show(shape)} is no shape of an image")
    known: dict[str, GraphNode | None] = {str(source): None}
    for node in map(_decode, nodes):
        _check_inputs(node, known)
        known[node.name] = node
    nodes = tuple(node for node in known.values() if node is not None)
    graph = SpikingGraph(nodes, input=str(source), image_shape=None if shape is None else tuple(shape))
    if not graph.spikes:
        raise ValueError("the graph has no spiking layer")
    return graph


def show(value: Any) -> str:
    """Write a value in one line of moderate length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_KINDS: dict[str, tuple[type[GraphNode], Mapping[str, NodeOperation]]] = {
    "affine": (Affine, AFFINE_OPS),
    "linear_map": (LinearMap, LINEAR_OPS),
    "max_pool": (MaxPool, MAX_OPS),
    "spike": (Spike, {}),
}

_FIELDS: dict[str, Check] = {
    "name": is_name,
    "inputs": lambda value: isinstance(value, list) and all(map(is_name, value)),
    "op": is_name,
    "arguments": lambda value: isinstance(value, dict),
    "norm": lambda value: value is None or is_name(value),
    "epsilon": lambda value: value == 0 or is_positive(value),
    "has_bias": is_flag,
    "ceiling": lambda value: value is None or is_positive(value),
    "levels": lambda value: value is None or is_size(value, 1),
}


def _encode(node: GraphNode) -> dict[str, Any]:
    kind = next(kind for kind, (made, _) in _KINDS.items() if type(node) is made)
    written = {field.name: getattr(node, field.name) for field in fields(node)}
    if isinstance(node, Spike) and node.levels is None:
        del written["levels"]  # as files had it before there was any
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
    if made is Spike:
        values.setdefault("levels", None)
    expected = {field.name for field in fields(made)}
    if values.keys() != expected:
        raise ValueError(f"node {name} has the fields {show(sorted(values))}, expected {sorted(expected)}")
    for key, value in values.items():
        if not _FIELDS[key](value):
            raise ValueError(f"node {name}: {key}={show(value)} is not valid")
    if "op" in values:
        if values["op"] not in operations:
            raise ValueError(f"node {name}: unknown operation {show(values['op'])}; known: {', '.join(operations)}")
        values["arguments"] = _arguments(name, values["op"], operations[values["op"]], values["arguments"])
    return made(**{**values, "inputs": tuple(values["inputs"])})


def _arguments(name: str, op: str, operation: NodeOperation, written: dict[str, Any]) -> dict[str, Any]:
    if missing := set(operation.required) - written.keys():
        raise ValueError(f"node {name}: {op} needs {min(missing)}")
    arguments = {}
    for key, value in written.items():
        tagged = isinstance(value, dict) and value.keys() == {"tuple"} and isinstance(value["tuple"], list)
        arguments[key] = tuple(value["tuple"]) if tagged else value
        if key not in operation.arguments or not operation.arguments[key](arguments[key]):
            raise ValueError(f"node {name}: {op} takes no {show(key)}={show(arguments[key])}")
    if problem := operation.problem(arguments):
        raise ValueError(f"node {name}: {op} takes no {problem}")
    return arguments


def _check_inputs(node: GraphNode, known: Mapping[str, GraphNode | None]) -> None:
    name = show(node.name)
    if node.name in known:
        raise ValueError(f"node {name} stands twice in the graph")
    for read in node.inputs:
        if read not in known:
            raise ValueError(f"node {name} reads {show(read)}, which no node before it computes")
    reads = LINEAR_OPS[node.op].reads if isinstance(node, LinearMap) else 1
    if not node.inputs or (reads is not None and len(node.inputs) != reads):
        raise ValueError(f"node {name} reads {len(node.inputs)} values")
