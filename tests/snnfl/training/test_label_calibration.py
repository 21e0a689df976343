"""FedLEC's objective against its formula, written out for single logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from snnfl.config import ModelConfig
from snnfl.models import SpikingModel, build_model, drawing
from snnfl.training import cross_entropy, label_calibrated

COUNTS = torch.tensor([6, 2, 0, 0])
ZERO = {"calibration": 0.0, "spread": 0.0, "distillation": 0.0}


def build(seed: int = 0) -> nn.Sequential:
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        for array in model.parameters():
            array.copy_(torch.randn(array.shape, generator=draw))
    return model


INPUTS = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 0])


def changed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model


def test_with_no_weight_it_is_the_cross_entropy() -> None:
    model = build()
    assert label_calibrated(model, COUNTS, **ZERO)(model, INPUTS, LABELS) == cross_entropy(model, INPUTS, LABELS)


@pytest.mark.parametrize("weights", [(0.7, 0, 0), (0, 0.2, 0), (0, 0, 3), (1, 0.005, 0.1)])
def test_the_terms_are_those_of_the_formula(weights: tuple[float, float, float]) -> None:
    calibration, spread, distillation = weights
    model = build()
    objective = label_calibrated(model, COUNTS, calibration=calibration, spread=spread, distillation=distillation)
    received = build().eval()(INPUTS).tolist()  # with the running statistics, whatever the batch
    z = changed(model)(INPUTS).tolist()
    log_pi = [math.log(pi + 1e-9) for pi in (0.75, 0.25, 0, 0)]
    expected = 0.0
    for row, label in zip(z, LABELS.tolist(), strict=True):
        calibrated = [math.exp(value + calibration * log) for value, log in zip(row, log_pi, strict=True)]
        expected -= math.log(calibrated[label] / sum(calibrated)) / 3
    for c, pi in enumerate((0.75, 0.25)):  # missing labels weigh nothing
        gaps = [
            1.0 if label == c else math.exp(row[c] - log_pi[c] - math.log(4))
            for row, label in zip(z, LABELS.tolist(), strict=True)
        ]
        expected += spread * pi * math.log(sum(gaps) / 3)
    for ours, theirs in zip(z, received, strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, row[2:])) for v in row[2:]] for row in (theirs, ours))
        expected += distillation * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    assert objective(model, INPUTS, LABELS).item() == pytest.approx(expected, rel=1e-5)


def test_a_client_that_has_all_labels_distils_nothing() -> None:
    model = build()
    objective = label_calibrated(model, torch.tensor([1, 2, 3, 4]), **{**ZERO, "distillation": 5.0})
    assert objective(changed(model), INPUTS, LABELS) == cross_entropy(model, INPUTS, LABELS)


def test_calibrated_logits_spare_missing_labels() -> None:
    """Cross-entropy pushes the logits of labels down that no sample has; calibrated, it leaves them."""
    model = build()
    for calibration, pushed in ((0.0, True), (1.0, False)):
        objective = label_calibrated(model, COUNTS, calibration=calibration, spread=0.1, distillation=0.0)
        (gradient,) = torch.autograd.grad(objective(model, INPUTS, LABELS), model[1].bias)
        assert (gradient[2:].abs() > 1e-3).all().item() == pushed
        assert (gradient[2:].abs() > 1e-6).any().item() == pushed


def test_the_received_model_is_left_alone_and_gets_no_gradient() -> None:
    model = build()
    objective = label_calibrated(model, COUNTS, calibration=1.0, spread=0.1, distillation=1.0)
    before = objective(model, INPUTS, LABELS)
    before.backward()
    changed(model)
    after = objective(model, INPUTS, LABELS)
    assert after != before
    model.load_state_dict(build().state_dict())
    assert objective(model, INPUTS, LABELS) == before


def test_the_received_model_sees_the_same_random_spikes() -> None:
    """So the distillation of a model that hasn't moved is zero, whatever is drawn."""
    config = ModelConfig(name="mlp", neuron="lif", time_steps=3, encoding="poisson", batch_norm=False)
    draw = torch.Generator().manual_seed(0)
    model = build_model(config, input_shape=(5,), classes=4, generator=draw)
    assert isinstance(model, SpikingModel)
    objective = label_calibrated(model, COUNTS, calibration=0.0, spread=0.0, distillation=1e4)

    def loss(function) -> float:
        with torch.no_grad(), drawing(model, torch.Generator().manual_seed(7)):
            return float(function(model, 3 * INPUTS, LABELS))

    assert loss(objective) == pytest.approx(loss(cross_entropy), abs=1e-2)
