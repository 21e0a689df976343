"""Networks that quantise in every forward pass, as an attacker differentiates them: by the client's own gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snnfl.attacks.local import simulate
from snnfl.attacks.problem import problem_of
from snnfl.config import TrainingConfig, compose
from snnfl.threat import Exchange, Knowledge, ServerView
from snnfl.training import exchangeable, train_locally
from snnfl.workspace import Workspace

RUNS = {
    "weights": ["quantization.weights=4"],
    "weights by channel": ["quantization.weights=2", "quantization.per_channel=true"],
    "activations": ["quantization.activations=4"],
    "activations, fixed": ["quantization.activations=2", "quantization.clip=1.5"],
    "wide": ["model.name=mlp", "quantization.weights=4", "quantization.activations=4"],
    "spiking": [
        "model.name=mlp",
        "model.neuron=lif",
        "model.threshold=0.3",
        "model.time_steps=4",
        "quantization.weights=4",
        "quantization.potentials=8",
        "quantization.clip=1",
    ],
}


def view_of(options: list[str], *, quantised: bool = True) -> tuple[ServerView, Tensor, Tensor]:
    """Train a client for a step; return what the server has, the images and the labels."""
    config = ["data.clients=4", "strategy.spiking=false", "model.batch_norm=false", *options]
    work = Workspace(compose(None, config))
    ordinary = Workspace(compose(None, [option for option in config if not option.startswith("quantization")]))
    images, labels = work.dataset.normalise(work.dataset.train_images[:3]), work.dataset.train_labels[:3]
    sent = {name: array.clone() for name, array in work.arrays.items()}
    training = TrainingConfig(epochs=1, batch_size=3, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    train_locally(work.model, [[(images, labels)]], training, server_round=1)
    received = {name: array.clone() for name, array in exchangeable(work.model).items()}
    view = ServerView(
        model=work.model if quantised else ordinary.model, input_shape=(1, 8, 8), mean=work.dataset.mean,
        std=work.dataset.std, format=work.format,
        exchange=Exchange(server_round=1, sent=sent, received=received),
        knowledge=Knowledge(images=3, batch_size=3, epochs=1, learning_rate=0.1),
    )  # fmt: skip
    return view, images, labels


def miss(view: ServerView, images: Tensor, labels: Tensor) -> float:
    """Return how far the gradient of the client's own images is from what its update tells, relatively."""
    problem = problem_of(view)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    found = simulate(problem.network, problem.arrays, tuple(problem.target), images, targets, problem.local)
    off = torch.cat([(found[name] - array).flatten() for name, array in problem.target.items()])
    return float(off.norm() / torch.cat([array.flatten() for array in problem.target.values()]).norm())


@pytest.mark.parametrize("run", RUNS)
def test_an_attacker_has_the_clients_own_gradient(run: str) -> None:
    view, images, labels = view_of(RUNS[run])
    assert miss(view, images, labels) < 1e-3
    if "activations" not in run and run != "wide":  # an ordinary model has no ranges to be given
        assert miss(*view_of(RUNS[run], quantised=False)) > 0.02
