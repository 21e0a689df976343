"""Ask of networks of your own who was in: what ``snnfl.membership`` is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnfl.launch import use_app
from snnfl.plugins import load_installed, load_listed

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Membership:
    """What membership attacks found.

    Attributes:
        entries: One dictionary per attack: ``verdict``, ``auc``, ``tpr_at_1``, ``balanced_accuracy`` and more, with
            intervals; the last one is of the best attack, chosen for each target on the others.
        gap: Train accuracy less test accuracy of the targets, with its interval.
        blind: AUC of a classifier that sees no network; above 0.5, members differ from others in something else.
        told: All of it in a sentence.
        path: Folder of ``report.html`` and ``results.json``, if one was asked for.
    """

    entries: list[dict[str, Any]]
    gap: dict[str, Any]
    blind: dict[str, Any]
    told: str
    path: Path | None = None

    def __repr__(self) -> str:
        """Say what was found."""
        return f"<Membership: {self.told}>"


def membership(
    networks: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    members: Tensor,
    *,
    nobody: tuple[Tensor, Tensor] | None = None,
    attacks: Iterable[str] = (),
    deny: Iterable[str] = (),
    targets: Sequence[int] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
) -> Membership:
    """Ask of your own networks who was in: the suite of ``snnfl membership``, on networks that you have trained.

    Train several in the same way, each on a random half of the samples, drawn independently: each in turn is the
    target, and the others are its shadows. With one network only attacks without shadows can run.

    Args:
        networks: Map ``[batch, *input_shape]`` to logits ``[batch, classes]``.
        inputs: The samples, ``[N, *input_shape]``, as networks take them, without augmentation.
        labels: ``[N]``, int64.
        members: Which network was trained on which sample, bool ``[networks, N]``. Attacks see the shadows' alone.
        nobody: Inputs and labels of samples of the same kind that no network was trained on; some attacks need them.
        attacks: Names (``snnfl membership --list``); empty for all that need no further networks.
        deny: Facts that the attacker lacks.
        targets: Numbers of the networks to attack; ``None`` for all.
        seed: Of the attacks' random draws.
        output: Folder for ``report.html`` and ``results.json``; ``None`` to write nothing.
        plugins: Your own Python files or modules that register attacks.

    Raises:
        ConfigError: For an unknown attack or fact, or arrays that don't fit.
    """
    from snnfl.auditing.membership import run_attacks
    from snnfl.auditing.membership_networks import applicable, trials_of_networks
    from snnfl.auditing.membership_scores import results
    from snnfl.threat import MembershipKnowledge

    load_installed()
    load_listed([*plugins], None)
    names, knowledge = applicable(attacks), MembershipKnowledge().without(deny)
    trials = trials_of_networks(
        networks, inputs, labels, members, nobody=nobody, attacks=names, knowledge=knowledge, targets=targets
    )
    found = results(trials, run_attacks(trials, names, seed=seed))
    use_app()
    from experiments.membership.report import sentence, write_report

    folder = None if output is None else Path(output).expanduser()
    if folder is not None:
        write_report(folder, [found])
    return Membership(
        entries=found["entries"], gap=found["gaps"]["gap"], blind=found["blind"], told=sentence(found), path=folder
    )
