"""Accuracy that a trained network loses by conversion, on CIFAR-10's test images.

The network is He's ResNet-20 as ``benchmarks/checkpoints/train.py`` trains it. Differences are paired: both
networks see the same images, so an interval comes from the images that only one of them gets right.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import CHECKPOINT, Bar, Options, Result, find_data, main
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snnfl.config import ModelConfig
from snnfl.conversion import ConversionConfig, convert
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.spiking import SpikingNetwork
from snnfl.torchvision_guard import guard
from snnfl.training import load_arrays

SHAPE = (3, 32, 32)
CALIBRATION = 128
BATCH = 250
"""Images at once, and of the rows that no bar belongs to."""


def measure(options: Options) -> list[Result]:
    """Measure each mode that has a bar on 1,000 images, ``fast`` on all of them too, and the others on fewer."""
    model = build_model(ModelConfig(name="resnet20"), input_shape=SHAPE, classes=10, generator=generator(0, "weights"))
    load_arrays(model, load_file(CHECKPOINT))
    model.eval().to(options.device)
    data = None if options.quick else find_data("cifar10")
    if data is not None:
        calibration, images = (data.normalise(x) for x in (data.train_images[:CALIBRATION], data.test_images))
        labels = data.test_labels
    elif options.quick:
        calibration, images = torch.randn(8, *SHAPE), torch.randn(16, *SHAPE)
        labels = torch.arange(16) % 10
    else:
        sys.exit("error: no CIFAR-10 here: snnfl data fetch cifar10, or set SNNFL_DATA to its folder")
    calibration, images, labels = (x.to(options.device) for x in (calibration, images, labels))
    few, shortest, short, long = (images[:1000], 2, 4, 8) if options.quick else (images[:1000], 16, 32, 256)
    right = hits(model, images, labels)
    preset = ConversionConfig.fast(short)
    configs = (ConversionConfig.fast(shortest), preset, replace(preset, readout="all"), ConversionConfig(steps=long))
    fastest, fast, early, paper = (convert(model, calibration, config) for config in configs)
    unsure = fast.to(dtype=torch.bfloat16)

    def simulated(network: SpikingNetwork, steps: int) -> Callable[[Tensor], Tensor]:
        return lambda batch: network.simulate(batch, steps=steps)[steps]

    within, fewer = slice(len(few)), few[:BATCH]
    fast_right, bar = hits(simulated(fast, short), images, labels), Bar(limit=1, at_most=True)
    return [
        Result(name="ANN", samples=(100 * float(right.float().mean()),), unit="%", note=f"{len(images)} test images"),
        loss(f"fast, T={short}, the first {len(few)} images", right[within], fast_right[within], bar),
        loss(f"fast, T={short}, all images", right, fast_right, bar),
        loss(f"fast, T={shortest}", right[within], hits(simulated(fastest, shortest), few, labels)),
        loss(f"fast with readout=all, T={short}", right[within], hits(simulated(early, short), few, labels)),
        loss(
            f"paper's mode, T={long}",
            right[within],
            hits(simulated(paper, long), few, labels),
            Bar(limit=0.5, at_most=True),
        ),
        loss(
            f"fast, T={short}, bfloat16",
            right[: len(fewer)],
            hits(lambda batch: simulated(unsure, short)(batch.bfloat16()), fewer, labels),
        ),
        loss(
            f"spikingjelly's converter (99.9 %), T={short}",
            right[: len(fewer)],
            hits(their_conversion(model, calibration, short), fewer, labels),
        ),
    ]


@torch.inference_mode()
def hits(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Tell for each image whether the prediction is right."""
    found = [forward(batch).argmax(1) for batch in torch.split(images, BATCH)]
    return torch.cat(found) == labels[: len(images)]


def loss(name: str, ann: Tensor, snn: Tensor, bar: Bar | None = None) -> Result:
    """State the ANN's accuracy less the spiking network's, with its 95 % interval."""
    difference = ann.double() - snn.double()
    points = 100 * float(difference.mean())
    radius = 196 * float(difference.std()) / math.sqrt(len(difference))
    note = f"95 % interval {points - radius:.2f} to {points + radius:.2f} over {len(difference)} images"
    return Result(name=f"{name}: ANN minus SNN", samples=(points,), unit="points", note=note, bar=bar)


def their_conversion(model: nn.Module, calibration: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """Convert with spikingjelly: the 99.9th percentile of each layer's activations as its threshold."""
    guard()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spikingjelly.activation_based import ann2snn, functional
    loader = DataLoader(TensorDataset(calibration, torch.zeros(len(calibration))), batch_size=len(calibration))
    converted = ann2snn.Converter(recipe=ann2snn.RateCodingRecipe(loader, mode="99.9%")).convert(model)
    converted.eval()

    def run(batch: Tensor) -> Tensor:
        functional.reset_net(converted)
        total = converted(batch)
        for _ in range(steps - 1):
            total = total + converted(batch)
        return total / steps

    return run


if __name__ == "__main__":
    main("accuracy", measure)
