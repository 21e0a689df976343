"""The table of a study: mean and standard deviation over seeds, beside what the paper says."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from experiments.compare.study import Cell, Study
from snnfl.config import ConfigError, nearest
from strategies.run_directory import read_metrics


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of the table.

    Attributes:
        row: Its label.
        column: Its label, empty without columns.
        values: Of each seed.
        paper: The published value, if there is one.
        best: Whether its mean is the largest of its column.
    """

    row: str
    column: str
    values: tuple[float, ...]
    paper: float | None
    best: bool = False

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; of one seed there is none."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def entries(study: Study, finished: Sequence[Cell]) -> list[Entry]:
    """Collect the table of the cells that are finished. Axes that the table doesn't name are averaged with the seeds.

    Raises:
        ConfigError: If the study's value is no column of the metrics.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for cell in finished:
        column = cell.labels[study.columns] if study.columns else ""
        found.setdefault((cell.labels[study.rows], column), []).append(value_of(read_metrics(cell.path), study.value))
    table = [
        Entry(
            row=row, column=column, values=tuple(values), paper=study.paper.get(f"{row} / {column}" if column else row)
        )
        for (row, column), values in found.items()
    ]
    best = {column: max(e.mean for e in table if e.column == column) for column in {e.column for e in table}}
    return [Entry(**{**vars(entry), "best": entry.mean == best[entry.column]}) for entry in table]


def value_of(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Return a value of a run's last round; ``accuracy`` is that of what the server holds, or in SOLO its clients.

    Raises:
        ConfigError: If no such column holds a number.
    """
    last = rows[-1]
    columns = (
        ["server_snn_accuracy", "server_ann_accuracy", "client_ann_accuracy_mean"] if name == "accuracy" else [name]
    )
    for column in columns:
        if isinstance(last.get(column), int | float):
            return float(last[column])
    numbers = [key for key, value in last.items() if isinstance(value, int | float)]
    raise ConfigError(f"table.value={name}: no such number in metrics.jsonl{nearest(name, numbers)}")


def shown(entry: Entry, *, percent: bool, plus_minus: str = "±") -> str:
    """Write mean and deviation, as percentages for accuracies."""
    factor, form = (100, ".2f") if percent else (1, ".4g")
    text = format(factor * entry.mean, form)
    return text if entry.deviation is None else f"{text} {plus_minus} {factor * entry.deviation:{form}}"


def against_paper(entry: Entry, *, percent: bool) -> str:
    """Write the paper's value and the difference to it; empty without one."""
    if entry.paper is None:
        return ""
    factor, form = (100, ".2f") if percent else (1, ".4g")
    return f"{factor * entry.paper:{form}} ({factor * (entry.mean - entry.paper):+{form}})"


def as_rich(study: Study, table: Sequence[Entry]) -> Table:
    """Lay out for the terminal."""
    percent, columns = "accuracy" in study.value, _columns(table)
    made = Table(study.rows, title=f"{study.name}: {study.value}")
    for column in columns:
        made.add_column(column or study.value, justify="right")
    for row, cells in _rows(table):
        texts = [cells.get(column) for column in columns]
        made.add_row(row, *(_rich(entry, percent) if entry else "–" for entry in texts))
    return made


def as_markdown(study: Study, table: Sequence[Entry]) -> str:
    """Lay out as Markdown, best in bold, the paper's value and the difference in brackets behind it."""
    percent, columns = "accuracy" in study.value, _columns(table)
    head = [study.rows, *(column or study.value for column in columns)]
    lines = [head, ["---"] * len(head)]
    for row, cells in _rows(table):
        lines.append([row, *(_markdown(cells[column], percent) if column in cells else "–" for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_latex(study: Study, table: Sequence[Entry]) -> str:
    """Lay out as a LaTeX tabular with booktabs."""
    percent, columns = "accuracy" in study.value, _columns(table)
    head = [study.rows, *(column or study.value for column in columns)]
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", _latex_line(map(_escape, head)), r"\midrule"]
    for row, cells in _rows(table):
        texts = [_latex(cells[column], percent) if column in cells else "--" for column in columns]
        lines.append(_latex_line([_escape(row), *texts]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def as_csv(study: Study, table: Sequence[Entry]) -> str:
    """Write a line per entry with every seed's value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([study.rows, study.columns or "", "value", "mean", "deviation", "seeds", "values", "paper"])
    for e in table:
        numbers = [e.mean, "" if e.deviation is None else e.deviation, len(e.values), " ".join(map(repr, e.values))]
        writer.writerow([e.row, e.column, study.value, *numbers, "" if e.paper is None else e.paper])
    return stream.getvalue()


def _columns(table: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.column for entry in table))


def _rows(table: Sequence[Entry]) -> list[tuple[str, dict[str, Entry]]]:
    labels = dict.fromkeys(entry.row for entry in table)
    return [(label, {entry.column: entry for entry in table if entry.row == label}) for label in labels]


def _rich(entry: Entry, percent: bool) -> str:
    text = f"[bold]{shown(entry, percent=percent)}[/bold]" if entry.best else shown(entry, percent=percent)
    return f"{text}\npaper {against_paper(entry, percent=percent)}" if entry.paper is not None else text


def _markdown(entry: Entry, percent: bool) -> str:
    text = f"**{shown(entry, percent=percent)}**" if entry.best else shown(entry, percent=percent)
    return f"{text}; paper {against_paper(entry, percent=percent)}" if entry.paper is not None else text


def _latex(entry: Entry, percent: bool) -> str:
    number = shown(entry, percent=percent, plus_minus=r"\pm")
    return rf"$\mathbf{{{number}}}$" if entry.best else f"${number}$"


def _latex_line(cells: object) -> str:
    return " & ".join(cells) + r" \\"  # type: ignore[arg-type]


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "_%&#$" else c for c in text)
