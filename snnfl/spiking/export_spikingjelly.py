"""A spiking network as a module of spikingjelly neurons."""

from __future__ import annotations

from torch import Tensor, fx, nn

from snnfl.neurons import broadcast
from snnfl.spiking.export import ExportError, check_single_spikes, optional_library, unit_spikes
from snnfl.spiking.graph import Affine, LinearMap, MaxPool, Spike
from snnfl.spiking.network import SpikingNetwork
from snnfl.torchvision_guard import guard


def to_spikingjelly(network: SpikingNetwork) -> fx.GraphModule:
    """Build a stateful module of spikingjelly's ``IFNode`` whose forward takes one time step.

    Layers keep their names, convolutions and linear layers are torch's own, and neurons emit 0 or 1: amplitudes are
    folded as :func:`snnfl.spiking.export.unit_spikes` tells, so that spikingjelly's counters see binary spikes. An
    ``IFNode`` has one threshold. Where there is one per channel, the current is divided by it (``<layer>_current``) and
    the neurons' is 1, which rounds the membrane potential. Where neurons don't start at zero, ``<layer>_start`` adds
    the initial potential to the first current after each ``functional.reset_net``.

    Neurons stand alone: whatever else a layer needs is a module beside them. So they may be replaced, as by
    ``module.set_submodule("relu", LIFNode(v_threshold=module.get_submodule("relu").v_threshold, v_reset=None))``.

    Args:
        network: The spiking network.

    Returns:
        A module that maps an image ``[N, ...]`` to the logits of this step; their mean over T calls with the same image
        is what :meth:`SpikingNetwork.simulate` returns. It shares no memory with the network.

    Raises:
        ExportError: If spikingjelly is not installed, neurons get a current that varies with time or its length,
            or they fire several times a step, take spikes back or are corrected.
    """
    check_single_spikes(network, "spikingjelly has")
    guard()
    library = optional_library("spikingjelly.activation_based.neuron", "spikingjelly>=2.0")
    from snnfl.spiking.spikingjelly_modules import Maximum, Start

    graph, parameters = unit_spikes(network)
    built, modules = fx.Graph(), dict[str, nn.Module]()
    values = {graph.input: built.placeholder("image")}

    def call(name: str, module: nn.Module, *inputs: fx.Node) -> fx.Node:
        modules[name] = module
        return built.call_module(name, inputs)

    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, Spike):
            level, potential = _start(network, node)
            if len(level) > 1:
                inputs = [call(f"{node.name}_current", _Divide(level), *inputs)]
                level, potential = level.new_ones(1), potential / level
            if bool(potential.any()):
                inputs = [call(f"{node.name}_start", Start(potential), *inputs)]
            made: nn.Module = library.IFNode(v_threshold=level.item(), v_reset=None, step_mode="s")
        elif isinstance(node, Affine):
            made = _layer(node, parameters[f"{node.name}.weight"], parameters[f"{node.name}.bias"])
        else:
            made = Maximum(node) if isinstance(node, MaxPool) else _Map(node)
        values[node.name] = call(node.name, made, *inputs)
    built.output(values[graph.output])
    return fx.GraphModule(modules, built)


def _start(network: SpikingNetwork, node: Spike) -> tuple[Tensor, Tensor]:
    """Return the threshold of a layer and its membrane potential before the first step, each ``[1]`` or ``[C]``."""
    level = network.thresholds[node.name]
    if network.initial_potential == "drip" or f"{node.name}.time_bias" in network.parameters:
        raise ExportError(
            f"{node.name}: spikingjelly's neurons get no current that varies with time or its length; convert with "
            "initial_potential=half in place of drip, and calibration=bias in place of time_bias"
        )
    channels = max(len(level), len(network.parameters.get(f"{node.name}.potential", level)))
    return level, network.rest(node.name, level.new_empty(1, channels))[0]


class _Map(nn.Module):
    """A map without parameters."""

    def __init__(self, node: LinearMap) -> None:
        super().__init__()
        self.node = node

    def forward(self, *values: Tensor) -> Tensor:
        return self.node.apply(values, {})


class _Scale(nn.Module):
    """A factor and a shift per channel."""

    def __init__(self, node: Affine, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.node = node
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, value: Tensor) -> Tensor:
        name = self.node.name
        return self.node.apply([value], {f"{name}.weight": self.weight, f"{name}.bias": self.bias})


class _Divide(nn.Module):
    """Division by the threshold of each channel."""

    threshold: Tensor

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.clone())

    def forward(self, current: Tensor) -> Tensor:
        return current / broadcast(self.threshold, current.shape)


def _layer(node: Affine, weight: Tensor, bias: Tensor) -> nn.Module:
    if node.op == "scale":
        return _Scale(node, weight, bias)
    kind = _LAYERS[node.op]
    inputs = weight.shape[1] * node.arguments.get("groups", 1)
    kernel = {} if node.op == "linear" else {"kernel_size": tuple(weight.shape[2:])}
    # Built without values, so that no random state is touched.
    layer: nn.Module = nn.utils.skip_init(kind, inputs, len(weight), **kernel, **node.arguments)  # type: ignore[no-untyped-call]
    layer.weight, layer.bias = nn.Parameter(node.as_in_ann(weight).clone()), nn.Parameter(bias.clone())
    return layer


_LAYERS = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "linear": nn.Linear,
}
