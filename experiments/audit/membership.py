"""Who was in the clients' data: what an audit's federated membership attacks found, as lines, a table and CSV."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from experiments.audit.found import Audit
from experiments.html import paragraph, table
from snnfl.auditing.federated_membership import BEST, MEMBERS, MembershipRow, told
from snnfl.auditing.scorecard import csv_text
from snnfl.auditing.side_channel import OTHERS
from snnfl.config import counted
from snnfl.metrics.roc import Estimate

READING = (
    "From updates alone the server asks of each sample whether the client trained on it. AUC: the probability that a "
    f"member scores higher than another sample; 0.5 is chance. Members are up to {MEMBERS} of a client's own samples, "
    "others are test samples with the same labels, as many. TPR: the part of the members that are found while 1 % of "
    "the others are taken for members; told from 1,000 others on. leaks: the interval, corrected for the number of "
    "attacks, lies above chance. unclear: it doesn't, and all AUCs in the interval are possible, large ones too "
    "where clients are few. best: chosen, for each client, on the other clients."
)

SAMPLE_LEVEL = 0.01
"""False positive rate of the shown true positive rate."""


def membership_line(audit: Audit) -> str | None:
    """Say in a sentence what a curious server tells of the clients' members; ``None`` where it wasn't asked."""
    if (best := _headline(audit.membership)) is None or best.scored is None:
        return None
    area = best.scored.auc
    found, beside = "the server tells members from others", "0.5 is chance"
    if best.verdict != "leaks":
        found = "the server wasn't seen to tell members from others"
        known = not (math.isnan(area.low) or math.isnan(area.high))
        beside += f", and up to {area.high:.3f} isn't excluded" if known else ", and nothing is excluded by one client"
    how = best.reason.partition("mostly ")[2] or best.attack
    return (
        f"{audit.path.name}, round {best.server_round}: who was in the data: {found}, AUC {area} "
        f"({beside}), mostly by {how}; {counted(best.clients, 'client')}, {best.members} members"
    )


def refused_by_name(audit: Audit) -> list[str]:
    """Say of each named attack why it asked nobody who was in the data, though it reads such updates."""
    refused = {row.attack: row.reason for row in audit.membership if row.scored is None}
    lines = {**audit.unasked, **{name: reason.removeprefix(f"{name}: ") for name, reason in refused.items()}}
    return [f"{audit.path.name}: {name}, refused: {reason}" for name, reason in lines.items()]


def side_channel_line(audit: Audit) -> str | None:
    """Say in a sentence what thresholds tell of who calibrated; ``None`` where they weren't asked."""
    if not audit.side:
        return None
    found = statistics.fmean(row.found for row in audit.side)
    twins = [row.twin_found for row in audit.side if row.twin_found is not None]
    beside = f" (weights of a plain update {statistics.fmean(twins):.0%})" if twins else ""
    return (
        f"{audit.path.name}: thresholds find {found:.0%} of the images of {counted(len(audit.side), 'client')} without "
        f"a false alarm among {OTHERS:,} public ones{beside}; each client in side_channel.csv"
    )


def membership_section(audits: Sequence[Audit]) -> Markup:
    """Show what each attack tells, run by run."""
    parts = [paragraph(READING)]
    for audit in audits:
        rows = [_shown(row) for row in audit.membership]
        if rows:
            last = audit.membership[0]
            caption = (
                f"{audit.path.name}, round {last.server_round}, with what the server has of "
                f"{counted(last.rounds, 'round')}: who was in the clients' data (95 %).{_overfitting(last)}"
            )
            parts.append(
                table(["attack", "verdict", "clients", "members", "AUC", "TPR at 1 % FPR", ""], rows, caption=caption)
            )
    return Markup("").join(parts)


def membership_as_csv(audits: Sequence[Audit]) -> str:
    """Write a row per run and attack."""
    head = ["run", "round", "attack", "rounds", "clients", "members", "gap", "verdict"]
    head += [f"{name}{end}" for name in ("auc", "tpr_at_1", "balanced_accuracy") for end in ("", "_low", "_high")]
    rows = [
        [audit.path.name, row.server_round, row.attack, row.rounds, row.clients, row.members, row.gap, row.verdict,
         *_figures(row), row.reason]
        for audit in audits for row in audit.membership
    ]  # fmt: skip
    return csv_text([*head, "reason"], rows)


def _overfitting(row: MembershipRow) -> str:
    if row.gap is None:
        return ""
    return f" The clients' networks are right about {100 * row.gap:.1f} points more of the members than of the others."


def _figures(row: MembershipRow) -> Iterator[float | None]:
    scored = row.scored
    estimates: tuple[Estimate | None, ...] = (None, None, None)
    if scored is not None:
        estimates = (scored.auc, scored.tpr[SAMPLE_LEVEL], scored.balanced_accuracy)
    for estimate in estimates:
        yield from told(estimate)


def _headline(rows: Sequence[MembershipRow]) -> MembershipRow | None:
    """Return the row of the best attack; of a single client, on which none can be chosen, that of the largest AUC."""
    scored = [row for row in rows if row.scored is not None]
    best = [row for row in scored if row.attack == BEST]
    return best[0] if best else max(scored, key=lambda row: row.scored.auc.value if row.scored else 0.0, default=None)


def _shown(row: MembershipRow) -> list[object]:
    start: list[object] = [row.attack, row.verdict]
    if row.scored is None:
        return [*start, "–", "–", "–", "–", row.reason]
    rate = row.scored.tpr[SAMPLE_LEVEL]
    found = "–" if rate is None else f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"
    area = row.scored.auc
    return [
        *start,
        row.clients,
        row.members,
        f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})",
        found,
        row.reason,
    ]
