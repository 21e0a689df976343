"""The values of a network for some images: whether those fit, the shape of each value, and the analog twin's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from snnfl.spiking.graph import Affine, GraphNode, Parameters, Spike, SpikingGraph


def analog_value(node: GraphNode, values: Mapping[str, Tensor], parameters: Parameters) -> Tensor:
    """Compute one value of the analog twin."""
    inputs = [values[name] for name in node.inputs]
    return node.analog(inputs[0], parameters) if isinstance(node, Spike) else node.apply(inputs, parameters)


def hollow(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return zeros of a shape and of a tensor's type and device, which have the memory of one number.

    What a shape becomes could be told by the device ``meta``, too, but that imports PyTorch's compiler and SymPy: more
    than a second of CPU in every process of a federation.
    """
    return like.new_zeros(()).expand(tuple(shape))


def check_images(images: Tensor, parameter: Tensor, what: str = "images") -> None:
    """Check that images are a tensor of at least one, finite, and of a network's type and device.

    Neurons never fire on NaN, so that without this check a network would answer, and wrongly.

    Raises:
        ValueError: Naming ``what`` is wrong and the way out.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"{what} are a {type(images).__name__}: give a torch.Tensor, [N, ...], of {parameter.dtype}")
    if images.dim() == 0 or len(images) == 0:
        raise ValueError(f"no {what}: give at least one")
    if images.dtype != parameter.dtype:
        raise ValueError(f"{what} are {images.dtype}, the weights {parameter.dtype}: convert either")
    if images.device != parameter.device:
        raise ValueError(f"{what} are on {images.device}, the weights on {parameter.device}: move either")
    if not bool(torch.isfinite(images).all()):
        raise ValueError(f"{what} hold NaN or infinity: check the data and its normalisation")


def check_size(graph: SpikingGraph, images: Tensor, what: str = "images") -> None:
    """Check that images have the shape that a graph was traced for, where it depends on one.

    Raises:
        ValueError: Naming both shapes.
    """
    if graph.image_shape is not None and tuple(images.shape[1:]) != graph.image_shape:
        raise ValueError(
            f"{what} of shape {list(images.shape)} do not fit the model: it was traced for images of shape "
            f"{list(graph.image_shape)}, whose sizes its forward reads"
        )


def value_shadows(
    graph: SpikingGraph, parameters: Parameters, images: Tensor, what: str = "images"
) -> dict[str, Tensor]:
    """Compute the shape and type of every value of one image; their numbers and memory are those of :func:`hollow`.

    Raises:
        ValueError: If the images don't fit the network, naming the first layer that they don't fit.
    """
    values = {graph.input: hollow((1, *images.shape[1:]), images)}
    misfit = f"{what} of shape {list(images.shape)} do not fit the model: "
    check_size(graph, images, what)
    for node in graph.nodes:
        try:
            if isinstance(node, Affine) and node.op.startswith("conv"):
                _check_convolved(values[node.inputs[0]], parameters[f"{node.name}.weight"], node.arguments["groups"])
            value = analog_value(node, values, parameters)
            values[node.name] = hollow(value.shape, value)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{misfit}{node.name}: {reason}") from None
    return values


def value_bytes(graph: SpikingGraph, parameters: Parameters, images: Tensor, what: str = "images") -> dict[str, int]:
    """Compute the bytes of every value of one image; raises as :func:`value_shadows`."""
    return {name: value.nbytes for name, value in value_shadows(graph, parameters, images, what).items()}


def channel_counts(graph: SpikingGraph, parameters: Parameters, images: Tensor) -> dict[str, int]:
    """Count the channels of every value; raises as :func:`value_shadows`."""
    return {name: value.shape[1] for name, value in value_shadows(graph, parameters, images).items()}


def _check_convolved(value: Tensor, weight: Tensor, groups: int) -> None:
    """Check what PyTorch doesn't, which takes a value without a batch dimension for one image, or doesn't say well."""
    if value.dim() != weight.dim():
        raise ValueError(f"expected {weight.dim()} dimensions, images first, found {value.dim()}")
    if value.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"expected {weight.shape[1] * groups} channels, found {value.shape[1]}")
