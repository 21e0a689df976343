"""What every word and symbol of an audit's report means, a sentence or two each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.audit.found import Audit
from experiments.audit.summary import others
from snnfl.attacks import Budget
from snnfl.auditing.measures import MEASURES
from snnfl.auditing.scorecard import Entry
from snnfl.auditing.setting import PLAIN_TWIN
from snnfl.auditing.verdicts import judged_metrics
from snnfl.config import counted
from snnfl.data import DataKind

METRICS: Mapping[str, str] = {
    "psnr": "Peak signal-to-noise ratio of the pixels in decibels, 10 log10(1 / mean squared error): six more halve "
    "the distance. What a guess reaches depends on the data, so a number without the best guess says nothing.",
    "ssim": "Structural similarity: 1 for equal images, near 0 for unrelated ones.",
    "registered_psnr": "PSNR after the shift of a few pixels that makes it best.",
    "mse": "Mean squared error of the pixels, which are in [0, 1].",
    "f1": "Harmonic mean of two parts: of the found events those that took place, and of these those that were found.",
    "surface_ssim": "Structural similarity of the times at which each sensor last fired.",
    "exact_frames": "Part of the time steps that are found without one wrong event, in any order.",
    "van_rossum": "Distance of the events after smoothing over time (van Rossum 2001): 0 for equal recordings.",
    "victor_purpura": "Least cost of moving, adding and removing events until recordings are equal (Victor, Purpura).",
    "log_spectral": "Root mean squared difference of the bands' levels in decibels: 0 for equal sounds.",
    "recognised": "Part of the sounds that a linear classifier of public sounds takes for the true class.",
    "correlation": "Pearson's correlation with the true sample: 1 for the same course.",
    "warping": "Distance after stretching time so that it is least (dynamic time warping): 0 for the same course.",
    "relative_error": "Distance to the true row as a part of its norm: 0 for equal rows.",
}
"""Sentence by metric."""

GUESSES: Mapping[DataKind, str] = {
    "images": "a grey image, the mean of public images, or each target's own mean colour",
    "events": "no events, or as many as a public recording has on average, where they are likeliest",
    "audio": "the mean public sound, or each target's own mean level",
    "series": "the mean public series, or each target's own mean level",
    "table": "the mean or the median public row",
}
"""What needs no update, by the kind of data."""


def terms(audits: Sequence[Audit], budget: Budget) -> list[tuple[str, str]]:
    """Return the words of a report in the order in which it uses them, each with what it means."""
    entries = [entry for audit in audits for entry in audit.entries]
    kinds = list(dict.fromkeys(entry["kind"] for entry in entries)) or ["images"]
    judged = list(dict.fromkeys(metric for kind in kinds for metric in judged_metrics(kind)))
    others = list(dict.fromkeys(m for kind in kinds for m in MEASURES[kind].metrics if not m.judged))
    names = [metric.title.removesuffix(" in dB") for metric in judged]
    found = [
        ("leaks", "Better than the best guess without any update, client by client, with 95 % confidence over all of "
         f"{', '.join(names)}. The words after it name the metric that decided. Many attacks are compared: of forty "
         "true equals one may look like a leak."),
        ("nothing seen", "Surely worse than the best guess in all of them, which of identifications needs "
         "many clients: none of few isn't fewer than a guess makes. Another attack may still see something."),
        ("unclear", "Neither."),
        ("best guess, floor", f"Of {' or of '.join(GUESSES[kind] for kind in kinds)} the best on average, in each "
         "metric by itself: it needs no update, so what an attack must beat."),
        *((metric.title, METRICS[metric.name]) for metric in judged if metric.name in METRICS),
        ("IIP", _identification(entries)),
        ("labels", "Part of the labels that were found; judged against labels spread evenly over the classes."),
    ]  # fmt: skip
    if any(audit.setting.differences for audit in audits):
        text = (
            "What the sums of several rounds, with others in each, tell of one client's update, which it hasn't "
            "seen. Of thresholds and the like each round's mean stands in it."
        )
        found.append(("estimated update", text))
    if any(audit.controls for audit in audits):
        found += [
            (PLAIN_TWIN, "The same client's trained network with its own biases, as a plain run would have sent it: "
             "what an attack finds more there is what converting hides."),
            (f"over {PLAIN_TWIN}", "The difference to the best attack on plain twins, client by client. Each "
             "client's is chosen on the other clients, and the interval holds whichever is the best, so choosing gains "
             "nothing."),
        ]  # fmt: skip
    found += [
        ("95 % intervals", "Student's over clients, each client's samples counting as one; of shares Wilson's. All "
         "clients share one network and one seed: they don't say what another network would leak."),
        ("realistic, diagnostic", "A server of this federation can do it; or the attacker was given what no server "
         "has."),
        ("iterations", f"{counted(budget.iterations, 'iteration')} and {counted(budget.restarts, 'start')} per client. "
         "An attack that fails with these may succeed with more; one that succeeds has shown a leak."),
        *((metric.title, METRICS[metric.name]) for metric in others if metric.name in METRICS),
        ("≥", "Part of the clients whose samples are at least as near as that: successes."),
        ("IIP by the run's network", "The same by the attacked network's own features, which matching gradients makes "
         "alike: it calls more of them equal, so no verdict looks at it."),
    ]  # fmt: skip
    if any(entry["lpips"] == "not available" for entry in entries) and "images" in kinds:
        found.append(("LPIPS", "Not available: its weights aren't on this machine, or the images have no colour."))
    return found


def _identification(entries: Sequence[Entry]) -> str:
    names = sorted({str(entry["extractor"]) for entry in entries if entry["extractor"]})
    return (
        "Identifiability: the part of reconstructions that are nearest to their own sample among "
        f"{others(*entries)} others, by {', '.join(names) or 'principal components of public samples'}, which know no "
        "network. A distorted picture may score few decibels, and still tell whose it is."
    )
