"""From a recording to victims: what the server has of each client, and apart from it what scoring may know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from snnfl.auditing.checked import read_checked, read_checked_truth
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.recording import Received, RecordingError, check_rounds
from snnfl.data import Dataset
from snnfl.protocol import EXAMPLES
from snnfl.threat import FACTS, Exchange, Knowledge, PublicImages, ServerView, ThreatModelError, unrepeated
from snnfl.training import learning_rate
from snnfl.workspace import Workspace

PUBLIC_IMAGES = 2000
"""Images of the test split, which the server holds, that attacks may look at, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A client in a round.

    Attributes:
        server_round: Counted from 1.
        partition: Of the client.
        view: All that an attack gets.
        truth: What its result is scored against; ``None`` where nobody consented.
    """

    server_round: int
    partition: int
    view: ServerView
    truth: GroundTruth | None


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Who is attacked, by an attacker who knows what.

    Attributes:
        rounds: Empty for all that are recorded. Earlier ones are known to the attacker all the same.
        partitions: Empty for all.
        labels: Whether the attacker is given the private labels, which makes its results a diagnosis.
        denied: What the attacker is not to know.
    """

    rounds: frozenset[int] = frozenset()
    partitions: frozenset[int] = frozenset()
    labels: bool = False
    denied: frozenset[str] = frozenset()

    def __contains__(self, received: Received) -> bool:
        """Tell whether an update is attacked."""
        chosen = not self.rounds or received.server_round in self.rounds
        return chosen and (not self.partitions or received.partition in self.partitions)


def scope_of(*, rounds: Iterable[int], partitions: Iterable[int], labels: bool, denied: Iterable[str]) -> Scope:
    """Check and collect what a person asked for; empty means all.

    Raises:
        ConfigError: For a fact that no threat model knows.
    """
    facts = frozenset(denied)
    for name in sorted(facts):
        FACTS.find(name)
    return Scope(rounds=frozenset(rounds), partitions=frozenset(partitions), labels=labels, denied=facts)


def victims_of(work: Workspace, folder: Path, scope: Scope) -> list[Victim]:
    """Lay out the victims of a recorded run, in the order of rounds and partitions.

    Args:
        work: Of the run's configuration: what the server knows of model, data and conversion.
        folder: ``runs/NAME/audit``.
        scope: Rounds, clients and threat model.

    Raises:
        RecordingError: If the recording isn't there, is damaged or doesn't hold what is to be attacked.
        ThreatModelError: If labels are granted that no client told.
    """
    earlier: dict[int, list[Exchange]] = {}
    victims: list[Victim] = []
    check_rounds(folder, scope.rounds)
    for received in read_checked(work, folder):
        if scope.rounds and received.server_round > max(scope.rounds):
            break  # what came later, no attacker of these rounds has
        before = earlier.setdefault(received.partition, [])
        if received in scope:
            truth = read_checked_truth(work, folder, received.server_round, received.partition)
            if scope.labels and truth is None:
                raise ThreatModelError("the labels cannot be given: the run has no ground truth (audit.ground_truth)")
            labels = truth.labels if truth is not None and scope.labels else None
            victims.append(
                Victim(
                    server_round=received.server_round,
                    partition=received.partition,
                    view=server_view(work, received, tuple(before), scope, labels),
                    truth=truth,
                )
            )
        before.append(received.exchange)
    found = {victim.partition for victim in victims}
    if missing := sorted(scope.partitions - found):
        raise RecordingError(f"{folder}: client {missing[0]} is not recorded in these rounds, only {sorted(found)}")
    if not victims:
        raise RecordingError(f"{folder}: no recorded update is among the rounds and clients that are asked for")
    return victims


def server_view(
    work: Workspace, received: Received, earlier: tuple[Exchange, ...], scope: Scope, labels: Tensor | None
) -> ServerView:
    """Return what the server holds of a client, less what the threat model denies.

    A client that never trained starts from the run's initial weights, and from what was sent where that was sent.
    """
    knowledge = knowledge_of(work, received, scope.labels, scope.denied)
    mean, std = pixel_statistics(work.dataset)
    return ServerView(
        model=work.model,
        input_shape=work.dataset.input_shape,
        mean=mean,
        std=std,
        exchange=received.exchange,
        knowledge=knowledge,
        labels=labels,
        format=work.format,
        initial={**work.initial_state, **received.exchange.sent} if knowledge.initial_weights else None,
        earlier=earlier if knowledge.earlier_rounds else (),
        public=public_images(work.dataset) if knowledge.public_images else None,
        sequence=work.dataset.sequence,
        beyond=unrepeated(work.config, normalises=bool(work.format.statistic_names)),
    )


def knowledge_of(work: Workspace, received: Received, labels: bool, denied: Iterable[str]) -> Knowledge:
    """Return the threat model: what the server knows by running the federation, less the denied.

    The server chose architecture, loss, batch size, epochs and learning rate; the reply says how many images. Where
    that is denied, the batch size is the configured one, be there as few images as may.
    """
    training, images = work.config.training, int(received.metrics[EXAMPLES])
    known = Knowledge(
        labels=labels,
        images=images,
        batch_size=training.batch_size if "images" in denied else min(training.batch_size, images),
        epochs=training.epochs,
        learning_rate=learning_rate(training, received.server_round),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        biases=not work.format.hides_biases,
        thresholds=bool(work.format.threshold_names),
    )
    return known.without(denied)


@lru_cache(maxsize=1)
def public_images(dataset: Dataset) -> PublicImages:
    """Return what a server holds of the data without having any client's: the first images of the test split."""
    inputs = dataset.normalise(dataset.test_images[:PUBLIC_IMAGES])
    return PublicImages(inputs=inputs, labels=dataset.test_labels[:PUBLIC_IMAGES])


def pixel_statistics(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the public normalisation, in pixels of [0, 1]."""
    pictures = dataset.train_images.dtype == torch.uint8 and not dataset.sequence
    unit = 1.0 if pictures else dataset.scale
    return dataset.mean / unit, dataset.std / unit
