"""What an attacker has who asks whether a sample was trained on: facts, and a view that holds what they grant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from snnfl.registry import Registry
from snnfl.threat.granting import Granting
from snnfl.threat.knowledge import ThreatModelError

MEMBERSHIP_FACTS = Registry[str]("fact", closed=True)
"""What a threat model of membership inference grants or denies, with its meaning."""


def _fact(name: str, meaning: str) -> None:
    MEMBERSHIP_FACTS.add(name, meaning, home=__name__)


_fact("labels", "the labels of the samples that are asked about")
_fact("query", "what the target answers: logits, and the last potentials of output neurons")
_fact("perturbed", "what the target answers for samples of which parts are blanked")
_fact("white_box", "the target's inside: how often and when hidden neurons fire")
_fact("architecture", "the target's structure and how it is trained, so that others can be trained like it")
_fact("distribution", "samples of the training distribution that neither the target nor its shadows trained on")
_fact("shadow_data", "networks like the target, trained on random halves of the samples that are asked about")
_fact("disjoint", "a network like the target, trained on half of the samples of the distribution that it doesn't know")
_fact("overlap", "80 % of the target's own members, and all of its non-members: a diagnosis, no attacker has them")


@dataclass(frozen=True, kw_only=True)
class MembershipKnowledge(Granting):
    """The threat model: which of :data:`MEMBERSHIP_FACTS` the attacker has. All, unless somebody says otherwise."""

    labels: bool = True
    query: bool = True
    perturbed: bool = True
    white_box: bool = True
    architecture: bool = True
    distribution: bool = True
    shadow_data: bool = True
    disjoint: bool = True
    overlap: bool = True

    table = MEMBERSHIP_FACTS


@dataclass(frozen=True, kw_only=True, eq=False)
class Signals:
    """What one network answers for N samples.

    Attributes:
        logits: Shape ``[N, classes]``.
        potentials: Of the output neurons of a spiking network after the last step, ``[N, classes]``.
        perturbed: Logits for samples of which parts are blanked, ``[P, N, classes]``.
        counts: Spikes of each hidden neuron, of convolutions added up over a channel, ``[N, neurons]``.
        timing: Part of each hidden layer that fires in each time step, layer after layer, ``[N, layers * T]``.
    """

    logits: Tensor
    potentials: Tensor | None = None
    perturbed: Tensor | None = None
    counts: Tensor | None = None
    timing: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def granted(self, facts: Iterable[str]) -> Signals:
        """Return what a threat model with these facts leaves of it."""
        known = set(facts)
        inside = "white_box" in known
        return replace(
            self,
            perturbed=self.perturbed if "perturbed" in known else None,
            counts=self.counts if inside else None,
            timing=self.timing if inside else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadow:
    """A network that the attacker has trained, so that it knows on what.

    Attributes:
        signals: Of the shadow, for N samples.
        members: Whether each is among what it was trained on, bool ``[N]``.
        used: Whether the attacker takes the sample as an example of either, bool ``[N]``; ``None`` for all.
        population: Its signals for the samples of :class:`Population`, if it was not trained on them.
    """

    signals: Signals
    members: Tensor
    used: Tensor | None = None
    population: Signals | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Samples of the training distribution that neither the target nor a shadow of the candidates trained on.

    Attributes:
        inputs: ``[M, *input_shape]``.
        labels: ``[M]``, int64.
        target: The target's signals for them.
    """

    inputs: Tensor
    labels: Tensor
    target: Signals


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipView:
    """All that an attacker has who asks of each of N samples whether the target was trained on it.

    What the threat model denies isn't here, and the target's members never are: in and out bits are those of shadows.
    The draws of different networks are independent, so the shadows' bits say nothing of the target's. The one exception
    is ``overlap``, which tells 80 % of them: the paper's attack is given it, and no other.

    Attributes:
        inputs: The samples, ``[N, *input_shape]``.
        knowledge: The threat model.
        labels: Of the samples, ``[N]``, int64; under the fact ``labels``.
        target: The target's signals for the samples; under ``query``.
        shadows: Networks like it, trained on random halves of the samples; under ``shadow_data``.
        population: Samples that nobody trained on; under ``distribution``.
        disjoint: A shadow whose samples are those of the population, half of which it was trained on; under
            ``disjoint``, of which ``distribution`` and ``architecture`` are part.
        overlap: A shadow trained on 80 % of the target's own members; under ``overlap``.
    """

    inputs: Tensor
    knowledge: MembershipKnowledge
    labels: Tensor | None = None
    target: Signals | None = None
    shadows: Sequence[Shadow] = ()
    population: Population | None = None
    disjoint: Shadow | None = None
    overlap: Shadow | None = None

    def __post_init__(self) -> None:
        """Leave out what the threat model denies.

        Raises:
            ThreatModelError: If something is of another number of samples.
        """
        count = len(self.inputs)
        for name, size in self._sizes():
            if size != count:
                raise ThreatModelError(f"{name}: of {size} samples, and {count} are asked about; give all the same")
        object.__setattr__(self, "target", None if self.target is None else self._signals(self.target, "query"))
        granted = self._granted
        object.__setattr__(self, "labels", granted(self.labels, "labels"))
        object.__setattr__(self, "shadows", [self._shadow(each) for each in granted(self.shadows, "shadow_data") or ()])
        for name, more in (("disjoint", "distribution"), ("overlap", "query")):
            shadow = granted(getattr(self, name), name, more, "architecture")
            object.__setattr__(self, name, None if shadow is None else self._shadow(shadow))
        population = granted(self.population, "distribution")
        if population is not None:
            population = replace(population, target=population.target.granted(self.knowledge.facts))
        object.__setattr__(self, "population", population)

    def only(self, needs: Iterable[str]) -> MembershipView:
        """Return the view of an attacker who knows nothing else than these facts, as far as they are granted."""
        knowledge = self.knowledge.without(self.knowledge.facts - set(needs))
        return replace(self, knowledge=knowledge)

    def _granted(self, thing: Any, *facts: str) -> Any:
        return thing if self.knowledge.facts.issuperset(facts) else None

    def _signals(self, signals: Signals, *facts: str) -> Signals | None:
        return signals.granted(self.knowledge.facts) if self.knowledge.facts.issuperset(facts) else None

    def _shadow(self, shadow: Shadow) -> Shadow:
        facts = self.knowledge.facts
        population = None
        if shadow.population is not None and "distribution" in facts:
            population = shadow.population.granted(facts)
        return replace(shadow, signals=shadow.signals.granted(facts), population=population)

    def _sizes(self) -> Iterable[tuple[str, int]]:
        if self.labels is not None:
            yield "labels", len(self.labels)
        if self.target is not None:
            yield "target", len(self.target)
        for number, shadow in enumerate(self.shadows):
            yield f"signals of shadow {number}", len(shadow.signals)
            yield f"members of shadow {number}", len(shadow.members)
