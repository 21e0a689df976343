"""What the paper's findings come down to: differences of AUC, paired by target, of the tables of a study.

The n-th networks of two settings of one data set are trained on the same members and attacked with shadows of the same
members, so that a difference is that of the kind of network.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from snnfl.metrics.roc import Estimate, mean_of

Table: TypeAlias = Mapping[tuple[str, str], Sequence[float]]
"""AUC of each target by row and column."""

Differences: TypeAlias = dict[str, list[float]]
"""By what is compared, of each target."""

TITLES = ("The paper's attack", "The best attack")
FULL, ANN, SNN = "Full precision", "ANN", "SNN"


def weights(table: Table) -> dict[str, Differences]:
    """Compare spiking with ordinary networks, and quantised weights with whole ones, by data set."""
    found: dict[str, Differences] = {}
    for data in _parts(row for row, _ in table):
        bits = _parts((row for row, _ in table if row.startswith(f"{data}, ")), place=-1)
        quantised = [each for each in bits if each != FULL]

        def less(more: tuple[str, str], other: tuple[str, str], data: str = data) -> list[float]:
            (row, column), (base, of) = more, other
            return _less(table[f"{data}, {row}", column], table[f"{data}, {base}", of])

        found[data] = {
            f"{SNN} − {ANN}": less((FULL, SNN), (FULL, ANN)),
            **{f"{SNN} − {ANN} of {each}": less((FULL, SNN), (each, ANN)) for each in quantised},
            **{f"{kind}: {each}": less((each, kind), (FULL, kind)) for kind in (ANN, SNN) for each in quantised},
        }
    return found


def surrogates(table: Table) -> dict[str, Differences]:
    """Compare each surrogate gradient with the mean of the others, by data set."""
    rows = list(dict.fromkeys(row for row, _ in table))
    found: dict[str, Differences] = {}
    for data in dict.fromkeys(column for _, column in table):
        for row in rows:
            others = [table[other, data] for other in rows if other != row]
            means = [statistics.fmean(of_target) for of_target in zip(*others, strict=True)]
            found.setdefault(data, {})[row] = _less(table[row, data], means)
    return found


def activations(table: Table) -> dict[str, Differences]:
    """Compare quantised activations and potentials with whole ones, by data set."""
    found: dict[str, Differences] = {}
    for row, data in table:
        kind = row.partition(" ")[0]
        if row != f"{kind} full":
            found.setdefault(data, {})[row] = _less(table[row, data], table[f"{kind} full", data])
    return found


COMPARED: Mapping[str, tuple[str, Callable[[Table], dict[str, Differences]]]] = {
    "table2_weights": ("SNN of full precision less ANN of full and of quantised weights; quantised less full", weights),
    "table3_surrogates": ("each surrogate less the mean of the other four", surrogates),
    "fig3_activations": ("quantised less full precision", activations),
}


def differences_part(folder: str, tables: Mapping[str, Table]) -> str:
    """Lay out the differences of a folder's tables; empty if it has none that are compared."""
    parts = []
    for title in TITLES if folder in COMPARED else ():
        said, compare = COMPARED[folder]
        if table := tables.get(title):
            parts.append(
                f"**{title}, differences of AUC**: {said}; paired by target [95 %].\n\n{_shown(compare(table))}"
            )
    return "\n\n".join(parts)


def _shown(found: Mapping[str, Differences]) -> str:
    names = list(dict.fromkeys(name for of_data in found.values() for name in of_data))
    several = len(found) > 1
    head = ["", *found, *(["all"] if several else [])]
    lines, clear, count = list[list[str]](), 0, 0
    for name in names:
        each = [of_data[name] for of_data in found.values()]
        estimates = [mean_of(values, low=-1.0) for values in each]
        clear, count = clear + sum(0.0 not in estimate for estimate in estimates), count + len(estimates)
        together = [_written(mean_of([v for values in each for v in values], low=-1.0))] if several else []
        lines.append([name, *map(_written, estimates), *together])
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])
    targets = len(next(iter(next(iter(found.values())).values())))
    return (
        f"{table}\n\n{clear} of {count} intervals over {targets} targets don't hold 0; of as many comparisons of "
        f"equals {0.05 * count:.1f} wouldn't."
    )


def _written(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _less(more: Sequence[float], less: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(more, less, strict=True)]


def _parts(labels: Iterable[str], place: int = 0) -> list[str]:
    """Return the distinct first, or last, parts of labels such as ``MNIST, w=8``."""
    return list(dict.fromkeys(label.split(", ")[place] for label in labels))
