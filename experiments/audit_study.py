"""The tables and the figure of ``docs/audit*.md``: recorded runs of CIFAR-10, attacked as ``snnfl audit`` does.

``python -m experiments.audit_study`` plays and attacks what ``docs/data/audit_*.csv`` lack, a row of
:data:`TABLES` and a seed at a time, and then writes the documents' tables from these files; the figure is drawn when
:data:`SHOWN` is attacked. A study that is killed goes on with what is missing. ``--only lenet --seeds 0 1`` runs part
of it, ``--again`` also what is there already.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from experiments.audit.command import attack_progress, audit_run, prepare, write_audits
from experiments.audit.data import data_files
from experiments.audit.figures import side_by_side
from experiments.audit.found import Audit
from experiments.audit.pictures import leading_samples
from experiments.audit.tables import write_summary, write_tables
from experiments.ending import BrokenOffError, RunFailedError
from experiments.running import run_and_show
from snnfl.attacks import Budget
from snnfl.auditing.controls import MULTIPLIERS
from snnfl.auditing.scorecard import as_csv, csv_rows, csv_text
from snnfl.auditing.victims import Scope
from snnfl.config import Config, ConfigError, compose
from snnfl.files import write_bytes
from strategies.run_directory import AUDIT, read_metrics, run_path

CONFIG = Path(__file__).parent / "conf/audit_cifar10.yaml"
DATA = Path("docs/data")
DOCUMENT = Path("docs/audit-measured.md")
SUMMARY = Path("audit.md")
"""Beside the document, opens with a row of each table."""

FIGURE = Path("images/audit.png")
"""Beside the document; the summary opens with it."""

SHOWN = ("lenet", 0)
"""Table and seed of the figure."""

WEIGHTS = "final_ann.safetensors"
"""Written last by a run."""

BY_BIASES = ("reconverted_initial", "reconverted_as_is", "reconverted_zero", "reconverted_joint")
BY_UPDATE = ("inverting_gradients", "feature_inversion")
"""The one on plain twins, the other on S-updates, too."""

NORM = ("model.batch_norm=true",)
CONVNET = ("model.name=convnet", *NORM)
SAME_CLIENTS = ("data.clients=10", "data.training_images=20", "strategy.fraction_train=1.0", "run.rounds=3")
SAME_FOUR = ("data.clients=4", "data.training_images=8", "strategy.fraction_train=1.0", "run.rounds=3")
FOUR_CLIENTS = ("strategy.fraction_train=0.00016",)
FOURS = ("data.clients=12500", "training.batch_size=4", "strategy.fraction_train=0.0008")

TRAINING = (
    *("data.clients=10", "data.minimum_samples=10", "data.training_images=20000", "strategy.fraction_train=1.0"),
    *("run.rounds=6", "training.epochs=3", "training.batch_size=64", "training.momentum=0.9"),
    *("training.learning_rate=0.02", "strategy.spiking=false", "audit.record=false", "audit.ground_truth=false"),
)
"""Plain FedAvg, from whose last weights the clients of a trained network's table take their step."""

Row: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Attacks on an S-run, and on the plain twins of its clients.

    Attributes:
        title: Above its rows.
        attacks: Names; those on plain updates attack the twins.
        overrides: Of the run's configuration.
        trained: Whether clients start from trained weights.
        server_round: That is attacked.
        iterations: Of each attack.
        noise: Whether clipped and noised twins are attacked, too.
    """

    title: str
    attacks: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    trained: bool = False
    server_round: int = 1
    iterations: int = 300
    noise: bool = False


TABLES: Mapping[str, Table] = {
    "lenet": Table(title="LeNet-5, untrained", attacks=(*BY_BIASES, *BY_UPDATE)),
    "lenet_trained": Table(title="LeNet-5, trained", attacks=(*BY_BIASES, *BY_UPDATE), trained=True),
    "lenet_rounds": Table(
        title="LeNet-5, the same clients for the third time",
        attacks=("reconverted_rounds", "reconverted_initial", "reconverted_as_is", *BY_UPDATE),
        overrides=SAME_CLIENTS,
        server_round=3,
    ),
    "lenet_bn": Table(
        title="LeNet-5 with batch normalisation, untrained",
        attacks=("reconverted_statistics", "reconverted_initial", *BY_UPDATE, "inverting_statistics"),
        overrides=NORM,
    ),
    "lenet_bn_trained": Table(
        title="LeNet-5 with batch normalisation, trained",
        attacks=("reconverted_statistics", "reconverted_initial", *BY_UPDATE, "inverting_statistics"),
        overrides=NORM,
        trained=True,
    ),
    "noise": Table(
        title="LeNet-5, untrained, with noise", attacks=("inverting_gradients",), overrides=FOUR_CLIENTS, noise=True
    ),
    "slow": Table(
        title="LeNet-5, untrained, the attacks that take longest: 100 iterations",
        attacks=(
            "snn_naive",
            "snn_surrogate",
            "feature_inversion",
            "reconverted_initial",
            "inverting_gradients",
            "dlg",
        ),
        overrides=FOUR_CLIENTS,
        iterations=100,
    ),
    "convnet": Table(
        title="ConvNet with batch normalisation, untrained: 100 iterations",
        attacks=("reconverted_statistics", "reconverted_initial", "feature_inversion", "inverting_statistics"),
        overrides=(*CONVNET, *FOUR_CLIENTS),
        iterations=100,
    ),
    "convnet_rounds": Table(
        title="ConvNet with batch normalisation, the same clients for the third time: 100 iterations",
        attacks=("reconverted_rounds", "reconverted_statistics", "inverting_statistics"),
        overrides=(*CONVNET, *SAME_FOUR),
        server_round=3,
        iterations=100,
    ),
    "mlp": Table(
        title="Multilayer perceptron, untrained, clients of four images",
        attacks=("closed_form",),
        overrides=("model.name=mlp", "model.batch_norm=false", *FOURS),
    ),
}
"""In the order of the document, in which they are made, too."""

FILES = ("best.csv", "noise.csv", "biases.csv")
"""Of a report, kept beside the scorecards."""


def configuration(name: str, seed: int, runs: Path) -> Config:
    """Return the configuration of a table's run."""
    table = TABLES[name]
    weights = (f"model.weights={training(name, seed, runs)[0]}",) if table.trained else ()
    own = (*table.overrides, *weights, f"run.seed={seed}", f"run.name={name}_{seed}")
    rounds = () if table.server_round > 1 else ("run.rounds=1",)
    return compose(CONFIG, [*rounds, *own, *_everywhere(runs)])


def training(name: str, seed: int, runs: Path) -> tuple[Path, Config]:
    """Return the weights that a trained network's table starts from, and the run that makes them."""
    own = (*TABLES[name].overrides, *TRAINING, f"run.seed={seed}", f"run.name=training_{name}_{seed}")
    config = compose(CONFIG, [*own, *_everywhere(runs)])
    return run_path(config) / WEIGHTS, config


def _everywhere(runs: Path) -> tuple[str, ...]:
    root = os.environ.get("SNNFL_DATA")
    return (f"run.directory={runs}", "run.overwrite=true", *((f"data.root={root}",) if root else ()))


def play(config: Config, console: Console) -> None:
    """Play a run, unless it has been played to its end."""
    if not (run_path(config) / WEIGHTS).exists():
        run_and_show(config, console)


def attacked(name: str, seed: int, runs: Path, figure: Path, console: Console) -> dict[str, list[Row]]:
    """Play a table's runs for a seed and attack them; return the rows of each file, and draw :data:`SHOWN`."""
    table = TABLES[name]
    facts: dict[str, object] = {"table": name, "seed": seed, "accuracy": ""}
    if table.trained:
        made = training(name, seed, runs)[1]
        play(made, console)
        facts["accuracy"] = read_metrics(run_path(made))[-1]["server_ann_accuracy"]
    config = configuration(name, seed, runs)
    play(config, console)
    start = _cpu_seconds()
    prepared = prepare(run_path(config), table.attacks, Scope(rounds=frozenset({table.server_round})), controls=True)
    budget = Budget(iterations=table.iterations)
    with attack_progress(console) as progress:
        audit = audit_run(prepared, budget, progress, MULTIPLIERS if table.noise else ())
    write_audits(run_path(config) / AUDIT, [audit], budget)
    if (name, seed) == SHOWN:
        write_bytes(figure, picture_of(audit))
    facts["cpu_s"] = f"{_cpu_seconds() - start:.0f}"
    texts = {file: text for file, text in data_files([audit]).items() if file in FILES}
    texts["scorecards.csv"] = as_csv(audit.entries)
    return {
        file: [{key: str(value) for key, value in facts.items()} | row for row in csv.DictReader(io.StringIO(text))]
        for file, text in texts.items()
    }


def picture_of(audit: Audit) -> bytes:
    """Draw as PNG what the report shows first, of clients enough to judge."""
    rows = [(title, [of[client][0] for client in sorted(of)[:6]]) for title, of in leading_samples(audit)]
    stream = io.BytesIO()
    side_by_side(rows).savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of the compilers that it waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def study(names: Iterable[str], seeds: Sequence[int], runs: Path, data: Path, document: Path, *, again: bool) -> None:
    """Make what the data lack of the named tables, a table's seeds one after the other; then write the document's.

    Raises:
        ConfigError: If CIFAR-10 isn't there, or a document has no markers.
    """
    console = Console(highlight=False)
    cards = data / "audit_scorecards.csv"
    done = set() if again else {(row["table"], row["seed"]) for row in csv_rows(cards)}
    missing = [(name, seed) for name in names for seed in seeds if (name, str(seed)) not in done]
    for number, (name, seed) in enumerate(missing, start=1):
        console.print(f"{number} of {len(missing)}: {name}, seed {seed}")
        found = attacked(name, seed, runs, document.parent / FIGURE, console)
        for file in (*FILES, "scorecards.csv"):  # the last one says that all are there
            merge(data / f"audit_{file}", name, seed, found.get(file, []))
        console.print(f"   {found['scorecards.csv'][0]['cpu_s']} CPU-s of attacks")
    titles = {name: table.title for name, table in TABLES.items()}
    known = {file: csv_rows(data / f"audit_{file}") for file in (*FILES, "scorecards.csv")}
    summary = document.parent / SUMMARY
    write_tables(titles, known, document)
    write_summary(titles, known, summary)
    console.print(f"tables: {document} and {summary}")


def merge(path: Path, name: str, seed: int, rows: Sequence[Row]) -> None:
    """Replace a table's rows of a seed in a file; rows are kept in the order of tables and seeds."""
    kept = [row for row in csv_rows(path) if (row["table"], row["seed"]) != (name, str(seed))]
    order = list(TABLES)
    known = sorted([*kept, *rows], key=lambda row: (order.index(row["table"]), int(row["seed"])))
    if known:
        head = list(dict.fromkeys(column for row in known for column in row))
        write_bytes(path, csv_text(head, [[row.get(column, "") for column in head] for row in known]).encode())


def main() -> None:
    """Make what is missing and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.audit_study", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=TABLES, metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1), metavar="SEED", help="default: 0 1")
    parser.add_argument("--runs", type=Path, default=Path("runs/audit_study"), help="recorded runs and their reports")
    parser.add_argument("--data", type=Path, default=DATA, help="results (default: %(default)s)")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="has the tables' markers")
    parser.add_argument("--again", action="store_true", help="attack again what is there already")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        study(
            arguments.only or TABLES,
            arguments.seeds,
            arguments.runs,
            arguments.data,
            arguments.document,
            again=arguments.again,
        )
    except (ConfigError, RunFailedError, BrokenOffError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
