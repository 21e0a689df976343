"""The setting of SNFL's section 5.4 on a small machine: who finds poisoned clients, and whom a forger fools.

``python -m experiments.backdoor_study`` plays the runs that ``docs/data/backdoor.csv`` lacks, and then writes the
tables of ``docs/backdoor.md`` from it. A run takes some 15 to 30 seconds of one core, by the machine; a study that is
killed goes on with the next run.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from clients import client_app
from experiments.backdoor_tables import write_tables
from experiments.engines.in_process import run_in_process
from snnfl.auditing.scorecard import csv_rows
from snnfl.config import Config, ConfigError, DataConfig, compose, flatten
from snnfl.data import Dataset, load, register
from snnfl.poisoning import attacks_in
from strategies.server_app import server_app

ROUNDS, FIRST, CLIENTS = 8, 3, 10
SOURCE, TRAINING, TESTING = "fashion_mnist_tenth", 6000, 1000
DETECTORS = ("thresholds", "log_thresholds", "norm", "cosine", "krum", "hdbscan")
SETTING = (
    f"data.source={SOURCE}",
    f"data.clients={CLIENTS}",
    f"run.rounds={ROUNDS}",
    "run.overwrite=true",
    "run.keep_checkpoints=0",
    "training.epochs=2",
    "training.batch_size=32",
    "training.learning_rate=0.05",
    "conversion.calibration_images=64",
    "evaluation.clients=false",
    "evaluation.images=200",
    f"detection.detectors=[{','.join(DETECTORS)}]",
)
"""LeNet-5 with batch normalisation, S-FedAvg, T=32; everything else is the default."""

BEGINS = f"poisoning.first_round={FIRST}"
ATTACKS = {
    "clean": ("poisoning.attack=badnets", "poisoning.attackers=0"),
    "badnets": ("poisoning.attack=badnets", BEGINS),
    "forging": ("poisoning.attack=badnets", BEGINS, "poisoning.forge_thresholds=true"),
    "replacement": (
        "poisoning.attack=model_replacement",
        f"poisoning.first_round={ROUNDS}",
        "poisoning.scale_ann=true",
        "strategy.update_bound=null",  # or one of ten attackers is refused
    ),
    "replacement_sent": ("poisoning.attack=model_replacement", f"poisoning.first_round={ROUNDS}"),
    "blended": ("poisoning.attack=blended", BEGINS),
    "distributed": ("poisoning.attack=distributed", BEGINS),
    "label_flip": ("poisoning.attack=label_flip", BEGINS),
}
"""The clean runs measure the success of ``badnets`` where nobody attacks; of others, rounds before the first do."""

PARTITIONS = {
    "iid": ("data.partition=iid",),
    "dirichlet": ("data.partition=dirichlet", "data.beta=0.5"),
    "dirichlet_0.1": ("data.partition=dirichlet", "data.beta=0.1"),
}
SETTINGS = (
    ("clean", "iid", 0),
    *((attack, "iid", attackers) for attackers in (1, 2, 4) for attack in ("badnets", "forging")),
    ("clean", "dirichlet", 0),
    *((attack, "dirichlet", 2) for attack in ("badnets", "forging")),
    ("replacement", "iid", 2),
)
"""Attack, partition and number of attackers, each with every seed that is asked for."""

MORE_SETTINGS = (
    *((attack, "iid", 2) for attack in ("blended", "distributed", "label_flip", "replacement_sent")),
    ("clean", "dirichlet_0.1", 0),
    *((attack, "dirichlet_0.1", 2) for attack in ("badnets", "forging")),
    *((attack, "dirichlet", 4) for attack in ("badnets", "forging")),
)
MORE_SEEDS = 3
"""Further settings have fewer seeds: each run costs half a minute of one core."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: who attacks how, on which partition, by which seed."""

    attack: str
    partition: str
    attackers: int
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        """As it stands in the CSV file."""
        return self.attack, self.partition, str(self.attackers), str(self.seed)

    def config(self, directory: str, root: str | None) -> Config:
        """Return the run's configuration."""
        count = (f"poisoning.attackers={self.attackers}",) if self.attackers else ()
        where = (f"run.directory={directory}", f"run.seed={self.seed}", *((f"data.root={root}",) if root else ()))
        return compose(None, [*SETTING, *ATTACKS[self.attack], *count, *PARTITIONS[self.partition], *where])


def cases(seeds: int) -> Iterator[Case]:
    """Yield every run, seed by seed: a study that is stopped early has all settings with fewer seeds."""
    for settings, limit in ((SETTINGS, seeds), (MORE_SETTINGS, min(seeds, MORE_SEEDS))):
        for seed in range(limit):
            for attack, partition, attackers in settings:
                yield Case(attack=attack, partition=partition, attackers=attackers, seed=seed)


def play(case: Case, root: str | None) -> list[dict[str, Any]]:
    """Play a run; return a row per round and detector."""
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        config = case.config(directory, root)
        run_in_process(server_app(rounds.append), client_app.app, run_config=flatten(config), clients=CLIENTS)
    return [
        {
            "attack": case.attack,
            "partition": case.partition,
            "attackers": case.attackers,
            "seed": case.seed,
            "round": row["round"],
            **{name: f"{row[name]:.4f}" for name in ("server_snn_accuracy", "server_ann_accuracy")},
            **{name: f"{row[name]:.4f}" for name in ("attack_success_snn", "attack_success_ann")},
            "detector": detector,
            **_counted(found, attacks_in(config, row["round"])),
        }
        for row in rounds
        for detector, found in row["detection"].items()
    ]


def _counted(found: dict[str, Any], attackers: tuple[int, ...]) -> dict[str, Any]:
    """Compare a verdict with the ground truth."""
    scores = {int(partition): score for partition, score in found["scores"].items()}
    guilty = torch.tensor([score for partition, score in scores.items() if partition in attackers], dtype=torch.float64)
    honest = torch.tensor(
        [score for partition, score in scores.items() if partition not in attackers], dtype=torch.float64
    )
    hits = len(set(found["flagged"]) & set(attackers))
    above = (guilty[:, None] > honest).double() + (guilty[:, None] == honest).double() / 2
    return {
        "attacking": len(guilty),
        "found": hits,
        "honest": len(honest),
        "false_alarms": len(found["flagged"]) - hits,
        "auc": f"{float(above.mean()):.4f}" if len(guilty) else "",
        "smallest_guilty": f"{float(guilty.min()):.5g}" if len(guilty) else "",
        "largest_honest": f"{float(honest.max()):.5g}",
    }


def tenth(root: Path) -> Dataset:
    """Read the first 6,000 training and 1,000 test images of Fashion-MNIST."""
    whole = load(DataConfig(source="fashion_mnist", root=str(root)))
    return replace(
        whole,
        name=SOURCE,
        train_images=whole.train_images[:TRAINING],
        train_labels=whole.train_labels[:TRAINING],
        test_images=whole.test_images[:TESTING],
        test_labels=whole.test_labels[:TESTING],
    )


def main() -> None:
    """Play what is missing and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.backdoor_study", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 of each setting (default: 5)")
    parser.add_argument(
        "--csv", type=Path, default=Path("docs/data/backdoor.csv"), help="results (default: %(default)s)"
    )
    parser.add_argument("--document", type=Path, default=Path("docs/backdoor.md"), help="has the tables' markers")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"argument --seeds: {arguments.seeds}, expected at least 1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    register(SOURCE)(tenth)
    try:
        study(arguments.seeds, arguments.csv, arguments.document)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")


def study(seeds: int, path: Path, document: Path) -> None:
    """Play the runs that a file lacks, append their rows to it, and rewrite a document's tables.

    Raises:
        ConfigError: If Fashion-MNIST isn't there, or the document has no markers.
    """
    console = Console(highlight=False)
    done = {(row["attack"], row["partition"], row["attackers"], row["seed"]) for row in csv_rows(path)}
    missing = [case for case in cases(seeds) if case.key not in done]
    for number, case in enumerate(missing, start=1):
        rows = play(case, os.environ.get("SNNFL_DATA"))
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)
        success = rows[-1]["attack_success_snn"]
        console.print(f"{number} of {len(missing)}: {' '.join(case.key)}: attack success {success}")
    write_tables(csv_rows(path), document)
    console.print(f"tables: {document}")


if __name__ == "__main__":
    main()
