"""Attacks on published networks by name: a function with one decorator is one, and says what it must know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from snnfl.registry import Registry, summary_of
from snnfl.threat import MODEL_FACTS, ModelView, ThreatModelError
from snnfl.threat.granting import Evidence, lacking, named_errors


class ModelAttackError(ValueError):
    """An attack fails, or returns what is no result; one line."""


@dataclass(frozen=True, kw_only=True)
class ModelBudget:
    """What an attack may spend.

    Attributes:
        starts: Class images that are made of each class.
        iterations: Steps of gradient ascent for each class image.
        epochs: Passes over the images that a network is trained on.
        batch: Images per step of such a training.
        images: Images at most that a network is asked about, or trained on.
    """

    starts: int = 4
    iterations: int = 200
    epochs: int = 50
    batch: int = 64
    images: int = 2000

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ThreatModelError: Naming the value.
        """
        for name in ("starts", "iterations", "epochs", "batch", "images"):
            if (value := getattr(self, name)) < 1:
                raise ThreatModelError(f"{name}={value}: an attack may spend at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Theft:
    """What an attack got out of a published network.

    Attributes:
        images: Class images, normalised, ``[classes, starts, *input_shape]``.
        network: An ordinary network that classifies as the published one does, if the attack makes one: it can be
            differentiated exactly, pruned, trained further.
    """

    images: Tensor
    network: nn.Module | None = None


Steal: TypeAlias = Callable[[ModelView, ModelBudget, torch.Generator], Theft]
"""``(view, budget, generator) -> what was stolen``; every random draw is from the generator."""

Requirement: TypeAlias = Callable[[ModelView], str | None]
"""Returns in words what a view lacks, or ``None``."""


@dataclass(frozen=True, kw_only=True)
class ModelAttack:
    """A registered attack.

    Attributes:
        name: In reports and on the command line.
        source: Paper and section.
        needs: Facts that a threat model must grant; the attack sees nothing else.
        steal: The attack itself.
        requires: What else a view must have; returns the reason if it hasn't.
    """

    name: str
    source: str
    needs: frozenset[str]
    steal: Steal
    requires: Requirement

    @property
    def summary(self) -> str:
        """What it does, in one sentence: the first line of its docstring; empty without one."""
        return summary_of(self.steal)

    def refusal(self, view: ModelView) -> str | None:
        """Return why it cannot run on a view, or ``None`` if it may."""
        reason = lacking(self.needs, view.knowledge.facts, _EVIDENCE, view) or self.requires(view)
        return None if reason is None else f"{self.name}: {reason}"

    def run(self, view: ModelView, *, budget: ModelBudget, generator: torch.Generator) -> Theft:
        """Attack a published network.

        The attack sees of the view what it declares to need, and nothing else.

        Args:
            view: What the attacker has.
            budget: What it may spend.
            generator: CPU generator of every random draw.

        Returns:
            Class images, and a network if the attack makes one, in evaluation mode.

        Raises:
            ThreatModelError: If the threat model denies what the attack needs.
            ModelAttackError: If it fails, or returns images of another shape, or such as are no finite numbers.
        """
        if (reason := self.refusal(view)) is not None:
            raise ThreatModelError(reason)
        found = named_errors(self.name, ModelAttackError, lambda: self.steal(view.only(self.needs), budget, generator))
        return self._checked(found, (view.classes, budget.starts, *view.input_shape))

    def _checked(self, found: object, shape: tuple[int, ...]) -> Theft:
        if not isinstance(found, Theft):
            raise ModelAttackError(f"{self.name}: returned {type(found).__name__}; expected a Theft")
        if tuple(found.images.shape) != shape:
            raise ModelAttackError(f"{self.name}: images are {list(found.images.shape)}; expected {list(shape)}")
        if not torch.isfinite(found.images).all():
            raise ModelAttackError(f"{self.name}: an image is no finite number; take fewer iterations")
        if found.network is not None:
            found.network.eval()
        return Theft(images=found.images.detach(), network=found.network)


_EVIDENCE: Evidence[ModelView] = {
    "weights": ("nobody tells the network's weights", lambda view: view.weights is not None),
    "architecture": ("nobody tells the network's layers", lambda view: view.graph is not None),
    "logits": ("nobody answers for the network", lambda view: view.logits is not None),
    "labels": ("nobody answers for the network", lambda view: view.labels is not None),
    "norm_statistics": (
        "nobody tells what batch normalisation knew",
        lambda view: bool(view.statistics),
    ),
    "public_images": ("there are no public images", lambda view: view.public is not None),
    "synthetic_images": ("the owner's synthetic images aren't there", lambda view: view.synthetic is not None),
}

MODEL_ATTACKS = Registry[ModelAttack]("model attack")


def register(
    name: str, *, source: str, needs: Sequence[str], requires: Requirement = lambda view: None
) -> Callable[[Steal], Steal]:
    """Make the decorated function the attack ``name`` on published networks.

    Args:
        name: Of the attack.
        source: Paper and section.
        needs: Facts of :data:`~snnfl.threat.MODEL_FACTS`.
        requires: Returns in words what a view lacks, or ``None``.

    Raises:
        ValueError: If the name is taken.
        ConfigError: If it needs what is no fact.
    """
    for fact in needs:
        MODEL_FACTS.find(fact)

    def add(steal: Steal) -> Steal:
        attack = ModelAttack(name=name, source=source, needs=frozenset(needs), steal=steal, requires=requires)
        MODEL_ATTACKS.add(name, attack, home=steal.__module__)
        return steal

    return add


def silent(view: ModelView) -> str | None:
    """Say that a network has no neurons that fire, or return ``None``: what attacks on them require."""
    return None if view.network is not None else "the network has no neurons that fire; take scenario_1"


def get_model_attack(name: str) -> ModelAttack:
    """Return an attack by its name.

    Raises:
        ConfigError: If there is none of that name, with the nearest one.
    """
    return MODEL_ATTACKS.find(name)
