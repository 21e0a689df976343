"""``python -m experiments.federated_snn.cpu FOLDER ...``: what a round of each kind costs, in CPU seconds.

Wall time says little on a machine that does other work. Each kind of a folder's ``laptop.yaml`` (the labels of its
first axis; of the other axes the first label, and the first seed) runs for one round and for three, in this process and
in one thread; half the difference in CPU time is a round's, without start-up. Writes ``cpu.csv`` beside it.
"""

from __future__ import annotations

import csv
import io
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from clients.client_app import app as client_app
from experiments.compare.study import Cell, read_study
from experiments.engines.in_process import run_in_process
from snnfl.config import Config, ConfigError, flatten
from snnfl.files import write_bytes
from strategies.run_directory import node_folders
from strategies.server_app import server_app

HERE = Path(__file__).parent


def seconds_per_round(config: Config) -> float:
    """Return CPU seconds of a round: training, messages, aggregation and the server's test."""
    _seconds(config, 1)  # what is read, compiled and allocated once
    one, three = (_seconds(config, rounds) for rounds in (1, 3))
    return (three - one) / 2


def cpu_part(path: Path) -> str:
    """Lay out what was measured."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    lines = [f"| {setting} | {float(seconds):.2f} |" for setting, seconds in rows]
    return "\n".join(["| setting | CPU-s per round |", "| --- | --- |", *lines])


def first_of_each(cells: Iterable[Cell]) -> list[Cell]:
    """Return the first cell of each label of the first axis."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(next(iter(cell.labels.values())), cell)
    return list(found.values())


def _seconds(config: Config, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = replace(config.run, rounds=rounds, directory=folder, name="run", resume=False)
        start = time.process_time()
        run_in_process(
            server_app(),
            client_app,
            run_config=flatten(replace(config, run=run)),
            clients=config.data.clients,
            node_config=node_folders(Path(folder) / "run"),
        )
        return time.process_time() - start


def main() -> None:
    """Measure each kind of the folders that the command line names, and write what was found."""
    torch.set_num_threads(1)
    try:
        for name in sys.argv[1:]:
            stream = io.StringIO()
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["setting", "seconds"])
            for cell in first_of_each(read_study(HERE / name / "laptop.yaml").cells):
                writer.writerow([", ".join(cell.labels.values()), f"{seconds_per_round(cell.config):.4f}"])
            write_bytes(HERE / name / "cpu.csv", stream.getvalue().encode())
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
