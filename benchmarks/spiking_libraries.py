"""Spiking networks as users of snnTorch and spikingjelly write them, and ours: the same layers, neurons and weights.

This is no benchmark itself.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.config import ModelConfig, TrainingConfig
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.torchvision_guard import guard
from snnfl.training import train_locally

guard()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import snntorch
    from snntorch import surrogate as snntorch_surrogate
    from spikingjelly.activation_based import functional as spikingjelly
    from spikingjelly.activation_based import layer
    from spikingjelly.activation_based import neuron as spikingjelly_neuron
    from spikingjelly.activation_based import surrogate as spikingjelly_surrogate

BETA = 0.95
TRAINING = TrainingConfig(optimizer="adam", learning_rate=1e-3, weight_decay=0.0)


def configured(name: str, steps: int, **options: Any) -> ModelConfig:
    """Return the network that all libraries train."""
    return ModelConfig(
        name=name,
        batch_norm=False,
        neuron="lif",
        beta=BETA,
        time_steps=steps,
        surrogate="fast_sigmoid",
        readout="mean_potential",
        output_fires=True,
        **options,
    )


def ours(config: ModelConfig, shape: tuple[int, ...]) -> nn.Module:
    """Build our network, laid out as the engine does."""
    model = build_model(config, input_shape=shape, classes=10, generator=generator(0, "weights"))
    return model.to(memory_format=torch.channels_last)


class InSnnTorch(nn.Module):
    """A network whose layers run step after step, as snnTorch's tutorials write it.

    Args:
        plain: The ordinary network, whose ReLUs become neurons.
        steps: Time steps.
        once: Layers that don't change over time: those before the first neurons are computed at each step otherwise.
    """

    def __init__(self, plain: nn.Module, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.layers = plain
        for parent in list(plain.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.ReLU):
                    setattr(parent, name, self._leaky())
        self.output = self._leaky()

    @staticmethod
    def _leaky() -> nn.Module:
        return snntorch.Leaky(beta=BETA, spike_grad=snntorch_surrogate.fast_sigmoid(slope=25), init_hidden=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[N, ...]`` to the mean potential of the output neurons."""
        for module in self.modules():
            if isinstance(module, snntorch.Leaky):
                module.reset_mem()
        potentials = []
        for _ in range(self.steps):
            self.output(self.layers(inputs))
            potentials.append(self.output.mem)
        return torch.stack(potentials).mean(0)


def in_spikingjelly(plain: nn.Module) -> nn.Module:
    """Build a network of spikingjelly's layers, all steps at once."""
    pairs: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
        nn.ReLU: lambda _: spikingjelly_lif(),
        nn.Conv2d: _as(layer.Conv2d),
        nn.BatchNorm2d: lambda old: layer.BatchNorm2d(old.num_features),
        nn.AvgPool2d: lambda old: layer.AvgPool2d(old.kernel_size, old.stride),
        nn.Flatten: lambda _: layer.Flatten(),
        nn.Linear: lambda old: layer.Linear(old.in_features, old.out_features),
    }
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in pairs:
                setattr(parent, name, pairs[type(child)](child))
    net = nn.Sequential(OrderedDict(body=plain, output=spikingjelly_lif()))
    spikingjelly.set_step_mode(net, "m")
    return net


def _as(kind: Any) -> Callable[[Any], nn.Module]:
    return lambda old: kind(
        old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
    )


def spikingjelly_lif() -> nn.Module:
    """Return the neuron of spikingjelly that comes nearest."""
    return spikingjelly_neuron.LIFNode(
        tau=1 / (1 - BETA),
        decay_input=False,
        v_reset=None,
        detach_reset=True,
        surrogate_function=spikingjelly_surrogate.ATan(),
        step_mode="m",
    )


def plain(name: str, shape: tuple[int, ...], *, batch_norm: bool = False) -> nn.Module:
    """Build the ordinary network."""
    config = ModelConfig(name=name, batch_norm=batch_norm)
    return build_model(config, input_shape=shape, classes=10, generator=generator(0, "weights"))


def training_step(
    model: nn.Module, forward: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    """Return one step of Adam."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = functional.cross_entropy(forward(inputs), labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def engine_step(model: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return one step of Adam as a client of a federation takes it."""
    return lambda: train_locally(model, [[(inputs, labels)]], TRAINING, server_round=1)


def multiply_accumulates(model: nn.Module, inputs: Tensor) -> float:
    """Count what convolutions and linear layers multiply in one training step of one of our models.

    Forward, and backward by inputs and weights; the first layer's inputs have no gradient.
    """
    counts: list[float] = []

    def count(module: Any, _: object, outputs: Tensor) -> None:
        counts.append(float(outputs.numel() * module.weight[0].numel()))

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [module.register_forward_hook(count) for module in layers]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return 3 * sum(counts) - counts[0]
