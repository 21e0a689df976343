"""Measure what an S-update's thresholds tell of the images that calibrated them: members, and properties of the set.

``python benchmarks/side_channel.py``: CIFAR-10, LeNet-5 after ``--steps`` of SGD on the last half of training images;
clients of 50 images of the first half, one epoch of batches of 10 at rate 0.1, calibrated by these 50. A member counts
as found if it is above 1,000 test images. Beside it stands what the gradient of each image tells by the plain twin's
update: the same client, had it sent its network. A seed draws weights, training and clients; the intervals are those
of the mean over the clients of all seeds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence

import torch
from exact_batches import trained
from torch import Tensor, nn

from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.scorecard import interval
from snnfl.auditing.side_channel import SideChannel, side_channels
from snnfl.auditing.victims import Victim
from snnfl.config import ConversionConfig, DataConfig, TrainingConfig
from snnfl.conversion import convert_state
from snnfl.data import Dataset, load
from snnfl.spiking import trace
from snnfl.threat import Exchange, Knowledge, PublicImages, ServerView
from snnfl.training import exchangeable, private_biases, train_locally
from snnfl.updates import Converted

IMAGES, BATCH, RATE = 50, 10, 0.1
SETTINGS = (
    ("channel_mmse", "none"), ("layer_mmse", "none"), ("channel_mmse", "bias"), ("layer_mmse", "bias"),
)  # fmt: skip
"""Thresholds and calibration; the last one is the default."""


def victim_of(data: Dataset, model: nn.Module, chosen: Tensor, number: int, conversion: ConversionConfig) -> Victim:
    """Return a client of an S-run that trains and calibrates on some images."""
    training = TrainingConfig(epochs=1, batch_size=BATCH, learning_rate=RATE, momentum=0.0, weight_decay=0.0)
    client, private = copy.deepcopy(model), private_biases(model)
    before = {name: array.clone() for name, array in exchangeable(client).items()}
    inputs, labels = data.normalise(data.train_images[chosen]), data.train_labels[chosen]
    batches = list(zip(torch.split(inputs, BATCH), torch.split(labels, BATCH), strict=True))
    train_locally(client, [batches], training, server_round=1)
    after, graph = exchangeable(client), trace(client)
    view = ServerView(
        model=model,
        input_shape=data.input_shape,
        mean=data.mean,
        std=data.std,
        format=Converted(graph, before, conversion),
        exchange=Exchange(
            server_round=1,
            sent={name: array for name, array in before.items() if name not in private},
            received=dict(convert_state(graph, client.state_dict(), inputs, conversion).parameters),
        ),
        knowledge=Knowledge(images=IMAGES, batch_size=BATCH, epochs=1, learning_rate=RATE, biases=False),
        public=PublicImages(inputs=data.normalise(data.test_images[:2000]), labels=data.test_labels[:2000]),
    )
    truth = GroundTruth(
        images=data.pixels(data.train_images[chosen]),
        labels=labels,
        biases={name: before[name] for name in private},
        trained_biases={name: after[name] for name in private},
    )
    return Victim(server_round=1, partition=number, view=view, truth=truth)


def line(rows: Sequence[SideChannel]) -> str:
    """Write what was found of all clients."""
    twins = [(row.found, row.twin_found, row.auc, row.twin_auc) for row in rows]
    points = [100 * (found - (twin or 0.0)) for found, twin, _, _ in twins]
    low, high = interval(points) or (points[0], points[0])
    own, theirs = (100 * statistics.fmean(each[place] or 0.0 for each in twins) for place in (0, 1))
    areas = [statistics.fmean(each[place] or 0.0 for each in twins) for place in (2, 3)]
    classes = [row.classes for row in rows if row.classes is not None]
    ends = interval(classes) or (classes[0], classes[0])
    correlations = [
        statistics.correlation([getattr(row, name) for row in rows], [getattr(row, f"true_{name}") for row in rows])
        for name in ("brightness", "contrast")
    ]
    return (
        f"members found {own:.1f} %, by the plain twin {theirs:.1f} %: {statistics.fmean(points):+.1f} points "
        f"({low:+.1f} to {high:+.1f}); AUC {areas[0]:.2f}, plain twin {areas[1]:.2f}; correlation of classes' shares "
        f"{statistics.fmean(classes):.2f} ({ends[0]:.2f} to {ends[1]:.2f}), over clients of brightness "
        f"{correlations[0]:.2f}, of contrast {correlations[1]:.2f}"
    )


def main() -> None:
    """Print a line per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=2000, help="of training before")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clients", type=int, default=10, help="of each seed")
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, models, chosen = load(DataConfig(source="cifar10", root=given.root)), list[nn.Module](), list[list[Tensor]]()
    for seed in given.seeds:
        models.append(trained(data, "lenet5", given.steps, seed=seed))
        with torch.no_grad():
            right = models[-1](data.normalise(data.test_images)).argmax(1) == data.test_labels
        print(f"seed {seed}: LeNet-5, {given.steps} steps, test accuracy {right.float().mean():.1%}", flush=True)
        order = torch.randperm(len(data.train_images) // 2, generator=torch.Generator().manual_seed(seed + 1))
        chosen.append(list(torch.split(order, IMAGES)[: given.clients]))
    for thresholds, calibration in SETTINGS:
        conversion = ConversionConfig(steps=32, thresholds=thresholds, calibration=calibration)  # type: ignore[arg-type]
        rows = list[SideChannel]()
        for seed, model, clients in zip(given.seeds, models, chosen, strict=True):
            victims = [victim_of(data, model, own, number, conversion) for number, own in enumerate(clients)]
            rows += side_channels(victims, seed)
        print(f"{thresholds}, {calibration}, {len(rows)} clients: {line(rows)}", flush=True)


if __name__ == "__main__":
    main()
