"""Each poisoning attack in whole runs on real digits: it takes, and nothing happens where nobody attacks.

BadNets has its own test, with the detectors, in LeNet-5 (``tests/strategies/test_detecting.py``). What is trained here
is an MLP, in a quarter of the time, whose backdoors take as surely: triggers are of images, updates of any network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.auditing.recording import read_recording
from snnfl.config import compose, flatten
from snnfl.data import Dataset, register
from snnfl.data.embedded import digits
from snnfl.poisoning import attackers
from strategies.run_directory import read_metrics
from strategies.server_app import server_app

ROUNDS = 6
SETTING = [
    "model.name=mlp",
    "data.clients=5",
    f"run.rounds={ROUNDS}",
    "run.keep_checkpoints=1",
    "training.epochs=3",
    "training.batch_size=32",
    "training.learning_rate=0.1",
    "conversion.steps=8",
    "evaluation.clients=false",
]
SLOWLY = ["training.batch_size=16", "training.learning_rate=0.05"]
"""How models learn where an attack depends on how much they have learned."""
SHORT = "run.rounds=4"
"""Enough where it doesn't."""
SUCCESS, ACCURACY = "attack_success_snn", "server_snn_accuracy"


def play(directory: Path, *overrides: str) -> list[dict[str, Any]]:
    """Play a run; return its rounds."""
    config = compose(None, [*SETTING, f"run.directory={directory}", *overrides])
    run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=config.data.clients)
    return read_metrics(directory / config.run.name)


@pytest.mark.parametrize(
    ("attack", "success", "accuracy"),
    [
        (["blended", SHORT], 0.8, 0.85),
        (["distributed", "poisoning.trigger_size=3", SHORT], 0.8, 0.7),
        # Of the flipped class alone, which is what the server then gets wrong; the other nine stay.
        (["label_flip", "poisoning.source=1", *SLOWLY], 0.5, 0.75),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_attack_takes_and_nothing_happens_where_nobody_attacks(
    tmp_path: Path, attack: list[str], success: float, accuracy: float
) -> None:
    poisoning = [f"poisoning.attack={attack[0]}", *attack[1:], "poisoning.first_round=2"]
    clean = play(tmp_path, *poisoning, "run.name=clean", "poisoning.attackers=0")
    attacked = play(tmp_path, *poisoning, "run.name=attacked", "poisoning.attackers=2")
    assert attacked[-1][SUCCESS] > success
    assert attacked[-1][ACCURACY] > accuracy
    assert attacked[0][SUCCESS] == clean[0][SUCCESS] < 0.15  # before they begin
    assert clean[-1][SUCCESS] < 0.05
    assert clean[-1][ACCURACY] > 0.9


@pytest.mark.parametrize(("spiking", "accuracy"), [(True, 0.6), (False, 0.3)])
def test_one_round_of_a_scaled_update_installs_a_backdoor_and_an_unscaled_one_does_not(
    tmp_path: Path, spiking: bool, accuracy: float
) -> None:
    kind = "snn" if spiking else "ann"
    poisoning = [f"strategy.spiking={spiking}", "poisoning.attack=model_replacement", f"poisoning.first_round={ROUNDS}"]
    poisoning += SLOWLY
    scaled = play(tmp_path, *poisoning, "run.name=scaled")
    unscaled = play(tmp_path, *poisoning, "run.name=unscaled", "poisoning.scale=1")
    before, after = scaled[-2:]
    assert before[f"attack_success_{kind}"] < 0.05
    assert after[f"attack_success_{kind}"] > 0.9
    # The model is replaced, not ruined; but the honest updates come on top, and this model is still learning.
    assert after[f"server_{kind}_accuracy"] > accuracy
    assert unscaled[-1][f"attack_success_{kind}"] < 0.6


def test_a_forgers_backdoor_takes_and_its_thresholds_are_the_honest_ones(tmp_path: Path) -> None:
    """Until the first attack all runs are the same, so in its round the clean run tells what is honest."""
    poisoning = ["poisoning.attack=badnets", "poisoning.first_round=2", "audit.record=true", "audit.rounds=[2]", SHORT]
    runs = {
        "clean": ["poisoning.attackers=0"],
        "open": ["poisoning.attackers=2"],
        "forged": ["poisoning.attackers=2", "poisoning.forge_thresholds=true"],
    }
    rounds = {name: play(tmp_path, *poisoning, *more, f"run.name={name}") for name, more in runs.items()}
    assert rounds["forged"][-1][SUCCESS] > 0.8
    assert rounds["clean"][-1][SUCCESS] < 0.05
    sent = {
        name: {
            each.partition: dict(each.exchange.received)
            for each in read_recording(tmp_path / name / "audit", frozenset({2}))
        }
        for name in runs
    }
    guilty = attackers(compose(None, [*SETTING, *poisoning, *runs["forged"]]))
    assert len(guilty) == 2
    for partition in range(5):
        honest, open_attack, forged = (sent[name][partition] for name in runs)
        for name in honest:
            expected = honest if name.endswith(".threshold") else open_attack
            assert torch.equal(forged[name], expected[name]), name
        changed = [name for name in honest if not torch.equal(honest[name], open_attack[name])]
        assert any(name.endswith(".threshold") for name in changed) == (partition in guilty)
        assert any(name.endswith(".weight") for name in changed) == (partition in guilty)


FRAMES = 4


def filmed_digits(root: Path) -> Dataset:
    """Let a camera see a digit in four frames: its left half becomes brighter, its right half darker."""
    own = digits(root)

    def frames(images: Tensor) -> Tensor:
        counts = torch.zeros(len(images), FRAMES, 2, 8, 8)
        counts[:, :, 1, :, :4] = images[..., :4].float() / 4
        counts[:, :, 0, :, 4:] = images[..., 4:].float() / 4
        return counts.to(torch.uint8)

    return replace(
        own,
        name="filmed",
        train_images=frames(own.train_images),
        test_images=frames(own.test_images),
        mean=torch.zeros(2),
        std=torch.ones(2),
        sequence=True,
    )


@pytest.mark.parametrize(
    ("attack", "network"),
    [
        ("event_static", ["model.neuron=lif"]),
        ("event_moving", ["model.neuron=relu"]),
        ("event_temporal", ["model.neuron=lif"]),
    ],
)
def test_a_backdoor_on_events_takes_in_spiking_and_ordinary_networks_and_detectors_see_it(
    tmp_path: Path, own_registries: None, attack: str, network: list[str]
) -> None:
    register("filmed")(filmed_digits)
    setting = [
        *network,
        "run.rounds=3",
        "data.source=filmed",
        "strategy.spiking=false",
        "training.optimizer=adam",
        "training.learning_rate=0.006",
        "training.batch_size=64",
        "detection.detectors=[norm,krum]",
        f"poisoning.attack={attack}",
        "poisoning.strength=1",
        "poisoning.trigger_size=2",
    ]
    clean = play(tmp_path, *setting, "run.name=clean", "poisoning.attackers=0")[-1]
    attacked = play(tmp_path, *setting, "run.name=attacked", "poisoning.attackers=2")[-1]
    kind = "ann" if network == ["model.neuron=relu"] else "snn"
    assert attacked[f"attack_success_{kind}"] > 0.6
    assert clean[f"attack_success_{kind}"] < 0.1
    assert min(clean[f"server_{kind}_accuracy"], attacked[f"server_{kind}_accuracy"]) > 0.85
    assert set(attacked["detection"]) == {"norm", "krum"}
    assert len(attacked["detection"]["krum"]["scores"]) == 5
