"""Random small networks: the graph computes what the module computes, and time runs as two plain loops say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import hypothesis.strategies as st
import networks
import stepwise
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from snnfl.conversion import ConversionConfig, convert_state, fold
from snnfl.spiking import SpikingNetwork, trace

Shape = tuple[int, ...]
STEPS = 10


class Step(NamedTuple):
    """An operation on values that were computed before, by their index; 0 is the image."""

    op: str
    inputs: tuple[int, ...]
    shape: Shape
    options: tuple[Any, ...] = ()


@st.composite
def descriptions(draw: st.DrawFn) -> list[Step]:
    """Draw a network whose values are all read, with a hidden layer and a readout at its end."""
    steps = [Step("image", (), (2, *draw(st.sampled_from([(6, 6), (5, 4), (9,)]))))]
    for _ in range(draw(st.integers(2, 9))):
        steps.append(draw_step(draw, steps))
    read = {index for step in steps for index in step.inputs}
    loose = [index for index in range(len(steps)) if index not in read]
    for index in loose:
        steps.append(Step("flatten", (index,), (math.prod(steps[index].shape),), (draw(st.integers(0, 3)),)))
    flat = tuple(range(len(steps) - len(loose), len(steps)))
    steps.append(Step("cat", flat, (sum(steps[index].shape[0] for index in flat),)))
    for op, width, option in (("linear", 4, True), ("relu", 4, "module"), ("linear", 3, False)):
        steps.append(Step(op, (len(steps) - 1,), (width,), (option,)))
    return steps


def draw_step(draw: st.DrawFn, steps: list[Step]) -> Step:
    """Draw one operation that fits one of the values."""
    source = draw(st.integers(0, len(steps) - 1))
    channels, *space = shape = steps[source].shape
    ops = ["relu", "relu", "norm", "add", "cat", "identity"]
    ops += ["adaptive", "mean"] if space else ["linear"]
    ops += ["conv", "conv", "avg_pool", "max_pool", "max_pool"] if space and min(space) > 2 else []
    op = draw(st.sampled_from(ops))
    options: tuple[Any, ...] = (draw(st.booleans()),)
    if op in ("conv", "avg_pool", "max_pool"):
        kernel, stride, padding = (draw(st.integers(low, 2)) for low in (2, 1, 0))
        padding, dilation = (padding, draw(st.integers(1, 2))) if op == "conv" else (min(padding, 1), 1)
        groups = draw(st.sampled_from([group for group in (1, 2) if channels % group == 0]))
        channels = groups * draw(st.integers(1, 2)) if op == "conv" else channels
        if op == "conv":
            space = [(size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size in space]
        else:  # the last option, ceil_mode, is left to PyTorch
            pool = F.max_pool1d if len(space) == 1 else F.max_pool2d
            space = [*pool(torch.empty(1, *space), kernel, stride, padding, ceil_mode=options[0]).shape[1:]]
        options = (kernel, stride, padding, *((dilation, groups) if op == "conv" else ()), *options)
    elif op in ("add", "cat"):
        fitting = [i for i, other in enumerate(steps) if other.shape[op == "cat" :] == shape[op == "cat" :]]
        others = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=1 if op == "add" else 2))
        channels += sum(steps[index].shape[0] for index in others) if op == "cat" else 0
        return Step(op, (source, *others), (channels, *space), options)
    elif op == "relu":
        kinds = ["module", "module in place", "shared", "function", "method", "method in place", "module6", "function6"]
        options = (draw(st.sampled_from(kinds)),)
    shapes = {"linear": (4,), "mean": shape[:1], "adaptive": (channels, *[2] * len(space))}
    return Step(op, (source,), shapes.get(op, (channels, *space)), options)


class Network(nn.Module):
    """The described network. With ``neurons``, they compute each ReLU, given the number of its step."""

    def __init__(self, steps: list[Step], pooling: str = "error") -> None:
        super().__init__()
        self.steps, self.pooling = steps, pooling
        self.neurons: Callable[[int, Tensor], Tensor] | None = None
        self.shared, self.drop, self.layers = nn.ReLU(), nn.Dropout(), nn.ModuleDict()
        for number, step in enumerate(steps):
            if step.op in ("conv", "linear", "norm") or step.options[:1] in LAYERS:
                before = steps[step.inputs[0]].shape
                self.layers[str(number)] = make_layer(step, before)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for number, step in enumerate(self.steps[1:], 1):
            values.append(self.compute(number, step, *(values[index] for index in step.inputs)))
        return values[-1]

    def compute(self, number: int, step: Step, x: Tensor, *others: Tensor) -> Tensor:
        flat = len(self.steps[step.inputs[0]].shape) == 2
        if step.op == "relu":
            return self.activate(number, step.options[0], x)
        if step.op == "max_pool":  # comes with a ReLU, for it must find one
            return self.maximum(number, step, x, flat)
        if step.op == "add" and step.options[0]:
            x += others[0]
            return x
        if str(number) in self.layers:
            return self.layers[str(number)](x)
        if step.op == "flatten":
            ways = (torch.flatten(x, 1), x.flatten(1), x.view(x.size(0), -1), torch.reshape(x, (x.shape[0], -1)))
            return ways[step.options[0]]
        space = (2,) if flat else (2, 3)
        calls: dict[str, Callable[[], Tensor]] = {
            "add": lambda: x + others[0],
            "cat": lambda: torch.cat([x, *others], dim=1),
            "avg_pool": lambda: (F.avg_pool1d if flat else F.avg_pool2d)(x, *step.options),
            "adaptive": lambda: (F.adaptive_avg_pool1d if flat else F.adaptive_avg_pool2d)(x, 2),
            "mean": lambda: x.mean(space, True).flatten(1) if step.options[0] else torch.mean(x, dim=space),
            "identity": lambda: self.drop(x) if step.options[0] else F.dropout(x, training=self.training),
        }
        return calls[step.op]()

    def activate(self, number: int, kind: str, x: Tensor) -> Tensor:
        if self.neurons is not None:
            spikes = self.neurons(number, x)
            return x.copy_(spikes) if "in place" in kind else spikes
        if kind.startswith("module"):
            return self.layers[str(number)](x)
        calls = {"shared": self.shared, "function": F.relu, "function6": F.relu6, "method in place": torch.relu_}
        return calls[kind](x) if kind in calls else x.relu()

    def maximum(self, number: int, step: Step, x: Tensor, flat: bool) -> Tensor:
        maximum = F.max_pool1d if flat else F.max_pool2d
        average = F.avg_pool1d if flat else F.avg_pool2d
        *window, ceil = step.options
        if self.pooling == "average":
            return average(self.activate(number, "function", x), *window, ceil_mode=ceil, count_include_pad=False)
        if self.neurons is not None:
            return self.neurons(number, maximum(x, *window, ceil_mode=ceil))
        return maximum(self.activate(number, "function", x), *window, ceil_mode=ceil)


LAYERS = {
    ("module",): nn.ReLU,
    ("module in place",): lambda: nn.ReLU(inplace=True),
    ("module6",): nn.ReLU6,
}


def make_layer(step: Step, before: Shape) -> nn.Module:
    flat = len(before) < 3
    if step.op == "relu":
        return LAYERS[step.options]()
    if step.op == "linear":
        return nn.Linear(before[0], step.shape[0], bias=step.options[0])
    if step.op == "norm":
        return (nn.BatchNorm1d if flat else nn.BatchNorm2d)(before[0])
    return (nn.Conv1d if flat else nn.Conv2d)(before[0], step.shape[0], *step.options)


def literal(network: Network, thresholds: dict[int, Tensor], images: Tensor, start: float) -> list[Tensor]:
    """Run the module itself once per time step, each ReLU a loop over neurons in plain Python (SNFL equation 5)."""
    potentials: dict[int, list[float]] = {}

    def neurons(number: int, current: Tensor) -> Tensor:
        level = thresholds[number].view(-1, *[1] * (current.dim() - 2)).expand(current.shape[1:])
        levels = level.expand_as(current).flatten().tolist()
        potential = potentials.setdefault(number, [start * level for level in levels])
        spikes = []
        for j, charge in enumerate(current.flatten().tolist()):
            potential[j] += charge
            spikes.append(levels[j] if potential[j] >= levels[j] else 0.0)
            potential[j] -= spikes[j]
        return torch.tensor(spikes, dtype=current.dtype).view(current.shape)

    network.neurons = neurons
    return [network(images.clone()) for _ in range(STEPS)]


@settings(max_examples=100)
@given(
    steps=descriptions(),
    pooling=st.sampled_from(["average", "pre_spike"]),
    per_channel=st.booleans(),
    initial=st.sampled_from(["zero", "half"]),
    contrast=st.sampled_from([1.0, 10.0]),  # with the second, a ReLU6 clips
    seed=st.integers(0, 2**20),
)
@torch.no_grad()
def test_random_networks(steps, pooling, per_channel, initial, contrast, seed):
    model = networks.trained(lambda: Network(steps, pooling), seed)
    draw = torch.Generator().manual_seed(seed)
    images = contrast * torch.randn(2, *steps[0].shape, generator=draw, dtype=torch.float64)
    graph = trace(Network(steps), max_pooling=pooling)
    parameters = fold(graph, model.state_dict())
    expected = model(images.clone())
    torch.testing.assert_close(SpikingNetwork(graph, parameters).analog(images), expected, rtol=1e-9, atol=1e-9)

    sites = [number for number, step in enumerate(steps) if step.op in ("relu", "max_pool")]
    widths = [steps[number].shape[0] if per_channel else 1 for number in sites]
    levels = [torch.rand(width, generator=draw, dtype=torch.float64) + 0.2 for width in widths]
    named = {f"{node.name}.threshold": level for node, level in zip(graph.spikes, levels, strict=True)}
    network = SpikingNetwork(graph, parameters | named, initial)
    outputs = literal(model, dict(zip(sites, levels, strict=True)), images, 0.5 if initial == "half" else 0.0)
    for length, logits in network.simulate(images, steps=STEPS, curve=(3,)).items():
        torch.testing.assert_close(logits, torch.stack(outputs[:length]).mean(0), rtol=1e-9, atol=1e-9)


@settings(max_examples=100)
@given(
    steps=descriptions(),
    pooling=st.sampled_from(["average", "pre_spike"]),
    thresholds=st.sampled_from(["layer_mmse", "channel_mmse", "layer_max", "percentile"]),
    calibration=st.sampled_from(["none", "bias", "potential", "bias_potential", "time_bias"]),
    initial=st.sampled_from(["zero", "half", "drip"]),
    half=st.booleans(),
    seed=st.integers(0, 2**20),
)
@torch.no_grad()
def test_random_networks_convert(steps, pooling, thresholds, calibration, initial, half, seed):
    """What comes out spikes at every step as two plain loops say, whatever the options."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(2, *steps[0].shape, generator=draw, dtype=torch.float64)
    graph, state = (
        trace(Network(steps), max_pooling=pooling),
        networks.trained(lambda: Network(steps), seed).state_dict(),
    )
    config = ConversionConfig(
        steps=STEPS,
        thresholds=thresholds,
        percentile=95,
        calibration=calibration,
        initial_potential=initial,
        readout="second_half" if half and "potential" not in calibration else "all",
    )
    network = convert_state(graph, state, images, config)
    assert any(".potential" in name for name in network.parameters) == ("potential" in calibration)
    assert any(".time_bias" in name for name in network.parameters) == (calibration == "time_bias")
    if "bias" in calibration.split("_")[:1]:  # so is the readout's
        expected = SpikingNetwork(graph, fold(graph, state)).analog(images)
        logits = network.simulate(images, steps=STEPS)[STEPS]
        torch.testing.assert_close(logits.mean(0), expected.mean(0), rtol=1e-9, atol=1e-9)
    # A threshold may equal a current, so that rounding decides whether the neuron fires: not those next to it.
    moved = {
        name: array * 1.00123 if name.endswith(".threshold") else array for name, array in network.parameters.items()
    }
    network = replace(network, parameters=moved)
    found = network.simulate(images, steps=STEPS, curve=range(1, STEPS))
    for length, logits in stepwise.logits(network, images, STEPS, stepwise.fire_in_a_loop).items():
        torch.testing.assert_close(found[length], logits, rtol=1e-9, atol=1e-9)
