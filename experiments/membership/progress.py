"""How far a membership study is, and what is left of it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.compare.cost import pace_of
from experiments.membership.cell import Cell
from experiments.membership.networks import folder_of, seconds_of
from snnfl.auditing.membership import OVERLAP
from snnfl.membership_attacks.signals import REPETITIONS
from snnfl.workspace import Workspace

SECONDS_OF_FIGURES = 2.2
"""Of drawing what was found in a setting, and its part of the report: by one process, when all cells are finished."""

SECONDS_PER_SCORE = 2e-5
"""Of attacks, for a target's candidate: before any setting is attacked."""


@dataclass
class Forecast:
    """Seconds that cells take: timed on this machine at first, then corrected by what finished ones took.

    Args:
        cells: All cells of a study.
    """

    cells: Sequence[Cell]

    def __post_init__(self) -> None:
        """Time a step and a forward pass of each kind of network that is left to train."""
        self._rest = [cell for cell in self.cells if not cell.finished]
        self.expected = {cell.name: _expected(cell) for cell in self._rest}
        self.taken: dict[str, float] = {}
        self._looks: list[tuple[float, int, float]] = []

    def look(self) -> int:
        """Read what finished cells took; return how many are finished."""
        rest = []
        for cell in self._rest:
            if cell.finished:
                self.taken[cell.name] = _taken(cell)
            else:
                rest.append(cell)
        if len(rest) < len(self._rest):
            look = (time.monotonic(), len(self.taken), math.fsum(self.taken.values()))
            self._looks = [*self._looks[:1], look]
        self._rest = rest
        return len(self.cells) - len(rest)

    def left(self, jobs: int, busy: float = 0.0) -> float:
        """Return the seconds that are left with so many processes.

        Args:
            jobs: Processes.
            busy: Seconds that they have spent on cells that aren't finished.
        """
        corrected, between = self._corrections(), self._between(jobs)
        seconds = [self.expected[cell.name] * corrected(cell) + between for cell in self._rest]
        work = max(0.0, max(math.fsum(seconds) / jobs, max(seconds, default=0.0)) - busy / jobs)
        return work + (self._figures() if self._rest else 0.0)

    def _between(self, jobs: int) -> float:
        """Return the seconds a cell takes beside its own: of files and locks, which is most of those of small networks.

        They are counted from the first cells that are seen finished, so the start of processes isn't among them.
        """
        if len(self._looks) < 2:
            return 0.0
        (begin, before, worked), (end, after, all_worked) = self._looks
        return max(0.0, (end - begin) * jobs - (all_worked - worked)) / (after - before)

    def _figures(self) -> float:
        """Return the seconds of drawing all settings, also those that were attacked before."""
        settings = sum(cell.network is None for cell in self.cells)
        return settings * SECONDS_OF_FIGURES * self._usual()

    def _usual(self) -> float:
        """Return what finished networks took over what was expected of them: how busy the machine is."""
        known = [cell.name for cell in self.cells if cell.network is not None and cell.name in self.taken]
        expected = math.fsum(self.expected[name] for name in known)
        return math.fsum(self.taken[name] for name in known) / expected if expected else 1.0

    def _corrections(self) -> Callable[[Cell], float]:
        """Return what finished cells took, over what was expected of them: of the cell's own setting, if it has any.

        Settings differ in how wrong what was timed is: in what a step costs beside the arithmetic, most of all.
        """
        pairs: dict[tuple[str, bool], list[tuple[float, float]]] = {}
        for cell in self.cells:
            if (taken := self.taken.get(cell.name)) is not None:
                pair = (taken, self.expected[cell.name])
                attacks = cell.network is None
                for key in ((cell.setting.name, attacks), ("", attacks)):
                    pairs.setdefault(key, []).append(pair)
        ratios = {key: math.fsum(t for t, _ in of) / math.fsum(e for _, e in of) for key, of in pairs.items()}
        usual = self._usual()  # attacks feel it as well

        def of(cell: Cell) -> float:
            attacks = cell.network is None
            return ratios.get((cell.setting.name, attacks), ratios.get(("", attacks), usual))

        return of


def _expected(cell: Cell) -> float:
    config, data = cell.setting.config, Workspace(cell.setting.config).dataset
    candidates, nobody = len(data.train_labels), len(data.test_labels)
    if cell.network is None:
        scores = len(cell.setting.needed) * cell.setting.networks * candidates
        return 1.0 + SECONDS_PER_SCORE * scores
    trained = {"network": candidates / 2, "overlap": OVERLAP * candidates / 2, "disjoint": nobody / 2}
    pace, steps = pace_of(config), math.ceil(trained[cell.network.kind] / config.training.batch_size)
    asked = 1 + (REPETITIONS if cell.setting.needs("perturbed") else 0) + cell.setting.needs("white_box")
    return config.training.epochs * steps * pace.step + asked * (candidates + nobody) * pace.forward


def _taken(cell: Cell) -> float:
    if cell.network is None:
        return float(json.loads(cell.file.read_text())["seconds"])
    times = seconds_of(folder_of(cell.setting, cell.network))
    return times.get("train", 0.0) + times.get("ask", 0.0)


def processes(cells: Sequence[Cell], jobs: int | None) -> int:
    """Return how many processes work: as asked, or one for each core that a network's threads leave."""
    left = sum(not cell.finished for cell in cells)
    threads = cells[0].setting.config.run.threads
    return max(1, min(left, jobs or (os.cpu_count() or 1) // threads))
