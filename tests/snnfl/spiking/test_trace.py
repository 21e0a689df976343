from __future__ import annotations

import networks
import pytest
import torch
from torch import nn

from snnfl.conversion import fold
from snnfl.spiking import Affine, ConversionError, LinearMap, Spike, SpikingNetwork, trace


@pytest.mark.parametrize("network", [networks.Plain, networks.Residual, networks.Joined])
def test_the_analog_twin_is_the_model(network):
    """Folding, aliases, shapes and order are right if the graph with ReLU computes what the model computes."""
    model, images = networks.trained(network), networks.images()
    graph = trace(model)
    twin = SpikingNetwork(graph, fold(graph, model.state_dict()))
    torch.testing.assert_close(twin.analog(images), model(images), rtol=1e-12, atol=1e-12)


def test_nodes_carry_the_modules_names():
    graph = trace(networks.trained(networks.Residual))
    assert [node.name for node in graph.spikes] == ["stem.2", "relu1", "relu2", "relu_pool", "relu3"]
    assert {node.name: node.norm for node in graph.affines} == {
        "stem.0": "stem.1",
        "conv1": "norm1",
        "conv2": "norm2",
        "project.0": "project.1",
        "hidden": "norm3",
        "head": None,
    }


def test_calibration_sites():
    graph = trace(networks.trained(networks.Residual))
    sites = {node.name: graph.calibration_site(node.inputs[0]) for node in graph.spikes}
    names = {spike: site.name if site else None for spike, site in sites.items()}
    # The pooling layer has no bias in front of it; through an addition, its first term that nothing else reads.
    assert names == {"stem.2": "stem.0", "relu1": "conv1", "relu2": "conv2", "relu_pool": None, "relu3": "hidden"}


def test_what_varies_and_what_is_computed_once():
    graph = trace(networks.trained(networks.Joined))
    assert not {"left", "right", "add"} & graph.varying
    assert {"cat", "relu", "mix", "head"} <= graph.varying | {"relu_1"}
    assert graph.tail == {"reshape", "head"}
    assert graph.readout_inputs == ("relu_1",)


def test_a_relu_module_may_be_shared():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.relu(self.first(self.relu(self.first_input(x)))))

        def first_input(self, x: torch.Tensor) -> torch.Tensor:
            return x

    graph = trace(Shared())
    assert len(graph.spikes) == 2
    assert len({node.name for node in graph.spikes}) == 2


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)], ["2", "MaxPool2d", "AvgPool2d"]),
        ([nn.Linear(4, 4), nn.GELU()], ["1", "GELU", "nn.ReLU"]),
        ([nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()], ["1", "LayerNorm", "batch normalisation"]),
        ([nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)], ["1", "right after a layer"]),
        ([nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU()], ["1", "affine parameters"]),
        ([nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()], ["1", "running statistics"]),
        ([nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU()], ["0", "reflect", "zero padding"]),
        ([nn.ReLU(), nn.Flatten(2)], ["1", "nn.Flatten(1)"]),
        ([nn.Linear(4, 2)], ["no ReLU"]),
        ([nn.ReLU(), nn.Softmax(1)], ["1", "Softmax", "convolution"]),
    ],
)
def test_what_does_not_convert_is_named(layers, words):
    with pytest.raises(ConversionError) as error:
        trace(nn.Sequential(*layers))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_layer_called_twice_and_a_forward_that_branches_are_named():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(self.layer(self.layer(x)))

    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.used(x))

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) * 2

    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + 1

    for model, word in (
        (Twice(), "layer is called twice"),
        (Branching(), "control flow"),
        (Unused(), "unused.weight"),
        (Scaled(), "mul"),
        (Shifted(), "add"),
    ):
        with pytest.raises(ConversionError, match=word):
            trace(model)


def test_tracing_leaves_the_model_alone():
    model = networks.trained(networks.Residual)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_kinds_of_node():
    graph = trace(networks.trained(networks.Plain))
    kinds = [type(node) for node in graph.nodes]
    assert kinds == [Affine, Spike, LinearMap, LinearMap, Affine, Spike, Affine]
