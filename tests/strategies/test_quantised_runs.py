"""Whole runs whose updates, or networks, are quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.auditing.checked import read_checked
from snnfl.auditing.recording import RECORDING, Recording, RecordingError, client_folder, read_recording
from snnfl.config import Config, compose, flatten
from snnfl.protocol import STATE_DIRECTORY
from snnfl.quantisation import symmetric
from snnfl.updates import CODES, SCALES
from snnfl.workspace import Workspace
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import app as server_app

OPTIONS = ["run.rounds=2", "data.clients=3", "training.epochs=1", "conversion.steps=8", "evaluation.clients=false",
           "data.training_images=150", "data.test_images=100", "conversion.candidates=5"]  # fmt: skip
PLAIN = "strategy.spiking=false"
UPLOADS = "quantization.uploads=4"


def play(folder: Path, *options: str) -> tuple[Config, list[dict[str, Any]]]:
    config = compose(None, [*OPTIONS, *options, f"run.directory={folder}"])
    node = {STATE_DIRECTORY: str(folder / "clients")}
    run_in_process(server_app, client_app, run_config=flatten(config), clients=3, node_config=node)
    return config, read_metrics(folder / "run")


@pytest.mark.parametrize("spiking", [True, False])
def test_uploads_are_smaller_and_nobody_else_notices(tmp_path: Path, spiking: bool) -> None:
    kind = f"strategy.spiking={str(spiking).lower()}"
    _, before = play(tmp_path / "a", kind)
    _, rows = play(tmp_path / "b", kind, UPLOADS)
    assert [row["refused"] for row in rows] == [0, 0]
    assert all(row["aggregated"] for row in rows)
    assert rows[0]["bytes_up"] < before[0]["bytes_up"] / (4 if spiking else 6)
    assert rows[0]["bytes_down"] == before[0]["bytes_down"]


@pytest.mark.parametrize("option", [UPLOADS, "quantization.weights=4 quantization.per_channel=true"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, option: str) -> None:
    options = option.split()
    play(tmp_path / "whole", *options)
    play(tmp_path / "parts", *options, "run.rounds=1")
    play(tmp_path / "parts", *options, "run.resume=true")
    for name in (ANN_FILE, SNN_FILE):
        whole, parts = (load_file(tmp_path / folder / "run" / name) for folder in ("whole", "parts"))
        assert all(torch.equal(array, parts[key]) for key, array in whole.items())


def test_recordings_keep_what_travelled_and_are_read_as_the_server_does(tmp_path: Path) -> None:
    config, _ = play(tmp_path, PLAIN, UPLOADS, "audit.record=true")
    work, folder = Workspace(config), tmp_path / "run" / "audit"
    raw, checked = list(read_recording(folder)), list(read_checked(work, folder))
    assert len(raw) == len(checked) == 6
    for before, after in zip(raw, checked, strict=True):
        assert {CODES, SCALES} < before.exchange.received.keys()
        assert after.exchange.received.keys() == work.format.specs.keys()
        for name, step in after.exchange.rounding.items():
            levels = (after.exchange.received[name] - after.exchange.sent[name]) / step
            assert torch.allclose(levels, levels.round(), atol=0.05)


def test_a_recording_with_codes_of_nobody_is_refused(tmp_path: Path) -> None:
    config, _ = play(tmp_path, PLAIN, UPLOADS, "audit.record=true", "audit.rounds=[1]")
    work, folder = Workspace(config), tmp_path / "run" / "audit"
    first = next(iter(read_recording(folder)))
    codes = torch.full_like(first.exchange.received[CODES], 255)
    forged = {**first.exchange.received, CODES: codes}
    Recording(folder, 10**9).write_received(1, first.partition, forged, first.metrics)
    with pytest.raises(RecordingError, match="the code 8") as refusal:
        list(read_checked(work, folder))
    assert str(client_folder(folder / RECORDING, 1, first.partition)) in str(refusal.value)


def levels_of(array: Tensor, *, per_channel: bool) -> int:
    return max(len(row.unique()) for row in (array if per_channel else array[None]))


def test_the_files_of_a_plain_run_hold_quantised_weights(tmp_path: Path) -> None:
    play(tmp_path, PLAIN, "quantization.weights=2")
    arrays = load_file(tmp_path / "run" / ANN_FILE)
    assert all(levels_of(array, per_channel=False) <= 3 for array in arrays.values() if array.dim() > 1)


def test_the_server_of_an_s_run_holds_a_quantised_network(tmp_path: Path) -> None:
    play(tmp_path, "quantization.weights=2", "quantization.per_channel=true")
    network, ann = (load_file(tmp_path / "run" / name) for name in (SNN_FILE, ANN_FILE))
    for name, array in network.items():
        if name.endswith(".weight"):
            assert levels_of(array, per_channel=True) <= 3
            assert torch.allclose(symmetric(array, 2, per_channel=True), array)
    assert levels_of(ann["fc4.weight"], per_channel=True) <= 3


def test_a_client_calibrates_the_network_that_the_server_quantises() -> None:
    options = ["quantization.weights=2", "quantization.per_channel=true", "conversion.calibration=none"]
    work, ordinary = (Workspace(compose(None, [*OPTIONS, *more])) for more in (options, options[2:]))
    images, state = work.dataset.normalise(work.dataset.train_images[:16]), work.initial_state
    update = work.format.encode(state, images)
    rounded = {n: symmetric(a, 2, per_channel=True) if a.dim() > 1 else a for n, a in state.items()}
    expected = ordinary.format.encode(rounded, images)
    for name, array in work.format.deployed(update).items():
        assert torch.allclose(array, expected[name], atol=1e-6), name
    latent = work.format.decode(update, state)
    assert all(torch.allclose(latent[name], state[name], atol=1e-6) for name in latent)
