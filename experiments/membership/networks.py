"""Train the networks of a setting, ask them, and put together what attacks are given."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from experiments.membership.study import Network, Setting
from snnfl import rng
from snnfl.auditing.membership import Trained, Trials, drawn_members, drawn_overlap
from snnfl.config import converts
from snnfl.conversion import convert_state
from snnfl.data import Dataset, batches, calibration_batch
from snnfl.files import write_bytes
from snnfl.membership_attacks.signals import AnyNetwork, measure
from snnfl.threat import Shadow, Signals
from snnfl.training import Batch, load_arrays, train_locally
from snnfl.workspace import Workspace

WEIGHTS, SECONDS, LOCK = "network.safetensors", "seconds.json", "cell.lock"


def folder_of(setting: Setting, network: Network) -> Path:
    """Return the folder of a network."""
    return setting.path / network.name


def answers_file(setting: Setting, network: Network) -> Path:
    """Return the file of a network's answers; its name says what it was asked."""
    asked = [fact for fact in ("perturbed", "white_box") if setting.needs(fact)]
    return folder_of(setting, network) / f"{'-'.join(['answers', *asked])}.safetensors"


def train_and_ask(setting: Setting, network: Network) -> None:
    """Train a network that isn't trained, and ask one that wasn't asked; each file is written whole or not at all.

    Raises:
        TrainingDivergedError: If its training does.
    """
    seed = rng.derive_seed(setting.config.run.seed, f"membership {network.kind}", network.number) % 2**32
    config = replace(setting.config, run=replace(setting.config.run, seed=seed))
    work, folder = Workspace(config), folder_of(setting, network)
    dataset, members = _samples(setting, network, work.dataset)
    begun, start, times = time.process_time(), time.perf_counter(), seconds_of(folder)
    if not (folder / WEIGHTS).exists():
        _train(work, dataset, torch.nonzero(members).flatten())
        times["train"] = time.perf_counter() - start
        write_bytes(folder / WEIGHTS, save({name: array.contiguous().cpu() for name, array in work.arrays.items()}))
    load_arrays(work.model, load_file(folder / WEIGHTS))
    start = time.perf_counter()
    inputs = torch.cat([normalised(work.dataset, split) for split in ("train", "test")])
    asked = _measured(setting, work, _published(work, dataset, members), inputs)
    times["ask"] = time.perf_counter() - start
    times["processor"] = times.get("processor", 0.0) + time.process_time() - begun
    write_bytes(folder / SECONDS, json.dumps(times).encode())
    write_bytes(answers_file(setting, network), save(asked))


def _published(work: Workspace, dataset: Dataset, members: Tensor) -> AnyNetwork:
    """Return what is asked: the trained network or, in an S-run, what it converts to on images of its members."""
    if not converts(work.config):
        return work.model
    draw = rng.generator(work.config.run.seed, "calibration")
    indices, count = torch.nonzero(members).flatten(), work.config.conversion.calibration_images
    images = calibration_batch(dataset, indices, count, draw).to(work.device)
    return convert_state(work.graph, work.arrays, images, work.config.conversion)


def _measured(setting: Setting, work: Workspace, network: AnyNetwork, inputs: Tensor) -> dict[str, Tensor]:
    signals = measure(
        network,
        inputs.to(work.device, memory_format=work.layout),
        perturbed=setting.needs("perturbed"),
        white_box=setting.needs("white_box"),
    )
    found = {item.name: getattr(signals, item.name) for item in fields(signals)}
    return {name: array.contiguous() for name, array in found.items() if array is not None}


def _train(work: Workspace, dataset: Dataset, indices: Tensor) -> None:
    config = work.config
    draw = rng.generator(config.run.seed, "batches")

    def epoch() -> Iterator[Batch]:
        for images, labels in batches(
            dataset, indices, config.training.batch_size, generator=draw, augment=config.data.augment
        ):
            yield images.to(work.device, memory_format=work.layout), labels.to(work.device)

    with work.drawing("encoding"):
        train_locally(work.model, (epoch() for _ in range(config.training.epochs)), config.training, server_round=1)
    work.settle()


def _samples(setting: Setting, network: Network, dataset: Dataset) -> tuple[Dataset, Tensor]:
    """Return a data set, and which of its training samples a network is trained on."""
    seed = setting.config.run.seed
    if network.kind == "disjoint":
        other = replace(dataset, train_images=dataset.test_images, train_labels=dataset.test_labels, users=None)
        return other, drawn_members(seed, len(dataset.test_labels), network.number, "disjoint")
    members = drawn_members(seed, len(dataset.train_labels), network.number)
    return dataset, drawn_overlap(seed, members, network.number) if network.kind == "overlap" else members


def normalised(dataset: Dataset, split: str) -> Tensor:
    """Return all samples of a split as networks see them: nothing is cropped or mirrored, of members or others."""
    images: Tensor = getattr(dataset, f"{split}_images")
    return torch.cat([dataset.normalise(part) for part in torch.split(images, 1000)])


def trials_of(setting: Setting) -> Trials:
    """Read the answers of all networks of a setting."""
    dataset, seed = Workspace(setting.config).dataset, setting.config.run.seed
    candidates = len(dataset.train_labels)
    networks = []
    for number in range(setting.networks):
        own, of_nobody = _read(setting, Network(kind="network", number=number), candidates)
        members, overlap = drawn_members(seed, candidates, number), None
        if setting.needs("overlap"):
            answers, _ = _read(setting, Network(kind="overlap", number=number), candidates)
            most = drawn_overlap(seed, members, number)
            overlap = Shadow(signals=answers, members=most, used=most | ~members)
        networks.append(Trained(signals=own, members=members, population=of_nobody, overlap=overlap))
    disjoint = None
    if setting.needs("disjoint"):
        _, answers = _read(setting, Network(kind="disjoint", number=0), candidates)
        disjoint = Shadow(signals=answers, members=drawn_members(seed, len(dataset.test_labels), 0, "disjoint"))
    return Trials(
        inputs=normalised(dataset, "train"),
        labels=dataset.train_labels,
        networks=networks,
        nobody=(normalised(dataset, "test"), dataset.test_labels),
        disjoint=disjoint,
        knowledge=setting.knowledge,
    )


def _read(setting: Setting, network: Network, candidates: int) -> tuple[Signals, Signals]:
    """Return a network's answers for the candidates, and for the samples of nobody."""
    arrays = load_file(answers_file(setting, network))
    parts: list[dict[str, Tensor]] = [{}, {}]
    for name, array in arrays.items():
        axis = 1 if name == "perturbed" else 0
        sizes = [candidates, array.shape[axis] - candidates]
        for part, piece in zip(parts, torch.split(array, sizes, axis), strict=True):
            part[name] = piece
    return Signals(**parts[0]), Signals(**parts[1])


def processor_seconds(setting: Setting) -> float:
    """Return the processor time that the networks of a setting have taken."""
    return math.fsum(seconds_of(folder_of(setting, network)).get("processor", 0.0) for network in setting.cells)


def seconds_of(folder: Path) -> dict[str, float]:
    """Return the seconds that a network's training (``train``) and asking (``ask``) took, and ``processor`` time."""
    file = folder / SECONDS
    times: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    return times
