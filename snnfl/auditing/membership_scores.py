"""What membership attacks found: a scorecard with intervals, the gap beside it, and whether it can be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from snnfl.auditing.membership import Finding, Trials
from snnfl.auditing.membership_checks import blind_classifier
from snnfl.auditing.selection import cross_fitted
from snnfl.metrics.roc import LEVELS, Estimate, Scored, auc, label_matched_auc, mean_of, mean_roc, score, tpr_at

ERROR = 0.05
"""Probability that any of the attacks on networks that tell nothing is said to find something."""

BEST = "best"
"""Name of the entry that the best attack has, chosen for each target on the others."""


def results(trials: Trials, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything that a report shows, as JSON has it.

    Keys: ``entries`` (:func:`scorecard`), ``gaps`` (:func:`gaps`), ``blind`` (the AUC of a classifier that sees no
    network), ``roc`` (false and true positive rates of each attack, averaged over targets), and the numbers of
    ``networks``, ``targets``, ``candidates`` and samples of ``nobody``.
    """
    blind = blind_classifier(trials)
    return {
        "entries": scorecard(trials, findings),
        "gaps": gaps(trials),
        "blind": _told(blind),
        "roc": {finding.attack.name: _curve(trials, finding) for finding in findings if finding.scores},
        "networks": len(trials.networks),
        "targets": len(trials.attacked),
        "candidates": len(trials.labels),
        "nobody": 0 if trials.nobody is None else len(trials.nobody[1]),
    }


def _curve(trials: Trials, finding: Finding) -> list[list[float]]:
    members = [trials.networks[target].members.numpy() for target in finding.scores]
    fpr, tpr = mean_roc([scores.numpy() for scores in finding.scores.values()], members)
    return [fpr.tolist(), tpr.tolist()]


def scorecard(trials: Trials, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return an entry for each attack, and one for the best of them, chosen for each target on the others.

    Keys: ``attack``, ``source``, ``setting``, ``needs``, ``verdict``, ``reason``, ``targets``, ``others``; with their
    intervals ``auc``, ``auc_label_matched``, ``tpr_at_1``, ``tpr_at_0.1``, ``balanced_accuracy``; and ``values``, the
    AUC and the TPR at 1 % of each target. A diagnosis has a ``control``, the AUC that it reaches on another network's
    answers.
    """
    ran = [finding for finding in findings if finding.scores]
    entries = [_entry(trials, finding, len(ran)) for finding in findings]
    realistic = {f.attack.name: f for f in ran if f.attack.setting == "realistic"}
    if (best := _best(trials, realistic)) is not None:
        entries.append(best)
    return entries


def gaps(trials: Trials) -> dict[str, Any]:
    """Return how well the targets know members and others: ``train_accuracy``, ``test_accuracy`` and their ``gap``.

    Each with its interval, and ``values`` with those of each target.
    """
    values: dict[str, list[float]] = {"train_accuracy": [], "test_accuracy": [], "gap": []}
    for target in trials.attacked:
        own = trials.networks[target]
        hits = (own.signals.logits.argmax(1) == trials.labels).double()
        inside, outside = float(hits[own.members].mean()), float(hits[~own.members].mean())
        for name, value in zip(values, (inside, outside, inside - outside), strict=True):
            values[name].append(value)
    return {
        **{name: _told(mean_of(each, low=-1.0)) for name, each in values.items()},
        "values": values,
    }


def _entry(trials: Trials, finding: Finding, attacks: int) -> dict[str, Any]:
    attack = finding.attack
    entry: dict[str, Any] = {
        "attack": attack.name,
        "source": attack.source,
        "setting": attack.setting,
        "needs": sorted(attack.needs),
        "reason": finding.reason,
    }
    if not finding.scores:
        return {**entry, "verdict": "refused" if finding.refused else "failed"}
    scored = entry | _scored(trials, finding.scores, attacks)
    if finding.control:
        control = _scored(trials, finding.control, attacks)
        scored["control"] = control["auc"]
        scored["values"]["control_auc"] = control["values"]["auc"]
    return scored


def _scored(trials: Trials, by_target: Mapping[int, Tensor], attacks: int) -> dict[str, Any]:
    scores = [scored.numpy() for scored in by_target.values()]
    members = [trials.networks[target].members.numpy() for target in by_target]
    found = score(scores, members)
    strict = score(scores, members, level=1 - ERROR / attacks)
    pairs = list(zip(scores, members, strict=True))
    matched = [label_matched_auc(s, m, trials.labels.numpy()) for s, m in pairs]
    told = {f"tpr_at_{100 * level:g}": _told(found.tpr[level]) for level in LEVELS}
    return {
        "verdict": "leaks" if _finds(strict) else "unclear",
        "auc": _told(found.auc),
        "auc_label_matched": _told(mean_of(matched)),
        **told,
        "balanced_accuracy": _told(found.balanced_accuracy),
        "targets": found.targets,
        "others": found.others,
        "values": {"auc": [auc(s, m) for s, m in pairs], "tpr_at_1": _each_tpr(pairs)},
    }


def _finds(scored: Scored) -> bool:
    """Tell whether an interval lies beyond what scores without meaning give."""
    rates = [(level, rate) for level, rate in scored.tpr.items() if rate is not None]
    return scored.auc.low > 0.5 or any(rate.low > level for level, rate in rates)


def _each_tpr(pairs: Sequence[tuple[Any, Any]]) -> list[float]:
    return [tpr_at(s, m, LEVELS[0]) for s, m in pairs]


def _best(trials: Trials, ran: Mapping[str, Finding]) -> dict[str, Any] | None:
    """Return the entry of the best realistic attack by AUC, chosen for each target on the other targets."""
    by_attack = {
        name: {
            target: auc(scores.numpy(), trials.networks[target].members.numpy())
            for target, scores in finding.scores.items()
        }
        for name, finding in ran.items()
    }
    chosen = cross_fitted(by_attack)
    if chosen is None or len(trials.attacked) < 2:
        return None
    scores = {target: ran[name].scores[target] for target, name in chosen.choice.items()}
    return {
        "attack": BEST,
        "source": f"of {chosen.candidates}, chosen for each target on the others",
        "setting": "realistic",
        "needs": [],
        "reason": f"mostly {chosen.attack}",
        **_scored(trials, scores, 1),
    }


def _told(estimate: Estimate | None) -> dict[str, float | None] | None:
    if estimate is None:
        return None
    ends = {"low": estimate.low, "high": estimate.high}
    return {"value": estimate.value, **{name: None if math.isnan(end) else end for name, end in ends.items()}}
