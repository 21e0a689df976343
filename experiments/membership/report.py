"""``report.html`` of membership attacks: what they found in a sentence, tables, ROC plots, scorecard and checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments.compare.best import Entry
from experiments.compare.tables import Filled, caption, html_rows
from experiments.compare.views import View
from experiments.html import Section, drawing, page, paragraph, table
from experiments.membership.figures import roc_figure
from experiments.membership.study import LENGTH
from snnfl.auditing.membership_checks import at_gap, shared_gap
from snnfl.auditing.membership_scores import BEST
from snnfl.config import counted
from snnfl.files import write_bytes

Result = Mapping[str, Any]
"""Of a setting, as :func:`snnfl.auditing.membership_scores.results` returns it, with ``labels``."""

RATES = {"tpr_at_1": "TPR at 1 % FPR", "tpr_at_0.1": "TPR at 0.1 % FPR"}


def name_of(result: Result) -> str:
    """Name a setting."""
    return ", ".join(f"{axis}={label}" for axis, label in result.get("labels", {}).items()) or "your networks"


def filled_tables(views: Sequence[View], results: Sequence[Result]) -> list[Filled]:
    """Fill tables with what each target gave, in the order of the matrix."""
    return [(view, _entries(view, results)) for view in views]


def _entries(view: View, results: Sequence[Result]) -> list[Entry]:
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for result in results:
        for record, values in _records(view.value, result):
            if all(record.get(axis, labels[0]) in labels for axis, labels in view.where.items()):
                place = ", ".join(record[axis] for axis in view.down), ", ".join(record[axis] for axis in view.across)
                found[place] = tuple(values)
    return [
        Entry(row=row, column=column, values=values, paper=view.paper.get((row, column)))
        for (row, column), values in found.items()
    ]


def _records(value: str, result: Result) -> list[tuple[dict[str, str], Sequence[float]]]:
    labels = dict(result["labels"])
    if value in result["gaps"]["values"]:
        return [(labels, result["gaps"]["values"][value])]
    return [
        ({**labels, "attack": entry["attack"]}, entry["values"][value])
        for entry in result["entries"]
        if value in entry.get("values", {})
    ]


def sentences(results: Sequence[Result]) -> list[str]:
    """Say of each setting, in plain words, what was found."""
    return [f"{name_of(result)}: {sentence(result)}" for result in results]


def _not_excluded(area: Mapping[str, float | None]) -> str:
    """Say what an interval that holds chance leaves possible: of few networks it is wide, so no sign of privacy."""
    high = area["high"]
    return "" if high is None else f", and an AUC of up to {high:.3f} isn't excluded"


def sentence(result: Result) -> str:
    """Say what the best realistic attack finds, what the paper's reports, and whether it can be believed."""
    by_name = {entry["attack"]: entry for entry in result["entries"] if "auc" in entry}
    realistic = [entry for entry in by_name.values() if entry["setting"] == "realistic"]
    best = by_name.get(BEST) or max(realistic, key=lambda entry: entry["auc"]["value"], default=None)
    if best is None:
        return "no attack ran."
    which = best["reason"].removeprefix("mostly ") if best["attack"] == BEST else best["attack"]
    told = f"the best attack ({which}) has AUC {_shown(best['auc'])}"
    if (rate := best["tpr_at_1"]) is not None:
        told += f" and finds {_percent(rate)} of the members while it takes 1 % of others for members"
    told += "." if best["verdict"] == "leaks" else f"; that may be chance{_not_excluded(best['auc'])}."
    if (published := by_name.get("paper")) is not None:
        told += f" The paper's attack says {_shown(published['auc'])}"
        if (control := published.get("control")) is not None:
            told += f", of which {_shown(control)} is what it says of a network that was trained on others"
        told += "."
    told += f" Train less test accuracy: {_percent(result['gaps']['gap'])}."
    if (blind := result["blind"])["low"] is not None and blind["low"] > 0.5:
        told += f" Not believable: members differ from others without any network (AUC {_shown(blind)})."
    return told


def write_report(folder: Path, results: Sequence[Result]) -> None:
    """Write ``report.html`` and ``results.json`` of networks that somebody else trained."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "results.json", json.dumps(results, indent=1).encode())
    write_bytes(folder / "report.html", membership_page("Membership", results).encode())


def membership_page(title: str, results: Sequence[Result], tables: Sequence[Filled] = ()) -> str:
    """Return the page."""
    sections = [Section(title="In short", body=Markup("").join(map(paragraph, sentences(results))))]
    if tables:
        sections.append(Section(title="Tables", body=Markup("").join(_table(filled) for filled in tables)))
    if equal := equal_gap_rows(results):
        sections.append(Section(title="At equal gaps", body=_equal_gaps(equal)))
    sections += [
        Section(title="ROC", body=Markup("").join(_roc(result) for result in results)),
        Section(title="Scorecard", body=Markup("").join(_scorecard(result) for result in results)),
        Section(title="Can it be believed", body=_checks(results)),
    ]
    return page(title, sections, lead=_lead(results))


def _lead(results: Sequence[Result]) -> str:
    first = results[0]
    each = "each in turn the target, and the others its shadows" if first["targets"] > 1 else "one of them the target"
    return (
        f"{counted(first['networks'], 'network')} of each kind, {each}. Figures are means over targets with intervals "
        "at 95 %. AUC 0.5 and TPR equal to the FPR are chance."
    )


def _table(filled: Filled) -> Markup:
    view, entries = filled
    if not entries:
        return paragraph(f"{view.title}: nothing was measured.")
    head, rows = html_rows(view, entries)
    return table(head, rows, caption=f"{view.title}. {caption(filled)}.")


def _roc(result: Result) -> Markup:
    return drawing(roc_figure(result), f"{name_of(result)}: mean over {counted(result['targets'], 'target')}.")


def _scorecard(result: Result) -> Markup:
    head = ["attack", "setting", "verdict", "AUC", "AUC, label-matched", *RATES.values(), "balanced accuracy", "note"]
    rows = []
    for entry in result["entries"]:
        if "auc" not in entry:
            rows.append([entry["attack"], entry["setting"], entry["verdict"], *[""] * 5, entry["reason"]])
            continue
        note = entry["reason"]
        if "control" in entry:
            note = f"AUC {_shown(entry['control'])} on networks trained on others"
        rates = [_percent(entry[key]) if entry[key] else "too few non-members" for key in RATES]
        figures = [_shown(entry["auc"]), _shown(entry["auc_label_matched"]), *rates, _shown(entry["balanced_accuracy"])]
        rows.append([entry["attack"], entry["setting"], entry["verdict"], *figures, note])
    gaps = result["gaps"]
    accuracies = [
        f"{name.replace('_', ' ')} {_percent(gaps[name])}" for name in ("train_accuracy", "test_accuracy", "gap")
    ]
    return table(head, rows, caption=f"{name_of(result)}. {'; '.join(accuracies)}.")


def _checks(results: Sequence[Result]) -> Markup:
    rows = []
    for result in results:
        blind = result["blind"]
        fine = blind["low"] is None or blind["low"] <= 0.5
        rows.append(
            [name_of(result), _shown(blind), "at chance" if fine else "members differ from others without a network"]
        )
    text = (
        "A classifier that sees the samples and their labels, and no network, must not tell members from others. All "
        "samples are asked about in the same way, without random crops or mirrors, whoever was trained on them."
    )
    return paragraph(text) + table(["setting", "AUC, at 99 %", ""], rows)


def equal_gap_rows(results: Sequence[Result]) -> list[list[object]]:
    """Return the best attack's AUC of each kind of network where the gaps of all kinds are equal.

    A kind is a setting without its length of training, which the axis ``training.epochs`` varies. Kinds are compared
    with the others of their data set. Nothing is returned of those that share no gap, or have one length.
    """
    groups: dict[tuple[str, ...], dict[str, list[Result]]] = {}
    for result in results:
        labels = dict(result.get("labels", {}))
        if labels.pop(LENGTH, None) is not None:
            data = tuple(label for axis, label in labels.items() if axis.startswith("data"))
            kind = ", ".join(labels.values())
            groups.setdefault(data, {}).setdefault(kind, []).append(result)
    rows: list[list[object]] = []
    for kinds in groups.values():
        gaps = {kind: _by_target(of_kind, None) for kind, of_kind in kinds.items()}
        gap = shared_gap(list(gaps.values())) if len(kinds) > 1 else None
        if gap is None:
            continue
        for kind, of_kind in kinds.items():
            found = at_gap(gap, gaps[kind], _by_target(of_kind, BEST))
            value = "not reached" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
            rows.append([kind, f"{100 * gap:.1f} %", value])
    return rows


def _by_target(of_kind: Sequence[Result], attack: str | None) -> list[list[float]]:
    """Return gaps, or an attack's AUCs, of each target at each length."""
    columns = [
        result["gaps"]["values"]["gap"]
        if attack is None
        else next(entry["values"]["auc"] for entry in result["entries"] if entry["attack"] == attack)
        for result in of_kind
    ]
    return [list(values) for values in zip(*columns, strict=True)]


def _equal_gaps(rows: list[list[object]]) -> Markup:
    text = (
        "Networks that overfit less leak less, whatever they are made of: here where train less test accuracy is equal."
    )
    return paragraph(text) + table(["networks", "train less test accuracy", "AUC of the best attack"], rows)


def _shown(estimate: Mapping[str, float | None]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _percent(estimate: Mapping[str, Any]) -> str:
    text = f"{100 * estimate['value']:.1f} %"
    return text if estimate["low"] is None else f"{text} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
