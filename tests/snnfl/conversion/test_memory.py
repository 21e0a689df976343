from __future__ import annotations

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from snnfl.conversion import ConversionConfig, convert, convert_state, fold, trace
from snnfl.conversion.memory import plan_memory
from snnfl.conversion.replay import CurrentStore
from snnfl.spiking import Affine
from snnfl.spiking.values import value_bytes

IMAGES = torch.randn(16, 2, 16, 16, generator=torch.Generator().manual_seed(0))


class Wide(nn.Module):
    """Few channels and large maps, a residual: what it holds while it is converted dwarfs the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(2, 16, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(16 * 16 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu3(self.conv3(self.relu2(self.conv2(x))) + x)
        return self.head(x.flatten(1))


class WideFirst(nn.Module):
    """The same with its ReLUs first: what it keeps for several layers dwarfs the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 16, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(16 * 16 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
            x = x + second(torch.relu(first(torch.relu(x))))
        return self.head(torch.relu(x).flatten(1))


class WideDense(nn.Module):
    """Each layer reads all before: the readout is computed from every train, behind a long chain of concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 16, 3, padding=1)
        self.grow = nn.ModuleList(nn.Conv2d(16 * (depth + 1), 16, 3, padding=1) for depth in range(4))
        self.head = nn.Linear(16 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.grow:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.head(x.mean([2, 3]))


class WideGated(nn.Module):
    """Max pooling of wide maps, one of them before the readout: its sums are double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.conv3, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16 * 8 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(torch.max_pool2d(x, 3, 1, padding=1)) + x)
        x = torch.relu(self.conv3(x))
        return self.head(torch.max_pool2d(x + x, 2).flatten(1))


def smallest(model: nn.Module, images: Tensor, **options: object) -> int:
    with pytest.raises(ValueError, match=r"max_bytes=1: .* at least \d+ bytes") as error:
        convert(model, images, ConversionConfig(max_bytes=1, **options))
    return int(str(error.value).split("at least ")[1].split()[0])


def peak_bytes(model: nn.Module, config: ConversionConfig) -> int:
    """Measure the most that PyTorch had allocated at any moment of a conversion."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        convert(model, IMAGES, config)
    events = recorded.profiler.kineto_results.events()
    allocated = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


@pytest.mark.parametrize("network", [Wide, WideFirst, WideDense, WideGated])
@pytest.mark.parametrize(
    ("calibration", "thresholds"),
    [("none", "layer_mmse"), ("bias_potential", "percentile"), ("bias", "channel_mmse"), ("time_bias", "layer_max")],
)
def test_the_ceiling_is_kept(calibration, thresholds, network):
    model, options = network(), {"steps": 12, "calibration": calibration, "thresholds": thresholds}
    if network is WideGated and calibration == "bias":
        options["readout"] = "second_half"
    least = smallest(model, IMAGES, **options)
    peaks = {
        ceiling: peak_bytes(model, ConversionConfig(max_bytes=ceiling, **options))
        for ceiling in (least, 2 * least, 20 * least)
    }
    # The ceiling doesn't cover the model: its weights are folded, and laid out for events with some zeros.
    weights = 3 * sum(parameter.nbytes for parameter in model.parameters())
    assert all(peak <= ceiling + weights for ceiling, peak in peaks.items()), peaks
    assert peaks[least] > least / 2, "the least is far from what is needed"
    with pytest.raises(ValueError, match="needs at least"):
        convert(model, IMAGES, ConversionConfig(max_bytes=least - 1, **options))


def test_more_memory_is_used_for_currents_and_no_more_than_they_take():
    model = Wide()
    graph = trace(model)
    sizes = value_bytes(graph, fold(graph, model.state_dict()), IMAGES)
    least = smallest(model, IMAGES, steps=20)

    def stored(ceiling: int, calibration: str) -> int:
        config = ConversionConfig(steps=20, max_bytes=ceiling, calibration=calibration)
        return plan_memory(graph, sizes, images=16, itemsize=4, config=config).stored

    assert 0 <= stored(least, "bias") < stored(4 * least, "bias") < stored(10**9, "bias")
    assert stored(10**9, "bias") == stored(10**10, "bias") == 20 * 16 * 16 * 16 * 16 * 4
    assert stored(10**9, "none") == stored(10**9, "time_bias") == 0  # they run each layer once


def test_the_readout_is_calibrated_without_convolutions_that_it_does_not_read(monkeypatch):
    """Its values are computed from the trains' means, once each, and no convolution between two trains again."""
    computed = []
    apply = Affine.apply
    monkeypatch.setattr(Affine, "apply", lambda node, *rest: (computed.append(node.name), apply(node, *rest))[1])
    model = WideDense()
    graph = trace(model)
    convert_state(graph, model.state_dict(), IMAGES[:2], ConversionConfig(steps=1, thresholds="layer_max"))
    after = computed[computed.index("head") :]  # once on shapes alone, once as the ANN, once for the readout
    assert after[after.index("head", 1) :].count("head") == 2
    assert set(after[after.index("head", 1) :]) == {"head"}


def test_currents_of_one_image_are_kept_where_no_others_are():
    """They may be a part of what is kept of several images, and were left as far apart as there."""
    several = torch.arange(60.0).view(4, 5, 3)
    store = CurrentStore(several.nbytes, several)
    for image in range(5):
        store.put((image, 0), several[:, image : image + 1])
    for image in range(5):
        assert torch.equal(store.get((image, 0)), several[:, image : image + 1])
    assert not store.fits(1)


def test_a_block_of_one_image_is_calibrated_as_several():
    model, images = WideFirst(), IMAGES[:8]
    options = {"steps": 20, "calibration": "bias", "thresholds": "channel_mmse"}
    little, much = (
        convert(model, images, ConversionConfig(max_bytes=most, **options)).parameters
        for most in (smallest(model, images, **options), 10**9)
    )
    for name, array in little.items():
        torch.testing.assert_close(much[name], array, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("network", [networks.Plain, networks.Residual, networks.Joined, networks.Dense])
def test_sizes_are_those_of_the_values(network):
    model, images = networks.trained(network), networks.images(3)
    graph = trace(model)
    parameters = fold(graph, model.state_dict())
    values = {graph.input: images}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        values[node.name] = inputs[0].relu() if node in graph.spikes else node.apply(inputs, parameters)
    sizes = value_bytes(graph, parameters, images)
    assert {name: 3 * size for name, size in sizes.items()} == {name: value.nbytes for name, value in values.items()}
