"""A study's figures: values over rounds, lengths, clients, beta and the like, with bands of one standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.compare.best import Entry
from experiments.compare.records import entries, shown_records
from experiments.compare.study import Cell
from experiments.compare.views import View, better, title_of

SIZE = (7.5, 4.2)


def draw(view: View, finished: Sequence[Cell]) -> Figure | None:
    """Draw a figure; ``None`` where no finished cell measured its value.

    An x axis of numbers makes lines, one of names makes bars, and a value instead of an axis a scatter plot. Lines have
    a band of one standard deviation over the seeds, bars an error bar.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(ylabel=title_of(view.value))
    axes.grid(alpha=0.3)
    if view.scatter:
        drawn = _scatter(axes, view, finished)
    else:
        lines: dict[str, list[Entry]] = {}
        for entry in entries(view, finished):
            lines.setdefault(entry.row, []).append(entry)
        numeric = all(_is_number(entry.column) for line in lines.values() for entry in line)
        (_lines if numeric else _bars)(axes, view, lines)
        axes.set_xlabel(", ".join(view.across))
        drawn = bool(lines)
    if not drawn:
        return None
    if axes.get_legend_handles_labels()[1] not in ([], [""]):
        axes.legend(fontsize="small")
    return figure


def _lines(axes: Axes, view: View, lines: Mapping[str, Sequence[Entry]]) -> None:
    factor = 100 if view.percent else 1
    for label, line in lines.items():
        points = sorted(line, key=lambda entry: float(entry.column))
        x, means = [float(entry.column) for entry in points], [factor * entry.mean for entry in points]
        spread = [factor * (entry.deviation or 0.0) for entry in points]
        (drawn,) = axes.plot(x, means, marker="." if len(x) > 1 else "o", label=label)
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    if view.across == ("round",):
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    else:
        axes.set_xticks(sorted({float(entry.column) for line in lines.values() for entry in line}))
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")


def _bars(axes: Axes, view: View, lines: Mapping[str, Sequence[Entry]]) -> None:
    factor, names = 100 if view.percent else 1, list(dict.fromkeys(e.column for line in lines.values() for e in line))
    width = 0.8 / max(1, len(lines))
    for number, (label, line) in enumerate(lines.items()):
        shift = (number - (len(lines) - 1) / 2) * width
        axes.bar(
            [names.index(entry.column) + shift for entry in line],
            [factor * entry.mean for entry in line],
            width,
            yerr=[factor * (entry.deviation or 0.0) for entry in line],
            label=label,
            capsize=2,
        )
    turned = sum(map(len, names)) > 70
    axes.set_xticks(range(len(names)), names, rotation=30 if turned else 0, ha="right" if turned else "center")
    if better(view.value) == 1 and view.percent:
        axes.set_ylim(0, 100)


def _scatter(axes: Axes, view: View, finished: Sequence[Cell]) -> bool:
    """Draw a point per record: every seed, client and round that is asked for."""
    (x,) = view.across
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in finished:
        for record in shown_records(view, cell):
            if isinstance(record.get(x), int | float):
                label = ", ".join(str(record[axis]) for axis in view.down)
                points.setdefault(label, []).append((record[x], record[view.value]))
    for label, of in points.items():
        axes.scatter([p[0] for p in of], [p[1] for p in of], s=18, alpha=0.7, label=label)
    axes.set_xlabel(title_of(x))
    return bool(points)


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
