"""What is measured of a published network: accuracy over time steps, beside controls, and energy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from experiments.privatesnn.network import Network, Report
from experiments.privatesnn.setting import Setting
from experiments.privatesnn.stages import (
    convert_on,
    encrypt_network,
    on_device,
    read_converted,
    real_images,
    synthetic_images,
)
from snnfl import rng
from snnfl.data import test_batches
from snnfl.private_snn import PublishedNetwork, affine_parameters, energy_ratios, load
from snnfl.training import accuracies, accuracy

BATCH = 250
"""Test images that are simulated at once."""

ENERGY_IMAGES = 256


def lengths_of(setting: Setting) -> tuple[int, ...]:
    """Return the numbers of steps at which accuracy is measured."""
    return tuple(sorted({*setting.curve, setting.private.publishing.steps}))


def evaluations(setting: Setting) -> int:
    """Count the simulations of the test images that :func:`measured` makes."""
    return 5 if setting.control else 3


def measured(setting: Setting, network: Network, report: Report) -> dict[str, Any]:
    """Measure a network that is published.

    Args:
        setting: Which.
        network: Its ANN.
        report: Told how many of the :func:`evaluations` are done.
    """
    start, begun = time.perf_counter(), time.process_time()
    images, _ = synthetic_images(setting)
    device = network.work.device
    converted, published = (on_device(each, device) for each in (read_converted(setting), load(setting.published)))
    networks: dict[str, Callable[[], PublishedNetwork]] = {
        "synthetic": lambda: converted,
        "encrypted": lambda: published,
        "synthetic, MMSE": lambda: convert_on(setting, network, images, "mmse"),
    }
    if setting.control:
        real = real_images(setting, network)
        networks["real"] = lambda: convert_on(setting, network, real)
        networks["real, MMSE"] = lambda: convert_on(setting, network, real, "mmse")
    curves = {}
    for name, make in networks.items():
        curves[name] = accuracy_over_time(setting, network, make())
        report(1)
    return {
        "labels": dict(setting.labels),
        "ann": accuracy(network, _batches(network)),
        "curves": curves,
        "steps": setting.private.publishing.steps,
        "control": setting.control,
        "test_images": len(network.work.dataset.test_labels),
        "energy": {
            name: asdict(energy_ratios(each, _some(network), _draws(setting, network, "energy")))
            for name, each in (("synthetic", converted), ("encrypted", published))
        },
        "moved": moved(converted, published),
        "variants": variants(setting, network),
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - begun,
    }


def accuracy_over_time(setting: Setting, network: Network, published: PublishedNetwork) -> dict[int, float]:
    """Return the accuracy on test images at each length."""
    draws, lengths = _draws(setting, network, "spikes of evaluation"), lengths_of(setting)
    return accuracies(lambda images: published.simulate(images, draws, curve=lengths), _batches(network))


def variants(setting: Setting, network: Network) -> list[dict[str, Any]]:
    """Encrypt otherwise, and return accuracies at the published number of steps."""
    found, steps = [], setting.private.publishing.steps
    for config in setting.variants:
        published = on_device(encrypt_network(setting, network, lambda images: None, config), network.work.device)
        draws = _draws(setting, network, "spikes of evaluation")
        rate = accuracies(lambda images: published.simulate(images, draws, curve=[steps]), _batches(network))  # noqa: B023
        found.append({"images": config.images, "distillation": config.distillation, "accuracy": rate[steps]})
    return found


def moved(before: PublishedNetwork, after: PublishedNetwork) -> dict[str, float]:
    """Return how far encryption has moved each layer's weight, ``|after - before| / |before|``."""
    arrays = affine_parameters(before.graph, before.parameters)
    return {
        name.removesuffix(".weight"): float((after.parameters[name] - array).norm() / array.norm())
        for name, array in arrays.items()
        if name.endswith(".weight")
    }


def _draws(setting: Setting, network: Network, purpose: str) -> torch.Generator:
    seed = rng.derive_seed(setting.config.run.seed, purpose)
    return torch.Generator(network.work.device).manual_seed(seed)


def _batches(network: Network) -> list[tuple[Tensor, Tensor]]:
    device = network.work.device
    return [(images.to(device), labels.to(device)) for images, labels in test_batches(network.work.dataset, BATCH)]


def _some(network: Network) -> Tensor:
    dataset = network.work.dataset
    return dataset.normalise(dataset.test_images[:ENERGY_IMAGES]).to(network.work.device)
