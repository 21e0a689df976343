"""Measure what gradient matching finds of images behind a spiking network, naive and adaptive, by equal means.

``python benchmarks/native_matching.py``: MNIST, ConvNet of leaky neurons, direct coding, T=10. Steps of Adam train it
on the last half of the training images; victims are one step of rate 0.1 each on images of the first half. A seed draws
weights, training, victims and the attacks' starts.

The naive attack is ``inverting_gradients`` (Geiping et al. 2020) through the client's own surrogate, the adaptive one
``native_features``. Both start from a dark, a mean and a noise image, and choose prior and weights by rehearsals on
public images. An iteration of the naive one differentiates twice and takes some ten times as long, so it gets fewer
(``--naive``) and about as much CPU time or more. ``published`` is the naive one as published, from noise, TV 0.01.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from harness import Bar
from torch import Tensor, nn

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.matching import IMAGES, Matching, choose, prepare
from snnfl.attacks.problem import problem_of
from snnfl.auditing.scorecard import interval
from snnfl.config import DataConfig, ModelConfig, TrainingConfig
from snnfl.data import Dataset, load
from snnfl.metrics.images import floors, matched, psnr
from snnfl.models import SpikingModel, build_model
from snnfl.threat import Exchange, Knowledge, PublicImages, ServerView
from snnfl.training import exchangeable, train_locally
from snnfl.updates import Native

RATE = 0.1
AT_ONCE = 10
"""Victims whose gradients are in memory together."""

BAR = Bar(limit=10.0)
"""Of the difference in dB, of a trained network."""

Attack: TypeAlias = Callable[[Sequence[ServerView], torch.Generator], list[tuple[Tensor, str]]]
"""Of victims, pixels and the choice of each."""


def trained(data: Dataset, config: ModelConfig, steps: int, seed: int) -> tuple[SpikingModel, float]:
    """Return a spiking network after some steps of Adam on 64 images each, rate 0.001, and its accuracy."""
    draw = rng.generator(seed, "initial weights")
    model = build_model(config, input_shape=data.input_shape, classes=data.classes, generator=draw)
    if not isinstance(model, SpikingModel):
        raise TypeError(f"{type(model).__name__}: expected a spiking network")
    optimizer, order = torch.optim.Adam(model.parameters(), lr=0.001), torch.Generator().manual_seed(seed)
    half = len(data.train_images) // 2
    for _ in range(steps):
        chosen = half + torch.randint(half, (64,), generator=order)
        optimizer.zero_grad()
        logits = model(data.normalise(data.train_images[chosen]))
        nn.functional.cross_entropy(logits, data.train_labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        right = model(data.normalise(data.test_images[:1000])).argmax(1) == data.test_labels[:1000]
    return model, float(right.float().mean())


def view_of(data: Dataset, model: SpikingModel, chosen: Tensor, known: int) -> ServerView:
    """Return what a server, which knows some test images, sees of one step on some others."""
    client, count = copy.deepcopy(model), len(chosen)
    training = TrainingConfig(epochs=1, batch_size=count, learning_rate=RATE, momentum=0.0, weight_decay=0.0)
    sent = {name: array.clone() for name, array in exchangeable(client).items()}
    batch = (data.normalise(data.train_images[chosen]), data.train_labels[chosen])
    train_locally(client, [[batch]], training, server_round=1)
    return ServerView(
        model=model,
        input_shape=data.input_shape,
        mean=data.mean,
        std=data.std,
        format=Native(sent, model.layers),
        exchange=Exchange(server_round=1, sent=sent, received=exchangeable(client)),
        knowledge=Knowledge(images=count, batch_size=count, epochs=1, learning_rate=RATE),
        public=PublicImages(inputs=data.normalise(data.test_images[:known]), labels=data.test_labels[:known]),
    )


def by_name(name: str, budget: Budget, *, public: bool = True) -> Attack:
    """Return a registered attack."""

    def run(views: Sequence[ServerView], draw: torch.Generator) -> list[tuple[Tensor, str]]:
        given = views if public else [replace(view, public=None) for view in views]
        found = get_attack(name).run_many(given, budget=budget, generator=draw)
        return [(item.images, item.choice) for item in found]

    return run


def naive(budget: Budget) -> Attack:
    """Return ``inverting_gradients`` from the three starts of ``native_features``."""

    def run(views: Sequence[ServerView], draw: torch.Generator) -> list[tuple[Tensor, str]]:
        problems = [problem_of(view) for view in views]
        labels = [infer_labels(view, problem, draw) for view, problem in zip(views, problems, strict=True)]
        choice = choose(problems, Matching(), budget, draw)
        three = replace(budget, restarts=3)
        found = list[tuple[Tensor, str]]()
        for first in range(0, len(views), AT_ONCE):
            some = problems[first : first + AT_ONCE]
            choices = [choice] * len(some)
            descent = prepare(some, labels[first : first + AT_ONCE], Matching(), three, draw, choices)
            noise = descent.start[IMAGES].unflatten(0, (len(some), 3))
            low, high = descent.box
            uneven = 0.1 * torch.rand(noise[:, 0].shape, generator=draw)
            starts = torch.stack([(low + uneven).clamp(low, high), uneven.clamp(low, high), noise[:, 2]], 1)
            ready = replace(descent, start={**descent.start, IMAGES: starts.flatten(0, 1)})
            pairs = zip(ready.run(), views[first : first + AT_ONCE], strict=True)
            found += [(view.pixels(item.images), item.choice) for item, view in pairs]
        return found

    return run


def scores(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Return each victim's mean PSNR in dB, its images put in order."""
    return [float(psnr(own[matched(own, true)], true).mean()) for own, true in zip(found, truth, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Write a mean and its 95 % interval."""
    ends = interval(values)
    return f"{sum(values) / len(values):.1f} dB" + (f" ({ends[0]:.1f} to {ends[1]:.1f})" if ends else "")


def measure(data: Dataset, config: ModelConfig, given: argparse.Namespace, steps: int, seed: int) -> list[float]:
    """Attack the victims of one network; print what was found, and return by how much the adaptive attack is ahead."""
    model, accuracy = trained(data, config, steps, seed)
    half = len(data.train_images) // 2
    order = torch.randperm(half, generator=torch.Generator().manual_seed(seed + 1))
    chosen = torch.split(order, given.batch)[: given.victims]
    views = [view_of(data, model, each, given.public) for each in chosen]
    truth = [data.pixels(data.train_images[each]) for each in chosen]
    public = data.pixels(data.test_images[:1000])
    guesses = {name: scores([floors(true, public)[name] for true in truth], truth) for name in ("grey", "mean_image")}
    best = max(guesses.values(), key=sum)
    print(
        f"seed {seed}, {steps} steps ({accuracy:.0%} right), {len(views)} victims: best guess {spread(best)}",
        flush=True,
    )
    few = Budget(iterations=given.naive)
    attacks: dict[str, Attack] = (
        {"published": by_name("inverting_gradients", few, public=False)} if given.published else {}
    )
    attacks |= {"naive": naive(few), "native_features": by_name("native_features", Budget(iterations=given.iterations))}
    reached = dict[str, list[float]]()
    for name, attack in attacks.items():
        start = time.process_time()
        found = attack(views, rng.generator(seed, "attack"))
        seconds = (time.process_time() - start) / len(views)
        reached[name] = scores([images for images, _ in found], truth)
        print(f"  {name}: {spread(reached[name])}; {found[0][1]}; {seconds:.1f} CPU-s a victim", flush=True)
    return [adaptive - plain for adaptive, plain in zip(reached["native_features"], reached["naive"], strict=True)]


def main() -> None:
    """Print three lines per network, and one per number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--neuron", default="lif")
    parser.add_argument("--surrogate", default="fast_sigmoid")
    parser.add_argument("--encoding", default="direct")
    parser.add_argument("--time-steps", type=int, default=10)
    parser.add_argument("--threshold", type=float, help="of neurons; default: the model's")
    parser.add_argument("--slope", type=float, help="of the surrogate; default: its own")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 150], help="of training before")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--public", type=int, default=1000, help="images of the server's own; audits of LeNet-5 have 2000"
    )
    parser.add_argument("--victims", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=150, help="of native_features, from each of three starts")
    parser.add_argument("--naive", type=int, default=60, help="of the naive attack, from each of three starts")
    parser.add_argument("--published", action="store_true", help="the naive attack as published, too")
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(source="mnist", root=given.root))
    config = ModelConfig(
        name=given.model,
        neuron=given.neuron,
        batch_norm=False,
        time_steps=given.time_steps,
        surrogate=given.surrogate,
        threshold=given.threshold,
        surrogate_slope=given.slope,
        encoding=given.encoding,
    )
    for steps in given.steps:
        ahead = [value for seed in given.seeds for value in measure(data, config, given, steps, seed)]
        mean = sum(ahead) / len(ahead)
        verdict = f"; bar: {BAR}: {'met' if BAR.met(mean) else 'missed'}" if steps else ""
        print(f"{steps} steps: native_features over naive {spread(ahead)}, {len(ahead)} victims{verdict}", flush=True)


if __name__ == "__main__":
    main()
