"""Published networks as files: safetensors with the structure as JSON beside the arrays, read without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from snnfl.files import METADATA_KEY
from snnfl.private_snn.network import BESIDE, PublishedNetwork
from snnfl.spiking.checks import is_count, is_positive
from snnfl.spiking.graph_json import decode_graph, encode_graph, show
from snnfl.spiking.storage import NetworkFileError, check_arrays, write_arrays
from snnfl.spiking.values import value_shadows

SCHEMA = 1
KIND = "published"


def save(network: PublishedNetwork, path: str | Path) -> None:
    """Write a published network as safetensors, in one step; equal networks give equal files."""
    about = {
        "schema": SCHEMA,
        "kind": KIND,
        "graph": encode_graph(network.graph),
        "steps": network.steps,
        "input_shape": [*network.input_shape],
        "encoding": network.encoding,
        "input_scale": network.input_scale,
    }
    write_arrays(path, {name: network.parameters[name] for name in sorted(network.parameters)}, about)


def load(path: str | Path) -> PublishedNetwork:
    """Read a published network, such as ``published-….safetensors`` of ``snnfl privatesnn``, without pickle.

    Raises:
        NetworkFileError: If the file is missing, damaged, of another schema, or holds anything but such a network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = _description(file.metadata())
            parameters = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        network = PublishedNetwork(
            graph=decode_graph(about.get("graph")),
            parameters=parameters,
            steps=about["steps"],
            input_shape=tuple(about["input_shape"]),
            encoding=about["encoding"],
            input_scale=float(about["input_scale"]),
        )
        _check(network, slices)
        return network
    except (ValueError, SafetensorError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, SafetensorError):
            reason = f"it is no file of safetensors ({reason})"
        raise NetworkFileError(f"{path}: {' '.join(reason.split())}") from None


def _description(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Read what the file says about itself."""
    try:
        about = json.loads((metadata or {}).get(METADATA_KEY, "null"))
    except (ValueError, RecursionError):
        raise ValueError(f"the metadata {METADATA_KEY!r} are not JSON") from None
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise ValueError("it holds no published network, as snnfl privatesnn writes it (published-….safetensors)")
    if about.get("schema") != SCHEMA:
        raise ValueError(f"schema {show(about.get('schema'))}, but this version of snnfl reads schema {SCHEMA}")
    shape = about.get("input_shape")
    right = {
        "steps": is_count(about.get("steps")),
        "input_shape": isinstance(shape, list) and len(shape) > 0 and all(map(is_count, shape)),
        "encoding": about.get("encoding") in ("poisson", "direct"),
        "input_scale": is_positive(about.get("input_scale")),
    }
    for key, valid in right.items():
        if not valid:
            raise ValueError(f"{key}={show(about.get(key))} is not valid")
    return about


def _check(network: PublishedNetwork, slices: Mapping[str, Any]) -> None:
    """Compare arrays with the structure, and their values with what neurons can have."""
    if crossing := [node.name for node in network.graph.spikes if BESIDE in node.name]:
        raise ValueError(f"{show(crossing[0])} is not a name of neurons")
    leaks = {f"{node.name}.leak" for node in network.graph.spikes}
    if lacking := leaks - slices.keys():
        raise ValueError(f"lacks array {show(min(lacking))}")
    if timed := [name for name in slices if name.endswith(".time_bias")]:
        raise ValueError(f"has surplus array {show(min(timed))}")
    check_arrays(network.graph, {name: array for name, array in slices.items() if name not in leaks})
    for name, array in network.parameters.items():
        if not bool(torch.isfinite(array).all()):
            raise ValueError(f"array {show(name)} holds NaN or infinity")
    for node in network.graph.spikes:
        threshold, leak = (network.parameters[f"{node.name}.{kind}"] for kind in ("threshold", "leak"))
        if not bool((threshold > 0).all()):
            raise ValueError(f"{show(node.name)} has a threshold that is not positive")
        if leak.dim() != 1 or leak.dtype != threshold.dtype or not _share(leak):
            raise ValueError(f"{show(node.name)} has a leak that is no list of numbers from 0 to 1")
    _check_shapes(network)


def _check_shapes(network: PublishedNetwork) -> None:
    """Follow an image's shape through the network, on the device of shapes alone: a file may name any.

    A :func:`~snnfl.spiking.values.hollow` image has no memory either, but what a convolution makes of it does.
    """
    parameters = {name: array.to("meta") for name, array in network.parameters.items()}
    try:
        image = next(iter(parameters.values())).new_empty((1, *network.input_shape))
    except RuntimeError:
        raise ValueError(f"input_shape={show([*network.input_shape])} is not valid") from None
    value_shadows(network.graph, parameters, image)


def _share(values: Tensor) -> bool:
    return values.numel() > 0 and bool(((values >= 0) & (values <= 1)).all())
