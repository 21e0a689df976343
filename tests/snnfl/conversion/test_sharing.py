from __future__ import annotations

import importlib
from collections import Counter

import networks
import pytest
import torch
from torch import Tensor, nn

from snnfl.conversion import ConversionConfig, convert, fold, trace
from snnfl.conversion.memory import plan_memory
from snnfl.conversion.sharing import share
from snnfl.spiking.values import value_bytes

STEPS, IMAGES = 13, 7


class Repeated(nn.Module):
    """Residual blocks whose ReLU comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.convs = nn.Conv2d(2, 4, 1), nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.convs:
            x = x + conv(torch.relu(x))
        return self.head(torch.relu(x).mean([2, 3]))


def test_what_several_layers_read_is_kept_until_the_last_has_read_it():
    sharing = share(trace(Repeated()))
    # add is the sum of the constant stem and the first convolution, add_1 of add and the second ...
    assert sharing.before == {
        "relu": (),
        "relu_1": ("add",),
        "relu_2": ("add_1",),
        "relu_3": ("add_2",),
        "relu_4": (),  # only one layer reads the last sum
    }
    assert {name: names for name, names in sharing.forgotten.items() if names} == {
        "add_1": ("add",),
        "add_2": ("add_1",),
        "relu_4": ("add_2",),
    }
    sizes = dict.fromkeys(("add", "add_1", "add_2"), 100)
    assert sharing.peaks(sizes) == {"relu": 0, "relu_1": 100, "relu_2": 100, "relu_3": 100, "relu_4": 100}
    sizes["add_1"] = 30  # what differs in size takes no other's place
    assert sharing.peaks(sizes) == {"relu": 0, "relu_1": 100, "relu_2": 130, "relu_3": 130, "relu_4": 100}


def test_terms_of_a_concatenation_are_kept_and_what_is_cheap_is_not():
    graph = trace(networks.PreActivation())
    kept = [name for names in share(graph).before.values() for name in names]
    assert kept == ["add", "add_1", "add_2", "cat"]


@pytest.mark.parametrize("network", [networks.Plain, networks.Residual, networks.Joined, networks.Dense])
def test_what_one_layer_reads_is_not_kept(network):
    sharing = share(trace(network()))
    assert not any(sharing.before.values())
    assert not any(sharing.forgotten.values())


def shared_images(model: nn.Module, config: ConversionConfig) -> int:
    graph, images = trace(model), networks.images(IMAGES)
    sizes = value_bytes(graph, fold(graph, model.state_dict()), images)
    return plan_memory(graph, sizes, images=IMAGES, itemsize=8, config=config).shared_images


def least(model: nn.Module, **options: object) -> int:
    with pytest.raises(ValueError, match="at least") as error:
        convert(model, networks.images(IMAGES), ConversionConfig(steps=STEPS, max_bytes=1, **options))
    return int(str(error.value).split("at least ")[1].split()[0])


@pytest.mark.parametrize("network", [networks.PreActivation, Repeated])
def test_each_layer_computes_each_image_and_step_once(network, monkeypatch):
    module = importlib.import_module("snnfl.conversion.replay")
    compute, work = module.linear_value, Counter[str]()

    def counted(node, values, constants, parameters, length, layers):
        found = compute(node, values, constants, parameters, length, layers)
        work[node.name] += len(found)
        return found

    monkeypatch.setattr(module, "linear_value", counted)
    model = networks.trained(network)
    options = {"steps": STEPS, "calibration": "none"}
    convert(model, networks.images(IMAGES), ConversionConfig(**options))
    assert {work[name] for name in work if "conv" in name or "grow" in name} == {STEPS * IMAGES}
    work.clear()
    convert(model, networks.images(IMAGES), ConversionConfig(**options, max_bytes=least(model, calibration="none")))
    assert work["convs.0"] > STEPS * IMAGES, "without memory everything is computed again"


@pytest.mark.parametrize(("calibration", "some"), [("bias", True), ("time_bias", False)])
def test_images_are_kept_as_far_as_memory_allows(calibration, some, monkeypatch):
    """Biases in time take all images at each step, so that there it is all of them or none."""
    monkeypatch.setattr(importlib.import_module("snnfl.conversion.memory"), "CHUNK_BYTES", 1)
    model = networks.trained(networks.PreActivation)
    smallest = least(model, calibration=calibration)
    counts = [
        shared_images(model, ConversionConfig(steps=STEPS, calibration=calibration, max_bytes=smallest + extra))
        for extra in range(0, 400_000, 10_000)
    ]
    assert (counts[0], counts[-1]) == (0, IMAGES)
    assert bool({*counts} - {0, IMAGES}) == some
