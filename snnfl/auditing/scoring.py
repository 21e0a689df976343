"""How much of a victim's samples a reconstruction shows, beside what a guess without any update shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from snnfl.attacks import AttackResult
from snnfl.attacks.networks import last_linear
from snnfl.auditing.extractor import FITTED, Extractor, Recogniser
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.measures import BY_RUN, IDENTIFIED, MEASURES, Measures
from snnfl.auditing.setting import Setting
from snnfl.metrics import images as metrics
from snnfl.metrics.augmented import costs, nearest_variant
from snnfl.models import SpikingModel

PUBLIC_IMAGES = 1000
"""Test samples that stand for what anybody may know of the data: their mean is a floor."""

CANDIDATES = 2000
"""Training samples among which a reconstruction is to identify its own (IIP), the victim's among them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """Of one victim; each number is the mean over its samples.

    Attributes:
        measures: What is measured, by the kind of data.
        values: By metric of ``measures``; ``"identified"`` is the part of the samples that are nearest to their own
            among :data:`CANDIDATES` (IIP), by features that depend on no run; ``"identified_by_run"`` the same by the
            attacked network's features, if it has any; ``"lpips"`` where its weights are at hand.
        floors: The judged values and the identified part of each guess that needs no update, by its name.
        chance: Of identifying a sample by a guess.
        extractor: What identifies.
        label_accuracy: Part of the labels that are right, of the guessed or the true ones, whichever are more.
        label_floor: What labels spread evenly over the classes would have found.
        curve: ``(iteration, first metric)`` of the best samples so far.
        found: Reconstructions in the order of ``true``, pixels ``[N, *input_shape]``.
        true: The victim's samples.
    """

    measures: Measures
    values: Mapping[str, float]
    floors: Mapping[str, Mapping[str, float]]
    chance: float
    extractor: str
    label_accuracy: float
    label_floor: float
    curve: tuple[tuple[int, float], ...]
    found: Tensor
    true: Tensor


class Scorer:
    """Score reconstructions of one run.

    Args:
        setting: Of the run. Samples for floors and extractor are from the test split; the candidates of the
            identification are from the training split, which no attack sees.
    """

    def __init__(self, setting: Setting) -> None:
        data = setting.dataset
        self.setting = setting
        self.measures = MEASURES[data.kind]
        self.public = data.pixels(data.test_images[:PUBLIC_IMAGES])
        self.others = data.pixels(data.train_images[-CANDIDATES:])

    @cached_property
    def extractor(self) -> Extractor:
        """What identifies."""
        return Extractor(self.public)

    @cached_property
    def recogniser(self) -> Recogniser:
        """What says of which class a sample is."""
        data = self.setting.dataset
        return Recogniser(self.extractor, data.pixels(data.test_images[:FITTED]), data.test_labels, data.classes)

    def score(self, result: AttackResult, truth: GroundTruth, arrays: Mapping[str, Tensor]) -> Score:
        """Score what an attack found of a victim.

        Of more samples than the victim has only the first count: the best of many guesses would beat a floor, which is
        one guess per sample, without any update. Surplus labels count as wrong. Where clients augment, reconstructions
        and floors are compared with the nearest of the pictures that they may have trained on.

        Args:
            result: Of the attack.
            truth: The victim's secrets.
            arrays: The victim's network.
        """
        true = truth.images
        found = self._in_order(result.images, true)
        guesses = self.guesses(true)
        told = self._identified([found, *guesses.values()], true, self.extractor.features)
        values = {**self._values(found, truth), IDENTIFIED: told[0]}
        if (own := self._features(arrays)) is not None:
            values[BY_RUN] = self._identified([found], true, own)[0]
        judged, even = [metric.name for metric in self.measures.judged], torch.arange(len(truth.labels))
        floors = {}
        for (name, guess), part in zip(guesses.items(), told[1:], strict=True):
            of_guess = self._values(guess, truth)
            floors[name] = {metric: of_guess[metric] for metric in judged} | {IDENTIFIED: part}
        return Score(
            measures=self.measures,
            values=values,
            floors=floors,
            chance=1 / (len(true) + len(self.others)),
            extractor=self.extractor.name,
            label_accuracy=metrics.label_accuracy(result.labels, truth.labels),
            label_floor=metrics.label_accuracy(even % self.setting.dataset.classes, truth.labels),
            curve=tuple(
                (iteration, self._first(self._in_order(images, true), truth))
                for (iteration, _), images in zip(result.curve, result.trail, strict=True)
            ),
            found=found,
            true=true,
        )

    def scores(
        self, result: AttackResult, truth: GroundTruth, sizes: Sequence[int], arrays: Mapping[str, Tensor]
    ) -> list[Score]:
        """Score what an attack found of several clients together, client by client.

        Reconstructions are matched to the samples of all, and each client is scored by those of its own. Of a label
        that is found less often than it is there, each sample that has it counts as found in part.

        Args:
            result: Of the attack.
            truth: The clients' secrets, one after the other.
            sizes: How many samples each has, in this order.
            arrays: As for :meth:`score`.
        """
        if len(sizes) == 1:
            return [self.score(result, truth, arrays)]
        ordered = replace(
            result,
            images=self._in_order(result.images, truth.images),
            trail=tuple(self._in_order(images, truth.images) for images in result.trail),
        )
        even = torch.arange(len(truth.labels)) % self.setting.dataset.classes
        right, floor = (_shares_found(labels, truth.labels) for labels in (result.labels, even))
        scores, start = list[Score](), 0
        for size in sizes:
            own = slice(start, start + size)
            part = replace(ordered, images=ordered.images[own], trail=tuple(images[own] for images in ordered.trail))
            score = self.score(part, GroundTruth(images=truth.images[own], labels=truth.labels[own]), arrays)
            found, guessed = float(right[own].mean()), float(floor[own].mean())
            scores.append(replace(score, label_accuracy=found, label_floor=guessed))
            start += size
        return scores

    def guesses(self, true: Tensor) -> Mapping[str, Tensor]:
        """Return the guesses of some samples that need no update, by the floor's name."""
        return self.measures.floors(true, self.public)

    def _values(self, found: Tensor, truth: GroundTruth) -> dict[str, float]:
        """Return the mean over samples of every metric of this kind of data."""
        values = dict(self.measures.values(self.setting.dataset, found, self._trained_on(found, truth.images)))
        if any(metric.name == "recognised" for metric in self.measures.metrics):
            values["recognised"] = self.recogniser(found) == truth.labels
        return {name: float(value.float().mean()) for name, value in values.items()}

    def _first(self, found: Tensor, truth: GroundTruth) -> float:
        """Return the metric that curves show."""
        return self._values(found, truth)[self.measures.metrics[0].name]

    def _in_order(self, found: Tensor, true: Tensor) -> Tensor:
        """Return the reconstruction of each true sample among the first of as many; of one beyond all, a blank."""
        found = found[: len(true)]
        freedom = self.setting.freedom
        chosen = metrics.matched(found, true) if freedom is None else metrics.assigned(costs(found, true, freedom))
        blank = torch.full_like(true[:1], self.measures.blank)
        return torch.cat([found[n : n + 1] if n >= 0 else blank for n in chosen.tolist()])

    def _trained_on(self, found: Tensor, true: Tensor) -> Tensor:
        """Return of what a client may have made of each true sample the nearest to a guess."""
        freedom = self.setting.freedom
        return true if freedom is None else nearest_variant(found, true, freedom)

    def _identified(self, sets: Sequence[Tensor], true: Tensor, features: Callable[[Tensor], Tensor]) -> list[float]:
        """Return the part of each set's samples that are nearest to their own."""
        own, parts = torch.arange(len(true)), list[float]()
        for found in sets:
            candidates = torch.cat([self._trained_on(found, true), self.others])
            parts.append(float(metrics.identified(found, candidates, own, features).float().mean()))
        return parts

    def _features(self, arrays: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor] | None:
        """Return what the run's own network puts into its last layer, as a function of pixels; ``None`` without one."""
        model, data = self.setting.model, self.setting.dataset
        if isinstance(model, SpikingModel) or not any(isinstance(m, torch.nn.Linear) for m in model.modules()):
            return None
        layer = model.get_submodule(last_linear(model))
        caught: list[Tensor] = []

        def features(pixels: Tensor) -> Tensor:
            caught.clear()
            stored = data.stored(pixels)
            inputs = data.normalise(stored if data.scale != 255 else stored.round().to(torch.uint8))
            handle = layer.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
            try:
                torch.func.functional_call(model.eval(), dict(arrays), (inputs,), strict=False)
            finally:
                handle.remove()
            return caught[0].flatten(1)

        return features


def _shares_found(found: Tensor, true: Tensor) -> Tensor:
    """Return of each true label which part of it was found, ``[N]``: their mean is the accuracy of the labels."""
    counts = torch.stack([(found == label).sum() / (true == label).sum() for label in true])
    return counts.clamp(max=1.0) * min(1.0, len(true) / len(found))
