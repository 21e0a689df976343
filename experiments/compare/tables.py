"""A study's tables for terminal, Markdown, CSV and LaTeX: mean ± deviation over seeds, beside the paper's number."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from markupsafe import Markup
from rich.table import Table

from experiments.compare.best import TEST, Entry
from experiments.compare.views import View, better, title_of

Filled: TypeAlias = tuple[View, Sequence[Entry]]
"""A table and its entries."""


def shown(entry: Entry, *, percent: bool, plus_minus: str = "±") -> str:
    """Write mean and deviation; a share of 1 as percentage."""
    factor, form = (100, ".2f") if percent else (1, ".4g")
    text = format(factor * entry.mean, form)
    return text if entry.deviation is None else f"{text} {plus_minus} {factor * entry.deviation:{form}}"


def against_paper(entry: Entry, *, percent: bool) -> str:
    """Write the paper's value and the difference to it; empty without one."""
    if entry.paper is None or entry.paper_difference is None:
        return ""
    factor, form = (100, ".2f") if percent else (1, ".4g")
    return f"{factor * entry.paper:{form}} ({factor * entry.paper_difference:+{form}})"


def as_rich(filled: Filled) -> Table:
    """Lay out for the terminal."""
    view, table = filled
    made = Table(_head(view), title=view.title, caption=caption(filled))
    for column in _columns(table):
        made.add_column(column or title_of(view.value), justify="right")
    for row, cells in _rows(table):
        made.add_row(row, *(_rich(cells.get(column), view.percent) for column in _columns(table)))
    return made


def as_markdown(tables: Iterable[Filled]) -> str:
    """Lay out as Markdown, what is best in bold, the paper's value and the difference in brackets behind it."""
    return "\n".join(
        f"**{view.title}**: {caption((view, table))}.\n\n{_markdown_table(view, table)}" for view, table in tables
    )


def as_latex(tables: Iterable[Filled]) -> str:
    """Lay out as LaTeX tabulars with booktabs, under each number the paper's and the difference."""
    return "\n".join(
        f"% {view.title}: {caption((view, table))}.\n{_latex_table(view, table)}" for view, table in tables
    )


CSV = (
    "table", "row", "column", "value", "mean", "deviation", "seeds", "values", "best", "rival", "difference",
    "difference_low", "difference_high", "pairs", "p", "paper", "paper_difference",
)  # fmt: skip
"""The columns of ``tables.csv``; docs/compare.md says what they hold."""


def as_csv(tables: Iterable[Filled]) -> str:
    """Write a line per entry: every seed's value, the difference to the best other row, and the paper's."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV)
    for view, table in tables:
        for e in table:
            numbers = [e.mean, e.deviation, len(e.values), " ".join(map(repr, e.values)), "yes" if e.best else None]
            found = e.difference
            low, high = (found and found.interval) or (None, None)
            rival = [found.rival, found.mean, low, high, found.seeds, found.p] if found else [None] * 6
            writer.writerow([view.title, e.row, e.column, view.value, *numbers, *rival, e.paper, e.paper_difference])
    return stream.getvalue()


def html_rows(view: View, table: Sequence[Entry]) -> tuple[list[str], list[list[object]]]:
    """Return head and rows of a table for the report, best in bold."""
    head = [_head(view), *(column or title_of(view.value) for column in _columns(table))]
    rows: list[list[object]] = [
        [row, *(_html(cells.get(c), view.percent) for c in _columns(table))] for row, cells in _rows(table)
    ]
    return head, rows


def _head(view: View) -> str:
    return " / ".join(filter(None, (", ".join(view.down), ", ".join(view.across))))


def caption(filled: Filled) -> str:
    """Say what a table shows, of how many seeds, what bold means, and whose numbers stand beside it."""
    view, table = filled
    counts = sorted({len(entry.values) for entry in table})
    seeds = f"mean ± standard deviation over {' to '.join(map(str, counts))} {view.over}"
    if counts in ([], [1]):
        seeds = f"one {view.over.removesuffix('s')}"
    cited = f"paper: {view.cited}, difference in brackets" if view.paper else ""
    return "; ".join(filter(None, (title_of(view.value), seeds, _about_bold(filled), cited)))


def _about_bold(filled: Filled) -> str:
    """Say how the best was found; empty where there is none to be found."""
    view, table = filled
    compared = [entry for entry in table if entry.difference is not None]
    if not better(view.value) or not compared:
        return ""
    if all(entry.difference is None or entry.difference.seeds < 2 for entry in compared):
        return "without a second seed nothing tells which row is the best"
    if any(entry.best for entry in table):
        return f"bold: better than every other row of its column ({TEST})"
    return f"no row is better than every other of its column ({TEST})"


def _columns(table: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.column for entry in table))


def _rows(table: Sequence[Entry]) -> list[tuple[str, Mapping[str, Entry]]]:
    labels = dict.fromkeys(entry.row for entry in table)
    return [(label, {entry.column: entry for entry in table if entry.row == label}) for label in labels]


def _rich(entry: Entry | None, percent: bool) -> str:
    if entry is None:
        return "–"
    text = f"[bold]{shown(entry, percent=percent)}[/bold]" if entry.best else shown(entry, percent=percent)
    return f"{text}\npaper {against_paper(entry, percent=percent)}" if entry.paper is not None else text


def _html(entry: Entry | None, percent: bool) -> Markup:
    if entry is None:
        return Markup("–")
    text = Markup("<b>{}</b>" if entry.best else "{}").format(shown(entry, percent=percent))
    paper = Markup("<br>paper {}").format(against_paper(entry, percent=percent))
    return text + paper if entry.paper is not None else text


def _markdown_table(view: View, table: Sequence[Entry]) -> str:
    columns = _columns(table)
    head = [_head(view), *(column or title_of(view.value) for column in columns)]
    lines = [head, ["---"] * len(head)]
    lines += [[row, *(_markdown(cells.get(column), view.percent) for column in columns)] for row, cells in _rows(table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _markdown(entry: Entry | None, percent: bool) -> str:
    if entry is None:
        return "–"
    text = f"**{shown(entry, percent=percent)}**" if entry.best else shown(entry, percent=percent)
    return f"{text}; paper {against_paper(entry, percent=percent)}" if entry.paper is not None else text


def _latex_table(view: View, table: Sequence[Entry]) -> str:
    columns = _columns(table)
    head = [_head(view), *(column or title_of(view.value) for column in columns)]
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", _latex_line(map(_escape, head)), r"\midrule"]
    for row, cells in _rows(table):
        found = [cells.get(column) for column in columns]
        lines.append(_latex_line([_escape(row), *(_latex(entry, view.percent) for entry in found)]))
        if any(entry is not None and entry.paper is not None for entry in found):
            papers = [_escape(against_paper(entry, percent=view.percent)) if entry else "" for entry in found]
            lines.append(_latex_line([r"\quad paper", *papers]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex(entry: Entry | None, percent: bool) -> str:
    if entry is None:
        return "--"
    number = shown(entry, percent=percent, plus_minus=r"\pm")
    return rf"$\mathbf{{{number}}}$" if entry.best else f"${number}$"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "_%&#$" else c for c in text)
