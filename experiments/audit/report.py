"""``report.html``: what leaked, in the order in which an auditor asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from torch import Tensor

from experiments.audit import scores
from experiments.audit.attendance import attendance_table
from experiments.audit.figures import bias_curves, convergence, noise_curve, threshold_scatter
from experiments.audit.found import Audit
from experiments.audit.glossary import terms
from experiments.audit.membership import membership_section
from experiments.audit.pictures import leading_samples, shown
from experiments.audit.proof import proof_table
from experiments.audit.scores import with_interval
from experiments.audit.summary import summary
from experiments.html import Section, drawing, glossary, listed, page, paragraph, preformatted, table
from snnfl.attacks import Budget
from snnfl.auditing.measures import MEASURES
from snnfl.auditing.setting import PLAIN_TWIN
from snnfl.auditing.suite import Finding
from snnfl.config import counted, to_yaml
from snnfl.data import DataKind
from snnfl.files import write_bytes

SHOWN = 10
"""Clients whose samples are shown, the first ones."""

COLUMNS = 5
"""Of them side by side: what a printed page has room for."""


def write_report(path: Path, audits: Sequence[Audit], budget: Budget) -> None:
    """Write the report of one or several runs, in one step."""
    several = len(audits) > 1
    sections = [
        Section(title="What leaked", body=Markup("").join(_first(audit, headed=several) for audit in audits)),
        Section(title="Verdicts", body=_verdicts(audits)),
        Section(title="Words and symbols", body=glossary(terms(audits, budget))),
        *[Section(title=f"Reconstructions: {audit.path.name}", body=reconstructions(audit)) for audit in audits],
        Section(title="Convergence", body=Markup("").join(_convergence(audit) for audit in audits)),
    ]
    if any(audit.biases for audit in audits):
        sections.append(Section(title="Private biases", body=Markup("").join(_biases(audit) for audit in audits)))
    if any(audit.membership for audit in audits):
        sections.append(Section(title="Who was in the data", body=membership_section(audits)))
    if any(audit.noise for audit in audits):
        sections.append(Section(title="Noise for scale", body=_noise(audits)))
    if detected := Markup("").join(detection(audit) for audit in audits):
        sections.append(Section(title="Detectors of poisoned clients", body=detected))
    sections += [
        Section(title="Threat models", body=scores.threat_models(audits)),
        Section(title="Other numbers", body=scores.other_numbers(audits)),
        Section(title="Runs", body=Markup("").join(_run(audit) for audit in audits)),
    ]
    write_bytes(path, page("Audit: " + ", ".join(audit.path.name for audit in audits), sections).encode())


def _verdicts(audits: Sequence[Audit]) -> Markup:
    return proof_table(audits) + attendance_table(audits) + scores.verdicts(audits) + scores.best(audits)


def _first(audit: Audit, *, headed: bool) -> Markup:
    """Say what leaked in three sentences, and show it."""
    heading = Markup("<h3>{}</h3>").format(audit.path.name) if headed else Markup("")
    return heading + listed(summary(audit)) + leading_figure(audit)


def leading_figure(audit: Audit) -> Markup:
    """Show originals, the best reconstructions of the round that leaks most, and the best guess without an update."""
    rows = leading_samples(audit)
    if not rows:
        return Markup("")
    clients, kind = sorted(rows[0][1])[:COLUMNS], audit.setting.dataset.kind
    cells = [[title, *[_first_of(kind, of.get(client)) for client in clients]] for title, of in rows]
    caption = (
        f"The first sample of each of the first {counted(len(clients), 'client')}, by number, not by what shows most."
    )
    return table(["", *[f"client {client}" for client in clients]], cells, caption=caption)


def _first_of(kind: DataKind, samples: Tensor | None) -> object:
    return "–" if samples is None or not len(samples) else shown(kind, samples[0])


def reconstructions(audit: Audit) -> Markup:
    """Show what each attack made of each client's first sample, beside the original if it is known."""
    parts = []
    for server_round in sorted({outcome.server_round for outcome in audit.outcomes}):
        rows = [
            (f"{o.attack}{twin}", {f.victim.partition: f for f in o.findings})
            for outcomes, twin in ((audit.outcomes, ""), (audit.controls, f" ({PLAIN_TWIN})"))
            for o in outcomes if o.server_round == server_round and o.findings
        ]  # fmt: skip
        known = {p: f.score for _, found in rows for p, f in found.items() if f.score is not None}
        clients = sorted(known or {partition for _, found in rows for partition in found})[:SHOWN]
        if not clients:
            parts.append(paragraph(f"Round {server_round}: nobody could be attacked."))
        kind = audit.outcomes[0].kind
        unscored = "" if known else " Nobody told the original, so there is nothing to compare with."
        caption = f"Round {server_round}: the first sample of each client.{unscored}"
        for some in (clients[start : start + COLUMNS] for start in range(0, len(clients), COLUMNS)):
            cells: list[list[object]] = []
            if known:
                cells.append(["original", *[shown(kind, known[p].true[0]) for p in some]])
            cells += [[name, *[_found(kind, found[p]) if p in found else "–" for p in some]] for name, found in rows]
            parts.append(table(["", *[f"client {p}" for p in some]], cells, caption=caption))
    return Markup("").join(parts)


def _found(kind: DataKind, finding: Finding) -> object:
    """Show a sample that an attack found: that of the client's first one, where a score says which it is."""
    images = finding.result.images if finding.score is None else finding.score.found
    return shown(kind, images[0]) if len(images) else "–"


def _convergence(audit: Audit) -> Markup:
    caption = (
        f"{audit.path.name}: by iteration, on the left the smallest objective so far over its first value, on the "
        "right what its samples score; means over clients."
    )
    return drawing(convergence(audit.entries), caption)


def _biases(audit: Audit) -> Markup:
    if not audit.biases:
        return paragraph(f"{audit.path.name}: a plain run sends its biases, or nobody told the true ones.")
    sources = list(dict.fromkeys(error.source for error in audit.biases))
    rows = []
    for source in sources:
        found = [error for error in audit.biases if error.source == source]
        keys = ("distance", "relative", "equal", "before")
        means = [sum(getattr(e, key) for e in found) / len(found) for key in keys]
        rows.append([source, f"{means[0]:.4g}", f"{means[1]:.1%}", f"{means[2]:.1%}", f"{means[3]:.4g}", len(found)])
    caption = (
        f"{audit.path.name}: how far the server's guess of a client's biases is from those that the client trained, as "
        "an L2 distance and as a part of their norm, and from those that its training started from; means over updates."
    )
    head = ["guess", "L2 distance", "of the biases' norm", "met exactly", "L2 distance before training", "updates"]
    made = table(head, rows, caption=caption)
    if len({error.server_round for error in audit.biases}) > 1:
        made += drawing(bias_curves(audit.biases), f"{audit.path.name}: L2 distance by round (SNFL, Figure 3A).")
    return made


def _noise(audits: Sequence[Audit]) -> Markup:
    parts = []
    for measures in {e["kind"]: MEASURES[e["kind"]] for audit in audits for _, e in audit.noise}.values():
        judged = measures.judged
        rows = [
            [entry["run"], entry["round"], f"{z:g}",
             *(with_interval(entry["metrics"][m.name]["value"], entry["metrics"][m.name]["interval"], m.form)
               for m in judged), entry["verdict"]]
            for audit in audits for z, entry in audit.noise
            if entry["value"] is not None and MEASURES[entry["kind"]] is measures
        ]  # fmt: skip
        caption = (
            "Plain updates (of an S-run its plain twins), clipped to their median norm C; on each weight comes "
            "Gaussian noise, z times C in standard deviation. The more noise, the less should be found."
        )
        head = ["run", "round", "z", *(f"{m.title.removesuffix(' in dB')} (95 %)" for m in judged), "verdict"]
        parts.append(table(head, rows, caption=caption))
    parts += [
        drawing(noise_curve(audit.noise), f"{audit.path.name}: what is found by the noise; means with 95 % intervals.")
        for audit in audits
        if audit.noise
    ]
    return Markup("").join(parts)


def detection(audit: Audit) -> Markup:
    """Show whom detectors flagged, and the thresholds that they look at, where clients poison or detectors are set.

    Of any other run their flags are in ``detectors.csv`` alone.
    """
    config = audit.config
    if config is None or (config.poisoning.attack == "none" and not config.detection.detectors):
        return Markup("")
    rows = []
    for judged in audit.judged:
        if judged.verdict is None:
            rows.append([judged.server_round, judged.detector, f"failed: {judged.failure}", "–", "–"])
            continue
        guilty = set(audit.attackers(judged.server_round))
        flagged = [p for p, flag in zip(judged.partitions, judged.verdict.flagged.tolist(), strict=True) if flag]
        honest = [p for p in judged.partitions if p not in guilty]
        present = [p for p in judged.partitions if p in guilty]
        found = f"{len(set(flagged) & guilty)} of {len(present)}" if present else "–"
        alarms = f"{len(set(flagged) - guilty)} of {len(honest)}"
        rows.append([judged.server_round, judged.detector, ", ".join(map(str, flagged)) or "–", found, alarms])
    caption = f"{audit.path.name}: clients that detectors take for poisoners, as far as they are recorded."
    shown = table(["round", "detector", "flagged clients", "attackers found", "false alarms"], rows, caption=caption)
    drawn = [(j, j.verdict) for j in audit.judged if j.verdict is not None and j.verdict.points is not None]
    for judged, verdict in drawn[-1:]:
        guilty = set(audit.attackers(judged.server_round))
        text = f"{audit.path.name}, round {judged.server_round}: thresholds of the last two layers; distances."
        shown += drawing(threshold_scatter(judged.partitions, verdict, guilty), text)
    return shown


_MEASURED = (
    "server_snn_accuracy",
    "server_ann_accuracy",
    "client_ann_accuracy_mean",
    "client_snn_accuracy_mean",
    "client_received_accuracy_weighted",
    "attack_success_snn",
    "attack_success_ann",
)


def _run(audit: Audit) -> Markup:
    keys = [key for key in _MEASURED if any(row.get(key) is not None for row in audit.metrics)]
    rows = [
        [row["round"], *(f"{row[key]:.2%}" if row.get(key) is not None else "–" for key in keys)]
        for row in audit.metrics
    ]
    head = ["round", *(key.replace("_", " ") for key in keys)]
    accuracies = table(head, rows, caption=f"{audit.path.name}: what the run measured, by round.")
    environment = json.dumps(audit.environment, indent=1) if audit.environment else ""
    about = f"{audit.setting.algorithm} of another Flower app" if audit.config is None else to_yaml(audit.config)
    return (accuracies if rows else Markup("")) + preformatted(about) + preformatted(environment)
