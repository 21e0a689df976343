"""Noise inside the masks: what a server unmasks is the clipped sum with at least the noise that is proven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import Config, ConfigError, compose, flatten
from snnfl.masking import FieldError
from snnfl.privacy.noise import Stream, new_key
from snnfl.privacy.skellam import SkellamLedger
from snnfl.updates.coordinates import coordinates, origin
from snnfl.updates.noised import NoisySum, noisy_sum
from snnfl.workspace import Workspace
from strategies.run_directory import read_metrics, simulated_node
from strategies.server_app import server_app

SMALL = [
    "run.rounds=2", "data.clients=5", "data.training_images=100", "data.test_images=50", "data.minimum_samples=5",
    "data.partition=iid", "training.epochs=1", "model.name=mlp", "model.batch_norm=false", "conversion.steps=4",
    "conversion.candidates=5", "conversion.calibration_images=8", "evaluation.clients=false",
    "strategy.secure_aggregation=true", "strategy.minimum_replies=4", "privacy.mechanism=distributed",
]  # fmt: skip


def configured(*overrides: str) -> Config:
    return compose(None, [*SMALL, *overrides])


def play(path: Path, *overrides: str) -> Config:
    found = configured(f"run.directory={path}", *overrides)
    run_in_process(
        server_app(),
        client_app.app,
        run_config=flatten(found),
        clients=found.data.clients,
        node_config=simulated_node(found),
    )
    return found


def layout_of(config: Config) -> tuple[NoisySum, dict[str, torch.Tensor], Workspace]:
    work = Workspace(config)
    sent = {name: work.initial_state[name] for name in work.format.sent_specs}
    return noisy_sum(config, work.format).at(origin(work.format, sent)), sent, work


@pytest.mark.parametrize("kind", ["strategy.spiking=false", "strategy.spiking=true"])
def test_a_run_under_masks_moves_as_far_as_the_bound_and_counts_skellam(tmp_path: Path, kind: str) -> None:
    options = ["privacy.noise_multiplier=1", "privacy.clipping_norm=0.5", "privacy.noise_seed=1", kind]
    config = play(tmp_path, *options)
    rows = read_metrics(tmp_path / "run")
    layout, _, _ = layout_of(config)
    size = layout.length - 2
    assert [row["epsilon"] for row in rows] == [SkellamLedger(1.0, n, size).epsilon(1e-5) for n in (1, 2)]
    assert [row["replies"] for row in rows] == [5, 5]
    assert all(row["aggregated"] and row["train_loss"] is None for row in rows)  # no metric is told without noise
    assert rows[0]["bytes_up"] < 5 * (4 * layout.length + 6000)
    name = "final_snn.safetensors" if kind.endswith("true") else "final_ann.safetensors"
    assert all(torch.isfinite(array).all() for array in load_file(tmp_path / "run" / name).values())


@pytest.mark.parametrize("kind", ["strategy.spiking=false", "strategy.spiking=true"])
def test_the_sum_is_of_the_clipped_vectors_with_the_noise_of_all_shares(kind: str) -> None:
    config = configured(kind, "privacy.noise_multiplier=2", "privacy.clipping_norm=0.7")
    layout, sent, work = layout_of(config)
    before, known = layout._layout.vector(layout.known), dict(layout.known)
    images = torch.randn(8, *work.dataset.input_shape, generator=torch.Generator().manual_seed(0))
    update = {name: a.cpu() for name, a in work.format.encode(work.initial_state, images).items()}
    update = {name: a * 1.1 for name, a in update.items()}
    total = sum(layout.noised(update, sent, Stream(new_key(n), "noise")) for n in range(5))
    layout.decode(total, sent, 5)
    moved = layout._layout.vector(layout.known) - before
    change = layout._layout.vector(coordinates(work.format, update, sent)) - before
    change *= min(1.0, 0.7 / np.linalg.norm(change))
    noise = moved - change
    assert noise.std() == pytest.approx(2 * 0.7 * (5 / 4) ** 0.5 / 5, rel=0.05)  # shares for four, of five clients
    assert abs(noise @ change) / np.linalg.norm(change) < 5 * noise.std()
    layout.at(known)
    with pytest.raises(FieldError, match="5 clients count 4"):
        layout.decode(total - np.eye(1, len(total), dtype=total.dtype)[0], sent, 5)


def test_a_mask_that_is_left_is_no_sum() -> None:
    layout, sent, _ = layout_of(configured("strategy.spiking=false"))
    mask = Stream(new_key(3), "mask").words(layout.length).astype(layout.field.dtype)
    mask[:2] = 5, 0
    with pytest.raises(FieldError, match="larger than clients can make them"):
        layout.decode(mask, sent, 5)


def test_noise_that_double_precision_cannot_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"noise_multiplier=1e\+06: a share of the noise is beyond double precision"):
        layout_of(configured("strategy.spiking=false", "privacy.noise_multiplier=1e6"))


def test_without_masks_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy.mechanism=distributed: without masks the server sees each update"):
        run_in_process(
            server_app(),
            client_app.app,
            run_config=flatten(configured("strategy.secure_aggregation=false")),
            clients=5,
        )
