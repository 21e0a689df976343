"""Who was in a client's data: federated membership attacks on a recording, scored with what clients consent to tell.

Members are a client's own samples, others are test samples with the same labels, as many of each. Here the truth is,
and in scoring: attacks get a :class:`~snnfl.threat.FederationView` of both, shuffled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snnfl import rng
from snnfl.auditing.selection import cross_fitted
from snnfl.auditing.setting import Setting
from snnfl.auditing.victims import PUBLIC_IMAGES, Victim
from snnfl.membership_attacks import MembershipError
from snnfl.membership_attacks.federated import FederatedAttack, get_federated_attack
from snnfl.membership_attacks.federated.networks import answers_of
from snnfl.metrics.roc import Estimate, Scored, auc, score
from snnfl.threat import FederationView, PublicImages, ThreatModelError, hidden_by_sums, over_rounds

MEMBERS = 200
"""Members of a client that are asked about, at most, and as many others."""

FEWEST = 10
"""Members with which a client counts: the AUC of fewer is noise."""

CLIENTS = 5
"""Clients that are attacked at most, the first ones."""

ROUNDS = 5
"""Rounds that an attacker looks back to, the attacked one included."""

WORK = 5e9
"""Parameters times samples, clients and rounds: of larger networks fewer samples are asked about."""

ERROR = 0.05
"""Probability that any of the attacks is said to find something where nothing is."""

BEST = "best"
"""Name of the row of the best attack, chosen for each client on the others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """A client, what its server has, and who was in.

    Attributes:
        victim: The client.
        view: Of the attacker.
        members: The truth, bool ``[N]``.
    """

    victim: Victim
    view: FederationView
    members: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipRow:
    """What one attack tells of the clients of a round.

    Attributes:
        server_round: Counted from 1.
        attack: Its name, or :data:`BEST`.
        rounds: Rounds that the attacker looked at, at most.
        clients: That could be attacked.
        members: Samples of them that were asked about, all clients together; as many others.
        scored: AUC, TPR and accuracy with their intervals; ``None`` where nobody could be attacked.
        verdict: ``leaks`` if an interval lies beyond chance, corrected for the number of attacks; else ``nothing
            seen``, ``refused`` or ``failed``.
        reason: Why; of the best attack, which one it mostly was.
        aucs: By partition.
        gap: By how much more often the clients' networks, as far as the server knows them, are right about members than
            about the others, which have the same labels: a mean over all clients that were asked about.
    """

    server_round: int
    attack: str
    rounds: int
    clients: int
    members: int
    scored: Scored | None
    verdict: str
    reason: str
    aucs: dict[int, float]
    gap: float | None = None


def federated_membership(
    setting: Setting,
    victims: Sequence[Victim],
    attacks: Sequence[str],
    *,
    done: Callable[[], None] = lambda: None,
) -> list[MembershipRow]:
    """Ask of the last of the rounds who was in its clients' data, as far as these consented to tell.

    Clients with fewer than :data:`FEWEST` samples have no row, nor have those whose labels no test sample has.

    Args:
        setting: Of the run.
        victims: Of any rounds; the last is attacked with all that the server has of earlier ones.
        attacks: Names.
        done: Told after each attack on a client, :func:`tries` times.

    Raises:
        ConfigError: For an unknown attack.
    """
    chosen = [get_federated_attack(name) for name in attacks]
    asked = candidates_of(setting, victims) if chosen else []
    if not asked:
        return []
    scores, reasons = {attack.name: dict[int, Tensor]() for attack in chosen}, dict[str, tuple[str, str]]()
    gaps = list[float]()
    for each in asked:
        for attack in chosen:
            draw = rng.generator(
                setting.seed, f"federated membership {attack.name}", each.victim.server_round, each.victim.partition
            )
            try:
                scores[attack.name][each.victim.partition] = attack.run(each.view, draw)
            except ThreatModelError as error:
                reasons.setdefault(attack.name, ("refused", str(error)))
            except MembershipError as error:
                reasons[attack.name] = "failed", str(error)
            done()
        gaps.append(_gap(each))
    gap = math.fsum(gaps) / len(gaps)
    ran = sum(bool(found) for found in scores.values())
    rows = [_row(asked, attack, scores[attack.name], ran, reasons.get(attack.name)) for attack in chosen]
    best = _best(asked, scores)
    return [replace(row, gap=gap) for row in [*rows, *([] if best is None else [best])]]


def _gap(each: Candidates) -> float:
    """Return the part of a client's members that its network is right about, less that of the others."""
    right = answers_of(each.view)[-1].after.argmax(1) == each.view.labels
    return float(right[each.members].float().mean() - right[~each.members].float().mean())


def tries(setting: Setting, victims: Sequence[Victim], attacks: Sequence[str]) -> int:
    """Return how often :func:`federated_membership` attacks, at most."""
    return len(_told(victims)) * len(attacks) if setting.labelled else 0


def unasked(setting: Setting, victims: Sequence[Victim], attacks: Sequence[str]) -> dict[str, str]:
    """Return why :func:`federated_membership` has no rows, by attack.

    Args:
        setting: Of the run.
        victims: Of any rounds, at least one.
        attacks: Names.
    """
    last = max(victims, key=lambda victim: victim.server_round)
    nobody = f"no client of round {last.server_round} told {FEWEST} samples whose labels test samples have, too"
    if not setting.labelled or not len(setting.dataset.test_labels):
        nobody = "the server has no labelled test samples, and members are compared with those"
    known, reasons = last.view.knowledge, dict[str, str]()
    for attack in map(get_federated_attack, attacks):
        reasons[attack.name] = hidden_by_sums(attack.needs - known.facts, known) or nobody
    return reasons


def _told(victims: Sequence[Victim]) -> list[Victim]:
    """Return the clients of the last round that told samples enough, the first :data:`CLIENTS`."""
    last = max((victim.server_round for victim in victims), default=0)
    told = [v for v in victims if v.server_round == last and v.truth is not None and len(v.truth.images) >= FEWEST]
    return told[:CLIENTS]


def candidates_of(setting: Setting, victims: Sequence[Victim]) -> list[Candidates]:
    """Lay out whom and what attackers ask about."""
    clients = _told(victims)
    if not clients or not setting.labelled or not len(setting.dataset.test_labels):
        return []
    of_round = [victim for victim in victims if victim.server_round == clients[0].server_round]
    rounds = min(ROUNDS, 1 + max(len(victim.view.earlier) for victim in clients))
    parameters = sum(parameter.numel() for parameter in setting.model.parameters())
    most = int(min(MEMBERS, max(FEWEST, WORK / (2 * parameters * rounds * len(clients)))))
    found = [_candidates(setting, victim, of_round, most) for victim in clients]
    return [each for each in found if each is not None]


def _candidates(setting: Setting, victim: Victim, of_round: Sequence[Victim], most: int) -> Candidates | None:
    """Draw a client's members, and test samples with the same labels; both are prepared alike."""
    truth, data = victim.truth, setting.dataset
    if truth is None:
        return None
    draw = rng.generator(setting.seed, "membership candidates", victim.server_round, victim.partition)
    inside, outside = matched(truth.labels, data.test_labels, most, draw)
    if len(inside) < FEWEST:
        return None
    pixels = torch.cat([truth.images[inside], data.pixels(data.test_images[outside])])
    labels = torch.cat([truth.labels[inside], data.test_labels[outside]])
    members = torch.arange(len(labels)) < len(inside)
    order = torch.randperm(len(labels), generator=draw)
    view = replace(victim.view, public=_others(setting, outside) if victim.view.knowledge.public_images else None)
    others = [other.view for other in of_round if other.partition != victim.partition]
    return Candidates(
        victim=victim,
        view=FederationView(
            inputs=view.inputs(pixels)[order], labels=labels[order], rounds=over_rounds(view, others, most=ROUNDS)
        ),
        members=members[order],
    )


def matched(labels: Tensor, others: Tensor, most: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw samples of two sets so that each label is equally frequent in both.

    Args:
        labels: Of the one, ``[N]``.
        others: Of the other, ``[M]``.
        most: Samples of each at most.
        draw: Of the order in which they are taken.

    Returns:
        Indices into both, equally many.
    """
    order, pool = torch.randperm(len(labels), generator=draw), torch.randperm(len(others), generator=draw)
    left = {label: pool[others[pool] == label].tolist() for label in sorted(set(labels.tolist()))}
    pairs = [(index, left[label].pop()) for index in order.tolist() if left[label := int(labels[index])]][:most]
    both = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    return both[:, 0], both[:, 1]


def _others(setting: Setting, asked: Tensor) -> PublicImages | None:
    """Return public images that nobody is asked about: an attack that learns from them must not know the answers."""
    data, kept = setting.dataset, torch.ones(len(setting.dataset.test_labels), dtype=torch.bool)
    kept[asked] = False
    left = torch.nonzero(kept).flatten()[:PUBLIC_IMAGES]
    if not len(left):
        return None
    return PublicImages(inputs=data.normalise(data.test_images[left]), labels=data.test_labels[left])


def _row(
    asked: Sequence[Candidates],
    attack: FederatedAttack,
    scores: dict[int, Tensor],
    attacks: int,
    reason: tuple[str, str] | None,
) -> MembershipRow:
    verdict, why = reason or ("", "")
    if scores:
        verdict = ""
    return _scored(asked, attack.name, scores, attacks, verdict, why)


def _scored(
    asked: Sequence[Candidates], name: str, scores: dict[int, Tensor], attacks: int, verdict: str, reason: str
) -> MembershipRow:
    """Score an attack on those clients on whom it ran."""
    found = [each for each in asked if each.victim.partition in scores]
    values = [scores[each.victim.partition].numpy() for each in found]
    members = [each.members.numpy() for each in found]
    if found:
        strict = score(values, members, level=1 - ERROR / max(1, attacks))
        verdict = "leaks" if _finds(strict) else "unclear"
    return MembershipRow(
        server_round=asked[0].victim.server_round,
        attack=name,
        rounds=max(len(each.view.rounds) for each in asked),
        clients=len(found),
        members=sum(int(of.sum()) for of in members),
        scored=score(values, members) if found else None,
        verdict=verdict,
        reason=reason,
        aucs={e.victim.partition: auc(v, m) for e, v, m in zip(found, values, members, strict=True)},
    )


def _finds(scored: Scored) -> bool:
    """Tell whether an interval lies beyond what scores without meaning give."""
    rates = [(level, rate) for level, rate in scored.tpr.items() if rate is not None]
    return scored.auc.low > 0.5 or any(rate.low > level for level, rate in rates)


def _best(asked: Sequence[Candidates], scores: dict[str, dict[int, Tensor]]) -> MembershipRow | None:
    """Return the row of the best attack by AUC, chosen for each client on the others."""
    members = {each.victim.partition: each.members.numpy() for each in asked}
    aucs = {
        name: {partition: auc(found.numpy(), members[partition]) for partition, found in of.items()}
        for name, of in scores.items()
        if of
    }
    chosen = cross_fitted(aucs)
    if chosen is None or len(chosen.values) < 2:
        return None
    own = {partition: scores[name][partition] for partition, name in chosen.choice.items()}
    return _scored(asked, BEST, own, 1, "", f"of {chosen.candidates}, mostly {chosen.attack}")


def told(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """Return a figure with the ends of its interval; ``None`` for what is unknown."""
    if estimate is None:
        return None, None, None
    low, high = (None if math.isnan(end) else end for end in (estimate.low, estimate.high))
    return estimate.value, low, high
