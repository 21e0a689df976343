"""Gradient inversion against breaching 0.1.2, and the attacks that must succeed: DLG and the closed form.

breaching runs on the same model, images, labels, starts and steps, with the same weight of the total variation. It is
looked for where Python looks and in ``BREACHING_SITE`` (``/tmp/breachingsite``), where this puts it:
``pip install --target /tmp/breachingsite --no-deps breaching==0.1.2``, with ``higher``, ``hydra-core``,
``antlr4-python3-runtime``, ``kornia`` and ``tqdm``. Without it its rows are left out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import Bar, Options, Result, find_data, main, ratios, take_turns
from torch import Tensor, nn

from snnfl.attacks import Budget, get_attack
from snnfl.attacks.matching import Matching, prepare
from snnfl.attacks.problem import problem_of
from snnfl.attacks.selection import PUBLISHED
from snnfl.config import ModelConfig
from snnfl.metrics.images import matched, psnr, ssim
from snnfl.models import build_model, initialise
from snnfl.rng import generator
from snnfl.threat import Exchange, Knowledge, ServerView
from snnfl.torchvision_guard import guard
from snnfl.updates import Plain

RATE = 0.1
SEED = 3
PICTURE = (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One client's round of one step: the network, what its server sees, and the truth."""

    model: nn.Module
    view: ServerView
    images: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures in [0, 1], labels, and what normalises them."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, options: Options) -> Pictures:
        """Read CIFAR-10; noise stands in for it where it isn't, and when in a hurry."""
        data = None if options.quick else find_data("cifar10")
        if data is None:
            draw = generator(0, "pictures")
            labels = torch.randint(10, (64,), generator=draw)
            images = torch.rand(64, *PICTURE, generator=draw)
            return cls(images=images, labels=labels, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.3))
        images = data.test_images[:64].float() / 255
        return cls(images=images, labels=data.test_labels[:64], mean=data.mean, std=data.std)


def measure(options: Options) -> list[Result]:
    """Measure speed and quality of Inverting Gradients, then DLG and the closed form."""
    pictures = Pictures.of(options)
    results = []
    for batch, victims in ((1, 8), (8, 8)):
        results += measure_matching(pictures, batch, victims, options)
    return [*results, *measure_dlg(pictures, options), measure_closed_form(pictures, options)]


def case_of(model: nn.Module, pictures: Pictures, start: int, count: int, *, labels: bool) -> Case:
    """Take one SGD step on some pictures and show what a server sees."""
    chosen = slice(start, start + count)
    images, wanted = pictures.images[chosen], pictures.labels[chosen]
    sent = {name: parameter.detach() for name, parameter in model.named_parameters()}
    known = Knowledge(images=count, batch_size=count, epochs=1, learning_rate=RATE, labels=labels)
    exchange = Exchange(server_round=1, sent=sent, received=sent)
    shape = {
        "model": model,
        "input_shape": PICTURE,
        "mean": pictures.mean,
        "std": pictures.std,
        "knowledge": known,
        "format": Plain(sent),
    }
    given = wanted if labels else None
    inputs = ServerView(**shape, exchange=exchange, labels=given).inputs(images)  # type: ignore[arg-type]
    loss = nn.functional.cross_entropy(model(inputs), wanted)
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    received = {name: array - RATE * slope for (name, array), slope in zip(sent.items(), slopes, strict=True)}
    exchange = Exchange(server_round=1, sent=sent, received=received)
    view = ServerView(**shape, exchange=exchange, labels=given)  # type: ignore[arg-type]
    return Case(model=model, view=view, images=images, labels=wanted)


def measure_matching(pictures: Pictures, batch: int, victims: int, options: Options) -> list[Result]:
    """Compare Inverting Gradients on LeNet-5: speed on few steps, quality on many."""
    config = ModelConfig(name="lenet5", batch_norm=False)
    model = build_model(config, input_shape=PICTURE, classes=10, generator=generator(0, "weights"))
    cases = [case_of(model, pictures, start * batch, batch, labels=True) for start in range(victims)]
    attack, theirs = get_attack("inverting_gradients"), find_breaching()

    def ours(iterations: int, some: list[Case]) -> Tensor:
        found = attack.run_many(
            [case.view for case in some], budget=Budget(iterations=iterations), generator=generator(SEED, "starts")
        )
        return torch.cat([result.images for result in found])

    few, many, rounds = (2, 4, 1) if options.quick else (100, 400, 3)
    candidates: dict[str, Callable[[], object]] = {
        "together": speed_of(cases, few, compiled=not options.quick),
        "alone": speed_of(cases[:1], few, compiled=False),
    }
    if theirs is not None:
        candidates["breaching"] = breach(theirs, cases[:1], few)
    seconds = take_turns(candidates, rounds=rounds, device=options.device)
    together = tuple(victims * few / spent for spent in seconds["together"])
    alone = tuple(few / spent for spent in seconds["alone"])
    what, note = f"Inverting Gradients, LeNet-5, batch {batch}", "compiled before; quality below without"
    default = "as `snnfl audit` does by default: traced, not compiled"
    results = [
        Result(name=f"{what}: {victims} victims at once", samples=together, unit="iterations/s", note=note),
        Result(name=f"{what}: one victim", samples=alone, unit="iterations/s", note=default),
    ]
    truth = torch.cat([case.images for case in cases])
    quality = score(ours(many, cases), truth, what, many)
    if theirs is None:
        print(f"# {what}: breaching 0.1.2 isn't installed; its rows are left out", flush=True)
        return [*results, *quality]
    speed = tuple(few / spent for spent in seconds["breaching"])
    name = f"{what}: breaching"
    other = score(breach(theirs, cases, many)(), truth, name, many)
    ahead, alone_ahead = Bar(limit=3), Bar(limit=2) if batch == 1 else None
    no_worse = Bar(limit=-0.5)
    return [
        *results,
        Result(name=name, samples=speed, unit="iterations/s"),
        Result(name=f"{what}: speed over breaching", samples=ratios(together, speed), unit="x", bar=ahead),
        Result(name=f"{what}: one victim over breaching", samples=ratios(alone, speed), unit="x", bar=alone_ahead),
        *quality,
        *other,
        Result(
            name=f"{what}: PSNR over breaching",
            samples=(quality[0].samples[0] - other[0].samples[0],),
            unit="dB",
            bar=no_worse,
        ),
    ]


def speed_of(cases: list[Case], iterations: int, *, compiled: bool) -> Callable[[], object]:
    """Prepare Inverting Gradients on some cases; what is returned takes the steps alone."""
    budget = Budget(iterations=iterations, compiled=compiled)
    problems = [problem_of(case.view) for case in cases]
    return prepare(problems, [case.labels for case in cases], Matching(), budget, generator(SEED, "starts")).run


def score(found: Tensor, truth: Tensor, name: str, iterations: int) -> list[Result]:
    """Average PSNR and SSIM over pictures, each being compared with the reconstruction nearest to it."""
    found = found[matched(found, truth)]
    note = f"mean of {len(truth)} pictures, {iterations} iterations; a grey one: {float(grey(truth)):.1f} dB"
    return [
        Result(name=f"{name}: PSNR", samples=(float(psnr(found, truth).mean()),), unit="dB", note=note),
        Result(name=f"{name}: SSIM", samples=(float(ssim(found, truth).mean()),), unit=""),
    ]


def grey(truth: Tensor) -> Tensor:
    """Return the PSNR of a guess that has seen nothing."""
    return psnr(torch.full_like(truth, 0.5), truth).mean()


def find_breaching() -> Any:
    """Import breaching, or return ``None``."""
    guard()
    site = os.environ.get("BREACHING_SITE", "/tmp/breachingsite")
    if site not in sys.path:
        sys.path.append(site)
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")  # of Hydra's next release
        return importlib.import_module("breaching")
    return None


def breach(breaching: Any, cases: list[Case], iterations: int) -> Callable[[], Tensor]:
    """Prepare breaching's Inverting Gradients on each case, from our starts; what is returned reconstructs alone."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        config = breaching.get_attack_config("invertinggradients")
        config.optim.max_iterations = iterations
        config.regularization.total_variation.scale = PUBLISHED.total_variation_weight
        view = cases[0].view
        attacker = breaching.attacks.prepare_attack(cases[0].model, nn.CrossEntropyLoss(), config, SETUP)
    starts = torch.randn(len(cases), *cases[0].images.shape, generator=generator(SEED, "starts"))

    def run() -> Tensor:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = [_reconstruct(attacker, case, start) for case, start in zip(cases, starts, strict=True)]
        return torch.cat([view.pixels(images) for images in found])

    return run


SETUP = {"dtype": torch.float, "device": torch.device("cpu")}


def _reconstruct(attacker: Any, case: Case, start: Tensor) -> Tensor:
    view, kind = case.view, _metadata(case)
    sent = list(view.exchange.sent.values())
    slopes = [(a - b) / RATE for a, b in zip(sent, view.exchange.received.values(), strict=True)]
    about = {"num_data_points": len(case.images), "labels": case.labels, "local_hyperparams": None}
    data = [{"gradients": slopes, "buffers": None, "metadata": about}]
    low, high = view.inputs(torch.zeros(PICTURE)), view.inputs(torch.ones(PICTURE))
    payload = [{"parameters": sent, "buffers": None, "metadata": kind}]
    found, _ = attacker.reconstruct(payload, data, {}, initial_data=torch.clamp(start, low, high))
    result: Tensor = found["data"].detach()
    return result


def _metadata(case: Case) -> Any:
    from omegaconf import OmegaConf

    view = case.view
    return OmegaConf.create(
        {"shape": list(PICTURE), "mean": view.mean.tolist(), "std": view.std.tolist(), "modality": "vision"}
    )


def classic_network(activation: Callable[[], nn.Module] = nn.Sigmoid) -> nn.Module:
    """Build the network of Zhu et al.: four convolutions of width 12, sigmoid, 100 outputs, weights uniform ±0.5."""
    layers: dict[str, nn.Module] = {}
    for index, (inputs, stride) in enumerate(((3, 2), (12, 2), (12, 1), (12, 1)), start=1):
        layers[f"conv{index}"] = nn.Conv2d(inputs, 12, 5, padding=2, stride=stride)
        layers[f"act{index}"] = activation()
    model = nn.Sequential(OrderedDict(**layers, flatten=nn.Flatten(), fc=nn.Linear(768, 100)))
    draw = generator(0, "classic weights")
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=draw)
    return model


def measure_dlg(pictures: Pictures, options: Options) -> list[Result]:
    """Count the pictures that DLG recovers in its classic setting, and on the same network with ReLU.

    Only the latter converts into a spiking one; a second derivative it hasn't, with spikes or without.
    """
    what = "of 100 outputs: pictures above 20 dB"
    count, budget = (1, Budget(iterations=2)) if options.quick else (10, Budget(iterations=300, restarts=4))
    name = f"DLG, sigmoid LeNet {what}"
    classic = recovered(classic_network(), pictures, count, budget, name, bar=Bar(limit=8))
    count, budget = (1, Budget(iterations=2)) if options.quick else (3, Budget(iterations=280))
    rectified = recovered(classic_network(nn.ReLU), pictures, count, budget, f"DLG, the same with ReLU, {what}")
    return [classic, rectified]


def recovered(
    model: nn.Module, pictures: Pictures, count: int, budget: Budget, name: str, *, bar: Bar | None = None
) -> Result:
    """Run DLG on single pictures; note their PSNR and the step at which each passes 20 dB."""
    plain = Pictures(images=pictures.images, labels=pictures.labels, mean=torch.zeros(3), std=torch.ones(3))
    scores, steps = [], []
    for index in range(count):
        case = case_of(model, plain, index, 1, labels=False)
        found = get_attack("dlg").run(case.view, budget=budget, generator=generator(SEED, "dlg", index))
        scores.append(float(psnr(found.images, case.images)))
        curve = zip(found.curve, found.trail, strict=True)
        steps.append(next((str(step) for (step, _), images in curve if psnr(images, case.images) > 20), "–"))
    note = f"of {count}; PSNR {', '.join(f'{value:.1f}' for value in scores)} dB; past 20 dB at step {', '.join(steps)}"
    return Result(name=name, samples=(float(sum(value > 20 for value in scores)),), unit="", note=note, bar=bar)


def measure_closed_form(pictures: Pictures, options: Options) -> Result:
    """Measure the closed form on the multi-layer perceptron; the worst of some pictures counts."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 10))
    initialise(model, generator(0, "weights"))
    scores = []
    for index in range(2 if options.quick else 10):
        case = case_of(model, pictures, index, 1, labels=False)
        found = get_attack("closed_form").run(case.view, budget=Budget(), generator=generator(SEED, "closed form"))
        scores.append(float(psnr(found.images, case.images)))
    note = f"the smallest of {len(scores)} pictures"
    return Result(
        name="closed form, MLP of 256 neurons", samples=(min(scores),), unit="dB", note=note, bar=Bar(limit=60)
    )


if __name__ == "__main__":
    main("inversion", measure)
