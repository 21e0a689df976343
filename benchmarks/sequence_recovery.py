"""Measure what spike trains in a gradient tell of sequences of any numbers: the correlation of what is found.

``python benchmarks/sequence_recovery.py``: Japanese vowels (25 steps of 12 coefficients), an untrained network of 1,000
leaky neurons, one step of rate 0.1 on one series. A seed draws weights and victims. The floor is the mean of all test
series. ``--source audio_folder --folder spoken`` takes recordings (experiments/federated_snn/spoken_folder.py).
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import Tensor

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.auditing.scorecard import interval
from snnfl.config import DataConfig, ModelConfig, TrainingConfig
from snnfl.data import Dataset, load
from snnfl.models import SpikingModel, build_model
from snnfl.threat import Exchange, Knowledge, ServerView
from snnfl.training import exchangeable, train_locally
from snnfl.updates import Native

RATE = 0.1


def view_of(data: Dataset, model: SpikingModel, chosen: Tensor) -> ServerView:
    """Return what a server sees of one step on one sequence."""
    client = copy.deepcopy(model)
    training = TrainingConfig(epochs=1, batch_size=1, learning_rate=RATE, momentum=0.0, weight_decay=0.0)
    sent = {name: array.clone() for name, array in exchangeable(client).items()}
    batch = (data.normalise(data.train_images[chosen]), data.train_labels[chosen])
    train_locally(client, [[batch]], training, server_round=1)
    span = data.scale - data.lowest
    return ServerView(
        model=model,
        input_shape=data.input_shape,
        mean=data.pixels(data.mean),
        std=data.std / span,
        format=Native(sent, model.layers),
        exchange=Exchange(server_round=1, sent=sent, received=exchangeable(client)),
        knowledge=Knowledge(images=1, batch_size=1, epochs=1, learning_rate=RATE),
        sequence=True,
    )


def correlation(found: Tensor, true: Tensor) -> float:
    """Return Pearson's correlation over all values."""
    return float(torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1])


def main() -> None:
    """Print a line per seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", default="japanese_vowels")
    parser.add_argument("--folder", help="of source audio_folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--victims", type=int, default=10)
    parser.add_argument("--surrogate", default="fast_sigmoid")
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = {"folder": given.folder, "time_bins": 25} if given.folder else {}
    data = load(DataConfig(source=given.source, root=given.root, **folder))
    guess = data.pixels(data.test_images).mean(0)
    config = ModelConfig(name="mlp", neuron="lif", batch_norm=False, surrogate=given.surrogate)
    for seed in given.seeds:
        draw = rng.generator(seed, "initial weights")
        model = build_model(config, input_shape=data.input_shape, classes=data.classes, generator=draw, sequence=True)
        if not isinstance(model, SpikingModel):
            raise TypeError(f"{type(model).__name__}: expected a spiking network")
        order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(seed + 1))
        start, reached, floors, left = time.process_time(), list[float](), list[float](), list[float]()
        for chosen in torch.split(order, 1)[: given.victims]:
            view, true = view_of(data, model, chosen), data.pixels(data.train_images[chosen])
            found = get_attack("sequence_recovery").run(view, budget=Budget(), generator=torch.Generator())
            reached.append(correlation(found.images, true))
            floors.append(correlation(guess, true))
            left.append(found.objective)
        seconds, (low, high) = (time.process_time() - start) / len(reached), interval(reached) or (0.0, 0.0)
        print(
            f"seed {seed}, {given.surrogate}, {len(reached)} victims: correlation {sum(reached) / len(reached):.3f} "
            f"({low:.3f} to {high:.3f}), least {min(reached):.3f}, best guess {sum(floors) / len(floors):.3f}; "
            f"of the gradient left {sum(left) / len(left):.2f}; {seconds:.1f} CPU-s a victim",
            flush=True,
        )


if __name__ == "__main__":
    main()
