"""A data set held in memory, and the errors of one that isn't there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.config import ConfigError


class DataNotFoundError(ConfigError):
    """A data set isn't where it was looked for, or cannot be fetched; the message says what to type."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A training and a test split, stored as they were published and normalised on use.

    Attributes:
        name: Name of the source.
        train_images: Shape ``[N, C, H, W]``, or ``[N, features]`` for tabular data. ``uint8`` in 0..255, or
            ``float32`` in the unit of the source.
        train_labels: ``int64`` of shape ``[N]``, in ``0..classes-1``.
        test_images: As ``train_images``, shape ``[M, ...]``.
        test_labels: As ``train_labels``, shape ``[M]``.
        class_names: One name per label.
        mean: ``float32``, one value per channel or feature: shape ``[C]`` or ``[features]``. Its unit is that of the
            stored values, except that ``uint8`` images count in 0..1.
        std: As ``mean``; divides.
        padding: Zeros around a picture in pixels, before it is cropped at random.
        flip: Whether a mirrored picture still shows its class.
        sequence: Whether an example's first axis is time.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    padding: int = 4
    flip: bool = False
    sequence: bool = False

    def __post_init__(self) -> None:
        """Refuse splits that don't fit together, which is how a damaged file can show.

        Raises:
            ConfigError: If images and labels differ in number, or a label has no class.
        """
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if len(images) != len(labels):
                raise ConfigError(f"data.source={self.name}: {len(images)} {split} images but {len(labels)} labels")
            outside = labels[(labels < 0) | (labels >= self.classes)]
            if len(outside):
                raise ConfigError(
                    f"data.source={self.name}: {split} label {int(outside[0])}, but there are {self.classes} classes"
                )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: ``(C, H, W)`` or ``(features,)``."""
        return tuple(self.train_images.shape[1:])

    def normalise(self, images: Tensor) -> Tensor:
        """Standardise stored values: ``(x / 255 - mean) / std`` for ``uint8``, else ``(x - mean) / std``.

        Args:
            images: Stored values, shape ``[batch, C, H, W]`` or ``[batch, features]``.

        Returns:
            ``float32`` of the same shape.
        """
        scaled = images.float().div_(255) if images.dtype == torch.uint8 else images.clone()
        shape = [-1] + [1] * (images.dim() - 2)
        return scaled.sub_(self.mean.view(shape)).div_(self.std.view(shape))

    @property
    def scale(self) -> float:
        """The stored value that a pixel of 1 has: 255 for ``uint8``, else the largest of the training split."""
        return 255.0 if self.train_images.dtype == torch.uint8 else float(self.train_images.max())

    def pixels(self, images: Tensor) -> Tensor:
        """Turn stored values into pixels of [0, 1], which is how pictures are compared and shown."""
        return images.float() / self.scale
