"""Accuracy that a trained network loses by conversion over few time steps, on CIFAR-10's test images.

The networks are He's ResNet-20 as ``benchmarks/checkpoints/train.py`` trains it, with ReLU, and as
``checkpoints/train_qcfs.py`` goes on with it, with quantised activations, in a quarter of an hour. Without the file
that this writes, ``checkpoints/resnet20_qcfs8_cifar10.safetensors``, its rows are left out.

Differences are paired: both networks see the same images, so an interval comes from the images that only one of them
gets right. Steps before a simulation, of corrections, are written behind those of the simulation: ``T=8 (+8)``.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from harness import CHECKPOINT, Bar, Options, Result, find_data, main
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snnfl.config import ModelConfig
from snnfl.conversion import ConversionConfig, ConversionWarning, convert
from snnfl.models import build_model
from snnfl.quantisation import with_qcfs
from snnfl.rng import generator
from snnfl.spiking import SpikingNetwork
from snnfl.torchvision_guard import guard
from snnfl.training import load_arrays

SHAPE = (3, 32, 32)
CALIBRATION = 128
BATCH = 250
"""Images at once."""
FEW = 1000
"""Images of what takes long."""
QCFS_CHECKPOINT = Path(__file__).parent / "checkpoints/resnet20_qcfs8_cifar10.safetensors"
LEVELS = 8
"""Of that network."""

EXACT = {"signed": True, "burst": 4, "two_sided": True}
"""Neurons that compute a quantised activation whenever charge comes."""

METHODS: dict[str, Callable[[int], ConversionConfig]] = {
    "paper's mode": lambda steps: ConversionConfig(steps=steps),
    "SRP": lambda steps: ConversionConfig.fast(steps, signed=False, burst=1, readout="all", correction="residual"),
    "COS": lambda steps: ConversionConfig.fast(steps, signed=False, burst=1, readout="all", correction="offset"),
    "signed spikes": lambda steps: ConversionConfig.fast(steps, signed=True, burst=1, readout="all"),
    "signed spikes and bursts, two-sided": lambda steps: ConversionConfig.fast(steps, **{**EXACT, "readout": "all"}),
    "search": lambda steps: ConversionConfig.search(steps),  # type: ignore[dict-item, return-value]
}
"""Ways without a bar, beside the preset."""

RELU_BARS = {4: 8.0, 8: 2.5, 16: 1.0}
QCFS_BARS = {4: 2.5, 8: 1.0, 16: 0.3}

PUBLISHED = (
    "published of another ResNet-20, QCFS (Bu et al. 2022, table 2), ANN 91.77: 83.75, 89.55, 91.62 at T=4, 8, 16"
)
"""Where the activation comes from, with ordinary neurons."""


def measure(options: Options) -> list[Result]:
    """Measure each way to convert on all images, and what takes long on fewer."""
    relu, *trained = (model.to(options.device) for model in networks())
    calibration, images, labels = (x.to(options.device) for x in _pictures(options))
    lengths = (4,) if options.quick else (4, 8, 16)
    few = slice(min(len(images), 16 if options.quick else FEW))
    right = hits(relu, images, labels)
    rows = [accuracy_of("ANN, ReLU", right)]
    for steps in lengths:
        found = hits(simulated(relu, calibration, ConversionConfig.fast(steps)), images, labels)
        rows.append(loss(f"fast, T={steps}", right, found, _bar(RELU_BARS, steps)))
    for qcfs in trained:
        own = hits(qcfs, images, labels)
        rows.append(accuracy_of("ANN, QCFS, 8 levels", own))
        rows.append(loss("ANN with ReLU minus ANN with QCFS", right, own, Bar(limit=0.7, at_most=True)))
        for steps in lengths:
            found = hits(simulated(qcfs, calibration, trained_for(steps)), images, labels)
            rows.append(loss(f"QCFS, T={steps}", own, found, _bar(QCFS_BARS, steps)))
    for name, config in METHODS.items():
        for steps in lengths:
            found = hits(simulated(relu, calibration, config(steps)), images, labels)
            rows.append(loss(f"{name}, T={steps}{_before(config(steps))}", right, found))
    rows[0] = replace(rows[0], note=f"{rows[0].note}; {PUBLISHED}")
    rows += _long(options, relu, calibration, images[few], labels[few], right[few])
    return rows


def trained_for(steps: int) -> ConversionConfig:
    """Return how a network with quantised activations is converted: by the neurons that compute these."""
    return ConversionConfig.fast(steps, readout="all", **EXACT)


def networks() -> Iterator[nn.Module]:
    """Yield the network with ReLU and, if it is there, the one with quantised activations, trained, to be evaluated."""
    for file in filter(Path.exists, (CHECKPOINT, QCFS_CHECKPOINT)):
        draw = generator(0, "weights")
        model = build_model(ModelConfig(name="resnet20"), input_shape=SHAPE, classes=10, generator=draw)
        if file is QCFS_CHECKPOINT:
            with_qcfs(model, LEVELS)
        load_arrays(model, load_file(file))
        yield model.eval()


def _pictures(options: Options) -> tuple[Tensor, Tensor, Tensor]:
    data = None if options.quick else find_data("cifar10")
    if data is not None:
        calibration, images = (data.normalise(x) for x in (data.train_images[:CALIBRATION], data.test_images))
        return calibration, images, data.test_labels
    if options.quick:
        return torch.randn(8, *SHAPE), torch.randn(16, *SHAPE), torch.arange(16) % 10
    sys.exit("error: no CIFAR-10 here: snnfl data fetch cifar10, or set SNNFL_DATA to its folder")


def _bar(bars: dict[int, float], steps: int) -> Bar | None:
    return Bar(limit=bars[steps], at_most=True) if steps in bars else None


def _before(config: ConversionConfig) -> str:
    """Say how many steps come before the simulation."""
    rehearses = isinstance(config, ConversionConfig) and config.correction != "none"
    return f" (+{config.correction_steps or config.steps})" if rehearses else ""


def _long(
    options: Options, model: nn.Module, calibration: Tensor, images: Tensor, labels: Tensor, right: Tensor
) -> list[Result]:
    """Measure many steps, and spikingjelly's converter."""
    short, long = (4, 8) if options.quick else (32, 256)
    fast, paper = ConversionConfig.fast(short), ConversionConfig(steps=long)
    within = slice(min(len(images), BATCH))
    theirs = [
        loss(
            f"spikingjelly's converter (99.9 %), T={steps}",
            right[within],
            hits(their_conversion(model, calibration, steps), images[within], labels[within]),
        )
        for steps in ((2, short) if options.quick else (16, short))
    ]
    unsure = convert(model, calibration, fast).to(dtype=torch.bfloat16)
    return [
        loss(
            f"fast, T={short}",
            right,
            hits(simulated(model, calibration, fast), images, labels),
            Bar(limit=1, at_most=True),
        ),
        loss(
            f"paper's mode, T={long}",
            right,
            hits(simulated(model, calibration, paper), images, labels),
            Bar(limit=0.5, at_most=True),
        ),
        loss(
            f"fast, T={short}, bfloat16",
            right[within],
            hits(lambda batch: unsure(batch.bfloat16()), images[within], labels[within]),
        ),
        *theirs,
    ]


def simulated(model: nn.Module, calibration: Tensor, config: ConversionConfig) -> SpikingNetwork:
    """Convert; pictures of noise leave some layers silent, which is no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        return convert(model, calibration, config)


@torch.inference_mode()
def hits(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Tell for each image whether the prediction is right."""
    found = [forward(batch).argmax(1) for batch in torch.split(images, BATCH)]
    return torch.cat(found) == labels[: len(images)]


def accuracy_of(name: str, right: Tensor) -> Result:
    """State an accuracy."""
    return Result(name=name, samples=(100 * float(right.float().mean()),), unit="%", note=f"{len(right)} test images")


def loss(name: str, ann: Tensor, snn: Tensor, bar: Bar | None = None) -> Result:
    """State the ANN's accuracy less the spiking network's, with its 95 % interval."""
    difference = ann.double() - snn.double()
    points = 100 * float(difference.mean())
    radius = 196 * float(difference.std()) / math.sqrt(len(difference))
    note = f"95 % interval {points - radius:.2f} to {points + radius:.2f} over {len(difference)} images"
    title = name if name.startswith("ANN") else f"{name}: ANN minus SNN"
    return Result(name=title, samples=(points,), unit="points", note=note, bar=bar)


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
