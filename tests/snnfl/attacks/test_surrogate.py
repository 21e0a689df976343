"""The differentiable spiking network against the simulation, and its gradient against the formula."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from networks import Gated, Joined, MaxPooled, Plain, Residual, images, trained

from snnfl.attacks.problem import Problem
from snnfl.attacks.surrogate import spiking_network_of, spiking_problem
from snnfl.config import ConversionConfig
from snnfl.conversion import convert, fold
from snnfl.spiking import SpikingNetwork, trace
from snnfl.updates import Converted

surrogate_module = importlib.import_module("snnfl.attacks.surrogate")


@pytest.mark.parametrize("network", [Plain, Residual, Joined, MaxPooled, Gated])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"initial_potential": "half", "thresholds": "channel_mmse"},
        {"initial_potential": "half", "readout": "second_half"},
        {"initial_potential": "drip"},
        {"calibration": "bias_potential"},
        {"calibration": "time_bias"},
        {"signed": True, "burst": 2, "initial_potential": "half"},
        {"correction": "offset", "correction_steps": 4, "burst": 3, "two_sided": True},
        {"correction": "residual", "signed": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("surrogate", [False, True])
def test_logits_are_those_of_the_simulation(network, options, surrogate):
    config = ConversionConfig(steps=7, **options)
    spiking = convert(trained(network), images(8), config)
    function = spiking_network_of(spiking.graph, config, surrogate=surrogate)
    found = function(spiking.parameters, images(3, seed=2))
    torch.testing.assert_close(found, spiking.simulate(images(3, seed=2), steps=7)[7])


@pytest.mark.parametrize("network", [Plain, MaxPooled, Gated])
def test_an_image_has_a_gradient_by_the_surrogate_alone(network):
    config = ConversionConfig(steps=5)
    spiking = convert(trained(network), images(8), config)

    def slope(surrogate):
        pictures = images(2).requires_grad_()
        logits = spiking_network_of(spiking.graph, config, surrogate=surrogate)(spiking.parameters, pictures)
        return torch.autograd.grad(logits.sum() + 0 * pictures.sum(), pictures)[0].abs().max()

    assert slope(True) > 0
    assert slope(False) == 0


def test_the_gradient_of_a_transposed_convolution_is_that_of_its_folded_weight(monkeypatch):
    """The target of the spiking network's weights is the ANN's gradient by the chain rule, in their own layout."""
    monkeypatch.setattr(surrogate_module, "local_training", lambda view, count: None)
    model, pictures = trained(Gated), images(4)
    reals = {name: array for name, array in model.state_dict().items() if array.is_floating_point()}
    graph, sent = trace(model), {name: array.clone().requires_grad_() for name, array in reals.items()}
    folded = fold(graph, sent)
    layer = "up.weight"
    loss = SpikingNetwork.analog.__wrapped__(SpikingNetwork(graph, folded), pictures).square().sum()
    by_folded, by_ann = torch.autograd.grad(loss, [folded[layer], sent[layer]])
    names = {f"{node.name}.weight" for node in graph.affines if node.op != "scale"}
    target = {name: by_ann if name == layer else torch.zeros_like(sent[name]) for name in names}
    exchange = SimpleNamespace(sent=sent, received={})
    view = SimpleNamespace(format=Converted(graph, sent, ConversionConfig(steps=2)), exchange=exchange)
    problem = Problem(
        network=None, arrays={}, target=target, local=None, count=1, input_shape=(), classes=3, low=None, high=None
    )
    found = spiking_problem(view, problem, {}, surrogate=False).target[layer]
    torch.testing.assert_close(found, by_folded)
