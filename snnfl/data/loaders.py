"""Batches cut from a data set in memory: for training, for testing and for calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from snnfl import rng
from snnfl.batching import batch_sizes
from snnfl.config import ConfigError
from snnfl.data import augmentation
from snnfl.data.dataset import Dataset

CPU = torch.device("cpu")

NORMALISED_AT_ONCE = 256
"""Examples: for small batches of small images the calls cost more than the arithmetic."""

FEW_CHANNELS = 4
"""Up to which it pays to lay out images plane by plane."""

NUMBERS_AT_ONCE = 4_000_000
"""What these examples may hold together: beyond, as with events, fewer are normalised at once."""


def batches(
    dataset: Dataset,
    indices: Tensor,
    batch_size: int,
    *,
    generator: torch.Generator,
    augment: bool,
    layout: torch.memory_format = torch.contiguous_format,
    device: torch.device = CPU,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once through a client's training examples in random order.

    Every example comes exactly once. Where a single one would be left for the last batch, it joins the batch before
    (:func:`~snnfl.batching.batch_sizes`).

    Args:
        dataset: Its training split is used.
        indices: ``int64`` positions in the training split, shape ``[n]``.
        batch_size: Examples per batch; the last batch may have fewer, or one more if this is more than 1.
        generator: Draws the order and, batch by batch, the augmentation.
        augment: Whether to crop at random, and to mirror where ``dataset.flip``; all time steps of a sample alike.
        layout: How pictures lie.
        device: Where batches are; those of small examples go there together.

    Returns:
        Pairs of normalised ``float32`` images ``[batch, *input_shape]`` and ``int64`` labels ``[batch]``.

    Raises:
        ConfigError: If other data than pictures or events is to be augmented.
    """
    if augment and len(dataset.input_shape) < 3:
        raise ConfigError(f"data.augment=true: {dataset.name} has no pictures to crop; set data.augment=false")
    return _batches(dataset, indices, batch_size, generator, augment, layout, device)


def _batches(
    dataset: Dataset,
    indices: Tensor,
    batch_size: int,
    generator: torch.Generator,
    augment: bool,
    layout: torch.memory_format,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    order = indices[torch.randperm(len(indices), generator=generator)]
    sizes = batch_sizes(len(order), batch_size)
    if augment:
        for chunk in torch.split(order, sizes):
            images = dataset.train_images.index_select(0, chunk)
            pictures = images.flatten(1, -3)  # time steps of events as channels
            pictures = augmentation.augment(pictures, generator, padding=dataset.padding, flip=dataset.flip)
            normalised = dataset.normalise(pictures.view_as(images))
            yield laid_out(normalised, layout, device), dataset.train_labels[chunk].to(device)
        return
    examples = min(NORMALISED_AT_ONCE, NUMBERS_AT_ONCE // max(1, math.prod(dataset.input_shape)))
    together = max(1, examples // batch_size)
    groups = [sizes[start : start + together] for start in range(0, len(sizes), together)]
    for some, chunk in zip(groups, torch.split(order, list(map(sum, groups))), strict=True):
        images = dataset.normalise(dataset.train_images.index_select(0, chunk))
        images = laid_out(images, layout, device)
        labels = dataset.train_labels.index_select(0, chunk).to(device)
        yield from zip(torch.split(images, some), torch.split(labels, some), strict=True)


def laid_out(images: Tensor, layout: torch.memory_format, device: torch.device) -> Tensor:
    """Return images on a device in a layout; on a CPU those of few channels plane by plane, in half of PyTorch's time.

    PyTorch lays them out pixel by pixel, and calls its loop for each.

    Args:
        images: Shape ``[batch, C, H, W]``, or any other for the contiguous layout.
        layout: How they should lie.
        device: Where.
    """
    last = layout == torch.channels_last and device.type == "cpu"
    if last and 1 < images.shape[1] <= FEW_CHANNELS and images.is_contiguous():
        return torch.stack(images.unbind(1), dim=-1).permute(0, 3, 1, 2)
    return images.to(device, memory_format=layout)


def epoch_orders(
    dataset: Dataset, count: int, batch_size: int, epochs: int, *, generator: torch.Generator, augment: bool
) -> Tensor:
    """Return in which order :func:`batches` takes ``count`` examples in each of several epochs, ``[epochs, count]``.

    Args:
        dataset: Says how examples are augmented, which is drawn in between.
        count: Of a client's examples.
        batch_size: Examples per batch.
        epochs: How often :func:`batches` is gone through, with one generator.
        generator: As that which the client has.
        augment: As there.
    """
    orders = []
    for _ in range(epochs):
        orders.append(torch.randperm(count, generator=generator))
        for size in batch_sizes(count, batch_size) if augment else ():
            augmentation.draw(size, generator, padding=dataset.padding, flip=dataset.flip)
    return torch.stack(orders)


def training_batches(dataset: Dataset, indices: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once through a client's training examples in their order, without augmentation: to evaluate on them.

    Args:
        dataset: Its training split is used.
        indices: ``int64`` positions in the training split, shape ``[n]``.
        batch_size: Examples per batch; the last batch may have fewer.

    Yields:
        Pairs of normalised ``float32`` images ``[batch, *input_shape]`` and ``int64`` labels ``[batch]``.
    """
    for chunk in torch.split(indices, batch_size):
        yield dataset.normalise(dataset.train_images.index_select(0, chunk)), dataset.train_labels[chunk]


def test_batches(
    dataset: Dataset,
    batch_size: int,
    limit: int = 0,  # noqa: PT028  (this is no test)
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once through the test split, or through a fixed part of it.

    Args:
        dataset: Its test split is used.
        batch_size: Examples per batch; the last batch may have fewer.
        limit: With 0, all examples in their order. Otherwise the first ``limit`` of a permutation that depends on the
            name of the data set alone: the classes are mixed, and every round, run and seed is tested on the same
            examples.

    Yields:
        Pairs of normalised ``float32`` images ``[batch, *input_shape]`` and ``int64`` labels ``[batch]``.
    """
    count = len(dataset.test_labels)
    order = torch.randperm(count, generator=rng.generator(0, f"test subset of {dataset.name}"))[:limit]
    for chunk in torch.split(order if limit else torch.arange(count), batch_size):
        yield dataset.normalise(dataset.test_images[chunk]), dataset.test_labels[chunk]


test_batches.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it wherever a test imports it


def calibration_batch(dataset: Dataset, indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw private images of a client, without replacement and without augmentation.

    Args:
        dataset: Its training split is used.
        indices: ``int64`` positions in the training split, shape ``[n]``.
        count: Images to draw; a client that has fewer gives all.
        generator: Draws them.

    Returns:
        Normalised ``float32`` images, shape ``[min(count, n), *input_shape]``.
    """
    chosen = indices[torch.randperm(len(indices), generator=generator)[:count]]
    return dataset.normalise(dataset.train_images.index_select(0, chosen))
