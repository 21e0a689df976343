from __future__ import annotations

import pytest
import torch
from victims import attacked, digits, small_cnn, small_mlp, sorting_cnn

from snnfl import rng
from snnfl.attacks.imprint import imprinted
from snnfl.attacks.loki import loki_weights
from snnfl.config import DataConfig, ModelConfig
from snnfl.data import load
from snnfl.detection.crafted import crafted, doubled
from snnfl.metrics.images import psnr
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


def biased(batch: int) -> torch.nn.Module:
    """Return an honest network but for biases, by which each unit passes one of so many public images."""
    model = small_mlp(1000)
    pixels, _, mean, std = digits(500, 1000)
    with torch.no_grad():
        sums = ((pixels - mean) / std).flatten(1) @ model.fc1.weight.T
        model.fc1.bias.copy_(-torch.quantile(sums, 1 - 1 / batch, dim=0))
    return model


@pytest.mark.parametrize(("batch", "least"), [(16, 0.95), (64, 0.9)])
def test_who_sets_biases_alone_finds_images_and_is_not_noticed(batch: int, least: float) -> None:
    """What docs/audit.md says the check doesn't notice (as Boenisch et al. 2023, and Nowak et al. 2024, set them)."""
    model = biased(batch)
    assert crafted(exchangeable(model)) is None
    right = []
    for start in (0, 100, 200):
        victim = attacked(model, images=batch, start=start)
        sent, back = victim.view.exchange.sent, victim.view.exchange.received
        weight, bias = (sent[f"fc1.{part}"].double() - back[f"fc1.{part}"] for part in ("weight", "bias"))
        active = bias.abs() > 1e-3 * bias.abs().max()
        read = victim.view.pixels((weight[active] / bias[active, None]).float().view(-1, 1, 8, 8))
        right += [float(psnr(read, image.expand_as(read)).max()) > 40 for image in victim.truth.images]
    print(f"of batches of {batch} {sum(right) / len(right):.0%}")
    assert sum(right) / len(right) > least


def test_who_silences_all_classes_but_one_is_noticed() -> None:
    state = dict(exchangeable(small_mlp()))
    state["fc2.weight"] = state["fc2.weight"] * (torch.arange(10) == 3)[:, None]
    assert "'fc2.weight' point the same way" in str(crafted(state))


@pytest.mark.parametrize(("decay", "refused"), [(0.001, False), (0.05, True)])
def test_strong_weight_decay_makes_an_honest_network_look_crafted(decay: float, refused: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 1), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(32 * 64, 10),
    )  # fmt: skip
    pixels, labels, mean, std = digits(1000)
    images, draw = (pixels - mean) / std, rng.generator(0, "batches")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    for _ in range(300):
        batch = torch.randint(len(images), (64,), generator=draw)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    assert float((model(images).argmax(1) == labels).float().mean()) > 0.85
    assert (crafted(exchangeable(model)) is not None) == refused
