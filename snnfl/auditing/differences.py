"""What the sums of several rounds tell of single clients, if not everybody takes part in each: their differences.

With secure aggregation a server has ``S_r = Σ_{v in A_r} x_v(r)`` of each round, and knows its clients ``A_r``. Were
clients' updates ``x_v`` the same in all rounds, rounds would be linear equations for them (Lam et al. 2021, *Gradient
Disaggregation*, ICML). They move; so here they are estimated as a Gaussian process over rounds, in each coordinate:

``cov(x_v(r), x_w(s)) = σ_r σ_s (1[v = w] + c) exp(-|r - s| / τ)``

How long updates stay alike (``τ``, in rounds), what they have in common (``c``), and the variance of noise in sums make
the recorded sums likeliest: nothing of it rests on the truth. ``σ_r`` is the size of a round's sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.auditing.checked import check_arrays
from snnfl.auditing.recording import Received, Summands, read_summands
from snnfl.auditing.sums import checked_layout, decoded, sum_path
from snnfl.config import ConfigError
from snnfl.protocol import EXAMPLES
from snnfl.threat import Exchange
from snnfl.updates import Sum, Summed
from snnfl.workspace import Workspace

TIMES = tuple(2.0**power for power in range(11))
COMMON = (0.0, 0.1, 0.3, 1.0, 3.0)
NOISES = (1e-6, 0.01, 0.1, 1.0, 10.0)
"""What is tried: ``τ`` in rounds, ``c``, and noise in units of one client's update."""

KNOWN = 0.5
"""How much of the variance of an update must be explained for it to count as told: more than isn't."""

VARIANCE_LEFT = 0.1
"""Of what was sent, the least that an estimated running variance may be."""

Array = NDArray[np.float64]


class AlikeRoundsError(ConfigError):
    """No client can be told from the others by the sums of the recorded rounds."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How some of a round's clients are told apart from the others.

    Attributes:
        clients: One, or several that always take part together.
        coefficients: By round, of its sum: together the estimate of the sum of these clients' updates.
        explained: Part of that sum's variance which the estimate explains, 0..1, if the process is right: about the
            square of their cosine.
    """

    clients: tuple[int, ...]
    coefficients: dict[int, float]
    explained: float


class Disaggregation:
    """The process that fits the sums of several rounds best.

    Args:
        cohorts: Clients by round, at least one in each.
        sums: ``[rounds, parameters]``, the sums of their updates in the same order.

    >>> draw = np.random.default_rng(0)
    >>> of = draw.standard_normal((3, 500))
    >>> cohorts = {1: [0, 1], 2: [1, 2], 3: [0, 2], 4: [0, 1, 2]}
    >>> found = Disaggregation(cohorts, np.stack([of[cohort].sum(0) for cohort in cohorts.values()]))
    >>> [(each.clients, round(each.explained, 2)) for each in found.estimates(1)]
    [((0,), 1.0), ((1,), 1.0)]
    """

    def __init__(self, cohorts: Mapping[int, Sequence[int]], sums: NDArray[np.floating]) -> None:
        clients = sorted({client for cohort in cohorts.values() for client in cohort})
        takes_part = np.array([np.isin(clients, cohort) for cohort in cohorts.values()])
        self._columns, unit_of = np.unique(takes_part, axis=1, return_inverse=True)  # of those always together: one
        self._units = [
            tuple(client for client, of in zip(clients, unit_of.ravel(), strict=True) if of == unit)
            for unit in range(self._columns.shape[1])
        ]
        self._sizes = np.array([len(unit) for unit in self._units])
        self._rounds, self._counts = np.array([*cohorts]), takes_part.sum(axis=1)
        gram = np.asarray(sums @ sums.T, dtype=np.float64)
        self._scale = np.sqrt(np.maximum(np.diag(gram), np.finfo(np.float64).tiny) / self._counts)
        gram = gram / np.outer(self._scale, self._scale)
        self.time, self.common, self.noise = max(
            itertools.product(TIMES, COMMON, NOISES), key=lambda tried: self._likelihood(gram, *tried)
        )

    def _alike(self, time: float) -> Array:
        distance = np.abs(self._rounds[:, None] - self._rounds[None])
        return np.asarray(np.exp(-distance / time))

    def _covariance(self, time: float, common: float, noise: float) -> Array:
        """Return that of the sums, in units of a client's variance."""
        shared = (self._columns * self._sizes) @ self._columns.T + common * np.outer(self._counts, self._counts)
        return np.asarray(shared * self._alike(time) + noise * np.eye(len(self._rounds)))

    def _likelihood(self, gram: Array, time: float, common: float, noise: float) -> float:
        """Return the logarithm, per coordinate, up to a constant, at the likeliest variance."""
        covariance = self._covariance(time, common, noise)
        variance = np.trace(np.linalg.solve(covariance, gram)) / len(gram)
        return float(-np.linalg.slogdet(covariance)[1] - len(gram) * np.log(variance))

    def estimates(self, server_round: int) -> Iterator[Estimate]:
        """Yield what the sums of all rounds tell of the clients of one, by their numbers; not what they don't tell."""
        own = int(np.flatnonzero(self._rounds == server_round)[0])
        near = self._alike(self.time)[own]
        covariance = self._covariance(self.time, self.common, self.noise)
        for unit in sorted(np.flatnonzero(self._columns[own]), key=lambda each: self._units[each]):
            size = self._sizes[unit]
            with_sums = near * size * (self._columns[:, unit] + self.common * self._counts)
            solved = np.linalg.solve(covariance, with_sums)
            explained = float(with_sums @ solved) / (size + self.common * size**2)
            if explained > KNOWN and size < self._counts[own]:
                coefficients = solved * self._scale[own] / self._scale
                yield Estimate(
                    clients=self._units[unit],
                    coefficients=dict(zip(self._rounds.tolist(), coefficients.tolist(), strict=True)),
                    explained=explained,
                )


def read_differences(work: Workspace, folder: Path, rounds: frozenset[int] = frozenset()) -> Iterator[Received]:
    """Read what the recorded sums of a run tell of single clients, as their updates, in the order of rounds.

    What a spiking network adds to an update is no change against what was sent; there each round's mean stands.

    Args:
        work: Of the run.
        folder: ``runs/NAME/audit``.
        rounds: Those to read; empty for all. Sums of all rounds are compared in any case.

    Raises:
        AlikeRoundsError: If the recorded rounds tell no clients apart.
        RecordingError: Naming the file and what is wrong in it.
    """
    recorded, layouts, means = dict[int, Summands](), dict[int, Summed](), dict[int, Sum]()
    for found in read_summands(folder):
        number = found.server_round
        recorded[number], layouts[number] = found, checked_layout(work, found, folder)
        means[number] = decoded(layouts[number], found, found.numbers.view(layouts[number].field.dtype), folder)
    if not recorded:
        raise AlikeRoundsError("--differences: no sum is recorded, there is nothing to compare; leave it out")
    names = list(work.format.sent_specs)
    sums = torch.stack(
        [
            mean.weight * torch.cat([(mean.state[name] - recorded[number].sent[name]).flatten() for name in names])
            for number, mean in means.items()
        ]
    )
    cohorts, told = {number: found.clients for number, found in recorded.items()}, False
    process = Disaggregation(cohorts, sums.numpy())
    for number, found in recorded.items():
        if rounds and number not in rounds:
            continue
        layout = layouts[number]
        for estimate in process.estimates(number):
            told = True
            members = {c: n for c, n in zip(found.clients, found.images, strict=True) if c in estimate.clients}
            weight = sum(layout.weight(images) for images in members.values()) / layout.most
            change = torch.tensor([*estimate.coefficients.values()], dtype=sums.dtype) @ sums / weight
            state = _moved(found.sent, change, names)
            arrays = layout.as_update(replace(means[number], state=state))
            check_arrays(sum_path(folder, number), arrays, work.format.specs)
            yield Received(
                server_round=number,
                partition=estimate.clients[0],
                exchange=Exchange(server_round=number, sent=found.sent, received=arrays),
                metrics={EXAMPLES: sum(members.values())},
                members=members,
                rounds=len(recorded),
                about=found.about,
            )
    if not told:
        raise AlikeRoundsError(
            f"--differences: no client of {'these' if rounds else 'the recorded'} rounds can be told from the others "
            f"by the sums of {len(cohorts)} rounds; leave it out, and the sums themselves are attacked"
        )


def _moved(sent: Mapping[str, Tensor], change: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return arrays that have changed by a vector; variances stay above 0, which an estimate needn't."""
    parts = torch.split(change, [sent[name].numel() for name in names])
    moved = {name: sent[name] + part.view_as(sent[name]) for name, part in zip(names, parts, strict=True)}
    return {
        name: array.maximum(VARIANCE_LEFT * sent[name]) if name.endswith("running_var") else array
        for name, array in moved.items()
    }
