"""Spiking networks as files: safetensors with the graph as JSON beside the arrays, read without pickle."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from snnfl.files import METADATA_KEY, write_bytes
from snnfl.spiking.checks import is_count
from snnfl.spiking.graph import Affine, Spike, SpikingGraph
from snnfl.spiking.graph_json import decode_graph, encode_graph, show
from snnfl.spiking.network import SpikingNetwork
from snnfl.spiking.node_operations import AFFINE_OPS

SCHEMA = 1
NATIVE_KIND = "native"
"""What a file says of itself that holds the arrays of a network which was trained as a spiking one, without a graph."""
FEW_STEPS: dict[str, Any] = {
    "signed": False,
    "burst": 1,
    "two_sided": False,
    "correction": "none",
    "correction_steps": None,
}
"""Options of networks for few steps, and what others are by default, whose files don't say it."""
MAX_BURST = 16
"""Spikes of a step, as ``conversion.burst`` has at most."""
DTYPES = ("F16", "BF16", "F32", "F64")


class NetworkFileError(ValueError):
    """A file that holds no valid spiking network: names the file and what is wrong with it."""


def save(network: SpikingNetwork, path: str | Path) -> None:
    """Write a spiking network as safetensors, in one step; equal networks give equal files."""
    names = [*_required(network.graph), *(name for name in _optional(network.graph) if name in network.parameters)]
    arrays = {name: network.parameters[name] for name in names}
    about = {
        "schema": SCHEMA,
        "kind": "snn",
        "initial_potential": network.initial_potential,
        "readout": network.readout,
        "steps": network.steps,
        **{name: value for name in FEW_STEPS if (value := getattr(network, name)) != FEW_STEPS[name]},
        "graph": encode_graph(network.graph),
        # A convolution may round otherwise in another layout, even where both layouts are the same bytes.
        "channels_last": [
            node.name for node in network.graph.affines if _is_channels_last(arrays[f"{node.name}.weight"])
        ],
    }
    write_arrays(path, arrays, about)


def load(path: str | Path) -> SpikingNetwork:
    """Read a spiking network, such as a run's ``final_snn.safetensors``, without pickle.

    It simulates bit for bit as the one that was saved.

    Raises:
        NetworkFileError: If the file is missing, damaged, of another schema, or holds anything but a spiking network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = _description(file.metadata())
            graph = decode_graph(about.get("graph"))
            check_arrays(graph, {name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
            convolutions = (node.name for node in graph.affines if node.op == "conv2d")
            channels_last = {f"{name}.weight" for name in convolutions if name in about["channels_last"]}
            # Cloned, for the file's own memory is mapped and would change with it.
            parameters = {
                name: file.get_tensor(name).clone(
                    memory_format=torch.channels_last if name in channels_last else torch.contiguous_format
                )
                for name in file.keys()  # noqa: SIM118
            }
        for name, array in parameters.items():
            if not bool(array.isfinite().all()):  # neurons never fire on NaN, so the network would answer, and wrongly
                raise ValueError(f"array {show(name)} holds NaN or infinity")
        for node in graph.spikes:
            if not bool((parameters[f"{node.name}.threshold"] > 0).all()):
                raise ValueError(f"{show(node.name)} has a threshold that is not positive")
        few = {name: about[name] for name in FEW_STEPS}
        return SpikingNetwork(graph, parameters, about["initial_potential"], about["readout"], about["steps"], **few)
    except (ValueError, SafetensorError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = reason.removesuffix(f": {path}")  # safetensors says it again
        if isinstance(error, SafetensorError):
            reason = f"it is no file of safetensors ({reason})"
        raise NetworkFileError(f"{path}: {' '.join(reason.split())}") from None


def write_arrays(path: str | Path, arrays: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write arrays as safetensors, in one step, described by JSON text under the one key ``snnfl``."""
    # Cloned, for safetensors refuses arrays that share memory, as one threshold for all layers may.
    plain = {name: array.detach().cpu().clone(memory_format=torch.contiguous_format) for name, array in arrays.items()}
    write_bytes(path, to_bytes(plain, {METADATA_KEY: json.dumps(about, sort_keys=True)}))


def _description(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Read what the file says about itself."""
    if metadata is None or METADATA_KEY not in metadata:
        raise ValueError(f"not written by snnfl: its metadata lack {METADATA_KEY!r}")
    try:
        about = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        raise ValueError(f"the metadata {METADATA_KEY!r} are not JSON") from None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        found = about.get("schema") if isinstance(about, dict) else about
        raise ValueError(f"schema {show(found)}, but this version of snnfl reads schema {SCHEMA}")
    if about.get("kind") == NATIVE_KIND:
        raise ValueError(
            "the weights of a network that was trained as a spiking one; snnfl.load_run(FOLDER).snn() builds it from "
            "the folder of its run"
        )
    if about.get("kind") != "snn":
        found = "an ANN" if about.get("kind") == "ann" else f"kind {show(about.get('kind'))}"
        raise ValueError(f"{found}, not a spiking network ('snn'), which an S-run's final_snn.safetensors is")
    about.setdefault("readout", "all")  # as files had it before there was a choice
    about.setdefault("steps", None)  # files of earlier versions don't say it
    if about["steps"] is not None and not is_count(about["steps"]):
        raise ValueError(f"steps={show(about['steps'])} is no number of time steps")
    for key in FEW_STEPS:
        about.setdefault(key, FEW_STEPS[key])
    for key in ("burst", "correction_steps"):
        most = MAX_BURST if key == "burst" else math.inf
        if not (is_count(about[key]) and about[key] <= most) and about[key] is not FEW_STEPS[key]:
            raise ValueError(f"{key}={show(about[key])} is no number of at least 1")
    for key in ("signed", "two_sided"):
        if not isinstance(about[key], bool):
            raise ValueError(f"{key}={show(about[key])} is neither true nor false")
    for key in ("initial_potential", "readout", "correction"):
        allowed = typing.get_args(typing.get_type_hints(SpikingNetwork)[key])
        if about.get(key) not in allowed:
            raise ValueError(f"{key}={show(about.get(key))}; known: {', '.join(allowed)}")
    if not isinstance(about.get("channels_last"), list):
        raise ValueError(f"channels_last={show(about.get('channels_last'))} is no list of layers")
    return about


def _is_channels_last(weight: Tensor) -> bool:
    """Tell by the strides, for a 1x1 kernel is contiguous in either layout."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return last and weight.stride() != torch.empty(weight.shape, device="meta").stride()


def _required(graph: SpikingGraph) -> list[str]:
    affine = [f"{node.name}.{kind}" for node in graph.affines for kind in ("weight", "bias")]
    return affine + [f"{node.name}.threshold" for node in graph.spikes]


def _optional(graph: SpikingGraph) -> list[str]:
    return [f"{node.name}.{kind}" for node in graph.spikes for kind in ("potential", "time_bias")]


def check_arrays(graph: SpikingGraph, arrays: Mapping[str, Any]) -> None:
    """Compare the arrays' names, types and shapes with what the graph needs; channels are followed through it."""
    lacking, surplus = set(_required(graph)) - arrays.keys(), arrays.keys() - {*_required(graph), *_optional(graph)}
    for problem, names in (("lacks", lacking), ("has surplus", surplus)):
        if names:
            raise ValueError(f"{problem} array {show(min(names))}")
    dtypes = sorted({array.get_dtype() for array in arrays.values()})
    if len(dtypes) != 1 or dtypes[0] not in DTYPES:
        raise ValueError(f"arrays of type {', '.join(dtypes)}; expected one of {', '.join(DTYPES)} for all")
    shapes = {name: tuple(array.get_shape()) for name, array in arrays.items()}
    for layer in graph.affines:
        _check_layer(layer, shapes)
    forms = graph.forms({node.name: shapes[f"{node.name}.weight"][0] for node in graph.affines})
    for node in graph.nodes:
        read = forms[node.inputs[0]].channels
        if isinstance(node, Affine):
            _check_read(node, read, shapes[f"{node.name}.weight"])
        elif isinstance(node, Spike):
            _check_neurons(node, read, shapes)


def _check_layer(node: Affine, shapes: Mapping[str, tuple[int, ...]]) -> None:
    weight, bias = shapes[f"{node.name}.weight"], shapes[f"{node.name}.bias"]
    name, groups = show(node.name), node.arguments.get("groups", 1)
    if len(weight) != AFFINE_OPS[node.op].weight_rank or min(weight) == 0 or weight[0] % groups:
        raise ValueError(f"weight of {name} has shape {list(weight)}, which {node.op} (groups={groups}) cannot use")
    if bias != weight[:1]:
        raise ValueError(f"bias of {name} has shape {list(bias)}, expected {list(weight[:1])}")


def _check_read(node: Affine, read: int | None, weight: tuple[int, ...]) -> None:
    wanted = weight[0] if node.op == "scale" else weight[1] * node.arguments.get("groups", 1)
    if read not in (None, wanted):
        raise ValueError(f"weight of {show(node.name)} has shape {list(weight)}, but its input has {read} channels")


def _check_neurons(node: Spike, read: int | None, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for kind, dimensions in (("threshold", 1), ("potential", 1), ("time_bias", 2)):
        shape = shapes.get(f"{node.name}.{kind}")
        if shape is None:
            continue
        if len(shape) != dimensions or 0 in shape or (shape[-1] != 1 and read not in (None, shape[-1])):
            raise ValueError(f"{kind} of {show(node.name)} has shape {list(shape)}, but its input has {read} channels")
