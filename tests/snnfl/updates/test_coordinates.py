"""Coordinates hold all that an update tells, and an update follows from them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snnfl.config import compose
from snnfl.updates import UpdateFormat
from snnfl.updates.coordinates import OWN, ann_of, coordinates, origin, update_of
from snnfl.workspace import Workspace

KINDS = {
    "plain": ["strategy.spiking=false"],
    "native": ["strategy.spiking=false", "model.neuron=lif", "model.learn_beta=true", "model.learn_threshold=true"],
    "converted": [],
    "without batch normalisation": ["model.batch_norm=false"],
    "biases come back": ["strategy.bias_back=true", "model.conv_bias=true"],
    "per channel": ["conversion.thresholds=channel_mmse", "conversion.calibration=bias_potential"],
    "biases in time": ["conversion.calibration=time_bias", "conversion.thresholds=layer_max"],
    "learned thresholds": ["training.activation=qcfs"],
}


def an_update(kind: str, seed: int = 0) -> tuple[UpdateFormat, dict[str, Tensor], dict[str, Tensor]]:
    """Return a format, what its server sends, and an update of random arrays in their ranges."""
    work = Workspace(compose(None, ["data.clients=3", "conversion.steps=4", *KINDS[kind]]))
    draw, format = torch.Generator().manual_seed(seed), work.format
    sent = {name: work.initial_state[name] for name in format.sent_specs}
    update = {}
    for name, spec in format.specs.items():
        array = torch.rand(spec.shape, generator=draw)
        update[name] = array - 0.5 if spec.values == "finite" and not name.endswith("gamma") else array * 0.8 + 0.1
    return format, sent, update


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_follows_from_its_coordinates(kind: str) -> None:
    format, sent, update = an_update(kind)
    found = coordinates(format, update, sent)
    again = update_of(format, found)
    assert list(again) == list(update)
    for name, array in update.items():
        torch.testing.assert_close(again[name], array, rtol=1e-4, atol=1e-5, msg=name)
    start = origin(format, sent)
    assert {name: array.shape for name, array in start.items()} == {name: array.shape for name, array in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_on_the_wire_is_in_the_coordinates(kind: str) -> None:
    """What a client changes of any array, in any element, changes the vector that is clipped and noised."""
    format, sent, update = an_update(kind)
    before = coordinates(format, update, sent)
    for name, spec in format.specs.items():
        for index in (0, -1):
            changed = update[name].clone()
            changed.view(-1)[index] *= 0.9
            after = coordinates(format, {**update, name: changed}, sent)
            assert any(not torch.equal(before[key], after[key]) for key in before), (name, spec)


@pytest.mark.parametrize("kind", ["native", "converted", "per channel", "learned thresholds"])
def test_whatever_noise_does_to_coordinates_they_are_those_of_an_update_in_its_ranges(kind: str) -> None:
    format, sent, update = an_update(kind)
    draw = torch.Generator().manual_seed(1)
    found = coordinates(format, update, sent)
    noisy = {name: array + 30 * torch.randn(array.shape, generator=draw) for name, array in found.items()}
    for name, array in update_of(format, noisy).items():
        mistake = format.specs[name].mistake(array)
        assert mistake is None or "beyond" in mistake, (name, mistake)
    for name, array in ann_of(format, noisy).items():
        assert format.sent_specs[name].mistake(array) is None, name


def test_what_everybody_knows_is_the_sent_network_with_thresholds_of_one() -> None:
    format, sent, _ = an_update("converted")
    start = origin(format, sent)
    assert {name for name in start if not name.startswith(OWN)} == set(sent)
    update = update_of(format, start)
    assert all(torch.equal(update[name], torch.ones_like(update[name])) for name in format.threshold_names)
