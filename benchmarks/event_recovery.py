"""Measure how many N-MNIST recordings the gradient of a spiking network's linear first layer gives away.

One line per cell: ``python benchmarks/event_recovery.py --steps 10 25 --recordings 100 --epochs 0 5``. Half of the
training recordings (even indices) train the network, victims are drawn from the others.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.config import DataConfig, ModelConfig, TrainingConfig
from snnfl.data import Dataset, load
from snnfl.metrics.events import event_f1, exact_frames
from snnfl.metrics.images import matched
from snnfl.models import SpikingModel, build_model
from snnfl.threat import Exchange, Knowledge, ServerView
from snnfl.training import exchangeable, train_locally
from snnfl.updates import Native

RATE = 0.1


def training(batch: int) -> TrainingConfig:
    """Return one epoch of plain SGD."""
    return TrainingConfig(epochs=1, batch_size=batch, learning_rate=RATE, momentum=0.0, weight_decay=0.0)


def trained(data: Dataset, neuron: str, surrogate: str, epochs: int, *, batch_norm: bool) -> SpikingModel:
    """Return a spiking network after some epochs on the recordings with even indices, batches of 10."""
    config = ModelConfig(name="mlp", neuron=neuron, batch_norm=batch_norm, surrogate=surrogate)
    draw = rng.generator(0, "initial weights")
    model = build_model(config, input_shape=data.input_shape, classes=10, generator=draw, sequence=True)
    if not isinstance(model, SpikingModel):
        raise TypeError(f"{type(model).__name__}: expected a spiking network")
    inputs, labels = data.normalise(data.train_images[::2]), data.train_labels[::2]
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        parts = torch.split(torch.randperm(len(inputs), generator=order), 10)
        train_locally(model, [[(inputs[part], labels[part]) for part in parts]], training(10), server_round=1)
    return model


def attacked(data: Dataset, model: SpikingModel, chosen: torch.Tensor) -> tuple[bool, bool, float]:
    """Return of one step on some recordings: all frames exact, their order and sample, too, and the share of frames."""
    client, count = copy.deepcopy(model), len(chosen)
    sent = {name: array.clone() for name, array in exchangeable(client).items()}
    batch = (data.normalise(data.train_images[chosen]), data.train_labels[chosen])
    train_locally(client, [[batch]], training(count), server_round=1)
    view = ServerView(
        model=model,
        input_shape=data.input_shape,
        mean=data.mean / data.scale,
        std=data.std / data.scale,
        format=Native(sent, model.layers),
        exchange=Exchange(server_round=1, sent=sent, received=exchangeable(client)),
        knowledge=Knowledge(images=count, batch_size=count, epochs=1, learning_rate=RATE),
        sequence=True,
    )
    found = get_attack("event_recovery").run(view, budget=Budget(), generator=torch.Generator()).images
    true = data.pixels(data.train_images[chosen])
    share = float(exact_frames(found.flatten(0, 1)[None], true.flatten(0, 1)[None]))
    own = found[matched(found.sum(1), true.sum(1))]
    return share == 1, bool((event_f1(own, true) == 1).all()), share


def main() -> None:
    """Print a line per cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, nargs="+", default=[10])
    parser.add_argument("--epochs", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--recordings", type=int, default=100, help="victims, each of a batch of recordings")
    parser.add_argument("--neuron", default="lif", help="or rlif, the recurrent ones")
    parser.add_argument("--surrogate", default="fast_sigmoid")
    parser.add_argument("--batch-norm", action="store_true", help="behind the first layer, as mlp has by default")
    parser.add_argument("--root", default="data")
    given = parser.parse_args()
    for steps in given.steps:
        data = load(DataConfig(source="nmnist", time_bins=steps, root=given.root))
        others = torch.randperm(500, generator=torch.Generator().manual_seed(1)) * 2 + 1
        for epochs in given.epochs:
            model = trained(data, given.neuron, given.surrogate, epochs, batch_norm=given.batch_norm)
            start = time.process_time()
            batches = torch.split(others, given.batch)[: given.recordings]
            rows = torch.tensor([attacked(data, model, chosen) for chosen in batches], dtype=torch.float64)
            exact, ordered, share = rows.mean(0).tolist()
            seconds = (time.process_time() - start) / len(rows)
            print(
                f"T={steps} batch={given.batch} epochs={epochs} {given.neuron} {given.surrogate}"
                f"{' batch_norm' if given.batch_norm else ''}: of {len(rows)} victims exact "
                f"{exact:.0%}, with order {ordered:.0%}; of frames {share:.1%}; {seconds:.2f} CPU-s a victim",
                flush=True,
            )


if __name__ == "__main__":
    main()
