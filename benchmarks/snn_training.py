"""Natively spiking networks: this engine, snnTorch and spikingjelly as their users write them.

All train the same network: LIF neurons of beta 0.95 and threshold 1 behind every layer, the output layer's included,
whose mean potential (snnTorch, ours) or firing rate (spikingjelly) is the logits; Adam. The floor is every convolution
and linear layer alone, dense, forward and backward, at each of the T steps.
"""

from __future__ import annotations

import copy
import gc
import logging
import multiprocessing
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from federated_round import (
    BATCH,
    MOMENTUM,
    RATE,
    bare_rounds,
    configuration,
    in_process,
    timed_run,
    users_of,
)
from harness import Bar, Options, Result, find_data, main, ratios, take_turns
from pfl_research import Clock
from spiking_libraries import (
    InSnnTorch,
    configured,
    engine_step,
    in_spikingjelly,
    multiply_accumulates,
    ours,
    plain,
    spikingjelly,
    training_step,
)
from torch import Tensor, nn
from torch.nn import functional
from turns import in_turns, with_one_heap

from snnfl.config import ModelConfig, StrategyConfig, TrainingConfig
from snnfl.heap import keep_freed_memory
from snnfl.models import initialise, multiply_in_bfloat16
from snnfl.models.spiking import spiking_model
from snnfl.neurons.events import EventLayer
from snnfl.rng import generator

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
CLEAR = Path("/proc/self/clear_refs")


def measure(options: Options) -> list[Result]:
    """Measure each network."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    keep_freed_memory()  # as a run of spiking clients does; it is no less spikingjelly's gain
    rounds = 1 if options.quick else 5
    return [
        *convnet(options, MNIST, Bar(limit=2.2), Bar(limit=1.7), Bar(limit=1.0, at_most=True), rounds),
        *convnet(options, CIFAR, Bar(limit=1.5), Bar(limit=1.5), None, rounds),
        *(result for steps in (4, 16) for result in resnet(options, steps, rounds)),
        *head(options, rounds),
        *many_clients(options, rounds),
        *federated(options),
        *inference(options, rounds),
        *events(options, rounds),
        *memory(options),
    ]


def candidates(
    name: str, shape: tuple[int, ...], steps: int, count: int, *, batch_norm: bool = False, device: torch.device
) -> tuple[dict[str, Callable[[], object]], float]:
    """Return a training step of each library on the same network and batch, and ours' multiply-accumulates."""
    draw = generator(0, "batch")
    inputs = torch.randn(count, *shape, generator=draw).to(device)
    labels = torch.randint(10, (count,), generator=draw).to(device)
    mine = ours(configured(name, steps), shape).to(device)
    rival = InSnnTorch(plain(name, shape, batch_norm=batch_norm), steps).to(device)
    other = in_spikingjelly(plain(name, shape, batch_norm=batch_norm)).to(device)

    def multi_step(batch: Tensor) -> Tensor:
        spikingjelly.reset_net(other)
        spikes: Tensor = other(batch.expand(steps, *batch.shape))
        return spikes.mean(0)

    laid_out = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
    short = ours(configured(name, steps), shape).to(device)
    multiply_in_bfloat16(short, True)
    steps_of = {
        "this engine": engine_step(mine, laid_out, labels),
        "this engine, in bfloat16": engine_step(short, laid_out, labels),
        "snnTorch": training_step(rival, rival, inputs, labels),
        "spikingjelly, all steps at once": training_step(other, multi_step, inputs, labels),
    }
    return steps_of, multiply_accumulates(mine, laid_out)


def times(
    what: str, seconds: Mapping[str, Sequence[float]], macs: float, unit: str = "CPU-ms per step"
) -> list[Result]:
    """Write the time of each candidate, and what this engine multiplies meanwhile."""
    return [
        Result(
            name=f"{what}: {name}",
            samples=tuple(1000 * value for value in values),
            unit=unit,
            note=f"{macs / 1e9:.3g} G multiply-accumulates" if name.startswith("this engine") else "",
        )
        for name, values in seconds.items()
    ]


def dense(name: str, shape: tuple[int, ...], steps: int, count: int) -> tuple[Callable[[], None], float]:
    """Return forward and backward of the convolutions and linear layers alone, and their multiply-accumulates."""
    model = plain(name, shape).to(memory_format=torch.channels_last)
    calls: list[tuple[nn.Module, tuple[int, ...]]] = []
    handles = [
        module.register_forward_hook(lambda module, given, _: calls.append((module, tuple(given[0].shape[1:]))))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    model(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    work, arithmetic = [], 0.0
    for index, (module, inner) in enumerate(calls):
        values = torch.rand(steps * count, *inner)
        if len(inner) == 3:
            values = values.contiguous(memory_format=torch.channels_last)
        values.requires_grad_(index > 0)
        outputs = module(values)
        arithmetic += outputs.numel() * module.weight[0].numel() * (2 if index == 0 else 3)
        work.append((module, values, torch.ones_like(outputs)))

    def run() -> None:
        for module, values, gradient in work:
            module(values).backward(gradient)
            values.grad = None
        model.zero_grad()

    return run, arithmetic


def convnet(
    options: Options,
    shape: tuple[int, ...],
    over_snntorch: Bar,
    over_spikingjelly: Bar,
    over_dense: Bar | None,
    rounds: int,
) -> list[Result]:
    """ConvNet 32-64-1000, LIF everywhere, T=25, batches of 32."""
    steps, count = (2, 2) if options.quick else (25, 32)
    runs, macs = candidates("convnet", shape, steps, count, device=options.device)
    floor, arithmetic = dense("convnet", shape, steps, count)
    seconds = take_turns({**runs, "dense": floor}, rounds=rounds, device=options.device)
    what = f"ConvNet {'x'.join(map(str, shape))}, T={steps}, batch {count}"
    note = f"{arithmetic / 1e9:.0f} G multiply-accumulates dense, {arithmetic / 1e9 / min(seconds['dense']):.0f} G/s"
    return [
        *compared(what, seconds, macs, over_snntorch, over_spikingjelly),
        Result(
            name=f"{what}: over its dense linear operations alone",
            samples=ratios(seconds["this engine"], seconds["dense"]),
            unit="x",
            note=note,
            bar=over_dense,
        ),
    ]


def resnet(options: Options, steps: int, rounds: int) -> list[Result]:
    """He's ResNet-20 with batch normalisation over time and batch."""
    count = 2 if options.quick else 32
    runs, macs = candidates("resnet20", CIFAR, steps, count, batch_norm=True, device=options.device)
    floor, _ = dense("resnet20", CIFAR, steps, count)
    seconds = take_turns({**runs, "dense": floor}, rounds=rounds, device=options.device)
    what = f"ResNet-20 3x32x32, T={steps}, batch {count}"
    return [
        *compared(what, seconds, macs, Bar(limit=1.5), Bar(limit=1.5)),
        Result(
            name=f"{what}: over its dense linear operations alone",
            samples=ratios(seconds["this engine"], seconds["dense"]),
            unit="x",
        ),
    ]


def compared(
    what: str, seconds: Mapping[str, tuple[float, ...]], macs: float, over_snntorch: Bar, over_spikingjelly: Bar
) -> list[Result]:
    """Write times and ratios."""
    bars = {"snnTorch": over_snntorch, "spikingjelly, all steps at once": over_spikingjelly}
    return [
        *times(what, seconds, macs),
        *(
            Result(
                name=f"{what}: over {name}", samples=ratios(seconds[name], seconds["this engine"]), unit="x", bar=bar
            )
            for name, bar in bars.items()
        ),
        Result(
            name=f"{what}, in bfloat16: over snnTorch",
            samples=ratios(seconds["snnTorch"], seconds["this engine, in bfloat16"]),
            unit="x",
        ),
    ]


def head(options: Options, rounds: int) -> list[Result]:
    """Neurons behind the linear layers alone, as in the membership paper's code."""
    steps, count = (2, 2) if options.quick else (25, 128)
    draw = generator(0, "batch")
    inputs, labels = torch.randn(count, *MNIST, generator=draw), torch.randint(10, (count,), generator=draw)
    mine = ours(configured("convnet", steps, neurons="head"), MNIST)
    ann = plain("convnet", MNIST).to(memory_format=torch.channels_last)
    rival = InSnnTorch(plain("convnet", MNIST), steps)
    for name in ("relu1", "relu2"):
        setattr(rival.layers, name, nn.ReLU())
    laid_out = inputs.contiguous(memory_format=torch.channels_last)
    seconds = take_turns(
        {
            "this engine": engine_step(mine, laid_out, labels),
            "snnTorch": training_step(rival, rival, inputs, labels),
            "the ANN": engine_step(ann, laid_out, labels),
        },
        rounds=rounds,
        device=options.device,
    )
    what = f"ConvNet, neurons in the head, T={steps}, batch {count}"
    return [
        *times(what, seconds, multiply_accumulates(mine, laid_out)),
        Result(
            name=f"{what}: over snnTorch",
            samples=ratios(seconds["snnTorch"], seconds["this engine"]),
            unit="x",
            bar=Bar(limit=6),
        ),
        Result(
            name=f"{what}: over the ANN's step",
            samples=ratios(seconds["this engine"], seconds["the ANN"]),
            unit="x",
            bar=Bar(limit=1.15, at_most=True),
        ),
    ]


def mlp(hidden: int) -> nn.Sequential:
    """Build an ordinary MLP 784-hidden-10."""
    model = nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(784, hidden), relu1=nn.ReLU(), fc2=nn.Linear(hidden, 10))
    )
    initialise(model, generator(0, "weights"))
    return model


def many_clients(options: Options, rounds: int) -> list[Result]:
    """Ten clients that train an MLP in turn, a step each, and a round of ten clients over its bare steps."""
    steps, clients, count = (2, 2, 2) if options.quick else (25, 10, 16)
    draw = generator(0, "batch")
    batches = [
        (torch.randn(count, *MNIST, generator=draw), torch.randint(10, (count,), generator=draw))
        for _ in range(clients)
    ]
    config = configured("mlp", steps)
    mine = spiking_model(mlp(256), config, input_shape=MNIST, sequence=False, generator=generator(0, "recurrent"))
    rival = InSnnTorch(mlp(256), steps)

    def engine() -> None:
        for inputs, labels in batches:
            engine_step(mine, inputs, labels)()

    def snntorchs() -> None:
        for inputs, labels in batches:
            training_step(rival, rival, inputs, labels)()

    seconds = take_turns({"this engine": engine, "snnTorch": snntorchs}, rounds=rounds * 3, device=options.device)
    what = f"MLP 784-256-10, T={steps}, {clients} clients of batch {count}"
    macs = clients * multiply_accumulates(mine, batches[0][0])
    return [
        *times(what, seconds, macs, "CPU-ms per step of all"),
        Result(
            name=f"{what}: over snnTorch",
            samples=ratios(seconds["snnTorch"], seconds["this engine"]),
            unit="x",
            bar=Bar(limit=15),
        ),
    ]


def federated(options: Options) -> list[Result]:
    """A round of ten spiking clients, LeNet-5 and T=8, over its bare SGD steps; CIFAR-10, 50 images each."""
    if not options.quick and find_data("cifar10") is None:
        sys.exit("error: no CIFAR-10 here: snnfl data fetch cifar10, or set SNNFL_DATA to its folder")
    clients, population = 10, 20 if options.quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(
            folder,
            options,
            data={"clients": population},
            model=ModelConfig(name="lenet5", batch_norm=False, neuron="lif", time_steps=8),
            training=TrainingConfig(epochs=1, batch_size=BATCH, learning_rate=RATE, momentum=MOMENTUM),
            strategy=StrategyConfig(name="fedavg", spiking=False, fraction_train=clients / population),
        )
        work, users, initial = users_of(config, clients)
        bare = copy.deepcopy(work.model)
        runs: dict[str, Callable[[int, Clock], list[float]]] = {
            "the SGD steps alone": lambda rounds, clock: bare_rounds(bare, initial, users, config, rounds, clock),
            "in process": lambda rounds, clock: timed_run(config, rounds, clock, in_process),
        }
        seconds, _ = in_turns(runs, 2 if options.quick else 30)
    what = "a round of 10 spiking clients x 5 steps, LeNet-5, T=8"
    return [
        *(
            Result(name=f"{what}, {name}", samples=tuple(1000 * value for value in values), unit="CPU ms")
            for name, values in seconds.items()
        ),
        Result(
            name=f"{what}: over its steps alone",
            samples=ratios(seconds["in process"], seconds["the SGD steps alone"]),
            unit="x",
            bar=Bar(limit=1.1, at_most=True),
        ),
    ]


def trained(steps: int, training_steps: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a ConvNet after some steps on Fashion-MNIST, or noise; and spikingjelly's, multi-step and single-step."""
    data, draw = find_data("fashion_mnist"), generator(0, "training")
    mine = ours(configured("convnet", steps), MNIST)
    for _ in range(training_steps):
        if data is None:
            inputs, labels = torch.randn(32, *MNIST, generator=draw), torch.randint(10, (32,), generator=draw)
        else:
            chosen = torch.randint(len(data.train_labels), (32,), generator=draw)
            inputs, labels = data.normalise(data.train_images[chosen]), data.train_labels[chosen]
        engine_step(mine, inputs.contiguous(memory_format=torch.channels_last), labels)()
    others = [in_spikingjelly(plain("convnet", MNIST)).eval() for _ in range(2)]
    for other in others:
        other.load_state_dict({f"body.{name}": array for name, array in mine.state_dict().items()})
    spikingjelly.set_step_mode(others[1], "s")
    return mine.eval(), *others


def inference(options: Options, rounds: int) -> list[Result]:
    """Forward passes of a trained network, T=25, with the same weights in both."""
    steps, count = (2, 2) if options.quick else (25, 64)
    inputs = torch.randn(count, *MNIST, generator=generator(0, "batch"))
    laid_out = inputs.contiguous(memory_format=torch.channels_last)
    mine, other, single = trained(steps, 2 if options.quick else 60)

    @torch.inference_mode()
    def engine() -> None:
        mine(laid_out)

    @torch.inference_mode()
    def multiple() -> None:
        spikingjelly.reset_net(other)
        other(inputs.expand(steps, *inputs.shape)).mean(0)

    @torch.inference_mode()
    def step_by_step() -> None:
        spikingjelly.reset_net(single)
        total = single(inputs)
        for _ in range(steps - 1):
            total = total + single(inputs)

    runs = {
        "this engine": engine,
        "spikingjelly, all steps at once": multiple,
        "spikingjelly, step by step": step_by_step,
    }
    seconds = take_turns(runs, rounds=rounds, device=options.device)
    mine_s, *theirs = seconds.values()
    what = f"inference, ConvNet, T={steps}"
    return [
        *(
            Result(name=f"{what}: {name}", samples=tuple(count / value for value in values), unit="images/s")
            for name, values in seconds.items()
        ),
        Result(
            name=f"{what}: over spikingjelly's faster mode",
            samples=ratios(min(theirs, key=sum), mine_s),
            unit="x",
            bar=Bar(limit=3),
        ),
    ]


def events(options: Options, rounds: int) -> list[Result]:
    """A linear layer driven by events, its weights laid out anew as training does, and by oneDNN: forward."""
    count = 50 if options.quick else 800
    draw = generator(0, "events")
    weight, bias = torch.randn(1000, 3136, generator=draw), torch.zeros(1000)
    results = []
    for density in (0.05, 0.15, 0.25):
        spikes = (torch.rand(count, 3136, generator=draw) < density).float()
        runs: dict[str, Callable[[], object]] = {
            "dense": lambda spikes=spikes: functional.linear(spikes, weight),
            "events": lambda spikes=spikes: EventLayer.of(weight).apply(spikes, bias),
            "oneDNN's": lambda spikes=spikes: functional.linear(spikes.to_mkldnn(), weight).to_dense(),
        }
        seconds = take_turns(runs, rounds=rounds, device=torch.device("cpu"))
        results.append(
            Result(
                name=f"linear layer 3136-1000, {100 * density:.0f} % of its inputs spike: dense over events, forward",
                samples=ratios(seconds["dense"], seconds["events"]),
                unit="x",
                note=f"{count * 3136 * 1000 / 1e9:.1f} G multiply-accumulates dense",
            )
        )
    results.append(
        Result(
            name="linear layer 3136-1000: PyTorch's product over oneDNN's, forward",
            samples=ratios(seconds["dense"], seconds["oneDNN's"]),
            unit="x",
        )
    )
    return results


def memory(options: Options) -> list[Result]:
    """Peak memory of a training step, each library in a process of its own."""
    if not CLEAR.exists():
        return []
    steps, count = (2, 2) if options.quick else (25, 128)
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in ("this engine", "snnTorch"):
        with context.Pool(1) as pool:
            found[name] = pool.apply(_peak, (name, steps, count))
    what = f"peak memory of a training step, ConvNet, T={steps}, batch {count}"
    return [
        *(Result(name=f"{what}: {name}", samples=(value,), unit="MB") for name, value in found.items()),
        Result(
            name=f"{what}: of snnTorch's",
            samples=(found["this engine"] / found["snnTorch"],),
            unit="x",
            bar=Bar(limit=0.5, at_most=True),
        ),
    ]


def _peak(name: str, steps: int, count: int) -> float:
    """Return how many MB the resident set grows in one step beyond what two images take."""
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cpu")
    candidates("convnet", MNIST, steps, 2, device=device)[0][name]()
    gc.collect()
    CLEAR.write_text("5", encoding="ascii")  # the peak is the present size
    before = _status("VmRSS")
    candidates("convnet", MNIST, steps, count, device=device)[0][name]()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    with_one_heap()
    main("snn_training", measure)
