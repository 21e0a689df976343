"""How much of a victim's images a reconstruction shows, beside what a guess without any update shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.attacks import AttackResult
from snnfl.attacks.networks import last_linear
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.setting import Setting
from snnfl.metrics import images as metrics

PUBLIC_IMAGES = 1000
"""Test images that stand for what anybody may know of the data: their mean is a floor."""

CANDIDATES = 2000
"""Training images among which a reconstruction is to identify its own (IIP), the victim's among them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """Of one victim; each number is the mean over its images.

    Attributes:
        psnr: In dB.
        ssim: At most 1.
        registered_psnr: In dB, the best over small shifts.
        mse: In squared pixels of [0, 1].
        label_accuracy: Part of the labels that are right, of the guessed or the true ones, whichever are more.
        label_floor: What labels spread evenly over the classes would have found.
        identified: Part of the images that are nearest to their own among :data:`CANDIDATES` (IIP).
        chance: Of identifying an image by a guess.
        lpips: Perceptual distance, or ``None`` where its weights aren't at hand.
        floors: PSNR, SSIM and identified part of each guess that needs no update.
        curve: ``(iteration, PSNR)`` of the best images so far.
        found: Reconstructions in the order of ``true``, pixels ``[N, C, H, W]``.
        true: The victim's images.
    """

    psnr: float
    ssim: float
    registered_psnr: float
    mse: float
    label_accuracy: float
    label_floor: float
    identified: float
    chance: float
    lpips: float | None
    floors: Mapping[str, tuple[float, float, float]]
    curve: tuple[tuple[int, float], ...]
    found: Tensor
    true: Tensor


class Scorer:
    """Score reconstructions of one run.

    Args:
        setting: Of the run. Pictures for the floors are from the test split; the candidates of the identification are
            from the training split, which no attack sees.
    """

    def __init__(self, setting: Setting) -> None:
        data = setting.dataset
        self.setting = setting
        self.public = data.pixels(data.test_images[:PUBLIC_IMAGES])
        self.others = data.pixels(data.train_images[-CANDIDATES:])

    def score(self, result: AttackResult, truth: GroundTruth, arrays: Mapping[str, Tensor]) -> Score:
        """Score what an attack found of a victim.

        Of more images than the victim has only the first count: the best of many guesses would beat a floor, which is
        one guess per image, without any update. Surplus labels count as wrong.

        Args:
            result: Of the attack.
            truth: The victim's secrets.
            arrays: The victim's network, whose features identify images.
        """
        true = truth.images
        found = _in_order(result.images, true)
        guesses = metrics.floors(true, self.public)
        told = self._identified([found, *guesses.values()], true, arrays)
        perceptual, even = metrics.lpips(found, true), torch.arange(len(truth.labels))
        return Score(
            psnr=float(metrics.psnr(found, true).mean()),
            ssim=float(metrics.ssim(found, true).mean()),
            registered_psnr=float(metrics.registered_psnr(found, true).mean()),
            mse=float(metrics.mse(found, true).mean()),
            label_accuracy=metrics.label_accuracy(result.labels, truth.labels),
            label_floor=metrics.label_accuracy(even % self.setting.dataset.classes, truth.labels),
            identified=told[0],
            chance=1 / (len(true) + len(self.others)),
            lpips=None if isinstance(perceptual, str) else float(perceptual.mean()),
            floors={
                name: (float(metrics.psnr(guess, true).mean()), float(metrics.ssim(guess, true).mean()), part)
                for (name, guess), part in zip(guesses.items(), told[1:], strict=True)
            },
            curve=tuple(
                (iteration, float(metrics.psnr(_in_order(images, true), true).mean()))
                for (iteration, _), images in zip(result.curve, result.trail, strict=True)
            ),
            found=found,
            true=true,
        )

    def _identified(self, sets: Sequence[Tensor], true: Tensor, arrays: Mapping[str, Tensor]) -> list[float]:
        """Return the part of each set's images that are nearest to their own."""
        candidates, own = torch.cat([true, self.others]), torch.arange(len(true)).repeat(len(sets))
        flags = metrics.identified(torch.cat(list(sets)), candidates, own, self._features(arrays)).float()
        return [float(part.mean()) for part in torch.split(flags, len(true))]

    def _features(self, arrays: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """Return what the run's own network puts into its last layer, as a function of pixels."""
        model, data = self.setting.model, self.setting.dataset
        layer = model.get_submodule(last_linear(model))
        caught: list[Tensor] = []

        def features(pixels: Tensor) -> Tensor:
            caught.clear()
            stored = pixels * data.scale
            inputs = data.normalise(stored if data.scale != 255 else stored.round().to(torch.uint8))
            handle = layer.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
            try:
                torch.func.functional_call(model.eval(), dict(arrays), (inputs,), strict=False)
            finally:
                handle.remove()
            return caught[0].flatten(1)

        return features


def _in_order(found: Tensor, true: Tensor) -> Tensor:
    """Return the reconstruction of each true image among the first of as many; of one beyond all found ones, grey."""
    found = found[: len(true)]
    chosen = metrics.matched(found, true)
    grey = torch.full_like(true[:1], 0.5)
    return torch.cat([found[n : n + 1] if n >= 0 else grey for n in chosen.tolist()])
