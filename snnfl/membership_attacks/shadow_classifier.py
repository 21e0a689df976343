"""Attacks by a classifier that has learned from a shadow what a member's signals look like.

Shokri et al., "Membership inference attacks against machine learning models", S&P 2017, with one shadow and a support
vector machine, as in Moshruba et al., "On the privacy-preserving properties of spiking neural networks with unique
surrogate gradients and quantization levels", section III-B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.membership_attacks.confidence import labels_of, target_of
from snnfl.membership_attacks.registry import MembershipError, Requirement, register
from snnfl.threat import MembershipView, Shadow, Signals

MOSHRUBA = "Moshruba et al. 2025, section III-B"
SHOKRI = "Shokri et al., S&P 2017, section V"

FEWEST = 4
"""Examples of members, and of others, that a classifier can learn from."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What of a network's signals is shown to the classifier.

    Attributes:
        name: Ends the names of attacks.
        facts: That bring it.
        of: Returns it, ``[N, features]``; ``None`` where the network has none.
    """

    name: str
    facts: tuple[str, ...]
    of: Callable[[Signals], Tensor | None]


def _published(signals: Signals) -> Tensor:
    """Return what the paper takes: of spiking networks the last potentials, of others the logits."""
    return signals.logits if signals.potentials is None else signals.potentials


PUBLISHED = Features(name="", facts=("query",), of=_published)
FEATURES = (
    Features(name="logits", facts=("query",), of=lambda signals: signals.logits),
    Features(name="potentials", facts=("query",), of=lambda signals: signals.potentials),
    Features(name="counts", facts=("query", "white_box"), of=lambda signals: signals.counts),
    Features(name="timing", facts=("query", "white_box"), of=lambda signals: signals.timing),
)


def _pooled(view: MembershipView, generator: torch.Generator, *, shadow: str, features: Features) -> Tensor:
    return _decided(
        _learned(_shadow(view, shadow), None, features, generator, scaled=shadow != "overlap"),
        _shown(target_of(view), features),
    )


def _per_class(view: MembershipView, generator: torch.Generator, *, shadow: str, features: Features) -> Tensor:
    labels, of = labels_of(view), _shadow(view, shadow)
    known = labels if shadow == "overlap" or view.population is None else view.population.labels
    shown, scores = _shown(target_of(view), features), torch.zeros(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        own = labels == label
        decide = _learned(of, known == label, features, generator, scaled=shadow != "overlap")
        scores[own] = _decided(decide, shown[own])
    return scores


def _shadow(view: MembershipView, kind: str) -> Shadow:
    shadow = view.overlap if kind == "overlap" else view.disjoint
    if shadow is None:
        raise MembershipError("there is no such shadow")
    return shadow


def _shown(signals: Signals, features: Features) -> Tensor:
    found = features.of(signals)
    if found is None:
        raise MembershipError(f"the network has no {features.name}")
    return found.flatten(1)


Decide = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _learned(
    shadow: Shadow, among: Tensor | None, features: Features, generator: torch.Generator, *, scaled: bool
) -> Decide:
    """Train an RBF SVM on equally many of a shadow's members and others.

    Args:
        shadow: Whose signals are learned from.
        among: The samples that count, bool ``[N]``; ``None`` for all.
        features: What is shown of them.
        generator: Draws who is left out of the larger group.
        scaled: Whether features are standardised first, which the paper doesn't do.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    used = torch.ones_like(shadow.members) if shadow.used is None else shadow.used
    used = used if among is None else used & among
    groups = [torch.nonzero(used & side).flatten() for side in (shadow.members, ~shadow.members)]
    fewest = min(map(len, groups))
    if fewest < FEWEST:
        if among is not None:  # a class that the shadow hardly knows tells nothing
            return lambda shown: np.zeros(len(shown))
        raise MembershipError(f"the shadow has {fewest} examples on one side; at least {FEWEST} are needed")
    groups = [group[torch.randperm(len(group), generator=generator)[:fewest]] for group in groups]
    shown = _shown(shadow.signals, features)[torch.cat(groups)].double().numpy()
    members = np.repeat([1, 0], fewest)
    machine = make_pipeline(StandardScaler(), SVC(kernel="rbf")) if scaled else SVC(kernel="rbf")
    machine.fit(shown, members)
    decide: Decide = machine.decision_function
    return decide


def _decided(decide: Decide, shown: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(decide(shown.double().numpy()), dtype=np.float64))


def _has(features: Features) -> Requirement:
    def requires(view: MembershipView) -> str | None:
        found = None if view.target is None else features.of(view.target)
        return f"the target has no {features.name}" if found is None else None

    return requires


def _register(name: str, score: Callable[..., Tensor], shadow: str, features: Features, summary: str) -> None:
    facts = ("overlap",) if shadow == "overlap" else ("distribution", "disjoint")
    labels = ("labels",) if score is _per_class else ()
    own = partial(score, shadow=shadow, features=features)
    own.__doc__, own.__module__ = summary, __name__
    source = MOSHRUBA if shadow == "overlap" else SHOKRI
    register(name, source=source, needs=(*features.facts, "architecture", *facts, *labels), requires=_has(features))(
        own
    )


_register(
    "paper", _pooled, "overlap", PUBLISHED,
    "An SVM on logits or last potentials, from a shadow trained on 80 % of the target's own members.",
)  # fmt: skip
_register(
    "paper_per_class", _per_class, "overlap", PUBLISHED,
    "As paper, with an SVM for each label.",
)  # fmt: skip
for _features in FEATURES:
    _register(
        f"svm_{_features.name}", _pooled, "disjoint", _features,
        f"An SVM on {_features.name}, from a shadow whose samples the target doesn't know.",
    )  # fmt: skip
_register(
    "svm_logits_per_class", _per_class, "disjoint", FEATURES[0], "As svm_logits, with an SVM for each label."
)  # fmt: skip
