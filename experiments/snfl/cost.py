"""``python -m experiments.snfl.cost``: what a run of the paper's setting would cost here, from a few measured steps.

The paper's own network (``resnet20_snfl``, 32x32 pixels) trains a few batches, is converted, simulated and tested on
this machine's processor, in CPU seconds of one thread. Conversion and simulation are taken to cost in proportion to
images times time steps. Needs CIFAR-10; takes some 15 CPU seconds; writes ``table1_iid/cost.csv``.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from snnfl.config import Config, compose
from snnfl.conversion import convert
from snnfl.files import write_bytes
from snnfl.training import train_locally
from snnfl.workspace import Workspace

HERE = Path(__file__).parent
SETTING = HERE.parent / "conf" / "snfl_cifar10.yaml"
FILE = HERE / "table1_iid" / "cost.csv"
BATCHES, IMAGES, STEPS = 3, 16, 16

Row = Mapping[str, str]


def measure(config: Config) -> dict[str, float]:
    """Return CPU seconds per unit of each kind of work.

    Args:
        config: Of the paper's setting; of its data a part is enough.
    """
    work, training = Workspace(config), config.training
    batch = training.batch_size
    needed = work.dataset.normalise(work.dataset.train_images[: (BATCHES + 1) * batch])
    labels = work.dataset.train_labels[: len(needed)]
    batches = list(zip(torch.split(needed, batch), torch.split(labels, batch), strict=True))
    images, short = needed[:IMAGES], replace(config.conversion, steps=STEPS)

    def train(some: Sequence[tuple[Tensor, Tensor]]) -> object:
        return train_locally(work.model, [some], training, server_round=1)

    train(batches[:1])  # the first step allocates
    trained = _seconds(lambda: train(batches[1:])) / (BATCHES * batch)
    work.model.eval()
    convert(work.model, images[:2], replace(short, steps=2))  # and the first conversion compiles
    converted = _seconds(lambda: convert(work.model, images, short)) / (IMAGES * STEPS)
    network = convert(work.model, images[:2], replace(short, steps=2))
    simulated = _seconds(lambda: network.simulate(images, steps=STEPS)) / (IMAGES * STEPS)
    with torch.inference_mode():
        tested = _seconds(lambda: work.model(images)) / IMAGES
    return {"training": trained, "conversion": converted, "simulation": simulated, "clients' test": tested}


def amounts(config: Config, *, training_images: int, test_images: int) -> dict[str, int]:
    """Return how many units of each kind of work a run of S-FedAvg has.

    Args:
        config: Of the run.
        training_images: Of the data set.
        test_images: Of the data set; the last round is tested on all of them.
    """
    rounds, clients, steps = config.run.rounds, config.data.clients, config.conversion.steps
    tested = (rounds - 1) * config.evaluation.images + test_images
    return {
        "training": rounds * config.training.epochs * training_images,
        "conversion": rounds * clients * config.conversion.calibration_images * steps,
        "simulation": tested * steps,
        "clients' test": tested * clients,
    }


def cost_part(rows: Sequence[Row]) -> str:
    """Lay out the extrapolation: measured seconds per unit, times the units of a run."""
    head = ["work", "unit", "units of a run", "CPU-s per unit", "CPU-hours"]
    hours = {row["work"]: int(row["units"]) * float(row["seconds"]) / 3600 for row in rows}
    lines = [
        [
            row["work"],
            row["unit"],
            f"{int(row['units']):,}",
            f"{float(row['seconds']):.4f}",
            f"{hours[row['work']]:,.0f}",
        ]
        for row in rows
    ]
    spiking = sum(hours.values())
    plain = hours["training"] + hours["clients' test"]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])
    return (
        f"{table}\n\nSo S-FedAvg takes {spiking:,.0f} CPU-hours ({spiking / 24:,.1f} days of one core), and FedAvg, "
        f"which trains and tests alone, {plain:,.0f} ({plain / 24:,.1f} days): units times seconds / 3600, summed."
    )


def read(path: Path) -> list[Row]:
    """Read what was measured."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and write the file that the README's table is made from."""
    torch.set_num_threads(1)
    config = compose(SETTING)
    images = (BATCHES + 1) * config.training.batch_size
    data = Workspace(config).dataset
    units = amounts(config, training_images=len(data.train_labels), test_images=len(data.test_labels))
    part = replace(config.data, training_images=images, test_images=IMAGES, clients=1)
    seconds = measure(replace(config, data=part))
    kinds = {"training": "image", "clients' test": "image"}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["work", "unit", "units", "seconds"])
    writer.writerows([k, kinds.get(k, "image x time step"), units[k], f"{seconds[k]:.6f}"] for k in units)
    write_bytes(FILE, stream.getvalue().encode())


if __name__ == "__main__":
    main()
