"""What an attacker trains on, and what its success is measured on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snnfl import rng
from snnfl.config import Config
from snnfl.data import Dataset
from snnfl.poisoning.registry import POISONINGS
from snnfl.poisoning.roles import trigger


def poisoned(dataset: Dataset, indices: Tensor, config: Config, *, partition: int) -> Dataset:
    """Return the data set with an attacker's own part of the training split poisoned.

    A drawn share of its images of other labels gets the trigger (Gu et al. 2017, section 4.1; Chen et al. 2017; of a
    distributed one the attacker's part, Xie et al. 2020, or time slice, Fu et al. 2024) and the target label. A label
    flip changes the label alone (Tolpegin et al. 2020, section 3). The draw is the same in every round, as if the data
    had been poisoned once.

    Args:
        dataset: Stays as it is.
        indices: The attacker's positions in the training split, ``[n]``.
        config: Of the run.
        partition: The attacker's.
    """
    poisoning, labels = config.poisoning, dataset.train_labels
    chosen = indices[_victims(labels[indices], config)]
    default = POISONINGS.find(poisoning.attack).fraction
    count = round(len(chosen) * (default if poisoning.fraction is None else poisoning.fraction))
    draw = rng.generator(config.run.seed, "poisoned images", partition)
    chosen = chosen[torch.randperm(len(chosen), generator=draw)[:count]]
    new_labels = labels.clone()
    new_labels[chosen] = poisoning.target
    pattern = trigger(config, dataset.input_shape, partition=partition)
    if pattern is None:
        return replace(dataset, train_labels=new_labels)
    images = dataset.train_images.clone()
    images[chosen] = pattern.stamp(images[chosen], white=dataset.scale)
    return replace(dataset, train_images=images, train_labels=new_labels)


def triggered_test(dataset: Dataset, config: Config) -> Dataset:
    """Return the data set with a test split on which accuracy is the attack's success.

    It holds the test images whose label isn't the target, so that who is right about them is no success; of a label
    flip with a source those of the source alone. They carry the whole trigger and the target label.
    """
    victims = _victims(dataset.test_labels, config)
    images, pattern = dataset.test_images[victims], trigger(config, dataset.input_shape)
    if pattern is not None:
        images = pattern.stamp(images, white=dataset.scale)
    labels = torch.full((len(images),), config.poisoning.target)
    return replace(dataset, test_images=images, test_labels=labels)


def _victims(labels: Tensor, config: Config) -> Tensor:
    """Tell which examples the attack wants to be taken for the target: boolean, ``[n]``."""
    source = config.poisoning.source
    return labels != config.poisoning.target if source is None else labels == source
