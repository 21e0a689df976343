from __future__ import annotations

import pytest
import torch
from victims import digits, small_cnn, small_mlp, sorting_cnn

from snnfl import rng
from snnfl.attacks.imprint import imprinted
from snnfl.attacks.loki import loki_weights
from snnfl.config import DataConfig, ModelConfig
from snnfl.data import load
from snnfl.detection.crafted import crafted, doubled
from snnfl.models import build_model
from snnfl.training import exchangeable

MODELS = ("mlp", "lenet5", "convnet", "cnn", "conv_mlp", "resnet20")


@pytest.mark.parametrize("name", MODELS)
def test_no_model_that_starts_looks_crafted(name: str) -> None:
    data = load(DataConfig())
    shape = (3, 32, 32) if name != "mlp" else data.input_shape
    model = build_model(ModelConfig(name=name), input_shape=shape, classes=10, generator=rng.generator(0, "weights"))
    assert crafted(exchangeable(model)) is None


def test_imprinted_weights_do_whatever_the_order_of_their_rows() -> None:
    model = small_mlp(64)
    pixels, _, mean, std = digits(200)
    state = imprinted(model, dict(model.state_dict()), (pixels - mean) / std, seed=0)
    assert "'fc1.weight' point the same way" in str(crafted(state))
    order = torch.randperm(64, generator=rng.generator(0, "order"))
    assert crafted({name: array[order] if name.startswith("fc1") else array for name, array in state.items()})


def test_weights_of_a_sum_do_though_noise_costs_nothing_where_maps_are_zero() -> None:
    """Rows look like nobody's then, and the columns behind them give the server away."""
    model = sorting_cnn()
    pixels, _, mean, std = digits(200)
    state = loki_weights(model, dict(model.state_dict()), (pixels - mean) / std, seed=0, client=1)
    del state["conv1.weight"]  # of grey images the only channel is the mean
    assert "'fc2.weight' point the same way" in str(crafted(state))
    rows = state["fc2.weight"].clone()
    others = torch.ones(9 * 64, dtype=torch.bool)
    others[3 * 64 : 6 * 64] = False
    noise = torch.randn(256, int(others.sum()), generator=rng.generator(0, "noise"))
    rows[:, others] += rows.norm(dim=1, keepdim=True) * noise / noise.shape[1] ** 0.5
    assert doubled(rows) < 0.5
    assert "'fc3.weight' point the same way" in str(crafted({**state, "fc2.weight": rows}))


@pytest.mark.parametrize("noise", [0.01, 10.0])
def test_disturbed_rows_are_alike_until_they_are_not(noise: float) -> None:
    row = torch.ones(100)
    weight = row + noise * torch.randn(64, 100, generator=rng.generator(0, "noise"))
    assert (doubled(weight) > 0.5) == (noise < 1)


def test_dead_units_are_no_doubles() -> None:
    weight = torch.randn(64, 100, generator=rng.generator(0, "weight"))
    weight[10:] = 0
    assert doubled(weight) < 0.5
    assert crafted({"fc.weight": torch.zeros(64, 100), "bias": torch.zeros(64), "scale": torch.ones(64)}) is None
    assert crafted(exchangeable(small_cnn(norm=True))) is None


def test_arrays_without_elements_are_nobodys_craft() -> None:
    assert crafted({"rows": torch.zeros(0, 9), "columns": torch.zeros(9, 0), "both": torch.zeros(0, 9, 9)}) is None


def test_nobody_knows_which_rows_of_a_wide_weight_are_looked_at() -> None:
    weight = torch.randn(256, 300, generator=rng.generator(0, "weight"))
    looked_at = torch.randperm(256, generator=rng.generator(0, "rows"))[:128]
    crafted_rows = torch.ones(256, dtype=torch.bool)
    crafted_rows[looked_at] = False
    weight[crafted_rows] = weight[0].clone()
    assert doubled(weight) > 0.25
