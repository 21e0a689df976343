"""The cost of a round and the peak memory as the population grows: a cohort of 50 of 100, 1,000 and 10,000 partitions.

Plain FedAvg of a small MLP in process. Every client holds the same number of tiny images, so that a cohort has the same
work in each population, and whatever grows is overhead. Each population runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from conversion import peak_bytes
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from harness import Bar, Options, Result, main, ratios

# isort: split
from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from snnfl.data import sources
from snnfl.data.dataset import Dataset
from snnfl.rng import generator
from strategies.server_app import server_app

COHORT = 50
SAMPLES = 4
"""Per client."""


def measure(options: Options) -> list[Result]:
    """Measure rounds and memory of each population; the first round of a run, which warms up, doesn't count."""
    populations = (50, 100) if options.quick else (100, 1_000, 10_000)
    rounds = 2 if options.quick else 11
    found = {population: in_a_process(population, rounds) for population in populations}
    smallest, largest = populations[0], populations[-1]
    results = []
    for population, run in found.items():
        results += [
            Result(name=f"round, {COHORT} of {population:,}", samples=tuple(run["rounds"]), unit="CPU-s"),
            Result(name=f"start, {population:,}", samples=(run["start"],), unit="CPU-s", note="to the end of round 1"),
            Result(name=f"peak memory, {population:,}", samples=(run["peak"] / 1e6,), unit="MB"),
        ]
    growth = ratios(sorted(found[largest]["rounds"]), sorted(found[smallest]["rounds"]))
    memory = found[largest]["peak"] / found[smallest]["peak"]
    between = f"{largest:,} partitions over {smallest:,}"
    results += [
        Result(name="growth of a round", samples=growth, unit="x", note=between, bar=Bar(limit=1.1, at_most=True)),
        Result(name="growth of memory", samples=(memory,), unit="x", note=between, bar=Bar(limit=1.05, at_most=True)),
        Result(
            name=f"asking {largest:,} nodes for their partition",
            samples=(found[largest]["query"],),
            unit="CPU-s",
            note="what the in-process grid spares a run, for it placed the partitions itself",
        ),
    ]
    return results


def in_a_process(population: int, rounds: int) -> dict[str, Any]:
    """Run one population in a process of its own."""
    code = f"import scale; scale.report(population={population}, rounds={rounds})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    measured: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return measured


def report(*, population: int, rounds: int) -> None:
    """Run one population; print the CPU seconds of its rounds, its start and its peak memory as JSON."""
    torch.set_num_threads(1)
    sources.register("tiny")(lambda root: tiny(population * SAMPLES))
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = compose(
            None,
            [
                "data.source=tiny",
                f"data.clients={population}",
                "data.minimum_samples=1",
                "model.name=mlp",
                "training.epochs=1",
                f"strategy.fraction_train={COHORT / population}",
                "strategy.spiking=false",
                "evaluation.clients=false",
                f"run.rounds={rounds}",
                f"run.directory={folder}",
            ],
        )
        start = time.process_time()
        app = server_app(lambda row: ends.append(time.process_time()))
        run_in_process(app, client_app, run_config=flatten(config), clients=population)
    peak = peak_bytes()
    lasted = [after - before for before, after in pairwise(ends)]
    query = ask_everybody(flatten(config), population)
    print(json.dumps({"rounds": lasted, "start": ends[0] - start, "peak": peak, "query": query}))


def tiny(samples: int) -> Dataset:
    """Make noise of 4x4 pixels in ten classes."""
    draw = generator(0, "pictures")
    images, labels = torch.randn(samples, 1, 4, 4, generator=draw), torch.arange(samples) % 10
    return Dataset(
        name="tiny",
        class_names=tuple("0123456789"),
        mean=torch.zeros(1),
        std=torch.ones(1),
        train_images=images,
        train_labels=labels,
        test_images=images[:100],
        test_labels=labels[:100],
    )


def ask_everybody(run_config: dict[str, Any], population: int) -> float:
    """Measure the CPU seconds of the question that other engines begin with."""
    seconds: list[float] = []
    asking = ServerApp()

    @asking.main()
    def ask(grid: Grid, context: Context) -> None:
        start = time.process_time()
        grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in grid.get_node_ids()])
        seconds.append(time.process_time() - start)

    run_in_process(asking, client_app, run_config=run_config, clients=population)
    return seconds[0]


if __name__ == "__main__":
    main("scale", measure)
