"""A study's figures: values over rounds, lengths, clients, beta and the like, with bands of one standard deviation.

The colour is the algorithm's, or the first axis's where there is none of that name, and the same in every figure of a
study. Further axes are told by the style of the line, the hatching of the bar or the shape of the point.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.compare.best import Entry
from experiments.compare.records import entries, shown_records
from experiments.compare.study import Cell
from experiments.compare.views import View, better, is_share, title_of

SIZE = (7.5, 4.2)
FITTING = 50
"""Characters that fit side by side below the bars."""

COLOURED = "algorithm"
DASHES: Sequence[Any] = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)), (0, (9, 3)))
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How the lines of a figure look, by the labels of its axes.

    Attributes:
        axes: Its ``lines``.
        colours: By label of the axis that is told by colour.
        styles: Number of the style by the labels of the other axes.
    """

    axes: tuple[str, ...]
    colours: Mapping[str, Any]
    styles: Mapping[tuple[str, ...], int]

    @property
    def coloured(self) -> int:
        """Which of the axes is told by colour."""
        return self.axes.index(COLOURED) if COLOURED in self.axes else 0

    def colour(self, parts: Sequence[str]) -> Any:
        """Return the colour of a line."""
        return self.colours[parts[self.coloured]] if self.axes else "C0"

    def style(self, parts: Sequence[str], styles: Sequence[Any]) -> Any:
        """Return the style of a line, out of those of its kind; after the last one the first comes again."""
        return styles[self.styles[_without(parts, self.coloured)] % len(styles)]


def draw(view: View, finished: Sequence[Cell], labels: Mapping[str, Sequence[str]]) -> Figure | None:
    """Draw a figure; ``None`` where no finished cell measured its value.

    An x axis of numbers makes lines, one of names makes bars, and a value instead of an axis a scatter plot. Lines have
    a band of one standard deviation over the seeds, bars an error bar.

    Args:
        view: The figure.
        finished: Cells that have their results.
        labels: Of each axis of the matrix, in their order.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(ylabel=title_of(view.value))
    axes.grid(alpha=0.3)
    if view.scatter:
        points = _points(view, finished)
        look = _look(view, list(points), labels)
        _scatter(axes, view, points, look)
        kind = "point"
    else:
        lines: dict[tuple[str, ...], list[Entry]] = {}
        for entry in entries(view, finished):
            lines.setdefault(entry.parts, []).append(entry)
        look = _look(view, list(lines), labels)
        kind = "line" if all(_is_number(entry.column) for line in lines.values() for entry in line) else "bar"
        (_lines if kind == "line" else _bars)(axes, view, lines, look)
        axes.set_xlabel(", ".join(view.across))
    if not look.styles:
        return None
    _legend(axes, look, kind)
    return figure


def _look(view: View, drawn: Sequence[tuple[str, ...]], labels: Mapping[str, Sequence[str]]) -> Look:
    look = Look(axes=view.down, colours={}, styles={})
    others = dict.fromkeys(_without(parts, look.coloured) for parts in drawn)
    styles = {other: number for number, other in enumerate(others)}
    if not view.down:
        return Look(axes=(), colours={}, styles=styles)
    known = labels.get(view.down[look.coloured]) or dict.fromkeys(parts[look.coloured] for parts in drawn)
    several = mpl.colormaps["tab10" if len(known) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    colours = {label: several[number % len(several)] for number, label in enumerate(known)}
    used = {parts[look.coloured] for parts in drawn}
    return Look(axes=view.down, colours={k: v for k, v in colours.items() if k in used}, styles=styles)


def _legend(axes: Axes, look: Look, kind: str) -> None:
    """Name the axes, beside the plot: in it no corner is free for sure."""
    if not look.axes:
        return
    handles = [_handle(kind, label, colour, 0) for label, colour in look.colours.items()]
    title = look.axes[look.coloured]
    if len(look.styles) > 1:
        other = ", ".join(_without(look.axes, look.coloured))
        styles = [_handle(kind, ", ".join(parts), "0.35", number) for parts, number in look.styles.items()]
        handles = [*handles, _heading(""), _heading(other), *styles]
    axes.legend(
        handles=handles, title=title, alignment="left", loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small",
        borderaxespad=0.0,
    )  # fmt: skip


def _heading(text: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=text)


def _handle(kind: str, label: str, colour: Any, number: int) -> Line2D | Patch:
    if kind == "bar":
        hatch = HATCHES[number % len(HATCHES)]
        return Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=label)
    if kind == "point":
        return Line2D([], [], color=colour, marker=MARKERS[number % len(MARKERS)], linestyle="none", label=label)
    return Line2D([], [], color=colour, linestyle=DASHES[number % len(DASHES)], label=label)


def _lines(axes: Axes, view: View, lines: Mapping[tuple[str, ...], Sequence[Entry]], look: Look) -> None:
    factor = 100 if view.percent else 1
    for parts, line in lines.items():
        points = sorted(line, key=lambda entry: float(entry.column))
        x, means = [float(entry.column) for entry in points], [factor * entry.mean for entry in points]
        spread = [factor * (entry.deviation or 0.0) for entry in points]
        colour, marker = look.colour(parts), "." if len(x) > 1 else "o"
        axes.plot(x, means, marker=marker, color=colour, linestyle=look.style(parts, DASHES))
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if view.across == ("round",):
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    else:
        axes.set_xticks(sorted({float(entry.column) for line in lines.values() for entry in line}))
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")


def _bars(axes: Axes, view: View, lines: Mapping[tuple[str, ...], Sequence[Entry]], look: Look) -> None:
    factor, names = 100 if view.percent else 1, list(dict.fromkeys(e.column for line in lines.values() for e in line))
    each = 0.8 / max(1, len(lines))
    for number, (parts, line) in enumerate(lines.items()):
        shift = (number - (len(lines) - 1) / 2) * each
        axes.bar(
            [names.index(entry.column) + shift for entry in line],
            [factor * entry.mean for entry in line],
            each,
            yerr=[factor * (entry.deviation or 0.0) for entry in line],
            color=look.colour(parts),
            hatch=look.style(parts, HATCHES),
            edgecolor="white",
            capsize=2,
        )
    width = FITTING // len(names)
    turned = width < max(len(word) for name in names for word in name.split())
    shown = names if turned else [textwrap.fill(name, width) for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=90 if turned else 0)
    if better(view.value) == 1 and view.percent:
        axes.set_ylim(0, 100)


Points = dict[tuple[str, ...], list[tuple[float, float]]]


def _points(view: View, finished: Sequence[Cell]) -> Points:
    """Return a point per record: every seed, client and round that is asked for."""
    (x,) = view.across
    across, up = (100 if is_share(value) else 1 for value in (x, view.value))
    points: Points = {}
    for cell in finished:
        for record in shown_records(view, cell):
            if isinstance(record.get(x), int | float):
                parts = tuple(str(record[axis]) for axis in view.down)
                points.setdefault(parts, []).append((across * record[x], up * record[view.value]))
    return points


def _scatter(axes: Axes, view: View, points: Points, look: Look) -> None:
    for parts, of in points.items():
        axes.scatter(
            [p[0] for p in of], [p[1] for p in of], s=18, alpha=0.7, color=look.colour(parts),
            marker=look.style(parts, MARKERS),
        )  # fmt: skip
    axes.set_xlabel(title_of(view.across[0]))


def _without(parts: Sequence[str], index: int) -> tuple[str, ...]:
    return (*parts[:index], *parts[index + 1 :])


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
