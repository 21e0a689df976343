"""Networks of anybody, made into what membership attacks are tried on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from snnfl.auditing.membership import Trained, Trials
from snnfl.config import ConfigError
from snnfl.membership_attacks import MEMBERSHIP_ATTACKS, get_membership_attack
from snnfl.membership_attacks.signals import AnyNetwork, measure
from snnfl.spiking import SpikingNetwork
from snnfl.threat import MembershipKnowledge

TRAINED_BY_US = frozenset({"overlap", "disjoint"})
"""Facts for which more is needed than networks: attacks on given ones do without."""

INDEPENDENT = 20
"""From so many samples on, equal members of two networks are no accident: of halves it has a chance of 2^-20."""


def applicable(attacks: Iterable[str]) -> tuple[str, ...]:
    """Return the attacks that are asked for, or all that need no more than networks and samples.

    Raises:
        ConfigError: For an unknown attack.
    """
    named = tuple(get_membership_attack(name).name for name in attacks)
    return named or tuple(attack.name for attack in MEMBERSHIP_ATTACKS if not attack.needs & TRAINED_BY_US)


def trials_of_networks(
    networks: Sequence[AnyNetwork],
    inputs: Tensor,
    labels: Tensor,
    members: Tensor,
    *,
    nobody: tuple[Tensor, Tensor] | None = None,
    attacks: Sequence[str] = (),
    knowledge: MembershipKnowledge | None = None,
    targets: Sequence[int] | None = None,
) -> Trials:
    """Ask networks about samples.

    Args:
        networks: Map ``[batch, *input_shape]`` to logits ``[batch, classes]``; trained in the same way.
        inputs: Samples, ``[N, *input_shape]``, as the networks take them, without augmentation.
        labels: ``[N]``, int64.
        members: Which network was trained on which sample, bool ``[K, N]``.
        nobody: Inputs and labels of samples that no network was trained on.
        attacks: Names, which decide what is asked.
        knowledge: The threat model; ``None`` for all facts.
        targets: Numbers of the networks to attack; ``None`` for all.

    Raises:
        ConfigError: Naming what doesn't fit.
    """
    _check(networks, inputs, labels, members, nobody, targets)
    _check_answers(networks, inputs, labels if nobody is None else torch.cat([labels.cpu(), nobody[1].cpu()]))
    needs = frozenset().union(*(get_membership_attack(name).needs for name in attacks)) if attacks else frozenset()
    asked = {fact: fact in needs for fact in ("perturbed", "white_box")}
    found = [
        Trained(
            signals=measure(network, inputs, **asked),
            members=own.bool().cpu(),
            population=None if nobody is None else measure(network, nobody[0], **asked),
        )
        for network, own in zip(networks, members, strict=True)
    ]
    return Trials(
        inputs=inputs.cpu(),
        labels=labels.cpu(),
        networks=found,
        nobody=None if nobody is None else (nobody[0].cpu(), nobody[1].cpu()),
        knowledge=knowledge or MembershipKnowledge(),
        targets=targets,
    )


def _check(
    networks: Sequence[AnyNetwork],
    inputs: Tensor,
    labels: Tensor,
    members: Tensor,
    nobody: tuple[Tensor, Tensor] | None,
    targets: Sequence[int] | None,
) -> None:
    given = {"inputs": inputs, "labels": labels, "members": members}
    if nobody is not None:
        given |= {"nobody[0]": nobody[0], "nobody[1]": nobody[1]}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"{name}: expected a torch.Tensor, found {type(value).__name__}; torch.as_tensor makes one"
            )
    if isinstance(networks, nn.Module | SpikingNetwork):  # a Sequential would be taken for a list of its layers
        raise ConfigError("networks: expected a list of networks; of one alone it is [network]")
    if not networks:
        raise ConfigError("networks=[]: nothing to attack; give at least one trained network")
    for number, network in enumerate(networks):
        if not isinstance(network, nn.Module | SpikingNetwork):
            raise ConfigError(f"networks[{number}]: expected a torch.nn.Module, found {type(network).__name__}")
    if tuple(members.shape) != (len(networks), len(inputs)):
        expected = f"[{len(networks)}, {len(inputs)}]"
        raise ConfigError(f"members of shape {list(members.shape)}: expected {expected}, a row for each network")
    if tuple(labels.shape) != (len(inputs),) or labels.is_floating_point():
        raise ConfigError(f"labels of shape {list(labels.shape)} and {labels.dtype}: expected integers, one a sample")
    chosen = range(len(networks)) if targets is None else targets
    if wrong := [target for target in chosen if not 0 <= target < len(networks)]:
        raise ConfigError(f"targets: there is no network {wrong[0]}; they count from 0 to {len(networks) - 1}")
    for number in chosen:
        own = members[number].bool()
        if own.all() or not own.any():
            side = "every" if own.all() else "no"
            raise ConfigError(f"members[{number}]: {side} sample is a member; give samples of both kinds")
    _check_drawn(members.bool(), chosen)
    if not torch.isfinite(inputs).all():
        raise ConfigError("inputs: a value is no finite number")
    if nobody is not None:
        _check_nobody(inputs, *nobody)


def _check_drawn(members: Tensor, targets: Iterable[int]) -> None:
    """Refuse shadows whose members are the target's, or all others: to know theirs is to know who was in.

    Raises:
        ConfigError: Naming both networks.
    """
    if members.shape[1] < INDEPENDENT:
        return
    for number in targets:
        for other in range(len(members)):
            same = members[other] == members[number]
            if other != number and (same.all() or not same.any()):
                raise ConfigError(
                    f"members[{other}] {'are' if same.all() else 'are all but'} members[{number}], so that shadows "
                    "give the target's away; draw each network's members by itself"
                )


def _check_nobody(inputs: Tensor, others: Tensor, labels: Tensor) -> None:
    """Refuse samples of nobody that networks may have been trained on.

    Raises:
        ConfigError: Saying how many.
    """
    if len(others) != len(labels):
        raise ConfigError(f"nobody: {len(others)} samples and {len(labels)} labels; give one a sample")
    asked = {hash(sample.numpy().tobytes()) for sample in inputs.detach().cpu()}
    known = sum(hash(sample.numpy().tobytes()) in asked for sample in others.detach().cpu())
    if 2 * known > len(others):  # a few samples are twice in many a data set
        raise ConfigError(
            f"nobody: {known} of its {len(others)} samples are among inputs; give some that no network was trained on"
        )


def _check_answers(networks: Sequence[AnyNetwork], inputs: Tensor, labels: Tensor) -> None:
    """Ask each network about two samples, before any is asked about all.

    Raises:
        ConfigError: If it fails, gives no logits, or fewer than there are labels.
    """
    some = inputs[:2]
    for number, network in enumerate(networks):
        try:
            logits = measure(network, some).logits
        except Exception as error:  # of somebody else's code
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"networks[{number}] fails on inputs of shape {list(some.shape)} ({reason})") from None
        if logits.dim() != 2 or len(logits) != len(some):
            raise ConfigError(f"networks[{number}] maps {list(some.shape)} to {list(logits.shape)}; expected logits")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            wrong = low if low < 0 else high
            raise ConfigError(f"labels: {wrong} is none of the {logits.shape[1]} classes that networks[{number}] has")
