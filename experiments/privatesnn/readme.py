"""``python -m experiments.privatesnn.readme [--collect]``: the generated parts of this folder's README.

These are the paper's numbers beside what was measured, from ``laptop.csv``, ``synthesis.csv``, ``clients.csv``, and
those of :mod:`experiments.privatesnn.leakage`.
``--collect`` first copies those files from finished studies in ``runs/``, and writes when and with which versions they
ran.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from experiments.privatesnn import leakage
from experiments.privatesnn.report import Row, accuracy_rows, as_markdown, from_csv, mean, sentence, settings_of
from experiments.study_readme import fill
from snnfl.auditing.scorecard import csv_rows
from snnfl.config import ConfigError, counted
from snnfl.files import write_bytes
from snnfl.metrics.energy import AC_PICOJOULES, MAC_PICOJOULES

HERE = Path(__file__).parent
FILES = {
    "laptop": "privatesnn_laptop/results.csv",
    "synthesis": "privatesnn_synthesis/results.csv",
    "clients": "privatesnn_clients/tables.csv",
    **leakage.FILES,
}
"""What is copied, and what studies call it in ``runs/``."""

TABLE_2 = {
    "CIFAR-10": {"VGG-16 (ANN)": 91.6, "Sengupta et al. 2019, with data": 91.5, "PrivateSNN, without": 89.2},
    "CIFAR-100": {"VGG-16 (ANN)": 64.3, "Sengupta et al. 2019, with data": 62.7, "PrivateSNN, without": 62.3},
    "Tiny-ImageNet": {"VGG-16 (ANN)": 51.9, "Sengupta et al. 2019, with data": 50.6, "PrivateSNN, without": 50.7},
}
"""Accuracy in per cent: Kim et al. 2022, Table 2."""

ENERGY_PAPER, STEPS_PAPER = 55.8, 150
"""Times the energy of VGG-16 over that of PrivateSNN, and its time steps: Table 5."""


def collect(runs: Path) -> None:
    """Copy what finished studies have found.

    Raises:
        ConfigError: If none is finished.
    """
    there = {name: runs / file for name, file in FILES.items() if (runs / file).exists()}
    if not there:
        raise ConfigError(f"{runs}: no results; run snnfl privatesnn run {HERE / 'laptop.yaml'} first")
    about = HERE / "collected.json"
    told = json.loads(about.read_text()) if about.exists() else {}
    for name, file in there.items():
        write_bytes(HERE / f"{name}.csv", file.read_bytes())
        told[name] = {
            "collected": datetime.now(UTC).date().isoformat(),
            "python": platform.python_version(),
            "torch": metadata.version("torch"),
        }
    leakage.copy_pictures(runs, HERE)
    write_bytes(about, (json.dumps(told, indent=1) + "\n").encode())


def paper_part() -> str:
    """Lay out the paper's numbers."""
    rows = list(next(iter(TABLE_2.values())))
    lines = [["Table 2, accuracy in per cent", *TABLE_2], ["---"] * (1 + len(TABLE_2))]
    lines += [[row, *(f"{column[row]:.1f}" for column in TABLE_2.values())] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured_part(rows: Sequence[Row], told: Mapping[str, str]) -> str:
    """Lay out what was measured, with a verdict for each setting."""
    seconds = sum(row.value for row in rows if row.quantity == "processor seconds")
    where = f"Measured on {told['collected']}, Python {told['python']}, torch {told['torch']}"
    verdicts = [f"- {sentence(name, some)}." for name, some in settings_of(rows).items()]
    parts = [f"{where}; training, synthesis, conversion and encryption took {seconds / 60:.1f} min of processor time."]
    return "\n\n".join([*parts, "\n".join(verdicts), as_markdown(rows).strip()])


def synthesis_part(rows: Sequence[Row], told: Mapping[str, str]) -> str:
    """Lay out accuracy of networks that are converted on images of several kinds, in per cent."""
    lines: list[list[str]] = []
    for name, some in settings_of(rows).items():
        head, found = accuracy_rows(some)
        real = next(line for line in found if line[0] == "real")
        if not lines:
            lines = [["images", *head[1:]], ["---"] * len(head), ["training images", *real[1:]]]
        lines.append([name, *next(line for line in found if line[0] == "synthetic")[1:]])
    where = f"Measured on {told['collected']}, Python {told['python']}, torch {told['torch']}; one seed."
    return where + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def energy_part(rows: Sequence[Row]) -> str:
    """Say what the paper's factor would need, and what was measured."""
    needed = MAC_PICOJOULES / AC_PICOJOULES / ENERGY_PAPER
    parts = [
        f"By the paper's model, {MAC_PICOJOULES:g} pJ a multiplication and {AC_PICOJOULES:g} pJ an accumulation, "
        f"{ENERGY_PAPER:g} times less energy means {needed:.3f} spikes per neuron in all {STEPS_PAPER} steps: a neuron "
        f"that fires once in {STEPS_PAPER / needed:,.0f} steps."
    ]
    for name, some in settings_of(rows).items():
        at = next(row.at for row in some if row.quantity == "energy: paper")
        keys = ("spikes_per_neuron", "paper", "paper_per_step", "compute", "total")
        values = [mean(some, "encrypted", f"energy: {key}", at) for key in keys]
        spikes, right, wrong, compute, total = (value[0] if value else float("nan") for value in values)
        parts.append(
            f"- {name}, {at}: a neuron of the encrypted network fires {spikes:.2f} times; the paper's model gives "
            f"{right:.2f}x, and {wrong:.0f}x if spikes of one step are taken for those of all; ours {compute:.2f}x of "
            f"arithmetic, and {total:.2f}x with memory."
        )
    return parts[0] + "\n\n" + "\n".join(parts[1:])


def clients_part(told: Mapping[str, str]) -> str:
    """Lay out S-clients that calibrate on private and on synthetic images: mean ± deviation over seeds."""
    rows = csv_rows(HERE / "clients.csv")
    titles, labels = (list(dict.fromkeys(row[key] for row in rows)) for key in ("table", "row"))
    cells = {(row["row"], row["table"]): _cell(row) for row in rows}
    lines = [["conversion.data", *titles], ["---"] * (1 + len(titles))]
    lines += [[label, *(cells[label, title] for title in titles)] for label in labels]
    seeds = counted(int(rows[0]["seeds"]), "seed")
    where = f"Measured on {told['collected']}, Python {told['python']}, torch {told['torch']}, {seeds}."
    return where + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Mapping[str, str]) -> str:
    share = "accuracy" in row["value"]
    numbers = [float(row[key]) * (100 if share else 1) for key in ("mean", "deviation") if row[key]]
    form = ".2f" if share else ",.0f" if numbers[0] >= 1000 else ".1f"
    return " ± ".join(format(number, form) for number in numbers) + (" %" if share else "")


def parts_of() -> dict[str, str]:
    """Return the generated parts by name."""
    parts, about = {"paper": paper_part()}, HERE / "collected.json"
    told = json.loads(about.read_text()) if about.exists() else {}
    if "laptop" in told:
        rows = from_csv((HERE / "laptop.csv").read_text())
        parts |= {"measured": measured_part(rows, told["laptop"]), "energy": energy_part(rows)}
    if "synthesis" in told:
        parts["synthesis"] = synthesis_part(from_csv((HERE / "synthesis.csv").read_text()), told["synthesis"])
    if "clients" in told:
        parts["clients"] = clients_part(told["clients"])
    if "attacks" in told:
        attacks, near = (csv_rows(HERE / f"{name}.csv") for name in ("attacks", "data_free"))
        parts["attacks"] = leakage.leakage_part(attacks, near, told["attacks"])
    if copies := {name: csv_rows(HERE / f"{name}.csv") for name in leakage.COPIES if name in told}:
        parts["copies"] = leakage.copies_part(copies, told[next(iter(copies))])
    if "more_attacks" in told:
        parts["more_attacks"] = leakage.more_part(csv_rows(HERE / "more_attacks.csv"), told["more_attacks"])
    if "locks" in told:
        parts["locks"] = leakage.locks_part(csv_rows(HERE / "locks.csv"), told["locks"])
    return parts


def main() -> None:
    """Write the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true", help="take the results from runs/ first")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where studies are")
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments.runs)
    fill(HERE / "README.md", parts_of())


if __name__ == "__main__":
    main()
