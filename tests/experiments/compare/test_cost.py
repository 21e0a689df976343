"""The estimated cost of a round against the processor time of real ones."""

from __future__ import annotations

import time

import pytest

from clients.client_app import app as client_app
from experiments.compare.cost import Pace, _essential, estimate, seconds_of_round
from experiments.compare.study import read_study
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from strategies.server_app import server_app

STUDY = """
name: cost
options: {run.rounds: 3, run.directory: DIRECTORY, data.clients: 4, data.training_images: 480, training.epochs: 4,
          training.batch_size: 32,
          conversion.steps: 32, conversion.calibration_images: 64}
matrix:
  algorithm:
    FedAvg: {strategy.spiking: false}
    S-FedAvg: {}
    without images of their own: {conversion.data: synthetic, conversion.synthesis_iterations: 20}
    S-MOON: {strategy.name: moon, model.projection_head: true}
"""


def test_an_estimate_is_within_a_factor_of_three(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("DIRECTORY", str(tmp_path)))
    study = read_study(path)
    guessed = estimate(study.cells)
    for cell in study.cells:
        marks = []
        run_in_process(
            server_app(lambda row, marks=marks: marks.append(time.process_time())),
            client_app,
            run_config={**flatten(cell.config), "run.resume": False},
            clients=cell.config.data.clients,
            node_config={"state-directory": str(cell.path / "clients")},
        )
        true = (marks[-1] - marks[0]) / (len(marks) - 1)  # the first round warms up
        assert true / 3 < guessed[cell.name] < true * 3, (cell.name, guessed[cell.name], true)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        (["strategy.spiking=false", "evaluation.clients=false"], 2 * 5 * 3 * 1.0 + 360 * 0.1),
        (["strategy.spiking=false", "evaluation.clients=false", "strategy.participation=0.5"], 5 * 3 * 1.0 + 36),
        (["evaluation.clients=false"], 2 * (5 * 3 * 1.0 + 7) + 360 * (0.1 + 0.2)),
        (["evaluation.clients=true"], 2 * (5 * 3 * 1.0 + 7 + 360 * 0.1) + 360 * (0.1 + 0.2)),
    ],
)
def test_a_round_is_the_sum_of_its_pieces(options, seconds):
    config = compose(None, ["data.clients=2", "training.batch_size=300", "run.rounds=1", *options])
    spiking = config.strategy.spiking
    pace = Pace(step=1.0, forward=0.1, conversion=7.0 * spiking, simulation=0.2 * spiking)
    assert seconds_of_round(config, pace) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("option", "shared"),
    [
        *[("data.time_bins=5", False), ("data.resolution=17", False), ("data.partition=dirichlet", True)],
        *[
            ("quantization.weights=4 quantization.per_channel=true", False),
            ("quantization.uploads=4", True),
            ("training.epochs=3", True),
        ],
    ],
)
def test_cells_share_a_pace_unless_their_data_or_networks_differ(option, shared):
    one, other = (_essential(compose(None, ["data.source=nmnist", *options])) for options in ([], option.split()))
    assert (one == other) == shared
