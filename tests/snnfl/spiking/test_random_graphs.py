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
from snnfl.spiking import ExportError, SpikingNetwork, load, save, to_nir, to_spikingjelly
from snnfl.spiking.trace import trace_with_state

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
    ops = ["relu", "relu", "norm", "add", "add", "cat", "identity", "number", "gain"]
    ops += ["adaptive", "mean", "pooled", "slice", "pad"] if space else ["linear"]
    ops += ["conv", "conv", "avg_pool", "max_pool", "max_pool"] if space and min(space) > 2 else []
    # Right behind a ReLU that nothing else reads a maximum would move in front of it.
    ops += (
        ["max", "max"] if space and min(space) > 2 and steps[source].op not in ("relu", "max_pool", "identity") else []
    )
    ops += ["up", "convt", "turn"] if space and max(space) < 7 else []
    op = draw(st.sampled_from(ops))
    options: tuple[Any, ...] = (draw(st.booleans()),)
    if op in ("slice", "pad", "up", "turn", "number"):
        options = (draw(st.integers(0, 4)),)
        return Step(op, (source,), (*move(op, *options, torch.empty(1, *shape, device="meta")).shape[1:],), options)
    if op == "convt":
        groups = draw(st.sampled_from([group for group in (1, 2) if channels % group == 0]))
        kernel, stride, padding = (draw(st.integers(low, high)) for low, high in ((1, 3), (1, 2), (0, 1)))
        padding = min(padding, (kernel - 1) // 2)  # so that the smallest value gives one, too
        extra = draw(st.integers(0, stride - 1))
        space = [(size - 1) * stride - 2 * padding + kernel + extra for size in space]
        channels = groups * draw(st.integers(1, 2))
        options = (kernel, stride, padding, extra, groups, draw(st.booleans()))
    elif op in ("conv", "avg_pool", "max_pool", "max"):
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
    elif op == "add":
        fitting = [i for i, other in enumerate(steps) if broadcast(shape, other.shape) is not None]
        other = draw(st.sampled_from(fitting))
        result = broadcast(shape, steps[other].shape)
        return Step(op, (source, other), result, (options[0] and result == shape,))
    elif op == "cat":
        fitting = [i for i, other in enumerate(steps) if other.shape[1:] == shape[1:]]
        others = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=2))
        channels += sum(steps[index].shape[0] for index in others)
        return Step(op, (source, *others), (channels, *space), options)
    elif op == "relu":
        kinds = ["module", "module in place", "shared", "function", "method", "method in place", "module6", "function6"]
        options = (draw(st.sampled_from(kinds)),)
    one, two = ((channels, *[size] * len(space)) for size in (1, 2))
    shapes = {"linear": (4,), "mean": shape[:1], "adaptive": two, "pooled": one}
    return Step(op, (source,), shapes.get(op, (channels, *space)), options)


def broadcast(left: Shape, right: Shape) -> Shape | None:
    """Return the shape of a sum, if there is one."""
    sizes = [{*pair} - {1} for pair in zip(left, right, strict=False)]
    if len(left) != len(right) or any(len(each) > 1 for each in sizes):
        return None
    return tuple(next(iter(each), 1) for each in sizes)


def move(op: str, way: int, x: Tensor) -> Tensor:
    """Compute what needs no layer, each in several ways."""
    flat = x.dim() == 3
    calls: dict[str, list[Callable[[], Tensor]]] = {
        "slice": [
            lambda: x[:, ::2],
            lambda: x[..., : x.shape[-1] - 1 or None],
            lambda: x.chunk(2, 1)[-1],
            lambda: torch.split(x, [1, x.shape[1] - 1], dim=1)[0],
            lambda: x.narrow(-1, 0, 1) if flat else x.unbind(2)[0].unsqueeze(2),
        ],
        "pad": [
            lambda: F.pad(x, (1, 0)),
            lambda: F.pad(x, (1, 2), value=0.5),
            lambda: F.pad(x, (0, 0, 1, 0) if flat else (0, 0, 0, 1, 1, 0)),
            lambda: F.pad(x, (1, 1), mode="replicate") if flat else F.pad(x, (0, 0, 0, 1), mode="replicate"),
            lambda: F.pad(x, (0, -1 if x.shape[-1] > 1 else 0)),
        ],
        "up": [
            lambda: F.interpolate(x, scale_factor=2.0),
            lambda: F.interpolate(x, size=5 if flat else (5, 3), mode="linear" if flat else "bilinear"),
            lambda: F.interpolate(x, scale_factor=1.5, mode="linear" if flat else "bilinear", align_corners=True),
            lambda: F.interpolate(x, size=4),
            lambda: torch.cat([x, x], -1),
        ],
        "turn": [
            lambda: x.transpose(1, 2),
            lambda: x.movedim(-1, 1),
            lambda: x.flatten(2).unsqueeze(-1).squeeze(3) if flat else x.permute(0, 1, -1, 2),
            lambda: torch.stack([x, x], 2).flatten(1, 2),
            lambda: x.unsqueeze(1).swapaxes(1, 2).squeeze(2),
        ],
        "number": [lambda: x * 0.5, lambda: 1 - x, lambda: -x + 0.25, lambda: x / 2 - 1, lambda: 2.0 + x],
    }
    return calls[op][way]()


class Network(nn.Module):
    """The described network. With ``neurons``, they compute each ReLU, given the number of its step."""

    def __init__(self, steps: list[Step], pooling: str = "error") -> None:
        super().__init__()
        self.steps, self.pooling = steps, pooling
        self.neurons: Callable[[int, Tensor], Tensor] | None = None
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}
        self.shared, self.drop, self.layers = nn.ReLU(), nn.Dropout(), nn.ModuleDict()
        for number, step in enumerate(steps):
            if step.op in ("conv", "convt", "linear", "norm") or step.options[:1] in LAYERS:
                before = steps[step.inputs[0]].shape
                self.layers[str(number)] = make_layer(step, before)
            if step.op == "gain":
                for kind in ("gain", "shift"):
                    self.register_parameter(f"{kind}{number}", nn.Parameter(torch.empty(constant_shape(step))))

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
        if step.op == "max":
            return self.gated(number, step, x, flat)
        if step.op == "gain":
            gained = x * getattr(self, f"gain{number}")
            return (
                gained + getattr(self, f"shift{number}")
                if step.options[0]
                else getattr(self, f"shift{number}") - gained
            )
        if step.op in ("slice", "pad", "up", "turn", "number"):
            # No view, for a change in place would take it along.
            return move(step.op, *step.options, x).contiguous().clone()
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
            "pooled": lambda: x.mean(space, True) if step.options[0] else torch.mean(x, space, keepdim=True),
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
            return self.neurons(number, self.gated(number, step, x, flat))
        return maximum(self.activate(number, "function", x), *window, ceil_mode=ceil)

    def gated(self, number: int, step: Step, x: Tensor, flat: bool) -> Tensor:
        """Compute the maximum or average of each window; in time, the growth of its largest sum so far."""
        maximum = F.max_pool1d if flat else F.max_pool2d
        *window, ceil = step.options
        if self.pooling == "average":
            average = F.avg_pool1d if flat else F.avg_pool2d
            return average(x, *window, ceil_mode=ceil, count_include_pad=False)
        if self.neurons is None:
            return maximum(x, *window, ceil_mode=ceil)
        total, largest = self.sums.get(number, (torch.zeros_like(x), torch.zeros(())))
        self.sums[number] = total + x, maximum(total + x, *window, ceil_mode=ceil)
        return self.sums[number][1] - largest


LAYERS = {
    ("module",): nn.ReLU,
    ("module in place",): lambda: nn.ReLU(inplace=True),
    ("module6",): nn.ReLU6,
}


def constant_shape(step: Step) -> Shape:
    """One number per channel, with axes of its own or broadcast from the front."""
    axes = [1] * (len(step.shape) - 1)
    return (1, step.shape[0], *axes) if step.options[0] else (step.shape[0], *axes)


def make_layer(step: Step, before: Shape) -> nn.Module:
    flat = len(before) < 3
    if step.op == "relu":
        return LAYERS[step.options]()
    if step.op == "linear":
        return nn.Linear(before[0], step.shape[0], bias=step.options[0])
    if step.op == "norm":
        return (nn.BatchNorm1d if flat else nn.BatchNorm2d)(before[0])
    if step.op == "convt":
        return (nn.ConvTranspose1d if flat else nn.ConvTranspose2d)(before[0], step.shape[0], *step.options)
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

    network.neurons, network.sums = neurons, {}
    return [network(images.clone()) for _ in range(STEPS)]


@settings(max_examples=100)
@given(
    steps=descriptions(),
    pooling=st.sampled_from(["average", "gated"]),
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
    graph, state = trace_with_state(model, max_pooling=pooling, input_shape=steps[0].shape)
    parameters = fold(graph, state)
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
    pooling=st.sampled_from(["average", "gated"]),
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
    model = networks.trained(lambda: Network(steps), seed)
    graph, state = trace_with_state(model, max_pooling=pooling, input_shape=steps[0].shape)
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


@settings(max_examples=40)
@given(
    steps=descriptions(),
    pooling=st.sampled_from(["average", "gated"]),
    thresholds=st.sampled_from(["layer_mmse", "channel_mmse"]),
    initial=st.sampled_from(["zero", "half"]),
    seed=st.integers(0, 2**20),
)
@torch.no_grad()
def test_random_networks_leave_as_they_are(tmp_path_factory, steps, pooling, thresholds, initial, seed):
    """A file holds them bit for bit, spikingjelly's neurons fire as ours, and NIR has them or a line says what not."""
    draw, folder = torch.Generator().manual_seed(seed), tmp_path_factory.getbasetemp()
    images = torch.randn(2, *steps[0].shape, generator=draw, dtype=torch.float64)
    model = networks.trained(lambda: Network(steps), seed)
    graph, state = trace_with_state(model, max_pooling=pooling, input_shape=steps[0].shape)
    config = ConversionConfig(steps=STEPS, thresholds=thresholds, initial_potential=initial)
    network = convert_state(graph, state, images, config)
    expected = network.simulate(images, steps=STEPS)[STEPS]
    save(network, folder / "random.safetensors")
    loaded = load(folder / "random.safetensors")
    assert loaded.graph == graph
    assert torch.equal(loaded.simulate(images, steps=STEPS)[STEPS], expected)
    assert "\n" not in (refusal(lambda: to_nir(network, steps[0].shape, folder / "random.nir")) or "")
    # Amplitudes are folded, which rounds: no neuron may stand at its threshold exactly.
    moved = {name: array * 1.00123 if ".threshold" in name else array for name, array in network.parameters.items()}
    network = replace(network, parameters=moved)
    module = to_spikingjelly(network)
    mean = torch.stack([module(images) for _ in range(STEPS)]).mean(0)
    torch.testing.assert_close(mean, network.simulate(images, steps=STEPS)[STEPS], rtol=1e-9, atol=1e-9)


def refusal(export: Callable[[], None]) -> str | None:
    """Return why something cannot be exported, or nothing."""
    try:
        export()
    except ExportError as reason:
        return str(reason)
    return None
