from __future__ import annotations

from dataclasses import replace
from typing import Any

import networks
import pytest
import stepwise
import torch
from torch import Tensor, nn

from snnfl.config import ModelConfig
from snnfl.conversion import ConversionConfig, convert_state, fold
from snnfl.metrics import LayerCount, SpikeCount, count_spikes, energy
from snnfl.models import build_model
from snnfl.spiking import Affine, Spike, SpikingGraph, SpikingNetwork, to_spikingjelly, trace
from snnfl.torchvision_guard import guard

guard()

from spikingjelly.activation_based import op_counter  # noqa: E402  (torchvision must be guarded first)
from spikingjelly.activation_based.neuron import IFNode  # noqa: E402

STEPS, IMAGES = 16, 5


def converted(model: nn.Module, shape: tuple[int, ...] = (2, 6, 6), **options: Any) -> SpikingNetwork:
    graph = trace(model, max_pooling="gated")
    return convert_state(graph, model.state_dict(), pictures(shape), ConversionConfig(steps=STEPS, **options))


def pictures(shape: tuple[int, ...], count: int = IMAGES) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def drawn(*layers: nn.Module) -> nn.Module:
    """Build a sequence of layers with random weights."""
    model = nn.Sequential(*layers).double()
    draw = torch.Generator().manual_seed(0)
    for array in model.parameters():
        nn.init.normal_(array, generator=draw)
    return model


def spikes_of(network: SpikingNetwork, images: Tensor) -> dict[str, Tensor]:
    """Count each neuron's spikes over all images and steps with spikingjelly's neurons."""
    module, found = to_spikingjelly(network), dict[str, Tensor]()

    def add(name: str, spikes: Tensor) -> None:
        found[name] = found.get(name, 0) + spikes.sum(0)

    for name, each in module.named_modules():
        if isinstance(each, IFNode):
            each.register_forward_hook(lambda m, i, spikes, name=name: add(name, spikes))
    with torch.no_grad():
        for _ in range(STEPS):
            module(images)
    return found


def counted(count: SpikeCount) -> dict[str, LayerCount]:
    return {layer.layer: layer for layer in count.layers}


@pytest.mark.parametrize(
    "kind", [networks.Plain, networks.Residual, networks.Joined, networks.Dense, networks.MaxPooled]
)
@pytest.mark.parametrize("thresholds", ["layer_mmse", "channel_mmse"])
def test_spikes_are_those_of_spikingjellys_neurons(kind, thresholds, monkeypatch):
    network, images = converted(networks.trained(kind), thresholds=thresholds), pictures((2, 6, 6))
    expected = spikes_of(network, images)
    for at_once in (16, 2):
        monkeypatch.setattr(energy, "IMAGES_AT_ONCE", at_once)
        count = count_spikes(network, images, steps=STEPS)
        assert {layer.layer for layer in count.layers if layer.neurons} == expected.keys()
        for name, spikes in expected.items():
            layer = counted(count)[name]
            assert layer.neurons == spikes.numel()
            assert layer.spikes == pytest.approx(spikes.sum().item() / IMAGES, rel=1e-12)
            assert layer.rate == pytest.approx(layer.spikes / layer.neurons / STEPS, rel=1e-12)


def fan_out(network: SpikingNetwork, source: str, target: str, shape: torch.Size) -> Tensor:
    """Count what each neuron reaches, literally: move it alone and see which outputs of a layer move."""
    nodes = network.graph.nodes
    start, stop = (next(i for i, node in enumerate(nodes) if node.name == name) for name in (source, target))
    positive = {name: torch.ones_like(array) for name, array in network.parameters.items()}
    found = []
    for moved in (torch.zeros(shape), *torch.eye(shape.numel()).view(-1, *shape)):
        values = {source: moved[None].double()}
        for node in nodes[start + 1 : stop + 1]:
            if set(node.inputs) <= values.keys():
                values[node.name] = node.apply([values[name] for name in node.inputs], positive)
        found.append(values[target])
    return torch.stack([(value != found[0]).sum() for value in found[1:]]).view(shape).double()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 2, stride=3, padding=(0, 2)),
        nn.Conv2d(4, 6, (3, 1), dilation=(2, 1), padding=(1, 0), groups=2),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 3, 2)),
        nn.Sequential(nn.AvgPool2d(4, ceil_mode=True), nn.Conv2d(4, 3, 1)),
        nn.Sequential(nn.AdaptiveAvgPool2d((3, 2)), nn.Conv2d(4, 3, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5)),
        nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 5)),
    ],
)
def test_accumulations_are_spikes_times_fan_out(layer):
    network = converted(
        drawn(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), *(layer if isinstance(layer, nn.Sequential) else [layer]))
    )
    images = pictures((2, 6, 6))
    (name, spikes), *_ = spikes_of(network, images).items()
    target = network.graph.output
    expected = (spikes * fan_out(network, name, target, spikes.shape)).sum().item() / IMAGES
    assert expected > 0
    found = counted(count_spikes(network, images, steps=STEPS))[target]
    assert (found.acs, found.macs) == (pytest.approx(expected, rel=1e-12), 0)


@pytest.mark.parametrize(
    ("pool", "features"),
    [
        (nn.AvgPool2d(3, 1), 16),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), 9),
        (nn.AvgPool2d(3, 2, ceil_mode=True), 9),
        (nn.AdaptiveAvgPool2d(4), 16),
        (nn.AdaptiveAvgPool2d((5, 1)), 5),
    ],
)
def test_windows_that_overlap_are_paths_of_their_own(pool, features):
    model = drawn(nn.Conv2d(2, 1, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(features, 3))
    network, images = converted(model), pictures((2, 6, 6))
    spikes = spikes_of(network, images)["1"]
    reached = torch.autograd.functional.jacobian(pool, spikes[None]).view(features, 36) != 0
    assert bool((reached.sum(0) > 1).any())
    expected = 3 * (reached.double() @ spikes.flatten()).sum().item() / IMAGES
    assert counted(count_spikes(network, images, steps=STEPS))["4"].acs == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("pool", "features"), [(nn.AvgPool1d(3, 2), 4), (nn.AvgPool1d((3,), 2, 1, True), 5), (nn.AdaptiveAvgPool1d(4), 4)]
)
def test_pooling_in_one_dimension(pool, features):
    model = drawn(nn.Conv1d(2, 1, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(features, 3))
    network, images = converted(model, (2, 9)), pictures((2, 9))
    spikes = spikes_of(network, images)["1"]
    reached = torch.autograd.functional.jacobian(pool, spikes[None]).view(features, 9) != 0
    expected = 3 * (reached.double() @ spikes.flatten()).sum().item() / IMAGES
    assert counted(count_spikes(network, images, steps=STEPS))["4"].acs == pytest.approx(expected, rel=1e-12)


def test_shortcuts_means_and_factors_cost_one_per_path():
    residual, images = converted(networks.trained(networks.Residual)), pictures((2, 6, 6))
    layers = counted(count_spikes(residual, images, steps=STEPS))
    assert layers["relu1"].acs == pytest.approx(layers["stem.2"].spikes, rel=1e-12)  # the identity shortcut
    assert layers["relu_pool"].acs == pytest.approx(layers["relu2"].spikes, rel=1e-12)  # a pooling that spikes
    assert layers["relu2"].acs == 0
    dense = converted(networks.trained(networks.Dense))
    layers = counted(count_spikes(dense, images, steps=STEPS))
    assert layers["head"].acs == pytest.approx(3 * layers["relu"].spikes, rel=1e-12)  # behind a mean over the picture


def test_constant_layers_cost_once_and_analog_ones_at_every_step():
    model = drawn(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 1), nn.ReLU())
    model.append(nn.Flatten()).append(nn.Linear(24, 3)).double()
    layers = counted(count_spikes(converted(model), pictures((2, 6, 6)), steps=STEPS))
    assert [(layers[name].macs, layers[name].ann_macs) for name in ("0", "1")] == [(864, 864), (192, 192)]
    assert (layers["3"].macs, layers["3"].ann_macs) == (0, 720)
    assert (layers["4"].macs, layers["4"].acs, layers["4"].ann_macs) == (120 * STEPS, 0, 120)
    assert (layers["0"].words, layers["0"].ann_words) == (864 + 48, 864 + 48)
    assert (layers["4"].words, layers["4"].ann_words) == ((120 + 24) * STEPS, 120 + 24)


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 41), ("resnet20_snfl", 187)])
def test_the_anns_macs_are_the_published_ones(name, millions):
    """ResNet-20: 41 M (He et al. 2016, its widths and sizes); the ResNet-20 of Li et al. 2021: 187 M."""
    draw = torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(name=name), input_shape=(3, 32, 32), classes=10, generator=draw).eval()
    graph = trace(model)
    thresholds = {f"{node.name}.threshold": torch.ones(1) for node in graph.spikes}
    network = SpikingNetwork(graph, {**fold(graph, model.state_dict()), **thresholds})
    count = count_spikes(network, torch.randn(1, 3, 32, 32, generator=draw), steps=1)
    assert round(count.total.ann_macs / 1e6) == millions


def test_a_layer_of_spikes_and_image_costs_both():
    network = converted(networks.trained(networks.Joined))
    layers = counted(count_spikes(network, pictures((2, 6, 6)), steps=STEPS))
    assert layers["mix"].macs == layers["mix"].ann_macs == 4 * 36 * 5
    assert layers["mix"].acs == pytest.approx(4 * layers["relu"].spikes, rel=1e-12)


def counters(
    network: SpikingNetwork, images: Tensor
) -> tuple[dict[str, int], dict[str, int], dict[str, dict[str, int]]]:
    """Run spikingjelly's counters: accumulations and MACs by layer, memory traffic in bytes by layer and kind."""
    module = to_spikingjelly(network)
    synops, macs = op_counter.SynOpCounter(), op_counter.MACCounter()
    memory = op_counter.NeuromorphicMemoryAccessCounter()
    modes = op_counter.ModuleCounterMode([memory], model=module), op_counter.DispatchCounterMode([synops, macs])
    with torch.no_grad(), modes[0], modes[1]:
        for _ in range(STEPS):
            module(images)
    prefix = f"{type(module).__name__}."
    by_layer = [
        {scope.removeprefix(prefix): counts for scope, counts in counter.get_counts().items()}
        for counter in (synops, macs, memory)
    ]
    ops, products = ({name: sum(counts.values()) for name, counts in each.items()} for each in by_layer[:2])
    return ops, products, by_layer[2]


def test_counts_equal_spikingjellys_counters():
    network, images = converted(networks.trained(networks.Residual)), pictures((2, 6, 6))
    synops, macs, memory = counters(network, images)
    layers = counted(count_spikes(network, images, steps=STEPS))
    for name in ("conv1", "conv2", "project.0", "hidden", "head"):
        assert layers[name].acs * IMAGES == pytest.approx(synops[name], rel=1e-12)
        assert layers[name].words * IMAGES * 8 == pytest.approx(sum(memory[name].values()), rel=1e-12)
    # It runs the first layer anew at every step; computed once, it costs a part.
    assert layers["stem.0"].macs * IMAGES * STEPS == macs["stem.0"]
    assert layers["stem.0"].words * IMAGES * STEPS * 8 == sum(memory["stem.0"].values())
    for name in ("stem.2", "relu1", "relu2", "relu_pool", "relu3"):
        state = (layers[name].words - layers[name].acs) * IMAGES * 8
        assert state == pytest.approx(sum(memory[name].values()), rel=1e-12)


def test_energy_is_that_of_spikingjellys_model():
    costs = op_counter.SimpleEnergyCostConfig.fp32()
    network, images = converted(networks.trained(networks.Plain)), pictures((2, 6, 6))
    count = count_spikes(network, images, steps=STEPS)
    total = count.total
    assert count.energy.compute == pytest.approx(total.macs * costs.e_mac_pj + total.acs * costs.e_ac_pj)
    assert count.energy.memory == pytest.approx(4 * total.words * costs.e_memory_pj_per_byte)
    assert count.energy.total == count.energy.compute + count.energy.memory
    assert count.ann_energy.compute == pytest.approx((2592 + 288 + 24) * 4.6)
    assert count.ann_energy.memory == pytest.approx((2592 + 288 + 24 + 144 + 8 + 3) * 4 * 24.96)


def test_rows_add_up_to_the_total():
    network, images = converted(networks.trained(networks.Residual)), pictures((2, 6, 6))
    count = count_spikes(network, images, steps=STEPS)
    rows = count.rows()
    assert [row["layer"] for row in rows][:3] == ["stem.0", "stem.2", "conv1"]
    assert count.total.layer == "total"
    assert count.total.acs == sum(row["acs"] for row in rows)
    assert count.total.neurons == 144 + 144 + 54 + 6 + 5
    assert count.total.rate == pytest.approx(count.total.spikes / (353 * STEPS))


def test_counting_leaves_the_simulation_alone_and_needs_an_image():
    network, images = converted(networks.trained(networks.Plain)), pictures((2, 6, 6))
    graph, before = network.graph, network.simulate(images, steps=STEPS)[STEPS]
    count_spikes(network, images, steps=STEPS)
    assert network.graph is graph
    assert torch.equal(network.simulate(images, steps=STEPS)[STEPS], before)
    with pytest.raises(ValueError, match="no images"):
        count_spikes(network, images[:0], steps=STEPS)


@pytest.mark.parametrize("level", [0.1, 1 / 3, 123.456])
def test_no_spike_is_lost_to_rounding(level):
    """The mean of 2,000 steps is divided by the threshold, in single precision, and rounded to a number of spikes."""
    nodes = (
        Affine(name="layer", inputs=("input",), op="linear"),
        Spike(name="relu", inputs=("layer",)),
        Affine(name="head", inputs=("relu",), op="linear"),
    )
    weights = {"layer.weight": torch.eye(2), "layer.bias": torch.zeros(2), "relu.threshold": torch.tensor([level])}
    network = SpikingNetwork(SpikingGraph(nodes), {**weights, "head.weight": torch.eye(2), "head.bias": torch.zeros(2)})
    count = count_spikes(network, torch.tensor([[2 * level, 0.0]]), steps=2000)
    assert counted(count)["relu"].spikes == 2000


def test_what_passes_a_max_pooling_is_counted_as_spikes():
    """Of a concatenation, thresholds per channel: each spike is counted once, and what passes reaches what follows."""
    network, images = converted(networks.trained(networks.Gated), thresholds="channel_mmse"), pictures((2, 6, 6))
    layers = counted(count_spikes(network, images, steps=STEPS))
    spikes = sum((stepwise.outputs(network, images, STEPS, upto=name) != 0).sum() for name in ("relu", "relu_1"))
    assert layers["max_pool2d"].acs == pytest.approx(spikes.item() / IMAGES, rel=1e-12)
    assert layers["max_pool2d"].words == 2 * layers["max_pool2d"].acs
    passed = (stepwise.outputs(network, images, STEPS, upto="max_pool2d").abs() > 1e-9).sum(0).double()
    ones = torch.ones(4, 5, 3, 3, dtype=torch.float64)
    reached = torch.nn.functional.conv2d(passed, ones, padding=1).sum().item()
    assert layers["mix"].acs == pytest.approx(reached / IMAGES, rel=1e-12)
    assert layers["mix"].macs == 0
    assert layers["head"].acs == 0  # behind sums of maxima, which are real values
    assert layers["head"].macs == layers["head"].ann_macs * STEPS


def test_a_maximum_of_currents_reads_and_writes_its_sums_at_every_step():
    network, images = converted(networks.trained(networks.MaxPooled)), pictures((2, 6, 6))
    layers = counted(count_spikes(network, images, steps=STEPS))
    assert layers["max_pool2d"].words == 2 * (5 * 36 + 5 * 9) * STEPS
    assert layers["pool1"].words == 0  # of the image's own current, the same at every step
    assert all(layers[name].acs == layers[name].macs == 0 for name in ("pool1", "max_pool2d", "pool3"))


def test_all_spikes_are_counted_wherever_the_logits_are_read():
    network, images = converted(networks.trained(networks.Residual)), pictures((2, 6, 6))
    late = replace(network, readout="second_half")
    assert count_spikes(late, images, steps=STEPS) == count_spikes(network, images, steps=STEPS)
