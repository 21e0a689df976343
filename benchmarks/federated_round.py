"""The cost of a federated round: this project's engines, pfl-research, and the SGD steps alone.

Cohorts of 50 and of 5 of 1,000 clients, each with 50 images of CIFAR-10, train for 5 steps of batch 10: what a round
costs once shows in the small one. The bare loop runs the same steps on images that are already normalised, and
averages. Candidates take turns, a round each, and their first rounds don't count; evaluation is one test image. A
ratio is of rounds that followed each other.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from harness import Bar, Options, Result, find_data, main, ratios
from pfl_research import Clock, pfl_rounds
from torch import Tensor, nn
from turns import in_turns, with_one_heap

# isort: split
from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import (
    Config,
    ConversionConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    StrategyConfig,
    TrainingConfig,
    flatten,
)
from snnfl.torchvision_guard import guard
from snnfl.training.optimisers import FusedSGD
from snnfl.workspace import Workspace, workspace
from strategies.server_app import server_app

COHORTS, BATCH, IMAGES = (50, 5), 10, 50
RATE, MOMENTUM = 0.05, 0.9
PFL = "pfl-research 0.6.0"


class EnoughError(Exception):
    """Stops a run that has been timed."""


def measure(options: Options) -> list[Result]:
    """Measure rounds of both models, the price of the S-variant, and the start."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model in ("lenet5",) if options.quick else ("lenet5", "cnn"):
            for cohort in COHORTS[1:] if options.quick else COHORTS:
                results += measure_rounds(model, cohort, folder, options)
        results += measure_spiking(folder, options)
        results.append(measure_start(folder, options))
    return results


def configuration(folder: str, options: Options, **sections: Any) -> Config:
    """Describe a run on CIFAR-10, or on digits for a quick look."""
    data = sections.pop("data")
    source = "digits" if options.quick else "cifar10"
    root = os.environ.get("SNNFL_DATA", "/tmp/snnfl-data")
    return Config(
        run=RunConfig(name="bench", directory=folder, overwrite=True, rounds=10_000, device=options.device.type),
        data=DataConfig(source=source, root=root, minimum_samples=1, **data),
        evaluation=EvaluationConfig(images=1, clients=False),
        **sections,
    )


def measure_rounds(model: str, cohort: int, folder: str, options: Options) -> list[Result]:
    """Compare a FedAvg round on every engine."""
    if not options.quick and find_data("cifar10") is None:
        sys.exit("error: no CIFAR-10 here: snnfl data fetch cifar10, or set SNNFL_DATA to its folder")
    clients = 20 if options.quick else 50_000 // IMAGES
    config = configuration(
        folder,
        options,
        data={"clients": clients},
        model=ModelConfig(name=model, batch_norm=False),
        training=TrainingConfig(epochs=1, batch_size=BATCH, learning_rate=RATE, momentum=MOMENTUM),
        strategy=StrategyConfig(name="fedavg", spiking=False, fraction_train=cohort / clients),
    )
    work, users, initial = users_of(config, cohort)
    bare, theirs = copy.deepcopy(work.model), copy.deepcopy(work.model)
    candidates: dict[str, Callable[[int, Clock], list[float]]] = {
        "the SGD steps alone": lambda rounds, clock: bare_rounds(bare, initial, users, config, rounds, clock),
        "in process": lambda rounds, clock: timed_run(config, rounds, clock, in_process),
    }
    if importlib.util.find_spec("pfl") is not None:
        candidates[PFL] = lambda rounds, clock: pfl_rounds(theirs, users, config, BATCH, rounds, clock)
    else:
        sys.stderr.write("pfl-research is not installed, its rows are left out; pfl_research.py says how\n")
    cpu, wall = in_turns(candidates, 2 if options.quick else 600 // cohort)
    ray = {"on Ray": lambda rounds, clock: timed_run(config, rounds, clock, _on_ray)}  # Flower plays one run a process
    for all_of, of_ray in zip((cpu, wall), in_turns(ray, 2 if options.quick else 100 // cohort), strict=True):
        all_of |= of_ray
    what = f"{model}: a round of {cohort} clients x {IMAGES // BATCH} steps"
    rows = [
        Result(
            name=f"{what}, {name}",
            samples=tuple(1000 * value for value in cpu[name]),
            unit="CPU ms",
            note=f"{1000 * sorted(wall[name])[len(wall[name]) // 2]:.0f} ms by the clock",
        )
        for name in cpu
    ]
    ours, floor = cpu["in process"], cpu["the SGD steps alone"]
    bar = Bar(limit=1.08 if model == "cnn" and cohort == COHORTS[0] else 1.15, at_most=True)
    over = f"{model}, {cohort} clients: in process over"
    rows.append(Result(name=f"{over} the SGD steps", samples=ratios(ours, floor), unit="x", bar=bar))
    if PFL in cpu:
        bar = Bar(limit=0.9, at_most=True)
        rows.append(Result(name=f"{over} {PFL}", samples=ratios(ours, cpu[PFL]), unit="x", bar=bar))
    return rows


def users_of(config: Config, cohort: int) -> tuple[Workspace, list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Return a run's workspace, normalised images and labels of so many clients, and the initial weights."""
    work = workspace(config)
    users = [
        (work.dataset.normalise(work.dataset.train_images[chosen]), work.dataset.train_labels[chosen])
        for chosen in work.partitions[:cohort]
    ]
    return work, users, {name: array.clone() for name, array in work.initial_state.items()}


def bare_rounds(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    users: Iterable[tuple[Tensor, Tensor]],
    config: Config,
    rounds: int,
    clock: Clock,
) -> list[float]:
    """Run the SGD steps of a cohort and average its weights, with nothing around; return the clock after each round."""
    parameters = dict(model.named_parameters())
    weights, ticks = {name: initial[name].clone() for name in parameters}, []
    for _ in range(rounds):
        total = {name: torch.zeros_like(array) for name, array in weights.items()}
        examples = 0
        for images, labels in users:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(weights[name])
            training = config.training
            optimizer = torch.optim.SGD(
                model.parameters(),
                lr=training.learning_rate,
                momentum=training.momentum,
                weight_decay=training.weight_decay,
                fused=True,
            )
            model.train()
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            examples += len(labels)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    total[name].add_(parameter, alpha=len(labels))
        weights = {name: array / examples for name, array in total.items()}
        ticks.append(clock())
    return ticks


def timed_run(config: Config, rounds: int, clock: Clock, engine: Callable[[Any, Config], None]) -> list[float]:
    """Run some rounds on an engine; return the clock after each."""
    ticks: list[float] = []

    def observe(row: dict[str, Any]) -> None:
        ticks.append(clock())
        if len(ticks) == rounds:
            raise EnoughError

    with suppress(EnoughError):
        engine(server_app(observe), config)
    return ticks


def in_process(app: Any, config: Config) -> None:
    """Run an app in this process."""
    run_in_process(app, client_app, run_config=flatten(config), clients=config.data.clients)


def _on_ray(app: Any, config: Config) -> None:
    from experiments.engines.ray import run_on_ray

    run_on_ray(app, client_app, run_config=flatten(config), clients=config.data.clients)


def measure_spiking(folder: str, options: Options) -> list[Result]:
    """Compare S-FedAvg's round with FedAvg's: one client, He's ResNet-20, 5 epochs of 2,000 images.

    A run's own row of metrics says what each phase took, in CPU seconds, for its clock is replaced by that of the
    process. A short round of each before the measured ones pays for what happens once.
    """
    clients, epochs = (10, 1) if options.quick else (25, 5)
    plain = configuration(
        folder,
        options,
        data={"clients": clients},
        model=ModelConfig(name="lenet5" if options.quick else "resnet20"),
        training=TrainingConfig(epochs=epochs, batch_size=64),
        conversion=ConversionConfig(steps=32, calibration_images=128),
        strategy=StrategyConfig(name="fedavg", spiking=False, fraction_train=1 / clients),
    )
    variants = {"FedAvg": plain, "S-FedAvg": replace(plain, strategy=replace(plain.strategy, spiking=True))}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    with patch.object(time, "perf_counter", time.process_time):
        for config in variants.values():
            one_round(replace(config, training=replace(config.training, epochs=1)))
        for _ in range(1 if options.quick else 3):
            for name, config in variants.items():
                rows[name].append(one_round(config))
    phases = {name: [phases_of(row) for row in each] for name, each in rows.items()}
    results = [
        Result(name=f"{name}, {phase}", samples=tuple(each[phase] for each in phases[name]), unit="CPU s", note=note)
        for phase, note in PHASES.items()
        for name in variants
    ]
    whole = {name: [sum(each.values()) - each["evaluate"] for each in of] for name, of in phases.items()}
    results += [
        Result(
            name=f"{name}, round without evaluation",
            samples=tuple(values),
            unit="CPU s",
            note=f"{rows[name][-1]['bytes_up']:,} bytes up",
        )
        for name, values in whole.items()
    ]
    images = 50_000 // clients
    return [
        *results,
        Result(
            name="S-FedAvg's round over FedAvg's",
            samples=ratios(whole["S-FedAvg"], whole["FedAvg"]),
            unit="x",
            note=f"ResNet-20, {epochs} epochs of {images} images, T=32, 128 calibration images",
            bar=Bar(limit=1.25, at_most=True),
        ),
    ]


PHASES = {
    "train": "the local epochs",
    "convert": "fold, thresholds, calibrate, serialise; of FedAvg nothing",
    "upload": "the exchange less those: configure, serialise and copy messages; in process nothing travels",
    "aggregate": "check replies, recover weights, average",
    "evaluate": "one test image; of S-FedAvg the server's spiking network and its analog twin",
}
"""What each phase of a client's round is."""


def phases_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each phase of a round, from its row of metrics; together they are the round."""
    seconds = {
        "train": row["seconds_train"],
        "convert": row["seconds_convert"],
        "aggregate": row["seconds_aggregate"],
        "evaluate": row["seconds_server_evaluate"],
    }
    return {**seconds, "upload": row["seconds_round"] - sum(seconds.values())}


def one_round(config: Config) -> dict[str, Any]:
    """Play the first round of a run; return its row of metrics."""
    rows: list[dict[str, Any]] = []

    def observe(row: dict[str, Any]) -> None:
        rows.append(row)
        raise EnoughError

    with suppress(EnoughError):
        in_process(server_app(observe), config)
    return rows[0]


def measure_start(folder: str, options: Options) -> Result:
    """Start a run of 10 clients in a process of its own; time from the call to the first training step.

    It is one thread, so on an idle machine the clock shows its CPU seconds and the reading of the disk.
    """
    code = f"import federated_round; federated_round.report_start({folder!r}, {options.quick})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    cpu, wall = map(float, run.stdout.splitlines()[-1].split())
    return Result(
        name="start of a 10-client run to the first training step",
        samples=(cpu,),
        unit="CPU s",
        note=f"{wall:.1f} s by the clock; after import; ResNet-20, S-FedAvg, CIFAR-10 read from disk",
        bar=Bar(limit=3, at_most=True),
    )


def report_start(folder: str, quick: bool) -> None:
    """Print the CPU and wall seconds to the first training step."""
    guard()
    for name in ("torchvision.datasets", "torch._dynamo"):  # which are imported when first needed
        importlib.import_module(name)
    torch.set_num_threads(1)
    options = Options(quick=quick, device=torch.device("cpu"))
    model = ModelConfig(name="lenet5" if quick else "resnet20")
    config = configuration(folder, options, data={"clients": 10}, model=model)

    def first_step(*arguments: object, **keywords: object) -> None:
        os.write(1, f"{time.process_time() - cpu} {time.perf_counter() - wall}\n".encode())
        os._exit(0)

    FusedSGD.step = first_step  # type: ignore[method-assign]
    cpu, wall = time.process_time(), time.perf_counter()
    in_process(server_app(), config)


if __name__ == "__main__":
    with_one_heap()
    main("federated_round", measure)
