"""A data set held in memory, and the errors of one that isn't there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from snnfl.config import ConfigError

DataKind: TypeAlias = Literal["images", "events", "audio", "series", "table"]
"""What a sample is: it decides how a guess of it is scored and shown."""


class DataNotFoundError(ConfigError):
    """A data set isn't where it was looked for, or cannot be fetched; the message says what to type."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A training and a test split, stored as they were published and normalised on use.

    Attributes:
        name: Name of the source.
        train_images: Shape ``[N, C, H, W]``, or ``[N, features]`` for tabular data; sequences have their time steps
            before that: ``[N, T, C, H, W]`` of events, ``[N, T, features]`` of sound and sensors. ``uint8``: pictures
            in 0..255, of sequences counts; or ``float32`` in the unit of the source.
        train_labels: ``int64`` of shape ``[N]``, in ``0..classes-1``.
        test_images: As ``train_images``, shape ``[M, ...]``.
        test_labels: As ``train_labels``, shape ``[M]``.
        class_names: One name per label.
        mean: ``float32``, one value per channel or feature: shape ``[C]`` or ``[features]``. Its unit is that of the
            stored values, except that ``uint8`` pictures count in 0..1.
        std: As ``mean``; divides.
        padding: Zeros around a picture in pixels, before it is cropped at random.
        flip: Whether a mirrored picture still shows its class.
        sequence: Whether a sample has time steps, its first dimension.
        users: Who each training example is from: ``int64`` of shape ``[N]``, if the data set knows it.
        stated_kind: What a sample is, where its shape doesn't tell; ``None`` to go by the shape.
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
    users: Tensor | None = None
    stated_kind: DataKind | None = None

    def __post_init__(self) -> None:
        """Refuse splits that don't fit together, which is how a damaged file can show.

        Raises:
            ConfigError: If something isn't a tensor of the right kind, images and labels or users differ in number, a
                label has no class, or ``mean`` and ``std`` don't hold a value for each channel or feature.
        """
        self._refuse_other_types()
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if len(images) != len(labels):
                raise ConfigError(f"data.source={self.name}: {len(images)} {split} images but {len(labels)} labels")
            outside = labels[(labels < 0) | (labels >= self.classes)]
            if len(outside):
                raise ConfigError(
                    f"data.source={self.name}: {split} label {int(outside[0])}, but there are {self.classes} classes"
                )
        if self.users is not None and len(self.users) != len(self.train_labels):
            raise ConfigError(
                f"data.source={self.name}: {len(self.train_labels)} train images but {len(self.users)} users"
            )

    def _refuse_other_types(self) -> None:
        """Refuse what would otherwise fail in the first training step, far from here."""
        names = ("train_images", "train_labels", "test_images", "test_labels", "mean", "std")
        for name in names + (() if self.users is None else ("users",)):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"data.source={self.name}: {name} is a {type(value).__name__}, and must be a tensor "
                    "(torch.tensor of numbers, torch.from_numpy of an array)"
                )
        for split in ("train", "test"):
            labels = getattr(self, f"{split}_labels")
            if labels.dtype != torch.int64:
                raise ConfigError(
                    f"data.source={self.name}: {split}_labels are {labels.dtype}, not torch.int64: take labels.long()"
                )
        train, test = self.input_shape, tuple(self.test_images.shape[1:])
        if train != test and len(self.train_images) and len(self.test_images):
            raise ConfigError(
                f"data.source={self.name}: a training image is of shape {list(train)} and a test image of {list(test)}"
            )
        axis = 1 if self.sequence else 0
        if len(train) <= axis:
            return  # no channels to count; the model's own check says more
        for name, keeps in (("mean", "zeros"), ("std", "ones")):
            values = getattr(self, name).numel()
            if values not in (1, train[axis]):
                raise ConfigError(
                    f"data.source={self.name}: {name} holds {values} values for samples of shape {list(train)}; give "
                    f"{train[axis]}, one for each channel or feature (torch.{keeps}({train[axis]}) changes nothing)"
                )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: ``(C, H, W)`` or ``(features,)``, of sequences with ``T`` before that."""
        return tuple(self.train_images.shape[1:])

    @property
    def kind(self) -> DataKind:
        """What a sample is: as stated, else by its shape.

        Sequences of pictures or of counts are events, other sequences series; samples ``[C, H, W]`` are images, and
        all others rows of a table.
        """
        if self.stated_kind is not None:
            return self.stated_kind
        if self.sequence:
            counts = not self.train_images.is_floating_point()
            return "events" if counts or len(self.input_shape) == 4 else "series"
        return "images" if len(self.input_shape) == 3 else "table"

    def normalise(self, images: Tensor) -> Tensor:
        """Standardise stored values: ``(x / 255 - mean) / std`` for ``uint8`` pictures, else ``(x - mean) / std``.

        Args:
            images: Stored values, shape ``[batch, *input_shape]``.

        Returns:
            ``float32`` of the same shape.
        """
        scaled = images.clone() if images.dtype == torch.float32 else images.float()
        if images.dtype == torch.uint8 and not self.sequence:
            scaled.div_(255)
        shape = [-1] + [1] * (images.dim() - (3 if self.sequence else 2))
        return scaled.sub_(self.mean.view(shape)).div_(self.std.view(shape))

    @cached_property
    def scale(self) -> float:
        """The stored value that a pixel of 1 has: 255 of ``uint8`` pictures, else the largest of the training split."""
        pictures = self.train_images.dtype == torch.uint8 and not self.sequence
        return 255.0 if pictures else float(self.train_images.max())

    @cached_property
    def lowest(self) -> float:
        """The stored value that a pixel of 0 has: 0, or the smallest of the training split if that is negative."""
        return min(0.0, float(self.train_images.min())) if self.train_images.is_floating_point() else 0.0

    def pixels(self, images: Tensor) -> Tensor:
        """Turn stored values into pixels of [0, 1], which is how samples of all kinds are compared."""
        return (images.float() - self.lowest) / (self.scale - self.lowest)

    def stored(self, pixels: Tensor) -> Tensor:
        """Turn pixels of [0, 1] into stored values, ``float32``: the inverse of :meth:`pixels`, without rounding."""
        return pixels * (self.scale - self.lowest) + self.lowest
