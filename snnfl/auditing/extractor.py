"""Features by which samples are told apart, and a classifier on them: of public samples alone, of no run's network."""

from __future__ import annotations

import torch
from torch import Tensor

COMPONENTS = 64
"""Principal components at most; fewer public samples have fewer."""

FITTED = 10_000
"""Public samples at most that the classifier is fitted to."""

RIDGE = 1e-2
"""Of the classifier, in units of the features' mean square."""


class Extractor:
    """The first principal components of public samples, each divided by the root of its standard deviation.

    The features that an attacked network gives are those that gradient matching makes alike, so they call pictures
    equal that nobody else would. These depend on no network and no seed, and take less than a second.

    Attributes:
        name: What it is, for a report.

    Args:
        public: Pixels of samples that are no client's, ``[M, ...]``. With fewer than two, pixels are compared.
    """

    def __init__(self, public: Tensor) -> None:
        flat = public.flatten(1).double()
        self.name = "pixels"
        self.mean = flat.new_zeros(flat.shape[1])
        self.projection: Tensor | None = None  # of pixels as they are: an identity of theirs may not fit into memory
        if len(flat) > 1:
            self._fit(flat)

    def _fit(self, flat: Tensor) -> None:
        self.mean = flat.mean(0)
        centred = flat - self.mean
        values, vectors = torch.linalg.eigh(centred @ centred.T)  # far fewer samples than pixels
        kept = values.flip(0)[:COMPONENTS] > 1e-9 * values[-1].clamp_min(1e-12)
        count = max(1, int(kept.sum()))
        values, vectors = values.flip(0)[:count].clamp_min(1e-12), vectors.flip(1)[:, :count]
        deviations = (values / len(flat)).sqrt()
        self.projection = centred.T @ vectors / values.sqrt() / deviations.sqrt()
        self.name = f"{count} principal components of public samples"

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features ``[N, F]`` of samples ``[N, ...]``."""
        centred = pixels.flatten(1).double() - self.mean
        features: Tensor = centred if self.projection is None else centred @ self.projection
        return features.float()


class Recogniser:
    """A linear classifier of an extractor's features, fitted by ridge regression to public samples.

    Args:
        extractor: Gives the features.
        public: Pixels of samples that are no client's, ``[M, ...]``; the first :data:`FITTED` are taken.
        labels: Theirs, ``[M]``.
        classes: Their number.
    """

    def __init__(self, extractor: Extractor, public: Tensor, labels: Tensor, classes: int) -> None:
        self.extractor = extractor
        inputs = self._inputs(public[:FITTED])
        targets = torch.nn.functional.one_hot(labels[:FITTED], classes).double()
        gram = inputs.T @ inputs
        ridge = RIDGE * float(gram.diagonal().mean()) * torch.eye(len(gram), dtype=gram.dtype)
        self.weights = torch.linalg.solve(gram + ridge, inputs.T @ targets)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the class of each sample, ``[N]``."""
        scores: Tensor = self._inputs(pixels) @ self.weights
        return scores.argmax(1)

    def _inputs(self, pixels: Tensor) -> Tensor:
        features = self.extractor.features(pixels).double()
        return torch.cat([features, torch.ones_like(features[:, :1])], 1)
