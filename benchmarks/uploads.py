"""Measure what uploads of few bits, or of few entries, give away of CIFAR-10, and how large they are.

One line per upload: ``python benchmarks/uploads.py --victims 10``. Each client takes one step of rate 0.1 on
``--batch`` images, after ``--steps`` of SGD on the last half of the training images (weights of seed 0). LeNet-5 is
attacked by gradient matching, the MLP by the closed form. ``--unmasked`` also matches sparse uploads as if the zeros
of what wasn't sent were gradients.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import torch
from exact_batches import trained, view_of
from torch import Tensor

from snnfl.attacks import Budget, get_attack, problem
from snnfl.config import DataConfig
from snnfl.data import Dataset, load
from snnfl.metrics.images import floors, label_accuracy, matched, psnr
from snnfl.threat import PublicImages, ServerView
from snnfl.updates import Packing

ATTACKS = {"lenet5": "inverting_gradients", "mlp": "closed_form"}


def uploaded(view: ServerView, upload: str, seed: int) -> tuple[ServerView, int]:
    """Return what a server sees of an update that was sent in so many bits, or of which the largest part was sent.

    Args:
        view: Of the update as it is.
        upload: ``full``, ``8``, ``4`` or ``2`` bits, or a part of the entries, such as ``1%``.
        seed: Of the rounding.

    Returns:
        The view, and the bytes that travel: of a sparse update 4 for each entry and 4 for its place.
    """
    sent, after = view.exchange.sent, view.exchange.received
    count = sum(array.numel() for array in after.values())
    if upload == "full":
        return view, 4 * count
    if upload.endswith("%"):
        kept = max(1, round(count * float(upload[:-1]) / 100))
        changes = torch.cat([(after[name] - array).abs().flatten() for name, array in sent.items()])
        least = changes.topk(kept).values[-1]
        received = {
            name: torch.where((after[name] - array).abs() >= least, after[name], array) for name, array in sent.items()
        }
        return replace(view, exchange=replace(view.exchange, received=received)), 8 * kept
    packing = Packing(view.format, int(upload))
    packed, _ = packing.encode(after, sent, {}, torch.Generator().manual_seed(seed))
    exchange = replace(view.exchange, received=packing.decode(packed, sent), rounding=packing.steps(packed))
    size = sum(array.numel() * array.element_size() for array in packed.values())
    return replace(view, exchange=exchange, knowledge=replace(view.knowledge, upload_bits=int(upload))), size


def attack(data: Dataset, views: Sequence[ServerView], victims: Sequence[Tensor], name: str, budget: Budget) -> str:
    """Attack all victims; say what was found."""
    found = get_attack(name).run_many(views, budget=budget, generator=torch.Generator().manual_seed(0))
    scores, labels = list[float](), list[float]()
    for result, chosen in zip(found, victims, strict=True):
        true = data.pixels(data.train_images[chosen])
        scores.append(float(psnr(result.images[matched(result.images, true)], true).mean()))
        labels.append(label_accuracy(result.labels, data.train_labels[chosen]))
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return f"{statistics.mean(scores):.1f} dB +- {error:.1f}, labels {statistics.mean(labels):.0%} [{found[0].choice}]"


def main() -> None:
    """Print a line per upload and network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--uploads", nargs="+", default=["full", "8", "4", "2", "10%", "1%"])
    parser.add_argument("--models", nargs="+", choices=tuple(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="of training before")
    parser.add_argument("--victims", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--unmasked", action="store_true", help="match sparse uploads as if all of them had been sent")
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, budget = load(DataConfig(source="cifar10", root=given.root)), Budget(iterations=given.iterations)
    order = torch.randperm(len(data.train_images) // 2, generator=torch.Generator().manual_seed(1))
    victims = torch.split(order, given.batch)[: given.victims]
    public = PublicImages(inputs=data.normalise(data.test_images[:2000]), labels=data.test_labels[:2000])
    pixels = data.pixels(data.train_images[torch.cat(victims)])
    best = floors(pixels, data.pixels(data.test_images[:2000]))
    print("without any update: " + ", ".join(f"{name} {psnr(it, pixels).mean():.1f} dB" for name, it in best.items()))
    for name in given.models:
        model = trained(data, name, given.steps)
        whole = [replace(view_of(data, model, chosen, spiking=False), public=public) for chosen in victims]
        for upload in given.uploads:
            pairs = [uploaded(view, upload, seed) for seed, view in enumerate(whole)]
            views, size = [view for view, _ in pairs], pairs[0][1]
            line = f"{name}, {upload}{' bits' if upload.isdigit() else ''}, {size / 1e3:.1f} kB"
            print(f"{line}: {attack(data, views, victims, ATTACKS[name], budget)}", flush=True)
            if given.unmasked and upload.endswith("%"):
                with mock.patch.object(problem, "sparse", return_value=False):
                    print(f"{line}, unmasked: {attack(data, views, victims, ATTACKS[name], budget)}", flush=True)


if __name__ == "__main__":
    main()
