"""What a round of a cell will cost, estimated before any is measured.

The pieces of a round are timed on this machine, on the cell's own network and data: a step of SGD, a forward pass, a
conversion, a simulation. A round is their number times their time:

.. code-block:: text

    clients * (epochs * ceil(n / batch) * step + conversion + test images * forward) + test images * simulation

``n`` is the mean size of a partition, "clients" those expected to take part. MOON adds two forward passes per image.
Of a conversion and a simulation a few time steps are timed, and the cost per step multiplied. Messages, checkpoints,
start-up, energy and audits aren't counted. It is an estimate: on small settings within a factor of 3
(tests/experiments/compare/test_cost.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import repeat

import torch
from torch import Tensor

from experiments.compare.study import Cell
from snnfl import rng
from snnfl.config import OWN, READING, Config, client_side, converts, part_of, sampled_clients, update_kind
from snnfl.conversion import convert_state
from snnfl.data import batches, calibration_batch
from snnfl.private_snn import client_images
from snnfl.private_snn.synthesis import CLIENT_ITERATIONS
from snnfl.training import copy_arrays, train_locally
from snnfl.workspace import Workspace

STEPS, SHORT, LONG, IMAGES = 3, 2, 10, 32
"""Steps of SGD, time steps and images that are timed."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that the pieces take; of a CPU, of its processor time, which other programs don't change.

    Attributes:
        step: Of SGD, on one batch.
        forward: Of one image.
        conversion: Of a client; 0 in a plain run.
        simulation: Of one image, over all time steps; 0 in a plain run.
    """

    step: float
    forward: float
    conversion: float = 0.0
    simulation: float = 0.0


def estimate(cells: Sequence[Cell]) -> dict[str, float]:
    """Estimate the seconds of a round of each cell, by name; equal settings are timed once."""
    return {cell.name: seconds_of_round(cell.config, pace_of(cell.config)) for cell in cells}


def seconds_of_round(config: Config, pace: Pace) -> float:
    """Multiply the pieces by how many a round has; see the module."""
    work, strategy = Workspace(config), config.strategy
    part = sampled_clients(config) * strategy.participation
    images, rounds = int(work.label_counts().sum()) / config.data.clients, config.run.rounds
    at_client, at_server = (
        round((whole + (rounds - 1) * (config.evaluation.images or whole)) / rounds)
        for whole in (len(work.client(0).dataset.test_labels), len(work.server_data.test_labels))
    )
    epoch = math.ceil(images / config.training.batch_size) * pace.step
    epoch += client_side(config).extra_passes * images * pace.forward
    client = config.training.epochs * epoch + pace.conversion
    client += at_client * pace.forward if config.evaluation.clients else 0
    fraction = strategy.fraction_evaluate if at_server else 1.0
    testers = part_of(config.data.clients, fraction) if fraction else 0
    evaluated = testers * at_client * pace.forward
    server = at_server * (pace.simulation + pace.forward) * (1 if config.poisoning.attack == "none" else 2)
    return part * client + evaluated + server


def _essential(config: Config) -> Config:
    """Keep what a pace follows from, so that cells which differ in something else share one."""
    plain = Config()
    return replace(
        plain,
        run=replace(plain.run, device=config.run.device, threads=config.run.threads),
        data=replace(
            plain.data,
            clients=config.data.clients if config.data.source == OWN else 1,
            **{name: getattr(config.data, name) for name in ("source", "root", "augment", *READING)},
        ),
        model=config.model,
        training=replace(config.training, epochs=plain.training.epochs),
        quantization=replace(config.quantization, uploads=plain.quantization.uploads),
        conversion=config.conversion,
        evaluation=replace(plain.evaluation, curve=config.evaluation.curve),
        strategy=replace(plain.strategy, spiking=update_kind(config) == "converted"),
    )


def pace_of(config: Config) -> Pace:
    """Time the pieces of a round; settings that share them are timed once."""
    return _pace(_essential(config))


@cache
def _pace(config: Config) -> Pace:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.run.threads)
    try:
        return _timed(Workspace(config))
    finally:
        torch.set_num_threads(threads)


def _timed(work: Workspace) -> Pace:
    config, training = work.config, work.config.training
    state, draw = work.initial_state, rng.generator(0, "cost")
    own = work.client(0)
    pairs = batches(own.dataset, own.indices, training.batch_size, generator=draw, augment=config.data.augment)
    batch = next((images.to(work.device), labels.to(work.device)) for images, labels in pairs)

    slow = replace(training, learning_rate=1e-6)  # so that no loss is infinite

    def steps() -> None:
        train_locally(work.model, [repeat(batch, STEPS)], slow, server_round=1)

    step = _seconds(work, steps) / STEPS
    work.model.eval()
    with torch.inference_mode():
        forward = _seconds(work, lambda: work.model(batch[0])) / len(batch[0])
    copy_arrays(work.arrays, state)
    if not converts(config):
        return Pace(step=step, forward=forward)
    images = calibration_batch(own.dataset, own.indices, config.conversion.calibration_images, draw)
    images, on_device = images.to(work.device), {name: array.to(work.device) for name, array in state.items()}

    def conversion(length: int) -> float:
        short = replace(config.conversion, steps=length, calibration_steps=None)
        return _seconds(work, lambda: convert_state(work.graph, on_device, images, short))

    few, many = conversion(SHORT), conversion(LONG)
    per_step = max(0.0, many - few) / (LONG - SHORT)
    network = convert_state(
        work.graph, on_device, images, replace(config.conversion, steps=LONG, calibration_steps=None)
    )
    shown, length = batch[0][:IMAGES], max(config.conversion.steps, *config.evaluation.curve, 1)
    simulation = _seconds(work, lambda: network.simulate(shown, steps=LONG)) / len(shown) / LONG
    total = few + (config.conversion.calibration_length - SHORT) * per_step + _synthesis(work, on_device)
    return Pace(step=step, forward=forward, conversion=total, simulation=simulation * length)


def _synthesis(work: Workspace, state: Mapping[str, Tensor]) -> float:
    """Return the seconds in which a client makes the images that it calibrates on; 0 if it has its own."""
    how = work.config.conversion
    if how.data != "synthetic":
        return 0.0
    short, draw = replace(how, synthesis_iterations=SHORT), rng.generator(0, "cost")
    few = _seconds(work, lambda: client_images(work.graph, state, work.dataset, short, draw))
    return few * (how.synthesis_iterations or CLIENT_ITERATIONS) / SHORT


def _seconds(work: Workspace, run: Callable[[], object]) -> float:
    """Time a second call: the first one warms up."""
    run()
    cuda = work.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    run()
    if cuda:
        torch.cuda.synchronize()
    return (clock() - start) / (1 if cuda else work.config.run.threads)
