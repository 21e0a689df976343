"""The threat model: what an attacker is said to know beside the arrays, as a table of facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from snnfl.batching import batch_count
from snnfl.registry import Registry


class ThreatModelError(ValueError):
    """An attack needs what its threat model denies, or a view contradicts its threat model; one line."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """The threat model: what the attacker knows beside the arrays. ``None`` and ``False`` mean "unknown".

    Attributes:
        architecture: The model's structure.
        loss: What clients minimise: cross-entropy, and what follows.
        proximal_mu: Weight of FedProx's term beside it.
        contrastive_mu: Weight of MOON's.
        temperature: Of MOON's similarities.
        clip_norm: Bound of the norm of each local step's gradient, or ``None`` without one; under the fact
            ``optimizer``.
        upload_bits: Of a quantised upload, or ``None``; the server asked for it.
        clipped: Whether the client may have shortened its update: then a gradient is known up to a factor, be the
            learning rate what it may.
        clipped_gradient: Whether what may have shortened it was ``clip_norm`` in its only step. Weight decay is added
            behind that, and can be taken out.
        labels: The private labels. No server has them: results are diagnostic.
        images: How many images the client trained on; ``num-examples`` of a reply says so. Of a sum those of all.
        batch_size: Images per step. Of a sum those of all clients.
        epochs: Passes over the images.
        learning_rate: Of this round.
        momentum: Of SGD, whose buffer starts anew each round.
        weight_decay: L2 coefficient.
        norm_mode: How the client's batch normalisation ran. Training runs in ``"train"``; ``"eval"`` is a diagnosis.
        norm_statistics: Which running statistics are there: those of the update, too (``"known"``, the fact
            ``update_statistics``), only those that the server sent (``"estimated"``), or none, as if they never
            travelled.
        biases: The client's own biases. In an S-run the server never has them.
        thresholds: Firing thresholds of an S-update.
        surrogate: Surrogate gradient of a network that is trained as a spiking one; without it the default one is
            assumed.
        initial_weights: What a client that never trained starts from. One seed gives it to all, the server included.
        earlier_rounds: Earlier updates of the same client.
        batch_order: In which order the client went through its images in each epoch, by their numbers: where clients
            draw it from the run's seed, the server can draw it, too.
        clients: Of how many clients an update is the weighted mean, each with as many images: one, unless the server
            learns sums alone.
        colluding: How many further clients of such a sum have told the server their updates, which it has taken out.
        rounds: From how many rounds' sums an update is estimated; 1 if it was received.
        other_clients: Updates of the other clients of a round.
        public_images: Labelled images of the same kind as the client's, none of them any client's.
        generative_model: A model that draws images of the kind that clients have, which whoever audits brings along.
        crafted_weights: Whether what was sent is no model but made to be told by the update. Whoever does that keeps no
            protocol: it is beyond honest-but-curious.
    """

    architecture: bool = True
    loss: bool = True
    proximal_mu: float = 0.0
    contrastive_mu: float = 0.0
    temperature: float = 1.0
    clip_norm: float | None = None
    upload_bits: int | None = None
    clipped: bool = False
    clipped_gradient: bool = False
    labels: bool = False
    images: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    momentum: float | None = 0.0
    weight_decay: float | None = 0.0
    norm_mode: Literal["train", "eval"] | None = "train"
    norm_statistics: Literal["known", "estimated", "unknown"] = "known"
    biases: bool = True
    thresholds: bool = True
    surrogate: bool = True
    initial_weights: bool = True
    earlier_rounds: bool = True
    batch_order: bool = True
    clients: int | None = 1
    colluding: int = 0
    rounds: int = 1
    other_clients: bool = True
    public_images: bool = True
    generative_model: bool = False
    crafted_weights: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ThreatModelError: Naming the flag and its value.
        """
        for name in ("images", "batch_size", "epochs", "clients"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ThreatModelError(f"{name}={value}: expected at least 1, or None for unknown")
        positive = ("learning_rate", "temperature")
        for name in (*positive, "momentum", "weight_decay", "proximal_mu", "contrastive_mu"):
            low = math.ulp(0.0) if name in positive else 0.0
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                above = "more than" if low else "at least"
                raise ThreatModelError(f"{name}={value}: expected a finite number of {above} 0, or None for unknown")

    @property
    def facts(self) -> frozenset[str]:
        """Names of the facts that are granted."""
        return frozenset(name for name, fact in FACTS.items.items() if fact.granted(self))

    def without(self, denied: Iterable[str]) -> Knowledge:
        """Return the threat model without some facts; of two that change one flag the later one of the table counts.

        Raises:
            ConfigError: For a name that is no fact.
        """
        refused = frozenset(denied)
        for name in sorted(refused):
            FACTS.find(name)
        flags: dict[str, Any] = {}
        for name, fact in FACTS.items.items():
            if name in refused:
                flags |= fact.denied
        return replace(self, **flags)

    @property
    def steps(self) -> int | None:
        """SGD steps of the round, or ``None`` where the flags don't tell."""
        if self.images is None or self.batch_size is None or self.epochs is None:
            return None
        return self.epochs * batch_count(self.images, self.batch_size)

    @property
    def scaled(self) -> bool:
        """Whether the length of the update tells that of the gradients, not their direction alone."""
        return self.learning_rate is not None and not self.clipped

    @property
    def diagnoses(self) -> tuple[str, ...]:
        """Why a result under these flags is an upper bound, not a realistic setting; empty where it is realistic."""
        reasons = ("the labels are given",) if self.labels else ()
        return (*reasons, "the client's batch normalisation ran in eval mode") if self.norm_mode == "eval" else reasons


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that a threat model grants or denies; an attack says which of them it needs.

    Attributes:
        meaning: In words.
        denied: The flags of :class:`Knowledge` that say no, with their values.
        granted: Whether a threat model grants it.
    """

    meaning: str
    denied: Mapping[str, Any]
    granted: Callable[[Knowledge], bool]


FACTS = Registry[Fact]("fact", closed=True)


def hidden_by_sums(facts: Collection[str], knowledge: Knowledge) -> str | None:
    """Say why secure aggregation hides what an attack needs; ``None`` where it is the threat model that denies it.

    Args:
        facts: That the attack needs and aren't granted.
        knowledge: The threat model.
    """
    if "individual" in facts and knowledge.clients is not None:
        return f"needs one client's update, and this is the sum of {knowledge.clients}"
    if "thresholds" in facts and knowledge.rounds > 1:
        return "needs one client's thresholds, and sums tell each round's mean of them alone, however many are compared"
    return None


def _fact(name: str, meaning: str, granted: Callable[[Knowledge], bool] | None = None, **denied: Any) -> None:
    """Add a row; a fact is granted if none of its flags says no, unless it has a rule of its own."""

    def known(knowledge: Knowledge) -> bool:
        return all(getattr(knowledge, flag) is not value for flag, value in denied.items())

    FACTS.add(name, Fact(meaning=meaning, denied=denied, granted=granted or known), home=__name__)


_fact("architecture", "the model's structure", architecture=False)
_fact("loss", "what clients minimise", loss=False)
_fact("labels", "the private labels", labels=False)
_fact("images", "how many images the client trained on", images=None)
_fact("batch_size", "images per step", batch_size=None)
_fact("epochs", "passes over the images", epochs=None)
_fact("learning_rate", "of the round", learning_rate=None)
_fact(
    "optimizer",
    "momentum and weight decay of SGD, and its clipping",
    lambda known: known.momentum is not None and known.weight_decay is not None,  # without clipping its flag is None
    momentum=None,
    weight_decay=None,
    clip_norm=None,
)
_fact("norm_mode", "how the client's batch normalisation ran", norm_mode=None)
_fact(
    "update_statistics",
    "running statistics that the client sends",
    lambda known: known.norm_statistics == "known",
    norm_statistics="estimated",
)
_fact(
    "norm_statistics",
    "any running statistics",
    lambda known: known.norm_statistics != "unknown",
    norm_statistics="unknown",
)
_fact("biases", "the client's own biases", biases=False)
_fact("thresholds", "firing thresholds of an S-update", thresholds=False)
_fact("surrogate", "the surrogate gradient of networks trained as spiking ones", surrogate=False)
_fact("initial_weights", "what a client that never trained starts from", initial_weights=False)
_fact("earlier_rounds", "earlier updates of the same client", earlier_rounds=False)
_fact("batch_order", "the order of the client's images in each epoch, from the run's seed", batch_order=False)
_fact("clients", "of how many clients' updates a sum is", clients=None)
_fact("individual", "that an update is one client's alone", lambda known: known.clients == 1, clients=None)
_fact("other_clients", "updates of the other clients of a round", other_clients=False)
_fact("public_images", "labelled images of the same kind that no client has", public_images=False)
_fact("generative_model", "a model that draws images of the same kind, which the auditor names", generative_model=False)
_fact("crafted_weights", "that the server sent weights of its own making", crafted_weights=False)
