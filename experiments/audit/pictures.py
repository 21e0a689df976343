"""Samples of every kind as small pictures for a page, and which of an audit's are shown first."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from experiments.audit.found import Audit
from experiments.audit.summary import leading_of_run, leading_of_twins
from experiments.html import picture
from snnfl.auditing.scorecard import Entry
from snnfl.auditing.scoring import Score, Scorer
from snnfl.auditing.setting import PLAIN_TWIN
from snnfl.data import DataKind


def leading_samples(audit: Audit) -> list[tuple[str, Mapping[int, Tensor]]]:
    """Return what an audit shows first: rows of a title and each client's samples.

    The originals, the best reconstructions from plain updates (of an S-run from its clients' plain twins) and from the
    run's own, and the best guess without an update, all of the round that leaks most; none if nothing was scored.
    """
    found = leading_of_run(audit)
    if found is None:
        return []
    twin = leading_of_twins(audit, found["round"]) if found["updates"] != PLAIN_TWIN else None
    of_attacks = [(entry, _scores(audit, entry)) for entry in (twin, found) if entry is not None]
    originals = {client: score.true for client, score in of_attacks[-1][1].items()}
    rows: list[tuple[str, Mapping[int, Tensor]]] = [("original", originals)]
    for entry, scores in of_attacks:
        update = "plain update" if entry["updates"] == PLAIN_TWIN else entry["updates"]
        rows.append((f"best from the {update} ({entry['attack']})", {p: score.found for p, score in scores.items()}))
    name, scorer = found["floor"]["name"], Scorer(audit.setting)
    guesses = {client: scorer.guesses(true)[name] for client, true in originals.items()}
    return [*rows, (f"best guess without an update ({name.replace('_', ' ')})", guesses)]


def _scores(audit: Audit, entry: Entry) -> dict[int, Score]:
    """Return the scores of an attack by client."""
    outcomes = audit.controls if entry["updates"] == PLAIN_TWIN else audit.outcomes
    return {
        finding.victim.partition: finding.score
        for outcome in outcomes if (outcome.attack, outcome.server_round) == (entry["attack"], entry["round"])
        for finding in outcome.findings if finding.score is not None
    }  # fmt: skip


def shown(kind: DataKind, sample: Tensor) -> Markup:
    """Return a sample of pixels in [0, 1] as a picture.

    Events are summed over time, those of the first channel in red and of the others in blue; sound is its bands over
    time, low ones below; a series is a line per feature; a row of a table a bar per feature.
    """
    if kind == "images":
        return picture(sample)
    if kind == "events":
        return picture(summed(sample))
    if kind == "audio":
        return picture(sample.T.flip(0)[None])
    return _plotted(sample, lines=kind == "series")


def summed(events: Tensor) -> Tensor:
    """Return events ``[T, C, H, W]`` or ``[T, W]`` summed over time, as a picture ``[3, H, W]`` on white."""
    total = events.sum(0)
    channels = total if total.dim() == 3 else total[None, None]
    first, others = channels[0], channels[1:].sum(0)
    scale = torch.maximum(first, others).max().clamp_min(1e-6)
    red, blue = first / scale, others / scale
    return torch.stack([1 - blue, (1 - red - blue).clamp_min(0), 1 - red])


def _plotted(sample: Tensor, *, lines: bool) -> Markup:
    figure = Figure(figsize=(1.6, 1.0), layout="constrained")
    axes = figure.add_subplot(ylim=(-0.02, 1.02))
    if lines:
        axes.plot(sample.numpy(), linewidth=0.7)
    else:
        axes.bar(range(sample.numel()), sample.flatten().numpy())
    axes.set_xticks([])
    axes.set_yticks([])
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return Markup('<img src="{}" width="160" height="100" alt="">').format(source)
