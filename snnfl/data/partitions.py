"""How the training examples are divided among the clients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snnfl import rng
from snnfl.config import ConfigError, DataConfig
from snnfl.data.dirichlet import draw_shares

_Parts: TypeAlias = tuple[Tensor, ...]


def partition(labels: Tensor, config: DataConfig, seed: int, users: Tensor | None = None) -> _Parts:
    """Divide all examples among the clients.

    ``iid``
        equal sizes, to within one.
    ``dirichlet``
        for each label a draw from ``Dir_N(beta)`` says which share of its examples each client gets
        (Hsu et al. 2019; flwr-datasets' ``DirichletPartitioner`` with ``self_balancing=False``).
    ``dirichlet_balanced``
        the same, label after label, but a client that has its ``1/N`` of all examples gets none of the labels that are
        left, and the shares of the others grow (Yurochkin et al. 2019; the code of MOON and NIID-Bench).
    ``quantity``
        one draw ``q ~ Dir_N(beta)`` gives client i the share ``q_i`` of all examples (SNFL section 5.2).
    ``pathological``
        each client has ``classes_per_client`` labels, the first being its number modulo the labels and the others
        random; a label's examples are shared equally (Li et al. 2022; flwr-datasets' partitioner).
    ``natural``
        client i has all examples of the users i, i + clients, i + 2 clients, … in the order of their numbers.

    Which examples make up a share is random everywhere else. A Dirichlet is drawn until each client has
    ``minimum_samples`` (Li et al. 2022, NIID-Bench), or :mod:`~snnfl.data.dirichlet` gives up.

    Args:
        labels: ``int64`` of shape ``[N]``.
        config: Decides the kind, the number of clients and the minimum size.
        seed: Seed of the run; the same arguments give the same partition.
        users: Who each example is from, ``int64`` of shape ``[N]``, if the data set knows it.

    Returns:
        For each client its sorted ``int64`` positions: disjoint, and together ``0..N-1``.

    Raises:
        ConfigError: If a client would have fewer than ``minimum_samples`` examples, an example no client, or a client
            no user.
    """
    needed, count = config.clients * config.minimum_samples, len(labels)
    if needed > count:
        raise ConfigError(
            f"data.clients={config.clients}: with data.minimum_samples={config.minimum_samples} they need {needed} "
            f"training samples, but there are {count}, so the smallest client would have at most "
            f"{count // config.clients}; take fewer clients or smaller data.minimum_samples"
        )
    order = torch.randperm(count, generator=rng.generator(seed, "partition order"))
    if config.partition == "natural":
        parts = _natural(None if users is None else users[order], config)
    else:
        parts = _KINDS[config.partition](labels[order], config, rng.derive_seed(seed, "partition"))
    smallest = min(range(len(parts)), key=lambda client: len(parts[client]))
    if len(parts[smallest]) < config.minimum_samples:
        raise ConfigError(
            f"data.minimum_samples={config.minimum_samples}: client {smallest}, the smallest, would have "
            f"{len(parts[smallest])} training samples; take fewer clients or smaller data.minimum_samples"
        )
    return tuple(order[part].sort().values for part in parts)


def label_counts(labels: Tensor, parts: Sequence[Tensor], classes: int) -> Tensor:
    """Count each client's examples of each label.

    Args:
        labels: ``int64`` of shape ``[N]``, in ``0..classes-1``.
        parts: Positions of each client, as :func:`partition` returns them.
        classes: Number of classes.

    Returns:
        ``int64`` of shape ``[clients, classes]``.
    """
    return torch.stack([torch.bincount(labels[part], minlength=classes) for part in parts])


def _iid(labels: Tensor, config: DataConfig, seed: int) -> _Parts:
    # What flwr-datasets' IidPartitioner does, which takes 6 s for 10,000 clients and doesn't shuffle either.
    return torch.arange(len(labels)).tensor_split(config.clients)


def _quantity(labels: Tensor, config: DataConfig, seed: int) -> _Parts:
    return draw_shares([torch.arange(len(labels))], config, seed)


def _dirichlet(labels: Tensor, config: DataConfig, seed: int) -> _Parts:
    return draw_shares(_by_label(labels), config, seed)


def _dirichlet_balanced(labels: Tensor, config: DataConfig, seed: int) -> _Parts:
    return draw_shares(_by_label(labels), config, seed, balanced=True)


def _by_label(labels: Tensor) -> list[Tensor]:
    """Return the positions of each label that occurs."""
    return [(labels == label).nonzero().flatten() for label in torch.unique(labels)]


def _natural(users: Tensor | None, config: DataConfig) -> _Parts:
    if users is None:
        raise ConfigError(
            f"data.partition=natural: data.source={config.source} doesn't say whose its samples are; choose another "
            "partition, for example dirichlet"
        )
    known, numbers = torch.unique(users, return_inverse=True)
    if config.clients > len(known):
        raise ConfigError(
            f"data.clients={config.clients}: with data.partition=natural each has at least one user, and there are "
            f"{len(known)}; take at most {len(known)}"
        )
    return tuple((numbers % config.clients == client).nonzero().flatten() for client in range(config.clients))


def _pathological(labels: Tensor, config: DataConfig, seed: int) -> _Parts:
    from flwr_datasets.partitioner import PathologicalPartitioner

    sizes = torch.bincount(labels)
    known = sizes.nonzero().flatten()
    if config.classes_per_client > len(known):
        raise ConfigError(
            f"data.classes_per_client={config.classes_per_client}: there are only {len(known)} classes; take fewer"
        )
    partitioner = PathologicalPartitioner(
        config.clients, "label", config.classes_per_client, "first-deterministic", shuffle=False, seed=seed
    )
    try:
        parts = _apply(partitioner, labels, config.clients)
    except ValueError:  # the one that is left: a label with more clients than examples
        raise ConfigError(
            f"data.clients={config.clients}: with data.classes_per_client={config.classes_per_client} a class has more "
            f"clients than samples (the rarest has {int(sizes[known].min())}); take fewer clients or classes per client"
        ) from None
    missing = set(known.tolist()) - set(labels[torch.cat(parts)].tolist())
    if missing:
        raise ConfigError(
            f"data.clients={config.clients}: with data.classes_per_client={config.classes_per_client} nobody has the "
            f"classes {sorted(missing)}; take at least {len(known)} clients, or more classes per client"
        )
    return parts


def _apply(partitioner: Any, labels: Tensor, clients: int) -> _Parts:
    """Let a partitioner of flwr-datasets divide row numbers, by its public interface."""
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"label": labels.tolist(), "row": list(range(len(labels)))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about unused classes, an error here
        return tuple(
            torch.tensor(partitioner.load_partition(client)["row"][:], dtype=torch.int64) for client in range(clients)
        )


_KINDS: dict[str, Callable[[Tensor, DataConfig, int], _Parts]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "dirichlet_balanced": _dirichlet_balanced,
    "quantity": _quantity,
    "pathological": _pathological,
}
