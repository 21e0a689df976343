"""What the benchmarks share: timing that a busy machine disturbs little, their networks, and how results are written.

This is no benchmark itself. All timings are CPU seconds of this process on one thread, or synchronised seconds on a
GPU. Candidates take turns (A B C A B C …), so that a change of the machine's speed meets them all alike, and what is
reported is the median with the range of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfl.config import ConfigError, DataConfig
from snnfl.data.dataset import Dataset
from snnfl.data.sources import load
from snnfl.launch import use_app
from snnfl.rng import generator

use_app()  # for whoever imports this first: the app's folders are no installed packages


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a measurement must reach: at least or at most ``limit``."""

    limit: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Tell whether a value reaches the bar."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured number.

    Attributes:
        name: What was measured.
        samples: One value per round.
        unit: Of the value.
        note: The floor below which it cannot fall, or how it came about.
        bar: What it must reach, if anything.
    """

    name: str
    samples: tuple[float, ...]
    unit: str
    note: str = ""
    bar: Bar | None = None

    @property
    def value(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.samples)

    @property
    def verdict(self) -> str:
        """``"met"``, ``"missed"``, or nothing without a bar."""
        return "" if self.bar is None else "met" if self.bar.met(self.value) else "missed"

    @property
    def spread(self) -> str:
        """Smallest and largest value of the rounds."""
        return f"{_short(min(self.samples))} to {_short(max(self.samples))}" if len(self.samples) > 1 else ""

    def line(self) -> str:
        """Write everything in one line."""
        spread = f" ({self.spread})" if self.spread else ""
        bar = "" if self.bar is None else f" | bar: {self.bar}: {self.verdict}"
        note = f" | {self.note}" if self.note else ""
        return f"{self.name}: {_short(self.value)} {self.unit}{spread}{note}{bar}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for on the command line."""

    quick: bool
    device: torch.device


def take_turns(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device
) -> dict[str, tuple[float, ...]]:
    """Time each candidate once per round, in turn, after one round that doesn't count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = _clock(device)
            run()
            if turn:
                seconds[name].append(_clock(device) - start)
    return {name: tuple(values) for name, values in seconds.items()}


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, ...]:
    """Divide round by round: what disturbed a round disturbed both."""
    return tuple(a / b for a, b in zip(numerator, denominator, strict=True))


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit ``cost = c * size^k`` by least squares of the logarithms; return ``k``."""
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(costs, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def find_data(source: str) -> Dataset | None:
    """Load a data set from ``SNNFL_DATA`` or ``/tmp/snnfl-data``, or return ``None`` where it isn't."""
    root = os.environ.get("SNNFL_DATA", "/tmp/snnfl-data")
    try:
        return load(DataConfig(source=source, root=root))
    except ConfigError:
        return None


CHECKPOINT = Path(__file__).parent / "checkpoints/resnet20_cifar10.safetensors"
"""The ``resnet20`` that ``checkpoints/train.py`` trained on CIFAR-10."""


def train(model: nn.Module, data: Dataset | None, shape: tuple[int, ...], *, steps: int) -> tuple[Tensor, str]:
    """Give a network realistic activations, in place and in evaluation mode.

    Args:
        model: With initial weights.
        data: Where pictures come from. Without any they are noise, and batch normalisation alone is calibrated.
        shape: Of a picture.
        steps: SGD steps on batches of 64.

    Returns:
        256 normalised test pictures, and how the weights came about.
    """
    model.to(memory_format=torch.channels_last).train()
    if data is None:
        pictures = torch.randn(256, *shape, generator=generator(0, "pictures"))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # its statistics become those of the one batch that follows
        with torch.no_grad():
            model(pictures[:32])
        model.eval()
        return pictures, "random weights, calibrated batch normalisation, pictures of noise"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = generator(0, "batches")
    for _ in range(steps):
        chosen = torch.randint(len(data.train_images), (64,), generator=draw)
        loss = F.cross_entropy(model(data.normalise(data.train_images[chosen])), data.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        correct = model(data.normalise(data.test_images[:1000])).argmax(1) == data.test_labels[:1000]
    origin = f"{steps} SGD steps on {data.name}, {float(correct.float().mean()):.0%} of 1,000 test pictures right"
    return data.normalise(data.test_images[:256]), origin


def main(name: str, measure: Callable[[Options], list[Result]]) -> None:
    """Run a benchmark from the command line: print each result, and write what was asked for."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/{name}.py")
    parser.add_argument(
        "--quick", action="store_true", help="small and without data, to see that it runs; bars mean nothing"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, beside other benchmarks'")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="rewrite this benchmark's table in a document")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: no CUDA device here; leave the option out to measure on the CPU")
    written = {} if arguments.json is None else _written(arguments.json)
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    machine = environment(device)
    print(f"# {machine}", flush=True)
    results = measure(Options(quick=arguments.quick, device=device))
    for result in results:
        print(result.line(), flush=True)
    command = " ".join(["python", *(sys.argv[:1]), *(["--quick"] if arguments.quick else []), "--device", device.type])
    if arguments.json is not None:
        entries = [{**asdict(r), "value": r.value, "verdict": r.verdict} for r in results]
        content = {**written, name: {"machine": machine, "command": command, "results": entries}}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown is not None:
        _rewrite(arguments.markdown, name, _table(results, machine, command))


def environment(device: torch.device) -> str:
    """Describe the machine, the versions and the load in one line."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numba", "spikingjelly"))
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{date.today()}: {processor}; {load}; Python {platform.python_version()}, {versions}; one thread"


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.M))
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(results: Sequence[Result], machine: str, command: str) -> str:
    rows = [
        f"| {r.name} | {_short(r.value)} {r.unit} | {r.spread} | {r.note} | {r.bar or ''} | {r.verdict} |"
        for r in results
    ]
    head = ["| what | median | range | floor, or how | bar | |", "|---|---|---|---|---|---|"]
    return "\n".join([f"{machine}. Command: `{command}`", "", *head, *rows])


def _written(file: Path) -> dict[str, Any]:
    """Read what benchmarks wrote before, by their names.

    Raises:
        SystemExit: If the file holds anything else, which would be lost.
    """
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(each, dict) and "results" in each for each in found.values()):
        sys.exit(f"error: --json {file}: holds no results of benchmarks; move it away")
    return found


def _rewrite(document: Path, name: str, table: str) -> None:
    """Replace what stands between the benchmark's two markers.

    Raises:
        SystemExit: If the document has no such markers.
    """
    begin, end = f"<!-- begin {name}.py: generated, don't edit -->", f"<!-- end {name}.py -->"
    text = document.read_text(encoding="utf-8")
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.S)
    if not pattern.search(text):
        sys.exit(f"error: --markdown {document}: put the lines {begin!r} and {end!r} where the table belongs")
    document.write_text(pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text), encoding="utf-8")
