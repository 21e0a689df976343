"""``report.html``: what leaked, in the order in which an auditor asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from experiments.audit.figures import bias_curves, convergence, noise_curve, threshold_scatter
from experiments.audit.found import Audit
from experiments.audit.membership import membership_section
from experiments.audit.pictures import shown
from experiments.html import Section, drawing, page, paragraph, preformatted, table
from snnfl.attacks import Budget
from snnfl.auditing.measures import MEASURES, Measures, Metric
from snnfl.auditing.scorecard import Entry
from snnfl.auditing.scoring import BY_RUN
from snnfl.auditing.selection import Compared
from snnfl.auditing.suite import Finding
from snnfl.config import counted, to_yaml
from snnfl.data import DataKind
from snnfl.files import write_bytes

SHOWN = 8
"""Victims in a grid, the first ones."""

LEAD = (
    "An honest-but-curious server follows the protocol and keeps what it sees. This page says what it could "
    "reconstruct of its clients' data, against what anybody can guess without an update."
)


def write_report(path: Path, audits: Sequence[Audit], budget: Budget) -> None:
    """Write the report of one or several runs, in one step."""
    sections = [
        Section(title="Scorecard", body=_scorecard(audits)),
        Section(title="How to read it", body=_reading(audits, budget)),
        *[Section(title=f"Reconstructions: {audit.path.name}", body=reconstructions(audit)) for audit in audits],
        Section(title="Convergence", body=Markup("").join(_convergence(audit) for audit in audits)),
    ]
    if any(audit.biases for audit in audits):
        sections.append(Section(title="Private biases", body=Markup("").join(_biases(audit) for audit in audits)))
    if any(audit.membership for audit in audits):
        sections.append(Section(title="Who was in the data", body=membership_section(audits)))
    if any(audit.noise for audit in audits):
        sections.append(Section(title="Noise for scale", body=_noise(audits)))
    sections += [
        Section(title="Thresholds and detectors", body=Markup("").join(detection(audit) for audit in audits)),
        Section(title="Runs", body=Markup("").join(_run(audit) for audit in audits)),
    ]
    write_bytes(path, page("Audit: " + ", ".join(audit.path.name for audit in audits), sections, lead=LEAD).encode())


def _scorecard(audits: Sequence[Audit]) -> Markup:
    carried_out = [entry for audit in audits for entry in audit.entries if entry["refusal"] is None]
    refused = [
        [entry["run"], entry["round"], entry["attack"], entry["verdict"], entry["refusal"]]
        for audit in audits for entry in audit.entries if entry["refusal"] is not None
    ]  # fmt: skip
    refused += [
        [entry["run"], entry["round"], entry["attack"], f"client {passed['partition']}", passed["reason"]]
        for entry in carried_out for passed in entry["passed_over"]
    ]  # fmt: skip
    kinds = list(dict.fromkeys(entry["kind"] for entry in carried_out)) or ["images"]
    parts = [_score_table(MEASURES[kind], [e for e in carried_out if e["kind"] == kind]) for kind in kinds]
    if refused:
        parts.append(table(["run", "round", "attack", "", "why"], refused, caption="What could not be attacked."))
    return Markup("").join([*parts, _best(audits)])


def _score_table(measures: Measures, entries: Sequence[Entry]) -> Markup:
    head = ["run", "round", "attack", "verdict", "setting", "victims"]
    for place, metric in enumerate(measures.judged):
        head += [metric.title.removesuffix(" in dB") + ("" if place else " (95 %)"), "floor"]
    head += [f"≥ {metric.success:g}{' dB' if 'dB' in metric.title else ''}" for metric in _rated(measures)]
    head += ["labels", "IIP (95 %)", "floor", "IIP by the run's network", "over plain twin"]
    rows = [_score_row(measures, entry) for entry in entries]
    return table(head, rows, caption="Who attacked, what leaked, against which floor, how sure.")


def _rated(measures: Measures) -> list[Metric]:
    """Return the metric whose rate of successes is shown: the first one, if it has any."""
    return [metric for metric in measures.metrics[:1] if metric.success is not None]


def _score_row(measures: Measures, entry: Entry) -> list[object]:
    start = [entry["run"], entry["round"], entry["attack"], entry["verdict"], entry["setting"], entry["victims"]]
    if entry["value"] is None:
        return [*start, *["–"] * (2 * len(measures.judged) + len(_rated(measures)) + 5)]
    metrics, floor, control = entry["metrics"], entry["floor"], entry["control"]
    cells: list[object] = []
    for place, metric in enumerate(measures.judged):
        found, guess = metrics[metric.name], f"{floor[metric.name]:{metric.form}}"
        cells += [_with_interval(found["value"], found["interval"], metric.form)]
        cells += [guess if place else f"{guess} ({floor['name']})"]
    for rate in (entry["rates"][metric.name] for metric in _rated(measures)):
        cells.append(_with_interval(rate["value"], rate["interval"], ".0%"))
    told, own, first = metrics["identified"], metrics.get(BY_RUN), measures.metrics[0]
    over = _with_interval(control["value"], control["interval"], f"+{first.form}") if control else "–"
    return [
        *start,
        *cells,
        f"{metrics['label_accuracy']['value']:.0%}, {entry['label_verdict']}",
        _with_interval(told["value"], told["interval"], ".0%"),
        f"{floor['identified']:.1%}",
        f"{own['value']:.0%}" if own else "–",
        f"{over} dB" if control and "dB" in first.title else over,
    ]


def _best(audits: Sequence[Audit]) -> Markup:
    """Compare the best attack of each round with the best guess and the best attack on plain twins."""
    rows = []
    for run, best in ((audit.path.name, best) for audit in audits for best in audit.best):
        chosen, form, twins = best.over_floor.best, f"+{best.metric.form}", best.over_control
        rows.append(
            [run, best.server_round, f"{chosen.attack} (of {chosen.candidates})", best.victims, best.metric.title,
             f"{best.value:{best.metric.form}}", *_compared(best.over_floor, form),
             *(_compared(twins, form) if twins else ["–", "–"])]
        )  # fmt: skip
    if not rows:
        return Markup("")
    head = ["run", "round", "best attack", "victims", "metric", "value", "best guess", "over it (95 %)"]
    caption = "The best attack of each round: chosen, for each victim, on the other victims."
    return table([*head, "best on plain twins", "over it (95 %)"], rows, caption=caption)


def _compared(found: Compared, form: str) -> list[object]:
    return [f"{found.other.attack} (of {found.other.candidates})", _with_interval(found.value, found.interval, form)]


def _with_interval(value: float, interval: Sequence[float] | None, form: str) -> str:
    return format(value, form) + (f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else "")


_FLOORS = {
    "images": "a grey image, the mean of public images and each target's own mean colour",
    "others": "guesses that know public samples, or each target's mean level",
}


def _reading(audits: Sequence[Audit], budget: Budget) -> Markup:
    kinds = dict.fromkeys(entry["kind"] for audit in audits for entry in audit.entries) or {"images": None}
    judged = list(dict.fromkeys(m.title.removesuffix(" in dB") for kind in kinds for m in MEASURES[kind].judged))
    names = {entry["extractor"] for audit in audits for entry in audit.entries if entry["extractor"]}
    chances = [entry["chance"] for audit in audits for entry in audit.entries if entry["chance"]]
    texts = [
        "leaks: the reconstruction is better than the best guess without any update, victim by victim, with 95 % "
        f"confidence over all of {', '.join(judged)} and IIP. nothing seen: worse in all. unclear: neither. Many "
        "attacks are compared, so of forty true equals one may look like a leak.",
        f"floor: of {_FLOORS['images' if 'images' in kinds else 'others']}, the best on average. "
        "IIP: the part of reconstructions that are nearest to their own among (at most) 2,000 others, by "
        f"{', '.join(sorted(names)) or 'principal components of public samples'}, which depend on no network; "
        f"by chance {max(chances, default=0):.2%}. The run's own network is what matching makes alike: it calls more "
        "of them equal.",
        "plain twin: the same client's trained ANN with its own biases, as it would have been sent without conversion. "
        "The last column is the difference to the best attack on it, victim by victim; each victim's is chosen on the "
        "other victims, and the interval holds whichever is the best, so that choosing gains nothing.",
        "labels: the part that was found, judged likewise against labels spread evenly over the classes.",
        "realistic: a server of this federation can do it. diagnostic: the attacker was given what no server has.",
        f"Budget: {counted(budget.iterations, 'iteration')}, {counted(budget.restarts, 'restart')} per victim. "
        "An attack that fails with it "
        "may succeed with more; one that succeeds has shown a leak.",
    ]
    perceptual = [entry["lpips"] for audit in audits for entry in audit.entries if entry["lpips"] == "not available"]
    if perceptual and "images" in kinds:
        texts.append("LPIPS: not available, for its weights aren't on this machine or the images have no colour.")
    known = [
        [entry["run"], entry["attack"], ", ".join(entry["threat_model"]["facts"]), entry["source"]]
        for audit in audits for entry in audit.entries if entry["round"] == audit.entries[0]["round"]
    ]  # fmt: skip
    return Markup("").join(map(paragraph, texts)) + table(
        ["run", "attack", "the attacker knows", "source"], known, caption="Threat models."
    )


def reconstructions(audit: Audit) -> Markup:
    """Show what each attack made of each client's first sample, beside the original if it is known."""
    parts = []
    for server_round in sorted({outcome.server_round for outcome in audit.outcomes}):
        columns = [
            (o.attack, {f.victim.partition: f for f in o.findings})
            for o in (*audit.outcomes, *audit.controls) if o.server_round == server_round and o.findings
        ]  # fmt: skip
        scores = {p: f.score for _, found in columns for p, f in found.items() if f.score is not None}
        clients = sorted(scores or {partition for _, found in columns for partition in found})[:SHOWN]
        if not clients:
            parts.append(paragraph(f"Round {server_round}: nobody could be attacked."))
            continue
        kind = audit.outcomes[0].kind
        rows: list[list[object]] = [["original", *[shown(kind, scores[p].true[0]) for p in clients]]] if scores else []
        for name, found in columns:
            rows.append([name, *[_found(kind, found[p]) if p in found else "–" for p in clients]])
        head = ["", *[f"client {p}" for p in clients]]
        unscored = "" if scores else " Nobody told the original, so there is nothing to compare with."
        parts.append(table(head, rows, caption=f"Round {server_round}: the first sample of each client.{unscored}"))
    return Markup("").join(parts)


def _found(kind: DataKind, finding: Finding) -> object:
    """Show a sample that an attack found: that of the client's first one, where a score says which it is."""
    images = finding.result.images if finding.score is None else finding.score.found
    return shown(kind, images[0]) if len(images) else "–"


def _convergence(audit: Audit) -> Markup:
    caption = (
        f"{audit.path.name}: smallest objective so far over its first value, and what its samples score; means over "
        "victims. Dotted: best guess without an update. Dashed: success."
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
        f"{audit.path.name}: distance of the server's guess of a client's biases to those that it trained (SNFL, "
        "Fig. 3A), and to those that its training started from."
    )
    head = ["guess", "L2 distance", "of the biases' norm", "met exactly", "L2 distance before training", "updates"]
    return table(head, rows, caption=caption) + drawing(bias_curves(audit.biases), caption)


def _noise(audits: Sequence[Audit]) -> Markup:
    parts = []
    for measures in {e["kind"]: MEASURES[e["kind"]] for audit in audits for _, e in audit.noise}.values():
        judged = measures.judged
        rows = [
            [entry["run"], entry["round"], f"{z:g}",
             *(_with_interval(entry["metrics"][m.name]["value"], entry["metrics"][m.name]["interval"], m.form)
               for m in judged), entry["verdict"]]
            for audit in audits for z, entry in audit.noise
            if entry["value"] is not None and MEASURES[entry["kind"]] is measures
        ]  # fmt: skip
        caption = (
            "Plain updates (twins of an S-run's), clipped to their median norm C, with noise of z C on each weight."
        )
        head = ["run", "round", "z", *(f"{m.title.removesuffix(' in dB')} (95 %)" for m in judged), "verdict"]
        parts.append(table(head, rows, caption=caption))
    parts += [drawing(noise_curve(audit.noise), audit.path.name) for audit in audits if audit.noise]
    return Markup("").join(parts)


def detection(audit: Audit) -> Markup:
    """Show whom detectors of poisoned clients flagged, and the thresholds that they look at."""
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
    accuracies = table(head, rows, caption=f"{audit.path.name}: accuracies and success of a backdoor, by round.")
    environment = json.dumps(audit.environment, indent=1) if audit.environment else ""
    about = f"{audit.setting.algorithm} of another Flower app" if audit.config is None else to_yaml(audit.config)
    return (accuracies if rows else Markup("")) + preformatted(about) + preformatted(environment)
