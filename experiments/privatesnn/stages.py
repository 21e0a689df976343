"""Synthesis, conversion and encryption of one network, each from what the one before has left in its folder.

What is finished is kept, and nothing is computed twice: images batch by batch, encryption epoch by epoch. Whatever is
random follows from the seed and the number of the batch or epoch, so what was interrupted ends with the same bits.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from experiments.privatesnn.folder import making
from experiments.privatesnn.network import Network, Report
from experiments.privatesnn.setting import Setting
from snnfl import rng
from snnfl.checksummed import DamagedFileError, read_checksummed, write_checksummed
from snnfl.config import ConfigError, EncryptionConfig, SynthesisConfig, counted
from snnfl.data import calibration_batch
from snnfl.private_snn import (
    Encryption,
    PublishedNetwork,
    begin,
    class_similarity,
    convert,
    encrypt_epoch,
    last_weight,
    load,
    save,
    soft_labels,
    synthesise,
    teacher_logits,
)
from snnfl.private_snn.encryption import trained_names
from snnfl.training.optimisers import AdamState

PROGRESS = "encrypting.safetensors"


def parts(config: SynthesisConfig) -> list[tuple[int, int]]:
    """Return each batch of images as its first one and the one behind its last."""
    return [(start, min(start + config.batch, config.images)) for start in range(0, config.images, config.batch)]


def part_file(setting: Setting, number: int) -> Path:
    """Return the file of a batch of synthetic images."""
    return setting.synthetic / f"images-{number:06d}.safetensors"


def synthesise_images(setting: Setting, network: Network, report: Report) -> None:
    """Make the batches of images that aren't there yet.

    Args:
        setting: Which network, and where images are written.
        network: The network.
        report: Told how many iterations of images are done: one for each image and iteration.
    """
    config, seed = setting.private.synthesis, setting.config.run.seed
    setting.synthetic.mkdir(parents=True, exist_ok=True)
    labels = all_labels(setting, network)
    for number, (start, stop) in enumerate(parts(config)):
        if part_file(setting, number).exists():
            report((stop - start) * config.iterations)
            continue
        with making(setting.synthetic, {"synthesis": asdict(config)}):
            images = synthesise(
                network.graph,
                network.parameters,
                labels[start:stop],
                network.shape,
                network.bounds,
                config,
                rng.generator(seed, "synthetic images", number),
                statistics=network.statistics,
                report=lambda iteration, size=stop - start: report(size),  # type: ignore[misc]
            )
            arrays = {"images": images.cpu().contiguous().numpy(), "labels": labels[start:stop].numpy()}
            write_checksummed(part_file(setting, number), arrays, {"synthesis": asdict(config)})


def all_labels(setting: Setting, network: Network) -> Tensor:
    """Draw the soft labels of all images, ``[images, classes]``."""
    config = setting.private.synthesis
    similarity = class_similarity(last_weight(network.graph, network.parameters), config.similarity)
    draw = rng.generator(setting.config.run.seed, "soft labels")
    return soft_labels(similarity, config.images, draw, floor=config.floor)


def synthetic_images(setting: Setting) -> tuple[Tensor, Tensor]:
    """Read all synthetic images and their soft labels.

    Raises:
        ConfigError: If some aren't there, or a file is damaged.
    """
    wanted = [part_file(setting, number) for number in range(len(parts(setting.private.synthesis)))]
    missing = [file for file in wanted if not file.exists()]
    if missing:
        raise ConfigError(
            f"{setting.synthetic}: {counted(len(missing), 'file')} of synthetic images missing; run snnfl privatesnn "
            "synthesize first"
        )
    try:
        read = [read_checksummed(file)[0] for file in wanted]
    except DamagedFileError as error:
        raise ConfigError(f"{error}; delete it and run snnfl privatesnn synthesize again") from None
    images, labels = (torch.cat([torch.from_numpy(arrays[key]) for arrays in read]) for key in ("images", "labels"))
    return images, labels


def real_images(setting: Setting, network: Network) -> Tensor:
    """Draw as many training images as synthetic ones decide thresholds: the control."""
    dataset, count = network.work.dataset, setting.private.publishing.images
    draw = rng.generator(setting.config.run.seed, "control images")
    return calibration_batch(dataset, torch.arange(len(dataset.train_labels)), count, draw)


def convert_on(
    setting: Setting, network: Network, images: Tensor, thresholds: Literal["maximum", "mmse"] | None = None
) -> PublishedNetwork:
    """Convert a network on some images.

    Args:
        setting: How.
        network: The network.
        images: Synthetic or real.
        thresholds: Other than the setting's.
    """
    config, device = setting.private.publishing, network.work.device
    if thresholds is not None:
        config = replace(config, thresholds=thresholds)
    draws = torch.Generator(device).manual_seed(rng.derive_seed(setting.config.run.seed, "spikes of conversion"))
    return convert(network.graph, network.parameters, images.to(device), network.bounds, config, draws)


def convert_network(setting: Setting, network: Network) -> None:
    """Write the converted network, if it isn't there yet.

    Raises:
        ConfigError: If synthetic images are missing.
    """
    if not setting.converted.exists():
        images, _ = synthetic_images(setting)
        with making(
            setting.converted, {"on": setting.synthetic.name, "publishing": asdict(setting.private.publishing)}
        ):
            save(convert_on(setting, network, images), setting.converted)


def read_converted(setting: Setting) -> PublishedNetwork:
    """Read the converted network.

    Raises:
        ConfigError: If it isn't there.
    """
    if not setting.converted.exists():
        raise ConfigError(f"{setting.converted}: not there yet; run snnfl privatesnn convert first")
    return load(setting.converted)


def encrypt_network(
    setting: Setting, network: Network, report: Report, config: EncryptionConfig | None = None
) -> PublishedNetwork:
    """Encrypt the converted network, or go on with it, and write what is published; return it.

    Args:
        setting: Which network.
        network: The ANN, which teaches.
        report: Told how many images of how many epochs are done.
        config: Of a variant; ``None``: the setting's.

    Raises:
        ConfigError: If the converted network or images aren't there.
    """
    how = setting.private.encryption if config is None else config
    target = setting.encrypted(how)
    if target.exists():
        report(how.images * how.epochs)
        return load(target)
    images, labels = synthetic_images(setting)
    device = network.work.device
    images, labels = images[: how.images].to(device), labels[: how.images].to(device)
    progress = setting.path / f"{target.stem}-{PROGRESS}"
    with making(target, {"of": setting.converted.name, "encryption": asdict(how)}):
        state = _resumed(setting, progress, device) or begin(on_device(read_converted(setting), device))
        report(state.epochs * how.images)
        taught = teacher_logits(network, images)
        while state.epochs < how.epochs:
            seed = setting.config.run.seed
            state = encrypt_epoch(state, images, labels, taught, how, seed=seed, report=report)
            _keep(progress, state)
        save(state.network, target)
    progress.unlink(missing_ok=True)
    return load(target)


def on_device(network: PublishedNetwork, device: torch.device) -> PublishedNetwork:
    """Return a network on a device."""
    return network.holding({name: array.to(device) for name, array in network.parameters.items()})


def _keep(file: Path, state: Encryption) -> None:
    arrays = {f"network/{name}": array for name, array in state.network.parameters.items()}
    for kind, several in zip(AdamState._fields, state.adam, strict=True):
        pairs = zip(trained_names(state.network), several, strict=True)
        arrays |= {f"{kind}/{name}": array for name, array in pairs}
    about = {"epochs": state.epochs, "losses": state.losses}
    plain = {name: array.detach().cpu().contiguous().numpy() for name, array in arrays.items()}
    write_checksummed(file, plain, about)


def _resumed(setting: Setting, file: Path, device: torch.device) -> Encryption | None:
    """Read how far an encryption is; ``None`` if there is none that goes on."""
    if not file.exists():
        return None
    try:
        arrays, about = read_checksummed(file)
    except DamagedFileError:
        return None
    network = read_converted(setting)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    holding = network.holding({name: tensors[f"network/{name}"] for name in network.parameters})
    names = trained_names(network)
    adam = AdamState(*([tensors[f"{kind}/{name}"] for name in names] for kind in AdamState._fields))
    return Encryption(holding, adam, about["epochs"], tuple(about["losses"]))
