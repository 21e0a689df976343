"""``report.html`` of a study: its tables, figures, what an audit saw, what it cost, and how to repeat it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.compare.records import extras_of
from experiments.compare.study import Cell, Study
from experiments.compare.tables import Filled, caption, html_rows
from experiments.compare.views import View
from experiments.html import Section, drawing, page, paragraph, preformatted, table
from snnfl.config import Config, counted, options, to_yaml, value_of
from strategies.attendance import shortcomings
from strategies.run_directory import read_environment, read_metrics


def study_page(
    study: Study, finished: Sequence[Cell], tables: Sequence[Filled], figures: Sequence[tuple[View, Figure]]
) -> str:
    """Return the page."""
    sections = [
        Section(title="Tables", body=Markup("").join(_table(filled) for filled in tables)),
        Section(title="Figures", body=Markup("").join(drawing(figure, _figure_caption(v)) for v, figure in figures)),
    ]
    shown = _audits(finished)
    if shown:
        sections.append(Section(title="Audit", body=shown))
    if lacking := _lacking(finished):
        sections.append(Section(title="Not as configured", body=lacking))
    sections += [
        Section(title="Cost", body=_costs(finished)),
        Section(title="Configuration", body=_configurations(study, finished)),
        Section(title="Environment", body=_environments(finished)),
    ]
    missing = len(study.cells) - len(finished)
    lead = f"{len(finished)} of {len(study.cells)} cells are finished" + (
        "; tables and figures hold those alone." if missing else "."
    )
    return page(f"Study: {study.name}", sections, lead=lead)


def _table(filled: Filled) -> Markup:
    view, entries = filled
    if not entries:
        return paragraph(f"{view.title}: no finished cell has measured {view.value}.")
    head, rows = html_rows(view, entries)
    return table(head, rows, caption=f"{view.title}: {caption(filled)}.")


def _figure_caption(view: View) -> str:
    spread = "every client and seed" if view.scatter else "mean over seeds, and one standard deviation"
    return f"{view.title}: {spread}."


def _audits(finished: Sequence[Cell]) -> Markup:
    """Show what attacks made of the images of each setting's first seed, and whom detectors flagged."""
    shown, settings = Markup(), set[tuple[str, ...]]()
    for cell in finished:
        setting = tuple(cell.labels.values())
        if cell.extras.audit is None or setting in settings:
            continue
        settings.add(setting)
        fragments = extras_of(cell)["fragments"]
        shown += paragraph(f"{cell.name}; all of it: {cell.path.name}/audit/report.html")
        shown += Markup("").join(Markup(fragments[name]) for name in ("reconstructions", "detectors"))
    return shown


def _lacking(finished: Sequence[Cell]) -> Markup:
    """Show which finished cells aren't what was configured; tables and figures count them all the same."""
    rows = [[cell.name, line] for cell in finished for line in shortcomings(cell.config, read_metrics(cell.path))]
    return table(["cell", "who and why"], rows, caption="They count in tables and figures.") if rows else Markup()


def _costs(finished: Sequence[Cell]) -> Markup:
    rows = []
    for cell in finished:
        metrics = read_metrics(cell.path)
        totals = [sum(row[name] for row in metrics) for name in ("bytes_up", "bytes_down", "seconds_round")]
        rows.append([cell.name, f"{totals[0] / 1e6:.2f}", f"{totals[1] / 1e6:.2f}", f"{totals[2]:.1f}"])
    head = ["cell", "MB up", "MB down", "seconds"]
    return table(head, rows, caption="All rounds together; seconds with other cells at the same time.")


def _configurations(study: Study, finished: Sequence[Cell]) -> Markup:
    """Show the first cell's options, and of each cell those that differ."""
    first = _comparable(finished[0].config)
    differing = [
        key
        for key, _, _ in options()
        if len({repr(value_of(_comparable(cell.config), key)) for cell in study.cells}) > 1
    ]
    rows = [[cell.name, *(str(value_of(cell.config, key)) for key in differing)] for cell in study.cells]
    return (
        table(["cell", *map(_breakable, differing)], rows, caption="In what the cells differ.")
        + paragraph(f"All options of {finished[0].name}:")
        + preformatted(to_yaml(first))
    )


def _breakable(key: str) -> Markup:
    """Let an option's name go on in the next line after a dot or an underscore: there may be many in a row."""
    return Markup("<wbr>").join(re.findall(r"[^._]+[._]?", key))


def _comparable(config: Config) -> Config:
    return replace(config, run=replace(config.run, name="cell"))


def _environments(finished: Sequence[Cell]) -> Markup:
    """Show where the cells ran, each environment once."""
    found: dict[str, list[str]] = {}
    for cell in finished:
        facts = read_environment(cell.path)
        plain = {key: value for key, value in facts.items() if key not in ("started", "command", "resumed")}
        found.setdefault(json.dumps(plain, indent=1), []).append(str(facts.get("started", "at an unknown time")))
    return Markup("").join(
        paragraph(f"{counted(len(times), 'cell')}, started {min(times)} to {max(times)}:") + preformatted(text)
        for text, times in found.items()
    )
