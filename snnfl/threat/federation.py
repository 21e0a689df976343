"""What an honest-but-curious server holds of one client over the rounds of a federation, beside its other clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from snnfl.threat.knowledge import Knowledge, ThreatModelError
from snnfl.threat.view import ServerView


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundView:
    """What the server holds of one round.

    Attributes:
        own: The client that is asked about.
        others: The other clients of the round, under the fact ``other_clients``.
    """

    own: ServerView
    others: Sequence[ServerView] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class FederationView:
    """All that an attacker has who asks of each of N samples whether a client trained on it.

    It is made of :class:`~snnfl.threat.ServerView` alone: what a threat model denies isn't in these, and no member of
    anybody is.

    Attributes:
        inputs: The samples, normalised, ``[N, *input_shape]``.
        labels: Theirs, ``[N]``, int64. Who asks about a sample has it with its label.
        rounds: In order; the last one is attacked, and earlier ones are there under the fact ``earlier_rounds``.
    """

    inputs: Tensor
    labels: Tensor
    rounds: Sequence[RoundView]

    def __post_init__(self) -> None:
        """Check that it is of some round, and that samples are such as the clients have.

        Raises:
            ThreatModelError: Naming what doesn't fit.
        """
        if not self.rounds:
            raise ThreatModelError("there is no round to attack")
        if len(self.inputs) != len(self.labels):
            raise ThreatModelError(f"{len(self.inputs)} samples have {len(self.labels)} labels; give one a sample")
        if (shape := tuple(self.inputs.shape[1:])) != (own := tuple(self.last.input_shape)):
            raise ThreatModelError(f"samples are {list(shape)}, the clients' {list(own)}")

    @property
    def last(self) -> ServerView:
        """The client in the round that is attacked."""
        return self.rounds[-1].own

    @property
    def knowledge(self) -> Knowledge:
        """The threat model."""
        return self.last.knowledge


def over_rounds(own: ServerView, others: Iterable[ServerView], *, most: int) -> list[RoundView]:
    """Lay out a client's rounds, each with the other clients that took part in it.

    Args:
        own: The client in the attacked round.
        others: The other clients in that round; of earlier rounds what their views hold.
        most: Rounds at most, the last ones.
    """
    own_rounds = _each_round(own)
    known = [_each_round(other) for other in others] if own.knowledge.other_clients else []
    return [
        RoundView(own=own_rounds[number], others=[rounds[number] for rounds in known if number in rounds])
        for number in sorted(own_rounds)[-most:]
    ]


def _each_round(view: ServerView) -> Mapping[int, ServerView]:
    """Return a client's view in each round that it holds, with what came before."""
    exchanges = (*view.earlier, view.exchange)
    return {
        exchange.server_round: replace(view, exchange=exchange, earlier=exchanges[:place])
        for place, exchange in enumerate(exchanges)
    }
