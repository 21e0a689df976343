"""Networks with max pooling: how near they come to the ANN with more steps, and what the gate costs.

Three structures, each trained on Fashion-MNIST: max pooling right behind a ReLU (VGG), behind a concatenation
(SqueezeNet), and of a ReLU that other branches read (GoogLeNet).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from harness import Bar, Options, Result, find_data, main, ratios, take_turns, train
from torch import Tensor, nn

from snnfl.conversion import ConversionConfig, convert
from snnfl.models.initialisation import materialise
from snnfl.rng import generator

PICTURE = (1, 28, 28)
LENGTHS = (16, 64, 256)


def block(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Build a convolution with batch normalisation and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Fire(nn.Module):
    """Two branches of different windows, joined."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.squeeze, self.narrow, self.wide = block(inputs, 8, 1), block(8, outputs // 2, 1), block(8, outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' channels."""
        x = self.squeeze(x)
        return torch.cat([self.narrow(x), self.wide(x)], 1)


class Inception(nn.Module):
    """Three branches that read one ReLU, one of them through a max pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.three, self.pooled = block(inputs, outputs, 1), block(inputs, outputs), block(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' channels."""
        return torch.cat([self.one(x), self.three(x), self.pooled(F.max_pool2d(x, 3, 1, padding=1))], 1)


def head(inputs: int) -> list[nn.Module]:
    """Build the layers from a picture of 3x3 to the logits."""
    return [nn.Flatten(), nn.Linear(9 * inputs, 128), nn.ReLU(), nn.Linear(128, 10)]


NETWORKS: dict[str, Callable[[], list[nn.Module]]] = {
    "VGG": lambda: [
        *(block(1, 16), block(16, 16), nn.MaxPool2d(2), block(16, 32), block(32, 32), nn.MaxPool2d(2)),
        *(block(32, 64), block(64, 64), nn.MaxPool2d(2), *head(64)),
    ],
    "SqueezeNet": lambda: [
        *(block(1, 16), nn.MaxPool2d(2), Fire(16, 32), nn.MaxPool2d(2), Fire(32, 64), nn.MaxPool2d(2), *head(64)),
    ],
    "GoogLeNet": lambda: [
        *(block(1, 16), nn.MaxPool2d(2), Inception(16, 12), nn.MaxPool2d(2), Inception(36, 20), nn.MaxPool2d(2)),
        *head(60),
    ],
}


def measure(options: Options) -> list[Result]:
    """Measure each network."""
    data = None if options.quick else find_data("fashion_mnist")
    results: list[Result] = []
    for name, layers in NETWORKS.items():
        with torch.device("meta"):
            model = nn.Sequential(*layers())
        materialise(model, generator(0, "weights"))
        pictures, origin = train(model, data, PICTURE, steps=600)
        results += measure_network(name, model.to(options.device), pictures.to(options.device), origin, options)
    return results


def measure_network(name: str, model: nn.Module, pictures: Tensor, origin: str, options: Options) -> list[Result]:
    """Compare the logits with the ANN's, and the time with that of average pooling."""
    images, tested = (pictures[:8], pictures[8:16]) if options.quick else (pictures[:128], pictures[128:])
    with torch.inference_mode():
        expected = model(tested)
    results = []
    for steps in (2, 4) if options.quick else LENGTHS:
        logits = convert(model, images, ConversionConfig.fast(steps)).simulate(tested, steps=steps)[steps]
        agree = (logits.argmax(1) == expected.argmax(1)).float().mean().item()
        results.append(
            Result(
                name=f"{name}: cosine with the ANN's logits, T={steps}",
                samples=(F.cosine_similarity(logits, expected).mean().item(),),
                unit="",
                note=f"{agree:.1%} of {len(tested)} predictions are the ANN's; {origin}",
                bar=Bar(limit=0.999) if steps == LENGTHS[-1] else None,
            )
        )
    return [*results, measure_cost(name, model, images, options)]


def measure_cost(name: str, model: nn.Module, images: Tensor, options: Options) -> Result:
    """Compare the time of a simulation with that of the same network with average pooling."""
    steps = 4 if options.quick else 64
    candidates = {}
    for kind in ("gated", "average"):
        network = convert(model, images, ConversionConfig(steps=steps, max_pooling=kind))
        candidates[kind] = partial(network.simulate, images[:64], steps=steps)
    seconds = take_turns(candidates, rounds=1 if options.quick else 3, device=options.device)
    return Result(
        name=f"{name}: time over that with average pooling",
        samples=ratios(seconds["gated"], seconds["average"]),
        unit="x",
        note=f"T={steps}, {len(images[:64])} pictures",
        bar=Bar(limit=2, at_most=True),
    )


if __name__ == "__main__":
    main("max_pooling", measure)
