"""From a recording to victims: what the server has of each client, and apart from it what scoring may know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from snnfl.auditing.checked import read_checked, read_checked_truth
from snnfl.auditing.cohorts import check_present, cohorts, listed
from snnfl.auditing.differences import AlikeRoundsError, read_differences
from snnfl.auditing.generative_model import check_generative_model
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.orders import SHORT, flags_of, gradient_length, unrepeated_orders
from snnfl.auditing.recording import Received, RecordingError, check_rounds
from snnfl.auditing.setting import Recorded, Setting
from snnfl.auditing.sums import joined_orders, read_sums
from snnfl.config import OWN, ConfigError, client_side, prefixed
from snnfl.data import Dataset, epoch_orders
from snnfl.metrics.augmented import Freedom
from snnfl.protocol import EXAMPLES
from snnfl.threat import (
    FACTS,
    Exchange,
    Knowledge,
    PublicImages,
    ServerView,
    ThreatModelError,
    unrepeated,
)
from snnfl.training import learning_rate
from snnfl.workspace import Workspace

PUBLIC_IMAGES = 2000
"""Images of the test split, which the server holds, that attacks may look at, at most."""

MOST_ORDERED = 100_000
"""Examples of all epochs of a client whose order is drawn, at most: it may claim to have any number."""

SMALL = 100_000
"""Parameters of a network up to which all of these go through it; a larger one sees a quarter, for time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A client in a round.

    Attributes:
        server_round: Counted from 1.
        partition: Of the client.
        view: All that an attack gets.
        truth: What its result is scored against; ``None`` where nobody consented. Of a sum that of all its clients, one
            after the other.
        members: Of a sum, how many images each of its clients has, by partition; empty for a client's own update.
    """

    server_round: int
    partition: int
    view: ServerView
    truth: GroundTruth | None
    members: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Who is attacked, by an attacker who knows what.

    Attributes:
        rounds: Empty for all that are recorded. Earlier ones are known to the attacker all the same.
        partitions: Empty for all.
        labels: Whether the attacker is given the private labels, which makes its results a diagnosis.
        denied: What the attacker is not to know.
        generative_model: What the attacker has trained on images of the same kind.
        colluding: Of how many clients of each sum the attacker knows the updates, too.
        differences: Whether the attacker tells clients apart by the sums of all recorded rounds.
    """

    rounds: frozenset[int] = frozenset()
    partitions: frozenset[int] = frozenset()
    labels: bool = False
    denied: frozenset[str] = frozenset()
    generative_model: nn.Module | None = None
    colluding: int = 0
    differences: bool = False

    def __contains__(self, received: Received) -> bool:
        """Tell whether an update is attacked; a sum is if one of its clients is asked for."""
        chosen = not self.rounds or received.server_round in self.rounds
        return chosen and (not self.partitions or bool(self.partitions & _senders(received)))


def _senders(received: Received) -> frozenset[int]:
    """Return whose update it is, or the sum of whose."""
    return frozenset(received.members or {received.partition})


def scope_of(
    *,
    rounds: Iterable[int],
    partitions: Iterable[int],
    labels: bool,
    denied: Iterable[str],
    generative_model: nn.Module | None = None,
    colluding: int = 0,
    differences: bool = False,
) -> Scope:
    """Check and collect what a person asked for; empty means all.

    Raises:
        ConfigError: For a fact that no threat model knows, or one that is denied and asked for.
    """
    facts = frozenset(denied)
    for name in sorted(facts):
        FACTS.find(name)
    if colluding and "other_clients" in facts:
        raise ConfigError(
            f"--colluding {colluding}: tells updates of other_clients, which --deny takes away; leave one"
        )
    if differences and "earlier_rounds" in facts:
        raise ConfigError("--differences: are of several rounds, and --deny takes earlier_rounds away; leave one")
    if differences and colluding:
        raise ConfigError(f"--differences and --colluding {colluding}: are two attackers; audit one after the other")
    return Scope(
        rounds=frozenset(rounds),
        partitions=frozenset(partitions),
        labels=labels,
        denied=facts,
        generative_model=generative_model,
        colluding=colluding,
        differences=differences,
    )


def setting_of(work: Workspace, colluding: int = 0, *, differences: bool = False) -> Setting:
    """Return what an audit must know of a run of ours: its configuration tells everything.

    Args:
        work: Of the run.
        colluding: How many clients of each sum tell the server their updates (:mod:`snnfl.auditing.sums`).
        differences: Whether sums of several rounds are compared (:mod:`snnfl.auditing.differences`).

    Raises:
        ConfigError: For clients that collude, or differences, where the server sees each update.
    """
    config = work.config
    secure = config.strategy.secure_aggregation
    if colluding and not secure:
        raise ConfigError(
            f"--colluding {colluding}: the server of {config.run.name} sees each client's update, there is no sum to "
            "take any out of; leave it out"
        )
    if differences and not secure:
        raise ConfigError(
            f"--differences: the server of {config.run.name} sees each client's update, there are no sums to compare; "
            "leave it out"
        )
    recorded: Recorded = partial(read_checked, work)
    if secure:
        recorded = partial(read_differences, work) if differences else partial(read_sums, work, colluding)
    unlike = unrepeated(config, normalises=bool(work.format.statistic_names))
    return Setting(
        name=config.run.name,
        algorithm=prefixed(config, config.strategy.name),
        seed=config.run.seed,
        dataset=_held_by_the_server(work),
        model=work.model,
        format=work.format,
        initial_state=work.initial_state,
        knowledge=partial(knowledge_of, work),
        beyond=lambda received: (*unlike, *unrepeated_orders(received), *_unlike_each_other(work, received)),
        recorded=recorded,
        told=partial(read_checked_truth, work),
        orders=partial(_orders, work),
        freedom=_freedom(work),
        sums=secure,
        differences=differences,
        cohorts=partial(cohorts, config.data.clients) if secure else lambda folder, rounds: (),
    )


def _unlike_each_other(work: Workspace, received: Received) -> tuple[str, ...]:
    """Say why the mean of several clients' updates isn't what attacks make of as many alike."""
    sizes, strategy, found = {*received.members.values()}, work.config.strategy, list[str]()
    if len(received.members) < 2:
        return ()
    if client_side(work.config).own_model:
        found.append("models of their own that they compare with, of which a sum tells none")
    one_step = knowledge_of(work, received, False, ()).steps == 1 and not work.format.statistic_names
    weighs = strategy.weighting == "examples" and work.config.privacy.mechanism != "distributed"
    if len(sizes) > 1 and not (one_step and weighs):
        found.append(f"{min(sizes)} to {max(sizes)} images each, of which only the mean is seen")
    return tuple(found)


def _held_by_the_server(work: Workspace) -> Dataset:
    """Return the data set that a server has.

    Where each node has its own, it is the server's own, if any: every other sample stands for the test split, the rest
    for the training split, of which the candidates of the identification are.
    """
    own = work.server_data
    if work.config.data.source != OWN:
        return own
    images, labels = own.test_images, own.test_labels
    return replace(
        own, train_images=images[1::2], train_labels=labels[1::2], test_images=images[::2], test_labels=labels[::2]
    )


def _freedom(work: Workspace) -> Freedom | None:
    data = work.dataset
    pictures = work.config.data.augment and data.kind == "images"
    return Freedom(padding=data.padding, flip=data.flip) if pictures else None


def _orders(work: Workspace, received: Received) -> Tensor | None:
    """Draw the order of a client's images as the client does, from the seed that the server chose.

    Of clients that claim more examples than anybody attacks there is none.
    """
    config, count = work.config, int(received.metrics[EXAMPLES])
    if received.members:
        alone = [replace(received, partition=c, metrics={EXAMPLES: n}, members={}) for c, n in received.members.items()]
        return joined_orders([_orders(work, each) for each in alone])
    if count * config.training.epochs > MOST_ORDERED:
        return None
    draw = work.batch_draw(received.server_round, received.partition)
    augment, size = config.data.augment, config.training.batch_size
    return epoch_orders(work.dataset, count, size, config.training.epochs, generator=draw, augment=augment)


def victims_of(setting: Setting, folder: Path, scope: Scope) -> list[Victim]:
    """Lay out the victims of a recorded federation, in the order of rounds and clients.

    Args:
        setting: What the server knows of model, data and conversion.
        folder: That of the recording, ``runs/NAME/audit``.
        scope: Rounds, clients and threat model.

    Raises:
        ConfigError: For a generative model that draws no such images, or if differences tell nobody of whom is asked.
        RecordingError: If the recording isn't there, is damaged or doesn't hold what is to be attacked.
        ThreatModelError: If labels are granted that no client told.
    """
    if scope.generative_model is not None:
        check_generative_model(scope.generative_model, setting.dataset.input_shape)
    earlier: dict[frozenset[int], list[Exchange]] = {}
    victims, seen = list[Victim](), set[int]()
    check_rounds(folder, scope.rounds)
    if scope.partitions:
        check_present(setting.cohorts(folder, scope.rounds), scope.partitions)
    for received in setting.recorded(folder, scope.rounds if scope.differences else frozenset()):
        if scope.rounds and received.server_round > max(scope.rounds):
            break  # what came later, no attacker of these rounds has
        before = earlier.setdefault(_senders(received), [])
        if not scope.rounds or received.server_round in scope.rounds:
            seen |= _senders(received)
        if received in scope:
            truth = _truth(setting, folder, received)
            if scope.labels and truth is None:
                raise ThreatModelError("the labels cannot be given: the run has no ground truth (audit.ground_truth)")
            labels = truth.labels if truth is not None and scope.labels else None
            victims.append(
                Victim(
                    server_round=received.server_round,
                    partition=received.partition,
                    view=server_view(setting, received, tuple(before), scope, labels),
                    truth=truth,
                    members=received.members,
                )
            )
        before.append(received.exchange)
    if scope.differences and not victims:
        raise AlikeRoundsError(
            f"--differences: {listed(scope.partitions)} cannot be told from the others; {listed(seen)} can"
        )
    if not scope.differences and (missing := sorted(scope.partitions - seen)):
        raise RecordingError(f"{folder}: client {missing[0]} is not recorded in these rounds, only {sorted(seen)}")
    if not victims:
        raise RecordingError(f"{folder}: no recorded update is among the rounds and clients that are asked for")
    return victims


def _truth(setting: Setting, folder: Path, received: Received) -> GroundTruth | None:
    """Return what the senders of an update told; ``None`` if one of them didn't."""
    clients = sorted(_senders(received))
    told = [setting.told(folder, received.server_round, client) for client in clients]
    known = [each for each in told if each is not None]
    if len(known) < len(told):
        return None
    if len(known) == 1:
        return known[0]
    whole = all(len(each.images) == len(each.labels) for each in known)
    images = [each.images if whole else each.images[:0] for each in known]
    return GroundTruth(images=torch.cat(images), labels=torch.cat([each.labels for each in known]))


def server_view(
    setting: Setting, received: Received, earlier: tuple[Exchange, ...], scope: Scope, labels: Tensor | None
) -> ServerView:
    """Return what the server holds of a client, less what the threat model denies.

    A client that never trained starts from the run's initial weights, and from what was sent where that was sent.
    """
    knowledge = setting.knowledge(received, scope.labels, scope.denied)
    brought = None if "generative_model" in scope.denied else scope.generative_model
    public = public_images(setting) if knowledge.public_images else None
    knowledge = replace(knowledge, generative_model=brought is not None, public_images=public is not None)
    mean, std = pixel_statistics(setting.dataset)
    return ServerView(
        model=setting.model,
        input_shape=setting.dataset.input_shape,
        mean=mean,
        std=std,
        exchange=received.exchange,
        knowledge=knowledge,
        labels=labels,
        format=setting.format,
        initial={**setting.initial_state, **received.exchange.sent} if knowledge.initial_weights else None,
        earlier=earlier if knowledge.earlier_rounds else (),
        orders=setting.orders(received) if knowledge.batch_order and knowledge.steps is not None else None,
        generative_model=brought,
        public=public,
        sequence=setting.dataset.sequence,
        beyond=setting.beyond(received),
    )


def knowledge_of(work: Workspace, received: Received, labels: bool, denied: Iterable[str]) -> Knowledge:
    """Return the threat model of a run of ours: what the server knows by running the federation, less the denied.

    The server chose architecture, loss, batch size, epochs and learning rate; the reply says how many images. Where
    that is denied, the batch size is the configured one, be there as few images as may.
    """
    training, images = work.config.training, int(received.metrics[EXAMPLES])
    sizes = list(received.members.values()) or [images]
    known = Knowledge(
        labels=labels,
        images=images,
        batch_size=sum(training.batch_size if "images" in denied else min(training.batch_size, n) for n in sizes),
        epochs=training.epochs,
        learning_rate=learning_rate(training, received.server_round),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        upload_bits=work.config.quantization.uploads or None,
        clients=len(sizes),
        colluding=received.colluding,
        rounds=received.rounds,
        biases=not work.format.hides_biases,
        thresholds=bool(work.format.threshold_names) and received.rounds == 1,
        crafted_weights=work.config.audit.crafted != "none" and received.server_round in work.config.audit.rounds,
    )
    alone = len(sizes) == received.rounds == 1 and work.config.privacy.mechanism != "distributed"  # noise tells neither
    whole = alone and not work.format.hides_biases and not work.format.private_names
    flags = flags_of(received, whole=whole)
    if training.clip_norm is not None and known.steps == 1 and not flags.get("clipped"):
        seen = whole and not {"learning_rate", "optimizer"} & {*denied}
        shortened = not seen or gradient_length(received, known) > SHORT * training.clip_norm
        flags["clipped"] = flags["clipped_gradient"] = shortened
    return replace(known, **flags).without(denied)


@lru_cache(maxsize=1)
def public_images(setting: Setting) -> PublicImages | None:
    """Return what a server holds of the data without having any client's: the first images of the test split."""
    dataset = setting.dataset
    if not len(dataset.test_images):
        return None
    parameters = sum(parameter.numel() for parameter in setting.model.parameters())
    count = PUBLIC_IMAGES if parameters <= SMALL else PUBLIC_IMAGES // 4
    labels = dataset.test_labels[:count] if setting.labelled else None
    return PublicImages(inputs=dataset.normalise(dataset.test_images[:count]), labels=labels)


def pixel_statistics(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the public normalisation, in pixels of [0, 1]."""
    if dataset.train_images.dtype == torch.uint8 and not dataset.sequence:
        return dataset.mean, dataset.std
    return dataset.pixels(dataset.mean), dataset.std / (dataset.scale - dataset.lowest)
