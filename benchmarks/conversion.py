"""Calibrated conversion of a trained network: its cost in passes of its own convolutions, its growth, its memory.

The network is He's ResNet-20 at half width (8, 16 and 32 channels, 19 spiking layers) unless said otherwise, and the
conversion the paper's: one threshold per layer by grid search, biases calibrated.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness import Bar, Options, Result, find_data, fitted_exponent, main, ratios, take_turns, train
from torch import Tensor, nn

from snnfl.config import ModelConfig
from snnfl.conversion import ConversionConfig, SpikingNetwork, convert
from snnfl.conversion.trains import SpikeTrain
from snnfl.models.blocks import convolution_block
from snnfl.models.initialisation import materialise
from snnfl.models.registry import build_model
from snnfl.models.resnet import BasicBlock
from snnfl.rng import generator
from snnfl.spiking import Affine
from snnfl.spiking import network as engine
from snnfl.spiking.values import analog_value

PICTURE = (3, 32, 32)
WIDTHS = (8, 16, 32)
DEPTHS = {8: 1, 14: 2, 20: 3, 32: 5}
"""Residual blocks per stage, by layers."""


def half_width(blocks: int) -> nn.Module:
    """Build He's network for CIFAR at half width, with initial weights: ``6 * blocks + 2`` layers."""
    with torch.device("meta"):
        layers: dict[str, nn.Module] = convolution_block(1, 3, WIDTHS[0], norm=True, bias=False)
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers[f"block{stage}{block}"] = BasicBlock(inputs, width, stride=stride, bias=False)
                inputs = width
        layers |= {"pool": nn.AvgPool2d(8), "flatten": nn.Flatten(), "fc": nn.Linear(inputs, 10)}
        model = nn.Sequential(OrderedDict(layers))
    materialise(model, generator(0, "weights"))
    return model


class ReluFirst(nn.Module):
    """A residual network whose ReLU comes first: each layer reads a sum of all before. ``6 * blocks + 2`` layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        pairs = range(6 * blocks)
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTHS[0]) for _ in pairs)
        self.convs = nn.ModuleList(nn.Conv2d(WIDTHS[0], WIDTHS[0], 3, padding=1, bias=False) for _ in pairs)
        self.fc = nn.Linear(WIDTHS[0], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        x = self.stem(x)
        for number in range(0, len(self.convs), 2):
            y = self.convs[number](torch.relu(self.norms[number](x)))
            x = x + self.convs[number + 1](torch.relu(self.norms[number + 1](y)))
        return self.fc(torch.relu(x).mean([2, 3]))


def relu_first(blocks: int) -> nn.Module:
    """Build one with initial weights."""
    with torch.device("meta"):
        model = ReluFirst(blocks)
    materialise(model, generator(0, "weights"))
    return model


def measure(options: Options) -> list[Result]:
    """Measure cost, growth and memory."""
    data = None if options.quick else find_data("cifar10")
    steps, rounds = (8, 1) if options.quick else (64, 3)
    model = half_width(DEPTHS[8 if options.quick else 20])
    pictures, origin = train(model, data, PICTURE, steps=300)
    model.to(options.device)
    images = pictures[: 8 if options.quick else 128].to(options.device)
    results = measure_cost(model, images, steps, rounds, origin, options)
    results += measure_growth(model, images, steps, max(1, rounds - 1), options)
    if options.device.type == "cpu":
        results.append(measure_memory(steps=8 if options.quick else 256, images=len(images)))
    return results


def measure_cost(
    model: nn.Module, images: Tensor, steps: int, rounds: int, origin: str, options: Options
) -> list[Result]:
    """Compare the conversion with one pass of the convolutions, and time its phases."""
    config = ConversionConfig(steps=steps)
    network = convert(model, images, config)
    dense, macs = convolutions(network, images, steps)
    candidates: dict[str, Callable[[], object]] = {
        "conversion": partial(convert, model, images, config),
        "one pass of its convolutions": dense,
    }
    seconds = take_turns(candidates, rounds=rounds, device=options.device)
    whole, floor = seconds.values()
    size = f"{len(network.graph.spikes)} spiking layers, T={steps}, {len(images)} images"
    return [
        Result(name="conversion", samples=whole, unit="s", note=f"{size}; {origin}"),
        Result(name="one pass of its convolutions", samples=floor, unit="s", note=f"{macs / 1e9:.0f} GMAC, dense"),
        Result(
            name="conversion over one pass",
            samples=ratios(whole, floor),
            unit="x",
            note="1 if nothing but the convolutions took time",
            bar=Bar(limit=2, at_most=True),
        ),
        *phases(model, images, config, options),
    ]


def convolutions(network: SpikingNetwork, images: Tensor, steps: int) -> tuple[Callable[[], None], int]:
    """Return what computes every convolution that varies in time T times and the others once, and its arithmetic."""
    graph, parameters = network.graph, network.parameters
    values, works, macs = {graph.input: engine.in_fast_layout(images)}, list[tuple[Affine, Tensor, int]](), 0
    with torch.inference_mode():
        for node in graph.nodes:
            values[node.name] = analog_value(node, values, parameters)
            if isinstance(node, Affine):
                times = steps if node in graph.body else 1
                works.append((node, values[node.inputs[0]], times))
                macs += times * values[node.name].numel() * parameters[f"{node.name}.weight"][0].numel()

    @torch.inference_mode()
    def dense() -> None:
        for node, value, times in works:
            for _ in range(times):
                node.apply([value], parameters)

    return dense, macs


def phases(model: nn.Module, images: Tensor, config: ConversionConfig, options: Options) -> list[Result]:
    """Time the parts of one more conversion, by a clock around some hundred calls of each."""
    module = sys.modules["snnfl.conversion.convert"]  # the package's attribute of this name is the function
    replay = sys.modules["snnfl.conversion.replay"]
    parts = {
        "activations of the ANN": (module, "analog_value"),
        "search for thresholds": (module, "find_thresholds"),
        "neurons": (SpikeTrain, "fire"),
        "spike trains unpacked": (SpikeTrain, "replay"),
        "convolutions and additions": (replay, "linear_value"),
    }
    spent = dict.fromkeys(parts, 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            start = time.process_time()
            result = function(*arguments, **keywords)
            spent[name] += time.process_time() - start
            return result

        return run

    if options.device.type != "cpu":
        return []  # a GPU works while the CPU's clock runs on
    with ExitStack() as stack:
        for name, (owner, attribute) in parts.items():
            stack.enter_context(mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        start = time.process_time()
        convert(model, images, config)
        spent["all else"] = time.process_time() - start - sum(spent.values())
    whole = sum(spent.values())
    return [
        Result(name=f"phase: {name}", samples=(100 * seconds / whole,), unit="%", note=f"of {whole:.2f} s, run once")
        for name, seconds in spent.items()
    ]


def measure_growth(model: nn.Module, images: Tensor, steps: int, rounds: int, options: Options) -> list[Result]:
    """Fit how the cost grows with depth, with T and with the number of images."""
    config, deep = ConversionConfig(steps=steps), [8, 14] if options.quick else list(DEPTHS)
    models = {layers: half_width(DEPTHS[layers]) for layers in deep}
    others = {layers: relu_first(DEPTHS[layers]) for layers in deep}
    for built in (*models.values(), *others.values()):
        train(built, None, PICTURE, steps=0)
        built.to(options.device)
    lengths, counts = [steps // 4, steps // 2, steps], [len(images) // 4, len(images) // 2, len(images)]
    few = images[: counts[0]]
    series: dict[str, dict[int, Callable[[], object]]] = {
        "layers": {layers: partial(convert, built, images, config) for layers, built in models.items()},
        "layers, ReLU first": {layers: partial(convert, built, few, config) for layers, built in others.items()},
        "T": {length: partial(convert, model, images, ConversionConfig(steps=length)) for length in lengths},
        "images": {count: partial(convert, model, images[:count], config) for count in counts},
    }
    results = []
    for what, runs in series.items():
        seconds = take_turns({str(size): run for size, run in runs.items()}, rounds=rounds, device=options.device)
        exponents = tuple(fitted_exponent(list(runs), costs) for costs in zip(*seconds.values(), strict=True))
        costs = ", ".join(f"{size}: {min(values):.2f} s" for size, values in seconds.items())
        bar = Bar(limit=1.2, at_most=True) if what.startswith("layers") else None
        results.append(Result(name=f"exponent in {what}", samples=exponents, unit="", note=costs, bar=bar))
    return results


def measure_memory(*, steps: int, images: int) -> Result:
    """Convert the full-width ResNet-20 in a process of its own and read its peak."""
    code = f"import conversion; conversion.report_memory(steps={steps}, images={images})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    before, peak = json.loads(run.stdout.splitlines()[-1])
    return Result(
        name=f"peak memory, full width, T={steps}, {images} images",
        samples=(peak / 1e9,),
        unit="GB",
        note=f"resident; {before / 1e9:.2f} GB of it before the conversion",
        bar=Bar(limit=1.5, at_most=True),
    )


def report_memory(*, steps: int, images: int) -> None:
    """Convert the full-width network; print the peak resident bytes before and after."""
    torch.set_num_threads(1)
    model = build_model(
        ModelConfig(name="resnet20"), input_shape=PICTURE, classes=10, generator=generator(0, "weights")
    )
    pictures, _ = train(model, None, PICTURE, steps=0)
    before = peak_bytes()
    convert(model, pictures[:images], ConversionConfig(steps=steps))
    print(json.dumps([before, peak_bytes()]))


def peak_bytes() -> int:
    """Read the peak resident memory of this process, which a parent's doesn't count to."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main("conversion", measure)
