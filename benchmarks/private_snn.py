"""Measure PrivateSNN: synthetic images per CPU second beside a loop over them, and the memory that encryption takes.

The loop makes one image after the other as the authors' public code does: ``torch.optim.Adam``, ``loss.backward()``
through the module. Ours makes all of a batch at once. Networks, iterations and rates are the same, and both take turns.
Memory is the peak of a process of its own that takes one step of encryption: a gradient through ``T`` time steps.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from harness import Bar, Options, Result, main, ratios, take_turns, train
from torch import Tensor, nn
from torch.nn import functional

from snnfl.config import EncryptionConfig, ModelConfig, PublishingConfig, SynthesisConfig
from snnfl.conversion import fold, trace
from snnfl.heap import keep_freed_memory
from snnfl.models import build_model
from snnfl.private_snn import Bounds, begin, convert, encrypt_epoch, synthesise
from snnfl.rng import generator

NETWORKS = {"lenet5": (1, 28, 28), "convnet": (3, 32, 32)}
LOW, HIGH = -1.0, 1.0


def one_by_one(model: nn.Module, labels: Tensor, shape: tuple[int, ...], iterations: int, rate: float) -> None:
    """Make images as the authors' code does."""
    draw = generator(0, "start")
    for label in labels:
        x = (torch.rand((1, *shape), generator=draw) * (HIGH - LOW) + LOW).requires_grad_()
        optimiser = torch.optim.Adam([x], lr=rate)
        for _ in range(iterations):
            optimiser.zero_grad()
            loss = -(label * functional.log_softmax(model(x)[0] / 20, dim=0)).sum()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                x.clamp_(LOW, HIGH)


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Build a network with random weights, in evaluation mode."""
    shape = NETWORKS[name]
    model = build_model(
        ModelConfig(name=name), input_shape=shape, classes=10, generator=generator(0, "initial weights")
    )
    train(model, None, shape, steps=0)
    return model, shape


def measure_synthesis(options: Options, name: str) -> Result:
    """Compare images per second."""
    model, shape = network(name)
    several, few, iterations = (20, 2, 3) if options.quick else (100, 4, 10)
    graph = trace(model)
    parameters = fold(graph, {key: array.detach() for key, array in model.state_dict().items()})
    labels = torch.eye(10).repeat(several // 10, 1)
    bounds = Bounds(torch.full((1, 1, 1, 1), LOW), torch.full((1, 1, 1, 1), HIGH))
    config = SynthesisConfig(iterations=iterations, learning_rate=0.01)
    runs = {
        "ours": lambda: synthesise(graph, parameters, labels, shape, bounds, config, generator(0, "start")),
        "loop": partial(one_by_one, model, labels[:few], shape, iterations, 0.01),
    }
    seconds = take_turns(runs, rounds=1 if options.quick else 5, device=options.device)
    ours, loop = (1e3 * min(seconds[k]) / count / iterations for k, count in (("ours", several), ("loop", few)))
    return Result(
        name=f"synthesis, {name}: images per CPU second, over those of a loop",
        samples=tuple(value * several / few for value in ratios(seconds["loop"], seconds["ours"])),
        unit="x",
        note=f"{ours:.2g} ms per image and iteration, in the loop {loop:.2g} ms",
        bar=Bar(limit=5.0),
    )


def measure_memory(*, steps: int, images: int, chunk: int | None = None) -> int:
    """Take a step of encryption in a process of its own; return the bytes that it added to the process's peak."""
    code = f"import private_snn; private_snn.report_memory({steps}, {images}, {chunk})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    before, peak = json.loads(run.stdout.splitlines()[-1])
    return int(peak - before)


def report_memory(steps: int, images: int, chunk: int | None) -> None:
    """Take a step of encryption of a ConvNet; print the peak resident bytes before and after."""
    torch.set_num_threads(1)
    keep_freed_memory()
    model, shape = network("convnet")
    graph = trace(model)
    parameters = fold(graph, {key: array.detach() for key, array in model.state_dict().items()})
    pictures = torch.rand((images, *shape), generator=generator(0, "pictures")) * 2 - 1
    bounds = Bounds(torch.full((1, 1, 1, 1), LOW), torch.full((1, 1, 1, 1), HIGH))
    how = PublishingConfig(steps=steps, thresholds="mmse", images=2)
    state = begin(convert(graph, parameters, pictures, bounds, how, generator(0, "spikes")))
    labels, config = torch.full((images, 10), 0.1), EncryptionConfig(batch_size=images, chunk=chunk)
    warm = encrypt_epoch(state, pictures[:1], labels[:1], labels[:1], config, seed=0)  # compiles
    before = peak_bytes()
    encrypt_epoch(warm, pictures, labels, labels, config, seed=0)
    print(json.dumps([before, peak_bytes()]))


def peak_bytes() -> int:
    """Read the peak resident memory of this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def measure(options: Options) -> list[Result]:
    """Measure both."""
    results = [measure_synthesis(options, name) for name in NETWORKS]
    lengths, images = ((4, 16), 2) if options.quick else ((50, 200), 16)
    short, long = (measure_memory(steps=steps, images=images) for steps in lengths)
    whole = measure_memory(steps=lengths[0], images=images, chunk=lengths[0])
    about = f"convnet of 3x32x32, {images} images at once, T={lengths[1]}"
    results.append(
        Result(
            name=f"memory of a step of encryption, {about}",
            samples=(long / 1e6,),
            unit="MB",
            note=f"T={lengths[0]}: {short / 1e6:.0f} MB; T={lengths[0]} without computing anew: {whole / 1e6:.0f} MB",
            bar=Bar(limit=1000.0, at_most=True),
        )
    )
    return [
        *results,
        Result(
            name=f"the same over that of T={lengths[0]}",
            samples=(long / short,),
            unit="x",
            note="steps are four times as many; the square root of that is 2",
            bar=Bar(limit=3.0, at_most=True),
        ),
    ]


if __name__ == "__main__":
    main("private_snn", measure)
