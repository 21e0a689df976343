"""Structures that people publish convert as they are, in wording of our own: each by its shape, not by its weights."""

from __future__ import annotations

from collections.abc import Callable

import networks
import pytest
import stepwise
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfl.config import ConversionConfig
from snnfl.conversion import convert
from snnfl.conversion.exposure import exposed_biases
from snnfl.metrics import count_spikes
from snnfl.spiking import MaxPool, Spike, SpikingNetwork
from snnfl.updates import converted_specs


class ChannelsFirst(nn.Module):
    """Turns pictures as TensorFlow has them into those of PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute((0, 3, 1, 2))


def two_convolutions() -> nn.Module:
    """Build the simple CNN of pfl-research's benchmarks: channels last, max pooling, dropout."""
    return nn.Sequential(
        *(ChannelsFirst(), nn.Conv2d(2, 4, (3, 3)), nn.ReLU(), nn.Conv2d(4, 6, (3, 3)), nn.ReLU()),
        *(nn.MaxPool2d((2, 2)), nn.Dropout(0.25), nn.Flatten(), nn.Linear(6, 8), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(8, 3)),
    )


class Double(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        layers = (nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
        more = (nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
        super().__init__(*layers, *more)


class UNet(nn.Module):
    """Down by max pooling, up by transposed convolutions or bilinearly, padded to what it is joined with."""

    def __init__(self, *, bilinear: bool) -> None:
        super().__init__()
        self.first, self.second, self.bottom = Double(2, 3), Double(3, 4), Double(4, 4)
        self.pool = nn.MaxPool2d(2)
        self.up2 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.up1 = nn.Upsample(scale_factor=2, mode="nearest")
        if not bilinear:
            self.up2, self.up1 = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.ConvTranspose2d(3, 3, 2, stride=2)
        self.left2, self.left1 = Double(8, 3), Double(6, 2)
        self.out = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(self.pool(first))
        x = self.up2(self.bottom(self.pool(second)))
        x = self.left2(self.joined(second, x))
        return self.out(self.left1(self.joined(first, self.up1(x))))

    def joined(self, skip: Tensor, x: Tensor) -> Tensor:
        down, right = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return torch.cat([skip, x], dim=1)


class Fire(nn.Module):
    """SqueezeNet's: a max pooling follows a concatenation, so that no neurons are right before it."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.narrow = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1)
        self.wide, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        x = torch.cat([self.relu(self.narrow(x)), self.relu(self.wide(x))], 1)
        x = self.relu(self.last(F.max_pool2d(x, 3, 2, ceil_mode=True)))
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


class Inception(nn.Module):
    """GoogLeNet's: a max pooling of a ReLU that three other branches read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 3, padding=1)
        self.pooled, self.pool = nn.Conv2d(4, 2, 1), nn.MaxPool2d(3, stride=1, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        branches = [self.one(x), self.two(x), self.pooled(self.pool(x))]
        return self.head(torch.relu(torch.cat(branches, 1)).mean([2, 3]))


class PaddedShortcut(nn.Module):
    """The ResNet of the CIFAR experiments, whose shortcuts take every other pixel and pad channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.conv(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0))
        return self.head(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


class Excited(nn.Module):
    """Sums that broadcast: a number per channel of the picture, a picture for all channels, one channel and many."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.one, self.gate = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(2, 1, 1), nn.Conv2d(8, 8, 1)
        self.map, self.head = nn.Conv2d(8, 1, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x) + self.wide(x))
        y = torch.relu(self.gate(y.mean((2, 3), keepdim=True)) + y)
        y = torch.relu(self.map(y) + self.gate.bias.view(-1, 1, 1) + y)
        return self.head(y.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "simple cnn": two_convolutions,
    "u-net": lambda: UNet(bilinear=False),
    "u-net, bilinear": lambda: UNet(bilinear=True),
    "squeezenet": Fire,
    "googlenet": Inception,
    "padded shortcut": PaddedShortcut,
    "excited": Excited,
}


def pictures(kind: str, count: int = 6) -> Tensor:
    images = networks.images(count)
    return images.permute(0, 2, 3, 1).contiguous() if kind == "simple cnn" else images


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    "options", [{}, {"thresholds": "channel_mmse", "readout": "second_half"}], ids=["paper", "fast"]
)
def test_it_converts_and_every_step_is_right(kind, options):
    model, images = networks.trained(NETWORKS[kind]), pictures(kind)
    network = convert(model, images, ConversionConfig(steps=10, initial_potential="half", **options))
    plain = convert(model, images, ConversionConfig(steps=10, calibration="none"))
    torch.testing.assert_close(plain.analog(images), model(images), rtol=1e-9, atol=1e-9)
    moved = {name: a * 1.00123 if "threshold" in name else a for name, a in network.parameters.items()}
    network = SpikingNetwork(network.graph, moved, "half", network.readout)
    found = network.simulate(images, steps=10, curve=(1, 7))
    for length, logits in stepwise.logits(network, images, 10).items():
        if length in found:
            torch.testing.assert_close(found[length], logits, rtol=1e-9, atol=1e-9)
    assert count_spikes(network, images, steps=10).energy.total > 0


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_becomes_the_ann_with_more_steps(kind):
    """Max pooling included: the maximum of the current at each step would stay above that of the mean."""
    model, images = networks.trained(NETWORKS[kind]), pictures(kind, 4)
    config = ConversionConfig(steps=2048, thresholds="layer_max", calibration="none", initial_potential="half")
    logits = convert(model, images, config).simulate(images, steps=2048, curve=(32,))
    errors = {length: (logits[length] - model(images)).square().mean().sqrt().item() for length in (32, 2048)}
    assert errors[2048] < errors[32] / 10, errors


@pytest.mark.parametrize("kind", sorted(set(NETWORKS) - {"excited"}))
@pytest.mark.parametrize("thresholds", ["layer_mmse", "channel_mmse"])
def test_an_update_of_it_is_what_the_server_expects(kind, thresholds):
    model, images = networks.trained(NETWORKS[kind]), pictures(kind)
    network = convert(model, images, ConversionConfig(steps=4, thresholds=thresholds))
    state = {name: array for name, array in model.state_dict().items() if "num_batches" not in name}
    specs = converted_specs(network.graph, state, ConversionConfig(thresholds=thresholds))
    own = {name: spec.shape for name, spec in specs.items() if name in network.parameters}
    assert own == {name: tuple(array.shape) for name, array in network.parameters.items()}


def test_where_maxima_stand():
    """Before neurons that nothing else reads, else where the model has them."""
    places = {}
    for kind in ("simple cnn", "squeezenet", "googlenet"):
        graph = convert(networks.trained(NETWORKS[kind]), pictures(kind), ConversionConfig(steps=2)).graph
        (pool,) = (node for node in graph.nodes if isinstance(node, MaxPool))
        places[kind] = [type(reader) is Spike for reader in graph.consumers[pool.name]]
    assert places == {"simple cnn": [True], "squeezenet": [False], "googlenet": [False]}


class Sum(nn.Module):
    """One channel and eight, in either order."""

    def __init__(self, *, one_first: bool) -> None:
        super().__init__()
        self.wide, self.one, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(2, 1, 1), nn.Linear(8, 3)
        self.one_first = one_first

    def forward(self, x: Tensor) -> Tensor:
        one, wide = self.one(x), self.wide(x)
        return self.head(torch.relu(one + wide if self.one_first else wide + one).mean((2, 3)))


@pytest.mark.parametrize("one_first", [True, False])
def test_the_shift_of_a_sum_goes_to_a_term_of_its_channels(one_first):
    model, images = networks.trained(lambda: Sum(one_first=one_first)), networks.images(8)
    network = convert(model, images, ConversionConfig(steps=8))
    state = model.state_dict()
    layers = ("one", "wide")
    moved = [each for each in layers if not torch.equal(network.parameters[f"{each}.bias"], state[f"{each}.bias"])]
    assert moved == ["wide"]
    assert exposed_biases(network.graph, "bias", state, (2, 6, 6)) == ("one",)
    mean = network.simulate(images, steps=8)[8].mean(0)
    torch.testing.assert_close(mean, model(images).mean(0), rtol=1e-9, atol=1e-9)
