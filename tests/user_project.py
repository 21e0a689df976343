"""A user's project: everything that snnfl finds by name of its own, in folders that are called as snnfl's are."""

from __future__ import annotations

from pathlib import Path

PLUGIN = """\
from dataclasses import replace

import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from snnfl.attacks import Reconstruction
from snnfl.attacks import register as attack
from snnfl.data.sources import SOURCES
from snnfl.data.sources import register as data_set
from snnfl.detection import Findings
from snnfl.detection import register as detector
from snnfl.models import register as model
from snnfl.poisoning import Trigger
from snnfl.poisoning import register as poisoning
from strategies.bases import common
from strategies.bases import register as strategy
from strategies.tracking import register as tracker


@data_set("parity")
def parity(root):
    data = SOURCES.find("digits")(root)
    labels = {"train_labels": data.train_labels % 2, "test_labels": data.test_labels % 2}
    return replace(data, name="parity", class_names=("even", "odd"), **labels)


@model("tiny")
def tiny(config, input_shape, classes):
    conv = nn.Conv2d(input_shape[0], 4, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))


class Mine(FedAvg):
    pass


@strategy("mine", kind="mean")
def mine(config):
    return Mine(**common(config))


@attack("grey", source="here", needs=(), against="converted")
def grey(views, budget, generator):
    images, labels = torch.zeros(4, 1, 8, 8), torch.zeros(4).long()
    made = Reconstruction(images=images, labels=labels, objective=0.0, curve=((0, 0.0),), trail=(images,))
    return [made for view in views]


@detector("flat", source="here")
def flat(view):
    scores = torch.zeros(len(view.updates))
    return Findings(scores=scores, flagged=scores > 0)


@poisoning("bright", source="here")
def bright(options, shape, attacker):
    return Trigger(weight=torch.ones(shape[1:]), pattern=torch.ones(*shape))


@tracker("lines", package="json")
def lines(config, folder, first_round):
    def told(row):
        with (folder / "lines.txt").open("a") as file:
            file.write(f"{row['round']}\\n")

    return told
"""

OWN = """\
plugins: [strategies/mine.py]
data: {source: parity, clients: 2, training_images: 8, minimum_samples: 1}
model: {name: tiny}
training: {epochs: 1, batch_size: 4}
conversion: {steps: 4}
evaluation: {images: 20}
strategy: {name: mine}
poisoning: {attack: bright}
detection: {detectors: [flat]}
audit: {record: true, ground_truth: true}
run: {rounds: 1, name: own, tracking: lines}
"""

OWN_STUDY = """\
name: own_study
plugins: [strategies/mine.py]
options:
  {data.source: parity, data.clients: 2, model.name: tiny, training.epochs: 1, conversion.steps: 4, run.rounds: 1}
matrix: {strategy.name: [mine, fedavg]}
tables: [{rows: strategy.name, value: accuracy}]
"""

SMALL = """\
data: {clients: 2}
training: {epochs: 1}
conversion: {steps: 4}
evaluation: {images: 20}
run: {rounds: 1, name: small}
"""

STUDY = """\
name: both
base: small.yaml
matrix: {strategy.spiking: [true, false]}
tables: [{title: Accuracy, rows: strategy.spiking, value: server_ann_accuracy}]
"""


def write_project(folder: Path) -> Path:
    """Write the project; return its folder."""
    for name in ("experiments", "strategies", "clients"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    files = {"small.yaml": SMALL, "study.yaml": STUDY, "own.yaml": OWN, "own_study.yaml": OWN_STUDY}
    for name, text in {**files, "strategies/mine.py": PLUGIN}.items():
        (folder / name).write_text(text)
    return folder
