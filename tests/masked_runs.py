"""Small runs with secure aggregation, recorded, and what a server has of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.auditing.victims import Scope, setting_of, victims_of
from snnfl.config import Config, compose, flatten
from snnfl.workspace import Workspace
from strategies.run_directory import node_folders, run_path
from strategies.server_app import server_app

CLIENTS = 4
SMALL = [
    f"data.clients={CLIENTS}", "data.partition=iid", "data.training_images=10", "data.minimum_samples=1",
    "model.name=mlp", "model.batch_norm=false", "strategy.spiking=false", "run.rounds=2", "training.epochs=1",
    "training.batch_size=4", "training.momentum=0", "training.weight_decay=0", "training.learning_rate=0.1",
    "conversion.steps=4", "evaluation.clients=false", "evaluation.images=20", "audit.record=true",
    "audit.ground_truth=true",
]  # fmt: skip
SECURE = "strategy.secure_aggregation=true"
NOISED = (
    "privacy.mechanism=distributed", "privacy.noise_multiplier=0.5", "privacy.noise_seed=0",
    "strategy.minimum_replies=4",
)  # fmt: skip


def player(folder: Callable[[], Path]):
    """Return what plays a run of :data:`SMALL` and further options, each only once.

    Args:
        folder: Makes one for a run.
    """
    made: dict[tuple[str, ...], tuple[Config, Path]] = {}

    def play(*options):
        if options not in made:
            config = compose(overrides=[*SMALL, f"run.directory={folder()}", *options])
            path, clients = run_path(config), config.data.clients
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("strategies.server_app.plot_accuracy", lambda *arguments: None)
                run_in_process(
                    server_app(),
                    client_app,
                    run_config=flatten(config),
                    clients=clients,
                    node_config=node_folders(path),
                )
            made[options] = config, path / "audit"
        return made[options]

    return play


def seen(play, *options, colluding=0, differences=False, rounds=(), **scope):
    """Lay out the victims of a run."""
    config, folder = play(*options)
    setting = setting_of(Workspace(config), colluding, differences=differences)
    asked = Scope(rounds=frozenset(rounds), colluding=colluding, differences=differences, **scope)
    return setting, victims_of(setting, folder, asked)
