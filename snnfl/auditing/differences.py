"""What the sums of several rounds tell of single clients, if not everybody takes part in each: their differences.

With secure aggregation a server has ``S_r = Σ_{v in A_r} w_v x_v(r)`` of each round, and knows its clients ``A_r`` and
their weights. Were clients' updates ``x_v`` the same in all rounds, rounds would be linear equations for them (Lam et
al. 2021, *Gradient Disaggregation*, ICML). They move; so here they are estimated as a Gaussian process over rounds, in
each coordinate:

``cov(x_v(r), x_w(s)) = σ_r σ_s (1[v = w] + c) exp(-|r - s| / τ)``

How long updates stay alike (``τ``, in rounds), what they have in common (``c``), the variance of noise in sums, and
whether ``σ_r`` is one number or follows the sizes of the sums, make the recorded sums likeliest: nothing of it rests on
the truth. That clients' updates are about equally large is assumed, and wrong where one's are several times another's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.auditing.checked import check_arrays
from snnfl.auditing.recording import Received, Summands, read_summands
from snnfl.auditing.sums import checked_layout, decoded, sum_path
from snnfl.config import ConfigError, counted
from snnfl.protocol import EXAMPLES
from snnfl.threat import Exchange
from snnfl.updates import Sum, Summed
from snnfl.workspace import Workspace

TIMES = tuple(2.0**power for power in range(11))
COMMON = (0.0, 0.1, 0.3, 1.0, 3.0)
NOISES = (1e-6, 0.01, 0.1, 1.0, 10.0)
"""What is tried: ``τ`` in rounds, ``c``, and noise in units of one client's update."""

KNOWN = 0.5
"""How much of what a client's own round leaves open of it other rounds must tell: more than they don't."""

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
        coefficients: By round, of its sum: together the estimate of the weighted sum of these clients' updates.
        explained: Part of what is these clients' own in their updates, and isn't told by the sum of their round, that
            the sums of all rounds tell, 0..1, if the process is right.
    """

    clients: tuple[int, ...]
    coefficients: dict[int, float]
    explained: float


class Disaggregation:
    """The process that fits the sums of several rounds best.

    Args:
        cohorts: Weights of each round's clients, by client and round; at least one in each.
        sums: ``[rounds, parameters]``, the weighted sums of their updates in the same order, none of them zero.

    >>> draw = np.random.default_rng(0)
    >>> of = draw.standard_normal((3, 500))
    >>> cohorts = {1: [0, 1], 2: [1, 2], 3: [0, 2], 4: [0, 1, 2]}
    >>> weighted = {number: dict.fromkeys(cohort, 1.0) for number, cohort in cohorts.items()}
    >>> found = Disaggregation(weighted, np.stack([of[cohort].sum(0) for cohort in cohorts.values()]))
    >>> [(each.clients, round(each.explained, 2)) for each in found.estimates(1)]
    [((0,), 1.0), ((1,), 1.0)]
    """

    def __init__(self, cohorts: Mapping[int, Mapping[int, float]], sums: NDArray[np.floating[Any]]) -> None:
        self._rounds = np.array([*cohorts])
        together: dict[bytes, dict[int, float]] = {}
        for client in sorted({client for cohort in cohorts.values() for client in cohort}):
            present = np.array([client in cohort for cohort in cohorts.values()])
            weight = max(cohort[client] for cohort in cohorts.values() if client in cohort)
            together.setdefault(present.tobytes(), {})[client] = weight
        unit = np.mean([weight for members in together.values() for weight in members.values()])
        self._units = [tuple(members) for members in together.values()]
        self._columns = np.stack([np.frombuffer(key, dtype=bool) for key in together], axis=1).astype(np.float64)
        weights = [np.array([*members.values()]) / unit for members in together.values()]
        self._own = np.array([float((each**2).sum()) for each in weights])  # variance of what is theirs alone
        self._total = np.array([float(each.sum()) for each in weights])
        self._counts = self._columns @ self._total
        exact = np.asarray(sums, dtype=np.float64)
        gram = exact @ exact.T
        shared = (self._columns * self._own) @ self._columns.T
        outer = np.outer(self._counts, self._counts)
        best = -np.inf
        for common, sized in itertools.product(COMMON, (True, False)):
            covariance = shared + common * outer
            scale = np.sqrt(np.diag(gram) / np.diag(covariance)) if sized else np.ones(len(gram))
            scaled = gram / np.outer(scale, scale)
            for time in TIMES:
                values, vectors = np.linalg.eigh(covariance * self._alike(time))
                along = np.einsum("ij,ik,kj->j", vectors, scaled, vectors, optimize=True)
                for noise in NOISES:
                    there = np.maximum(values, 0) + noise
                    variance = float((along / there).mean())
                    # Of a coordinate of the sums, up to a constant, at the likeliest variance.
                    likelihood = -np.log(there).sum() - len(gram) * np.log(variance) - 2 * np.log(scale).sum()
                    if likelihood > best:
                        best, self._scale = likelihood, scale
                        self.time, self.common, self.noise = time, common, noise
        self._covariance = (shared + self.common * outer) * self._alike(self.time) + self.noise * np.eye(len(gram))

    def _alike(self, time: float) -> Array:
        distance = np.abs(self._rounds[:, None] - self._rounds[None])
        return np.asarray(np.exp(-distance / time))

    def estimates(self, server_round: int) -> Iterator[Estimate]:
        """Yield what the sums of all rounds tell of the clients of one, by their numbers; not what they don't tell."""
        own = int(np.flatnonzero(self._rounds == server_round)[0])
        near = self._alike(self.time)[own][:, None]
        there = np.flatnonzero(self._columns[own])
        alone = near * self._columns[:, there] * self._own[there]
        whole = alone + self.common * near * self._counts[:, None] * self._total[there]
        solved = np.linalg.solve(self._covariance, np.concatenate([whole, alone], axis=1))
        left = self._own[there] - alone[own] ** 2 / self._covariance[own, own]
        after = self._own[there] - (alone * solved[:, len(there) :]).sum(axis=0)
        explained = 1 - after / np.maximum(left, np.finfo(np.float64).tiny)
        for place in sorted(range(len(there)), key=lambda each: self._units[there[each]]):
            if len(there) > 1 and explained[place] > KNOWN:
                coefficients = solved[:, place] * self._scale[own] / self._scale
                yield Estimate(
                    clients=self._units[there[place]],
                    coefficients=dict(zip(self._rounds.tolist(), coefficients.tolist(), strict=True)),
                    explained=float(explained[place]),
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
    names = list(work.format.sent_specs)
    for found in read_summands(folder):
        number, layout = found.server_round, checked_layout(work, found, folder)
        mean = decoded(layout, found, found.numbers.view(layout.field.dtype), folder)
        check_arrays(sum_path(folder, number), layout.as_update(mean), work.format.specs)
        if any(not torch.equal(mean.state[name], found.sent[name]) for name in names):  # else it tells nothing
            recorded[number], layouts[number], means[number] = found, layout, mean
    if not recorded:
        raise AlikeRoundsError("--differences: no sum is recorded, there is nothing to compare; leave it out")
    shares = {
        number: {c: layouts[number].weight(n) / layouts[number].most for c, n in _sizes(found).items()}
        for number, found in recorded.items()
    }
    sums = torch.stack(
        [
            mean.weight * torch.cat([(mean.state[name] - recorded[number].sent[name]).flatten() for name in names])
            for number, mean in means.items()
        ]
    )
    process, told = Disaggregation(shares, sums.numpy()), False
    for number, found in recorded.items():
        if rounds and number not in rounds:
            continue
        for estimate in process.estimates(number):
            told = True
            members = {client: n for client, n in _sizes(found).items() if client in estimate.clients}
            weight = sum(shares[number][client] for client in members)
            change = torch.tensor([*estimate.coefficients.values()], dtype=sums.dtype) @ sums / weight
            state = _moved(found.sent, change, names)
            arrays = layouts[number].as_update(replace(means[number], state=state))
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
        same = len({found.clients for found in recorded.values()}) == 1
        why = "the same clients are in all of them" if same else "updates move too much from round to round"
        which = f"{'these' if rounds else 'the recorded'} rounds"
        raise AlikeRoundsError(
            f"--differences: no client of {which} can be told from the others by the sums of "
            f"{counted(len(recorded), 'round')}, for {why}; leave it out, and the sums themselves are attacked"
        )


def _sizes(found: Summands) -> dict[int, int]:
    """Return how many images each client of a sum has."""
    return dict(zip(found.clients, found.images, strict=True))


def _moved(sent: Mapping[str, Tensor], change: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return arrays that have changed by a vector; variances stay above 0, which an estimate needn't."""
    parts = torch.split(change, [sent[name].numel() for name in names])
    moved = {name: sent[name] + part.view_as(sent[name]) for name, part in zip(names, parts, strict=True)}
    return {
        name: array.maximum(VARIANCE_LEFT * sent[name]) if name.endswith("running_var") else array
        for name, array in moved.items()
    }
