"""What an audit found in one run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnfl.auditing.best import Best
from snnfl.auditing.bias_errors import BiasError
from snnfl.auditing.detecting import Judged, Threshold
from snnfl.auditing.federated_membership import MembershipRow
from snnfl.auditing.label_counts import LabelCounts
from snnfl.auditing.scorecard import Entry
from snnfl.auditing.setting import Setting
from snnfl.auditing.side_channel import SideChannel
from snnfl.auditing.suite import Outcome
from snnfl.config import Config
from snnfl.poisoning.roles import attacks_in


@dataclass(frozen=True)
class InSum:
    """A recorded sum, and what was attacked of it.

    Attributes:
        server_round: Counted from 1.
        clients: Partitions of those in it.
        absent: Partitions of the federation's other clients.
        attacked: Whose updates were attacked, each those that were attacked together.
        untold: Who was to be attacked by the sums of several rounds, and isn't told from the others.
    """

    server_round: int
    clients: tuple[int, ...]
    absent: tuple[int, ...]
    attacked: Sequence[tuple[int, ...]]
    untold: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What was found in one run.

    Attributes:
        path: Of the run.
        setting: Of the federation, as its auditor sees it.
        config: Of the run; ``None`` for another Flower app, which has none of ours.
        metrics: Its rows.
        environment: Where it took place; empty if nobody wrote that down.
        outcomes: Of the attacks.
        controls: Of the attacks on the plain twins of an S-run's clients.
        entries: The scorecard's objects of both.
        best: The best attack of each round, corrected for choosing it.
        noise: Of the control curve: multiplier and scorecard object.
        biases: How far each guess of the private biases was off.
        labels: How well each client's labels were counted.
        membership: Who was in the clients' data, attack by attack.
        side: What thresholds tell of each client's images.
        judged: What the detectors of poisoned clients say.
        thresholds: Of the recorded clients of an S-run.
        sums: Who is in each sum; nothing where the server sees each update.
        left: Why a named attack isn't one on updates of this kind, by its name.
        unasked: Why a named attack asked nobody who was in the data, by its name.
        unread: Who sent something that isn't of the model, and what, a line each: nobody could attack it.
        denied: Facts that were taken from the attacker.
    """

    path: Path
    setting: Setting
    config: Config | None
    metrics: Sequence[dict[str, Any]]
    environment: Mapping[str, Any]
    outcomes: Sequence[Outcome]
    controls: Sequence[Outcome]
    entries: Sequence[Entry]
    best: Sequence[Best]
    noise: Sequence[tuple[float, Entry]]
    biases: Sequence[BiasError]
    labels: Sequence[LabelCounts]
    membership: Sequence[MembershipRow]
    side: Sequence[SideChannel]
    judged: Sequence[Judged]
    thresholds: Sequence[Threshold]
    sums: Sequence[InSum] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    unasked: Mapping[str, str] = field(default_factory=dict)
    unread: Sequence[str] = ()
    denied: Collection[str] = ()

    @property
    def refused(self) -> bool:
        """Whether every attack was refused, and nobody was asked for members."""
        asked = any(row.scored is not None for row in self.membership) or bool(self.side)
        return not asked and all(entry["verdict"] == "refused" for entry in self.entries)

    def attackers(self, server_round: int) -> tuple[int, ...]:
        """Return the partitions of the clients that are known to poison in a round."""
        return () if self.config is None else attacks_in(self.config, server_round)
