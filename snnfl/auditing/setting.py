"""What an audit must know of a federation beside its recording, be it a run of ours or another Flower app."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from snnfl.auditing.cohorts import Cohort
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.recording import Received
from snnfl.config import UpdateKind
from snnfl.data import Dataset
from snnfl.metrics.augmented import Freedom
from snnfl.threat import Knowledge
from snnfl.updates import UpdateFormat

Recorded: TypeAlias = Callable[[Path, frozenset[int]], Iterator[Received]]
"""``(folder of the audit, rounds; none for all) -> updates``, each checked against the federation."""

Cohorts: TypeAlias = Callable[[Path, frozenset[int]], Sequence[Cohort]]
"""``(folder of the audit, rounds; none for all) -> who is in each recorded sum``."""

Told: TypeAlias = Callable[[Path, int, int], GroundTruth | None]
"""``(folder of the audit, round, client) -> what it consented to tell``, checked likewise; ``None`` if it didn't."""

PLAIN_TWIN = "plain twin"

UPDATES: Mapping[UpdateKind, str] = {
    "plain": "plain update", "converted": "S-update", "native": "native spiking update"
}  # fmt: skip
"""What reports call an update of each kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """A federation as its auditor sees it.

    :func:`snnfl.auditing.victims.setting_of` makes it of a run's configuration,
    :func:`snnfl.auditing.foreign.setting_of_app` of what whoever runs another app says.

    Attributes:
        name: Of the run, in reports.
        algorithm: Of the server, in reports.
        seed: Of every random draw of the audit.
        dataset: Normalisation and classes; public images for the floors, and candidates for the identification, of
            which there may be none.
        model: What clients train. Its values are anybody's.
        format: What travels.
        initial_state: Arrays of a client that never trained; of another app the model's own, which mean nothing.
        knowledge: ``(an update, whether labels are given, denied facts) -> the threat model``.
        beyond: How the sender of an update trained otherwise than attacks repeat it (:func:`~snnfl.threat.unrepeated`).
        recorded: Reads the recording.
        told: Reads the truth.
        orders: The order of a client's images in each epoch (:class:`~snnfl.threat.ServerView`), where the server can
            tell it.
        labelled: Whether the labels of the public images are theirs, not made up.
        sums: Whether the server sees sums of its clients' updates alone.
        differences: Whether it compares those of several rounds, for estimates of single clients' updates.
        cohorts: Reads who is in each sum; none where there are no sums.
        twins: Whether its updates are plain twins of an S-run's clients (:func:`snnfl.auditing.controls.plain_twin`).
        freedom: What augmentation may have done to the images that clients trained on; ``None`` without any.
    """

    name: str
    algorithm: str
    seed: int
    dataset: Dataset
    model: nn.Module
    format: UpdateFormat
    initial_state: Mapping[str, Tensor]
    knowledge: Callable[[Received, bool, Iterable[str]], Knowledge]
    beyond: Callable[[Received], tuple[str, ...]]
    recorded: Recorded
    told: Told
    orders: Callable[[Received], Tensor | None] = lambda received: None
    freedom: Freedom | None = None
    labelled: bool = True
    sums: bool = False
    differences: bool = False
    cohorts: Cohorts = lambda folder, rounds: ()
    twins: bool = False

    @property
    def updates(self) -> str:
        """What is attacked, in reports: what clients send, or what the server has of it."""
        if self.twins:
            return PLAIN_TWIN
        of_kind = UPDATES[self.format.kind]
        return f"estimated {of_kind}" if self.differences else f"{of_kind} sum" if self.sums else of_kind
