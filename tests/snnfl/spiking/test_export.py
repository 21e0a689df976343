from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import networks
import nir
import numpy as np
import pytest
import stepwise
import torch
from snntorch import Leaky
from snntorch.import_nir import import_from_nir as snntorch_from_nir
from torch import Tensor, nn

from snnfl.conversion import ConversionConfig, convert, convert_state
from snnfl.spiking import (
    Affine,
    ExportError,
    MaxPool,
    Spike,
    SpikingGraph,
    SpikingNetwork,
    to_nir,
    to_spikingjelly,
    trace_with_state,
)
from snnfl.spiking.export import unit_spikes
from snnfl.torchvision_guard import guard

guard()

from spikingjelly.activation_based import functional  # noqa: E402  (torchvision must be guarded first)
from spikingjelly.activation_based.base import MemoryModule  # noqa: E402
from spikingjelly.activation_based.layer import SeqToANNContainer  # noqa: E402
from spikingjelly.activation_based.neuron import IFNode, LIFNode  # noqa: E402
from spikingjelly.activation_based.nir_exchange import import_from_nir as spikingjelly_from_nir  # noqa: E402

NETWORKS = [networks.Plain, networks.Residual, networks.Joined, networks.Dense, networks.MaxPooled]
STEPS = 16


class Perceptron(nn.Sequential):
    """Flattening and linear layers alone."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


def converted(kind: type[nn.Module], **options: Any) -> SpikingNetwork:
    model, config = networks.trained(kind), ConversionConfig(steps=STEPS, **options)
    graph, state = trace_with_state(model, input_shape=(2, 6, 6))
    return convert_state(graph, state, networks.images(8), config)


def trains(network: SpikingNetwork, images: Tensor, steps: int = STEPS) -> dict[str, Tensor]:
    """Simulate literally, ``v += I; s = v >= V; v -= s V``; return each layer's spikes, 0 or 1, ``[T, N, ...]``."""
    potentials: dict[str, Tensor] = {}
    sums: stepwise.Sums = {}
    found: dict[str, list[Tensor]] = {node.name: [] for node in network.graph.spikes}
    for _ in range(steps):
        values = {network.graph.input: images}
        for node in network.graph.nodes:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node, MaxPool):
                values[node.name] = stepwise.pass_maximum(node, *inputs, sums)
                continue
            if not isinstance(node, Spike):
                values[node.name] = node.apply(inputs, network.parameters)
                continue
            level = network.thresholds[node.name].view(-1, *[1] * (inputs[0].dim() - 2))
            charged = potentials.get(node.name, network.rest(node.name, inputs[0])) + inputs[0]
            if network.initial_potential == "drip":
                charged = charged + level / (2 * steps)
            spikes = (charged >= level).to(charged.dtype)
            potentials[node.name], values[node.name] = charged - spikes * level, spikes * level
            found[node.name].append(spikes)
    return {name: torch.stack(spikes) for name, spikes in found.items()}


def recorded(module: nn.Module, kind: type[nn.Module], step: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Call ``step`` for each time step; return the mean of what it returns, and the spikes of the neurons by name."""
    found: dict[str, list[Tensor]] = {name: [] for name, each in module.named_modules() if isinstance(each, kind)}
    hooks = [
        each.register_forward_hook(
            lambda m, i, output, name=name: found[name].append(output[0] if isinstance(output, tuple) else output)
        )
        for name, each in module.named_modules()
        if name in found
    ]
    with torch.no_grad():
        mean = torch.stack([step() for _ in range(STEPS)]).mean(0)
    for hook in hooks:
        hook.remove()
    return mean, {name: torch.stack(spikes) for name, spikes in found.items()}


def assert_equal_trains(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, spikes in expected.items():
        assert torch.equal(found[name].view_as(spikes), spikes), name
        assert spikes.any(), f"a silent layer proves nothing: {name}"


@pytest.mark.parametrize("kind", [*NETWORKS, Perceptron])
@pytest.mark.parametrize("thresholds", ["layer_mmse", "channel_mmse"])
@pytest.mark.parametrize(
    "options", [{}, {"initial_potential": "half"}, {"calibration": "bias_potential"}], ids=["zero", "half", "potential"]
)
def test_spikingjellys_neurons_spike_as_ours(kind, thresholds, options):
    network, images = converted(kind, thresholds=thresholds, **options), networks.images(5, seed=9)
    module, expected = to_spikingjelly(network), trains(network, images)
    for _ in range(2):  # the second run shows that a reset restores the initial potential
        functional.reset_net(module)
        mean, found = recorded(module, IFNode, lambda: module(images))
        assert_equal_trains(found, expected)
        torch.testing.assert_close(mean, network.simulate(images, steps=STEPS)[STEPS], rtol=1e-12, atol=1e-12)


def test_the_module_is_torchs_and_spikingjellys_own_and_shares_nothing():
    network, before = converted(networks.Residual), torch.get_rng_state()
    module = to_spikingjelly(network)
    assert torch.equal(torch.get_rng_state(), before)
    kinds = {name: type(each).__name__ for name, each in module.named_modules() if name in network.graph.by_name}
    assert kinds["stem.0"] == kinds["conv2"] == "Conv2d"
    assert (kinds["hidden"], kinds["relu_pool"]) == ("Linear", "IFNode")
    neurons = {name: each for name, each in module.named_modules() if isinstance(each, IFNode)}
    assert {name: each.v_threshold for name, each in neurons.items()} == {
        name: level.item() for name, level in network.thresholds.items()
    }
    assert all(each.v_reset is None and each.step_mode == "s" for each in neurons.values())
    copies = {name: array.clone() for name, array in network.parameters.items()}
    with torch.no_grad():
        for array in (*module.parameters(), *module.buffers()):
            array.fill_(7.0)
    assert all(torch.equal(array, copies[name]) for name, array in network.parameters.items())


REPLACED = [networks.Plain, networks.Residual, networks.Dense, networks.MaxPooled]


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize(
    "options", [{}, {"thresholds": "channel_mmse", "initial_potential": "half"}], ids=["paper", "fast"]
)
def test_neurons_may_be_replaced_by_others(kind, options):
    """Whatever a layer needs beside its neurons stays: thresholds per channel, amplitudes, initial potentials."""
    network, images = converted(kind, **options), networks.images(5, seed=9)
    expected = network.simulate(images, steps=STEPS)[STEPS]
    for make in (
        lambda old: IFNode(v_threshold=old.v_threshold, v_reset=None),
        lambda old: LIFNode(v_threshold=old.v_threshold, v_reset=None, tau=1e12, decay_input=False),
    ):
        module = to_spikingjelly(network)
        neurons = {name: each for name, each in module.named_modules() if isinstance(each, IFNode)}
        assert all([*each._modules] == ["surrogate_function"] for each in neurons.values())
        assert not any(each._forward_pre_hooks for each in neurons.values())
        for name, old in neurons.items():
            module.set_submodule(name, make(old))
        for _ in range(2):
            functional.reset_net(module)
            with torch.no_grad():
                mean = torch.stack([module(images) for _ in range(STEPS)]).mean(0)
            torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)


def test_leaky_neurons_leak():
    network, images = converted(networks.Plain), networks.images(5)
    module = to_spikingjelly(network)
    for name, level in network.thresholds.items():
        module.set_submodule(name, LIFNode(v_threshold=level.item(), v_reset=None, tau=2.0, decay_input=False))
    _, found = recorded(module, LIFNode, lambda: module(images))
    assert all(found[name].sum() < spikes.sum() for name, spikes in trains(network, images).items())


@pytest.mark.parametrize("kind", [networks.Plain, networks.Residual, networks.MaxPooled])
def test_modules_with_a_state_take_all_steps_at_once(kind):
    """As spikingjelly documents: ``set_step_mode`` for what has a state, its container for what has none."""
    network, images = converted(kind, initial_potential="half"), networks.images(5, seed=9)
    module = to_spikingjelly(network)
    functional.set_step_mode(module, "m")
    for node in module.graph.nodes:
        if node.op == "call_module" and len(node.args) == 1:
            part = module.get_submodule(node.target)
            if not isinstance(part, MemoryModule):
                module.set_submodule(node.target, SeqToANNContainer(part))
    with torch.no_grad():
        mean = module(images.expand(STEPS, *images.shape)).mean(0)
    torch.testing.assert_close(mean, network.simulate(images, steps=STEPS)[STEPS], rtol=1e-9, atol=1e-9)


def test_a_gradient_flows_through_the_module():
    module, images = to_spikingjelly(converted(networks.Residual)), networks.images(4)
    torch.stack([module(images) for _ in range(STEPS)]).mean(0).square().sum().backward()
    assert all(bool((each.grad != 0).any()) for each in module.parameters() if each.dim() > 1)


@pytest.mark.parametrize("options", [{"initial_potential": "drip"}, {"calibration": "time_bias"}])
def test_what_spikingjelly_lacks_is_named(options):
    with pytest.raises(ExportError, match=r"^relu: .*initial_potential=half"):
        to_spikingjelly(converted(networks.Plain, **options))


def test_a_missing_library_is_one_line(monkeypatch, tmp_path):
    network = converted(networks.Plain)
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based.neuron", None)
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ExportError, match=r"^spikingjelly.*pip install 'spikingjelly>=2.0'$"):
        to_spikingjelly(network)
    with pytest.raises(ExportError, match=r"^nir.*pip install 'snnfl\[export\]'$"):
        to_nir(network, (2, 6, 6), tmp_path / "network.nir")


def test_thresholds_go_into_the_weights_behind():
    network = converted(networks.Plain, thresholds="channel_mmse")
    graph, parameters = unit_spikes(network)
    assert graph == network.graph
    level = network.thresholds["relu"]
    expected = network.parameters["hidden.weight"].view(8, 4, 3, 3) * level.view(1, 4, 1, 1)
    assert torch.equal(parameters["hidden.weight"], expected.flatten(1))
    assert torch.equal(parameters["conv.weight"], network.parameters["conv.weight"])


def test_groups_take_their_own_thresholds():
    network = converted(networks.Residual, thresholds="channel_mmse")
    graph, parameters = unit_spikes(network)
    weight, level = network.parameters["conv2.weight"], network.thresholds["relu1"]
    expected = torch.cat([weight[:3] * level[:2].view(1, 2, 1, 1), weight[3:] * level[2:].view(1, 2, 1, 1)])
    assert torch.equal(parameters["conv2.weight"], expected)
    added = [node for node in graph.nodes if node not in network.graph.nodes and isinstance(node, Affine)]
    assert [(node.name, node.op, node.inputs) for node in added] == [
        ("stem.2_amplitude", "scale", ("stem.2",)),
        ("pool_amplitude", "scale", ("pool",)),
    ]
    assert torch.equal(parameters["stem.2_amplitude.weight"], network.thresholds["stem.2"])


def test_a_network_that_ends_in_neurons_gets_its_amplitude():
    spike = Spike(name="relu", inputs=("layer",))
    graph = SpikingGraph((Affine(name="layer", inputs=("input",), op="linear"), spike))
    parameters = {
        "layer.weight": torch.eye(2),
        "layer.bias": torch.zeros(2),
        "relu.threshold": torch.tensor([0.5, 4.0]),
    }
    network, images = SpikingNetwork(graph, parameters), torch.tensor([[0.5, 1.0]])
    module = to_spikingjelly(network)
    mean = torch.stack([module(images) for _ in range(8)]).mean(0)
    assert torch.equal(mean, torch.tensor([[0.5, 1.0]]))
    assert torch.equal(mean, network.simulate(images, steps=8)[8])


def written(network: SpikingNetwork, path: Path) -> nir.NIRGraph:
    """Write a NIR file and read it back, types checked by nir."""
    to_nir(network, (2, 6, 6), path / "network.nir", steps=STEPS)
    assert [each.name for each in path.iterdir()] == ["network.nir"]
    return nir.read(path / "network.nir")


def test_the_nir_file_says_what_the_network_is(tmp_path):
    network = converted(networks.Plain)
    graph = written(network, tmp_path)
    names = ["input", "conv", "relu", "pool", "flatten", "hidden", "relu_hidden", "head", "output"]
    assert graph.edges == list(pairwise(names))
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert [kinds[name] for name in names] == [
        *("Input", "Conv2d", "IF", "AvgPool2d", "Flatten", "Affine", "IF", "Affine", "Output")
    ]
    conv, neurons, pool = (graph.nodes[name] for name in ("conv", "relu", "pool"))
    assert np.array_equal(conv.weight, network.parameters["conv.weight"])
    assert (tuple(conv.input_shape), tuple(conv.stride), tuple(conv.padding), conv.groups) == (
        (6, 6),
        (1, 1),
        (1, 1),
        1,
    )
    level = network.thresholds["relu"].item()
    assert neurons.v_threshold.shape == (4, 6, 6)
    assert np.all(neurons.v_threshold == level)
    assert np.all(neurons.r == 1)
    assert np.all(neurons.v_reset == 0)
    assert (tuple(pool.kernel_size), tuple(pool.stride), tuple(pool.padding)) == ((2, 2), (2, 2), (0, 0))
    assert np.array_equal(graph.nodes["hidden"].weight, network.parameters["hidden.weight"] * level)
    assert np.array_equal(graph.nodes["head"].bias, network.parameters["head.bias"])


def test_thresholds_per_channel_are_divided_out(tmp_path):
    network = converted(networks.Plain, thresholds="channel_mmse")
    graph, level = written(network, tmp_path), network.thresholds["relu"]
    assert np.all(graph.nodes["relu"].v_threshold == 1)
    assert np.array_equal(graph.nodes["relu.current"].weight[:, :, 0, 0], torch.diag(1 / level))
    assert ("relu.current", "relu") in graph.edges


def test_a_start_is_a_lower_threshold_and_a_spike_that_comes_back(tmp_path):
    network = converted(networks.Plain, initial_potential="half")
    graph, level = written(network, tmp_path), network.thresholds["relu"]
    assert np.all(graph.nodes["relu"].v_threshold == 0.5 * level.item())
    assert np.array_equal(graph.nodes["relu.start"].weight[:, :, 0, 0], torch.diag(-0.5 * level.expand(4)))
    assert {("relu", "relu.start"), ("relu.start", "relu")} <= {*graph.edges}


def test_a_drip_is_part_of_a_bias_where_there_is_one(tmp_path):
    network = converted(networks.Residual, initial_potential="drip")
    graph = written(network, tmp_path)
    expected = network.parameters["conv1.bias"] + network.thresholds["relu1"] / (2 * STEPS)
    assert np.array_equal(graph.nodes["conv1"].bias, expected)
    assert not [name for name in graph.nodes if name.endswith(".drip")]
    graph = written(converted(Doubled, initial_potential="drip"), tmp_path)
    assert [name for name in graph.nodes if name.endswith(".drip")] == ["relu.drip"]  # its current is twice a layer's


class Doubled(nn.Module):
    """Adds a value to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Linear(72, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.relu(x + x).flatten(1))


class Broadcast(nn.Module):
    """One channel added to several, a difference, numbers, and constants of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.one, self.relu, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 1, 1), nn.ReLU(), nn.Linear(108, 2)
        self.gain = nn.Parameter(torch.empty(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.one(x) + self.wide(x) * 2 - 0.25)
        return self.head((y * self.gain - self.one.bias).flatten(1))


READABLE = [
    Broadcast,
    networks.Plain,
    networks.Residual,
    networks.Joined,
    networks.Dense,
    networks.PreActivation,
    Perceptron,
    Doubled,
]
MODES = {
    "paper": {},
    "fast": {"thresholds": "channel_mmse", "initial_potential": "half"},
    "drip": {"initial_potential": "drip"},
}


def assert_right(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare each layer's spikes with ours, by the names that readers make of ours."""
    assert_equal_trains(found, {name.replace(".", "_"): spikes for name, spikes in expected.items()})


@pytest.mark.parametrize("mode", [*MODES, "potential"])
@pytest.mark.parametrize("kind", READABLE)
def test_spikingjelly_reads_the_file_and_spikes_as_we_do(kind, mode, tmp_path):
    images = networks.images(5, seed=9)
    network = converted(kind, **MODES[mode]) if mode in MODES else started(converted(kind, calibration="potential"))
    written(network, tmp_path)
    module = spikingjelly_from_nir(tmp_path / "network.nir", dt=1.0, dtype=torch.float64)
    for each in module.modules():
        if isinstance(each, IFNode):
            each.v_reset = None  # NIR cannot say: reset by subtraction
    state: Any = None

    def step() -> Tensor:
        nonlocal state
        logits, state = module(images, state)
        return logits

    wrapper = next(type(each) for each in module.modules() if isinstance(getattr(each, "module", None), IFNode))
    mean, found = recorded(module, wrapper, step)
    assert_right(found, trains(network, images))
    torch.testing.assert_close(mean, network.simulate(images, steps=STEPS)[STEPS], rtol=1e-12, atol=1e-12)


def started(network: SpikingNetwork) -> SpikingNetwork:
    """Let each channel start elsewhere, between minus one and one threshold."""
    draw, parameters = torch.Generator().manual_seed(0), dict(network.parameters)
    for name, level in network.thresholds.items():
        part = torch.rand(parameters[f"{name}.potential"].shape, generator=draw, dtype=torch.float64) * 1.8 - 0.9
        parameters[f"{name}.potential"] = part * level
    return replace(network, parameters=parameters)


def in_few_bits(network: SpikingNetwork) -> SpikingNetwork:
    """Round weights to 8 bits and thresholds to 11, those per channel to powers of two, by which currents are divided.

    Single precision holds the products, so snnTorch, which reads it, loses nothing; both then compute in double.
    """
    rounded = {name: array.bfloat16().double() for name, array in network.parameters.items()}
    for name, level in network.thresholds.items():
        rounded[f"{name}.threshold"] = level.half().double() if len(level) == 1 else level.log2().round().exp2()
    return replace(network, parameters=rounded)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", READABLE)
def test_snntorch_reads_the_file_and_spikes_as_we_do(kind, mode, tmp_path):
    network, images = in_few_bits(converted(kind, **MODES[mode])), networks.images(5, seed=9)
    module = snntorch_from_nir(written(network, tmp_path)).double()
    for each in module.modules():
        if isinstance(each, Leaky):
            each.beta.fill_(1)  # snnTorch 1.0 reads IF as a leaky neuron (jeshraghian/snntorch, issue 416) ...
            each.init_hidden, each.reset_delay = True, True  # ... and loses its state between steps
            each.register_forward_hook(lambda m, i, spikes: spikes.double())  # they are single precision always
    logits, parts = network.simulate(images, steps=STEPS)[STEPS], []
    for number, image in enumerate(images):  # one at a time, for its Flatten takes the batch along
        for each in module.modules():
            if isinstance(each, Leaky):
                each.reset_mem()
        state: Any = None  # holds the spikes that come back to their neurons

        def step(image: Tensor = image) -> Tensor:
            nonlocal state
            output, state = module(image[None], state)
            return output

        mean, found = recorded(module, Leaky, step)
        torch.testing.assert_close(mean.flatten(), logits[number], rtol=1e-12, atol=1e-12)
        parts.append({name: spikes.flatten(1) for name, spikes in found.items()})
    assert_right({name: torch.stack([part[name] for part in parts], 1) for name in parts[0]}, trains(network, images))


def pooled(pool: nn.Module) -> SpikingNetwork:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(2)).double()
    draw = torch.Generator().manual_seed(0)
    model(networks.images(1))
    for array in model.parameters():
        nn.init.normal_(array, generator=draw)
    return convert(model, networks.images(8), ConversionConfig(steps=STEPS))


@pytest.mark.parametrize(
    ("pool", "kernel", "stride", "padding"),
    [
        (nn.AdaptiveAvgPool2d(1), (6, 6), (6, 6), (0, 0)),
        (nn.AdaptiveAvgPool2d((3, 2)), (2, 3), (2, 3), (0, 0)),
        (nn.AvgPool2d(3, 1, padding=1), (3, 3), (1, 1), (1, 1)),
        (nn.AvgPool2d(2, ceil_mode=True), (2, 2), (2, 2), (0, 0)),
    ],
)
def test_pooling_that_nir_can_express(pool, kernel, stride, padding, tmp_path):
    node = written(pooled(pool), tmp_path).nodes["2"]
    assert (tuple(node.kernel_size), tuple(node.stride), tuple(node.padding)) == (kernel, stride, padding)


def test_a_mean_over_the_picture_is_a_pooling(tmp_path):
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean([2, 3])

    graph = written(pooled(Mean()), tmp_path)
    pool = next(node for node in graph.nodes.values() if isinstance(node, nir.AvgPool2d))
    assert tuple(pool.kernel_size) == (6, 6)


class InSpace(nn.Module):
    """A number per channel, added to every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(108, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        return self.head(torch.relu(y + self.gate(y.mean((2, 3), keepdim=True))).flatten(1))


def test_what_the_library_cannot_write_is_one_line(tmp_path, monkeypatch):
    def refuses(*rest: Any) -> None:
        raise ValueError("types\ndo not fit")

    monkeypatch.setattr(nir, "NIRGraph", refuses)
    with pytest.raises(ExportError, match=r"^nir cannot write it: types do not fit$"):
        to_nir(converted(networks.Plain), (2, 6, 6), tmp_path / "network.nir")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: pooled(nn.AdaptiveAvgPool2d(4)), "2: .*windows of one size.*adaptive_avg_pool2d"),
        (lambda: pooled(nn.AvgPool2d(4, ceil_mode=True)), "2: .*windows of one size"),
        (lambda: pooled(nn.AvgPool2d(2, padding=1, count_include_pad=False)), "2: .*padding included"),
        (lambda: pooled(nn.Conv2d(3, 3, (3, 1))), r"2: .*kernel of \[3, 1\]"),
        (lambda: converted(networks.MaxPooled), "NIR has no MaxPool, which needs a memory"),
        (lambda: converted(InSpace), r"add: adds values of shape \[\[3, 6, 6\], \[3, 1, 1\]\].*no broadcast in space"),
        (lambda: converted(networks.Residual, calibration="bias_potential"), "relu_pool: .*at its threshold or above"),
        (lambda: converted(networks.Plain, calibration="time_bias"), "relu: .*calibration=bias"),
    ],
)
def test_what_nir_cannot_express_is_named(network, words, tmp_path):
    with pytest.raises(ExportError, match=words) as error:
        to_nir(network(), (2, 6, 6), tmp_path / "network.nir")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_drip_needs_the_length_of_the_simulation(tmp_path):
    network = converted(networks.Plain, initial_potential="drip")
    with pytest.raises(ExportError, match="drip depends on the length"):
        to_nir(replace(network, steps=None), (2, 6, 6), tmp_path / "network.nir")
    for number, steps in enumerate((None, network.steps, 2 * STEPS)):
        to_nir(network, (2, 6, 6), tmp_path / f"{number}.nir", steps=steps)
    own, same, longer = (nir.read(tmp_path / f"{number}.nir").nodes["conv"].bias for number in range(3))
    assert np.array_equal(own, same)
    assert not np.array_equal(own, longer)


def test_an_image_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"^hidden: an image of shape \(2, 8, 8\) does not fit"):
        to_nir(converted(networks.Plain), (2, 8, 8), tmp_path / "network.nir")


def test_convolutions_in_one_dimension(tmp_path):
    model = nn.Sequential(nn.Conv1d(2, 4, 3, 2, padding=2), nn.ReLU(), nn.Conv1d(4, 4, 3, groups=2), nn.ReLU())
    model.append(nn.Flatten()).append(nn.Linear(8, 3)).double()
    draw = torch.Generator().manual_seed(0)
    for array in model.parameters():
        nn.init.normal_(array, generator=draw)
    images = torch.randn(6, 2, 5, generator=draw, dtype=torch.float64)
    network = convert(model, images, ConversionConfig(steps=STEPS))
    to_nir(network, (2, 5), tmp_path / "network.nir")
    conv = nir.read(tmp_path / "network.nir").nodes["0"]
    assert (int(conv.stride), int(conv.padding), int(conv.input_shape)) == (2, 2, 5)
    module = spikingjelly_from_nir(tmp_path / "network.nir", dt=1.0, dtype=torch.float64)
    for each in module.modules():
        if isinstance(each, IFNode):
            each.v_reset = None
    state: Any = None
    total = torch.zeros(6, 3, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(STEPS):
            logits, state = module(images, state)
            total += logits / STEPS
    torch.testing.assert_close(total, network.simulate(images, steps=STEPS)[STEPS], rtol=1e-12, atol=1e-12)
