"""What a federation's server tells of who was in, for several kinds of clients: ``experiments/membership/federated``.

``python -m experiments.federated_membership`` plays and attacks what ``experiments/membership/federated/laptop.csv``
lacks, a kind and a seed at a time; killed, it goes on with what is missing. ``--only SNN`` makes part of it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.audit.choice import choose
from experiments.compare.study import assignments_of, labelled, read_file
from experiments.ending import BrokenOffError, RunFailedError
from experiments.running import run_and_show
from snnfl.auditing.federated_membership import MembershipRow, federated_membership, told
from snnfl.auditing.recording import RecordingError
from snnfl.auditing.scorecard import csv_rows, csv_text
from snnfl.auditing.victims import Scope, setting_of, victims_of
from snnfl.config import Config, ConfigError, compose
from snnfl.files import write_bytes
from snnfl.membership_attacks.federated import get_federated_attack
from snnfl.workspace import Workspace
from strategies.run_directory import AUDIT, read_metrics, run_path

STUDY = Path(__file__).parent / "membership/federated/laptop.yaml"
KEYS = ("name", "options", "kinds", "seeds", "rounds", "attacks")
HEAD = (
    *("kind", "seed", "round", "epsilon", "test_accuracy", "gap", "attack", "verdict", "clients", "members"),
    *("auc", "auc_low", "auc_high", "tpr_at_1", "tpr_at_1_low", "tpr_at_1_high", "reason", "cpu_s"),
)
WEIGHTS = "final_ann.safetensors"
"""Written last by a run."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study's file, read.

    Attributes:
        name: Of its runs.
        options: Of all of them.
        kinds: Options by label.
        seeds: Of the runs.
        rounds: That are attacked.
        attacks: Names; empty for all.
    """

    name: str
    options: Sequence[str]
    kinds: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    rounds: Sequence[int]
    attacks: Sequence[str]


def read_study(path: Path) -> Study:
    """Read a study's file.

    Raises:
        ConfigError: If it isn't there, or has an unknown key.
    """
    content = read_file(path, KEYS)
    return Study(
        name=str(content.get("name", path.stem)),
        options=assignments_of(path, "options", content.get("options", {})),
        kinds=labelled(path, "kinds", content.get("kinds")),
        seeds=[int(seed) for seed in content.get("seeds", [0])],
        rounds=[int(number) for number in content.get("rounds", [1])],
        attacks=[get_federated_attack(str(name)).name for name in content.get("attacks", [])],
    )


def configuration(study: Study, kind: str, seed: int, runs: Path) -> Config:
    """Return the configuration of a kind's run.

    Raises:
        ConfigError: For a wrong option.
    """
    root = os.environ.get("SNNFL_DATA")
    slug = "".join(character if character.isalnum() else "_" for character in kind)
    own = (f"run.seed={seed}", f"run.name={study.name}_{slug}_{seed}", f"run.directory={runs}", "run.overwrite=true")
    place = (f"data.root={root}",) if root else ()
    noise = (f"privacy.noise_seed={seed}",) if private(study, kind) else ()  # so that the table can be repeated
    return compose(None, [*study.options, *study.kinds[kind], *own, *place, *noise])


def private(study: Study, kind: str) -> bool:
    """Tell whether a kind of clients has differential privacy."""
    return any(option.startswith("privacy.") for option in study.kinds[kind])


def attacked(study: Study, kind: str, seed: int, runs: Path, console: Console) -> list[list[object]]:
    """Play a kind's run unless it has been played, and ask in each of the study's rounds who was in."""
    config = configuration(study, kind, seed, runs)
    folder = run_path(config)
    if not (folder / WEIGHTS).exists():
        run_and_show(config, console)
    measured = {row["round"]: row for row in read_metrics(folder)}
    setting, rows = setting_of(Workspace(config)), list[list[object]]()
    victims = victims_of(setting, folder / AUDIT, Scope())
    for server_round in study.rounds[-1:] if private(study, kind) else study.rounds:
        start = time.process_time()
        until = [each for each in victims if each.server_round <= server_round]
        if not any(each.server_round == server_round for each in until):
            console.print(f"{kind}, seed {seed}, round {server_round}: no update was recorded", highlight=False)
            continue
        names = choose([], setting.format.kind).members
        tried = [name for name in names if not study.attacks or name in study.attacks]
        found = federated_membership(setting, until, tried)
        spent = time.process_time() - start
        rows += [_row(kind, seed, each, measured[server_round], spent) for each in found]
        console.print(f"{kind}, seed {seed}, round {server_round}: {spent:.0f} CPU-s", highlight=False)
    return rows


def _row(kind: str, seed: int, found: MembershipRow, measured: Mapping[str, Any], spent: float) -> list[object]:
    area, rate = (None, None) if found.scored is None else (found.scored.auc, found.scored.tpr[0.01])
    ann, snn = measured["server_ann_accuracy"], measured["server_snn_accuracy"]
    about = [kind, seed, found.server_round, measured.get("epsilon"), snn if ann is None else ann, found.gap]
    about += [found.attack, found.verdict, found.clients, found.members]
    return [*about, *told(area), *told(rate), found.reason, spent]


def make(study: Study, kinds: Sequence[str], runs: Path, data: Path, console: Console) -> None:
    """Make what the data lack of some kinds.

    Raises:
        ConfigError: For a wrong option.
        RecordingError: For a damaged recording.
    """
    rows: list[list[object]] = [[row[name] for name in HEAD] for row in csv_rows(data)]
    for kind in kinds:
        for seed in study.seeds:
            if any(row[:2] == [kind, str(seed)] for row in rows):
                continue
            rows += attacked(study, kind, seed, runs, console)
            write_bytes(data, csv_text(HEAD, rows).encode())


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(prog="python -m experiments.federated_membership", description=__doc__)
    parser.add_argument("study", nargs="?", type=Path, default=STUDY, help="YAML file (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="kinds of clients; default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs/federated_membership"), help="recorded runs")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        study = read_study(arguments.study)
        if unknown := [kind for kind in arguments.only or () if kind not in study.kinds]:
            raise ConfigError(f"--only {unknown[0]}: no such kind; there are {', '.join(study.kinds)}")
        kinds = arguments.only or list(study.kinds)
        make(study, kinds, arguments.runs, arguments.study.with_suffix(".csv"), Console())
    except (ConfigError, RecordingError, RunFailedError, BrokenOffError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
