"""What an honest-but-curious server records and tries, and what it is allowed to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snnfl.config.declaration import answers_nearest, option


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """The audit of a run. It changes nothing that is trained: weights are bit for bit those of a run without it.

    With ``crafted`` the server is another one: malicious, not curious.
    """

    record: bool = option(False, doc="write what the server sends and receives to runs/NAME/audit/, for snnfl audit")
    rounds: tuple[int, ...] = option((), doc="rounds that are recorded; empty: all")
    clients: tuple[int, ...] = option((), doc="partitions whose updates are recorded; empty: all")
    max_bytes: int = option(2_000_000_000, low=1, doc="size at which the recording stops, with a warning")
    ground_truth: bool = option(
        False, doc="CONSENT: simulated clients write their recorded rounds' images, labels and biases for scoring"
    )
    attacks: tuple[str, ...] = option((), doc="attacks that run after each recorded round (docs/audit.md); empty: none")
    iterations: int = option(300, low=1, doc="of such an attack, per start")
    restarts: int = option(1, low=1, doc="random starts of such an attack, per victim")
    crafted: Literal["none", "imprint", "loki"] = option(
        "none",
        doc="BEYOND HONEST-BUT-CURIOUS: the server sends weights in audit.rounds that sort images apart, loki's in "
        "sums of clients and of steps, too; these rounds train nothing",
    )
