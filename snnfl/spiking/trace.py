"""From a PyTorch module to a spiking graph, by ``torch.fx``.

Every call in the traced forward becomes a node of the graph by the table in :mod:`snnfl.spiking.operations`, or a
:class:`ConversionError` that names the call, its line and what to use instead. Batch normalisation is then folded and
max pooling moved in front of the neurons.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnfl.spiking.graph import SpikingGraph
from snnfl.spiking.rewrite import fold_norms, needed, pool_before_spikes
from snnfl.spiking.tracer import Tracer
from snnfl.spiking.walk import MaxPooling, Walk, check_hooks, place
from snnfl.spiking.ways_out import ConversionError, Refusal


def trace(
    model: nn.Module,
    *,
    max_pooling: MaxPooling = "gated",
    input_shape: Sequence[int] | None = None,
    pool_first: bool = True,
) -> SpikingGraph:
    """Trace a model, as it is in evaluation mode, into a spiking graph; the model isn't changed.

    Args:
        model: A module of one tensor argument that ``torch.fx`` can trace; further arguments keep their defaults.
        max_pooling: What becomes of max pooling. ``"gated"`` lets the spikes of the neuron pass that has fired most so
            far (:class:`~snnfl.spiking.graph.MaxPool`); ``"average"`` takes the average over the same windows, which
            the model should be trained with.
        input_shape: Shape of an image, without the batch. A forward that reads its sizes, such as one that pads a value
            to the size of another, cannot be traced without. If it does, the graph is for images of this shape alone.
        pool_first: Whether a maximum over neurons moves in front of them: then fewer spike. A network that was trained
            as a spiking one takes it of spikes.

    Returns:
        Its graph, with each batch normalisation folded into the affine layer before it, where nothing else reads that
        layer, and dropout removed. Nodes are named after the modules of the model. Layers that evaluation mode doesn't
        use, such as auxiliary heads, are left out.

    Raises:
        ConversionError: Naming the first operation that doesn't convert, its line in the model's source and the way
            out; or a layer with forward hooks, which a graph doesn't show.
    """
    return trace_with_state(model, max_pooling=max_pooling, input_shape=input_shape, pool_first=pool_first)[0]


@torch.no_grad()
def trace_with_state(
    model: nn.Module,
    *,
    max_pooling: MaxPooling = "gated",
    input_shape: Sequence[int] | None = None,
    pool_first: bool = True,
) -> tuple[SpikingGraph, dict[str, Tensor]]:
    """Trace a model as :func:`trace`, and return its arrays by name, too.

    Returns:
        The graph, and the model's state together with the weights that the model computes from its parameters, such as
        quantised or normalised ones. They stand under names of their own: no layer's name stands for a weight that
        isn't the layer's own.
    """
    _check_plain(model)
    modes = {module: module.training for module in model.modules()}
    # A forward may write to buffers.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not nn.parameter.is_lazy(buffer)]
    walk = Walk(model, max_pooling, input_shape)
    try:
        traced = Tracer(walk).trace(model.eval())
    except ConversionError:
        raise
    except Exception as error:  # whatever the model's forward raises on a proxy
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConversionError(
            f"{type(model).__name__}{place(frames)}: torch.fx cannot trace it ({reason}); "
            "write its forward without control flow that depends on data"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
        for buffer, before in buffers:
            if not buffer.is_meta and not torch.equal(buffer, before):
                buffer.copy_(before)
    output = walk.end(next(node for node in traced.nodes if node.op == "output").args[0])
    nodes = fold_norms(needed([*walk.nodes.values()], output))
    if pool_first:
        nodes = pool_before_spikes(nodes)
    graph = SpikingGraph(tuple(nodes), input=walk.image, image_shape=walk.input_shape if walk.bound else None)
    if not graph.spikes:
        raise ConversionError("the model has no ReLU, so no layer of it spikes; put nn.ReLU behind its layers")
    return graph, walk.state


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_plain(model: nn.Module) -> None:
    """Check that a model is Python that can be traced, and that nothing runs around its own forward."""
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(f"{label}: a TorchScript module cannot be traced; give the module it was made from")
        if "_orig_mod" in module._modules:
            raise ConversionError(f"{label}: a compiled module cannot be traced; give its _orig_mod, the plain module")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ConversionError(f"{label}: a parallel module cannot be traced; give its .module, the plain module")
    if "forward" in vars(model):
        raise ConversionError(
            f"the model ({type(model).__name__}): its forward was replaced on the object, where torch.fx does not "
            "look; wrap it in a module that calls it"
        )
    takes = [*inspect.signature(type(model).forward).parameters.values()][1:]
    others = [each.name for each in takes[1:] if each.default is each.empty and each.kind not in _VARIADIC]
    if not takes or others:
        names = ", ".join(each.name for each in takes)
        raise ConversionError(
            f"expected a model of one input, found {len(takes)} ({names}); wrap it in a module that takes the image"
        )
    try:
        check_hooks(model)
    except Refusal as reason:
        raise ConversionError(f"the model ({type(model).__name__}): {reason}") from None
