"""What travels between a server and its clients in secure aggregation, as records of bytes and numbers.

Either side reads what an enemy may have written: a record holds exactly the fields that are named here, each of exactly
its type, lists of one length, clients in increasing order; anything else is a :class:`ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from snnfl.masking.keys import KEY_BYTES, SEED_BYTES, ProtocolError, PublicKeys
from snnfl.masking.participant import Revealed, Secrets, Shared, Step

Record: TypeAlias = dict[str, bytes | int | bool | str | list[bytes] | list[int]]

MOST_BYTES = 10_000
"""Of a field, such as a signature: more than any honest one has."""

LARGEST = 2**63
"""Above each number of a client."""

_STEPS: tuple[Step, ...] = ("advertised", "shared", "masked", "confirmed")


def fields(record: Mapping[str, Any], **kinds: type | tuple[type]) -> dict[str, Any]:
    """Check a record; a tuple of one type stands for a list of it, and ``_`` in a name for ``-``.

    Raises:
        ProtocolError: Naming the first field that is missing, unknown or of another type.
    """
    wanted = {name.replace("_", "-"): kind for name, kind in kinds.items()}
    if unknown := record.keys() ^ wanted.keys():
        raise ProtocolError(f"field {min(unknown)[:40]!r} is {'unknown' if min(unknown) in record else 'missing'}")
    for name, kind in wanted.items():
        value = record[name]
        items = value if isinstance(kind, tuple) and isinstance(value, list) else [value]
        one = kind[0] if isinstance(kind, tuple) else kind
        if isinstance(kind, tuple) is not isinstance(value, list) or any(type(item) is not one for item in items):
            raise ProtocolError(f"field {name!r} is no {'list of ' if isinstance(kind, tuple) else ''}{one.__name__}")
        if any(isinstance(item, bytes | str) and len(item) > MOST_BYTES for item in items):
            raise ProtocolError(f"field {name!r} has more than {MOST_BYTES} bytes")
    return {name.replace("-", "_"): record[name] for name in wanted}


def by_client(clients: Iterable[int], *columns: Iterable[Any]) -> list[dict[int, Any]]:
    """Return columns of a record by client.

    Raises:
        ProtocolError: If they are of different lengths, or clients aren't in increasing order.
    """
    numbers = list(clients)
    if numbers != sorted(set(numbers)):
        raise ProtocolError("clients aren't in increasing order")
    made = [list(column) for column in columns]
    if any(len(column) != len(numbers) for column in made):
        raise ProtocolError("lists of different lengths")
    return [dict(zip(numbers, column, strict=True)) for column in made]


def advertised(public: PublicKeys, signature: bytes) -> Record:
    """Lay out what a client advertises; an empty signature stands for none."""
    return {"mask": public.mask, "channel": public.channel, "signature": signature}


def read_advertised(record: Mapping[str, Any]) -> tuple[PublicKeys, bytes]:
    """Read it."""
    found = fields(record, mask=bytes, channel=bytes, signature=bytes)
    return PublicKeys(mask=found["mask"], channel=found["channel"]), found["signature"]


def roster(session: bytes, known: Mapping[int, tuple[PublicKeys, bytes]], neighbours: Collection[int]) -> Record:
    """Lay out what the server tells a client: who is in the session, with the keys of each.

    Signatures are longer than keys, and a client checks its neighbours' alone: the others' stay out.
    """
    clients = sorted(known)
    return {
        "session": session,
        "clients": clients,
        "mask": [known[client][0].mask for client in clients],
        "channel": [known[client][0].channel for client in clients],
        "signatures": [known[client][1] if client in neighbours else b"" for client in clients],
    }


def read_roster(record: Mapping[str, Any]) -> tuple[bytes, dict[int, tuple[PublicKeys, bytes]]]:
    """Read it.

    Raises:
        ProtocolError: If it is none, or names a client by no number from 0 on.
    """
    of_each = {"clients": (int,), "mask": (bytes,), "channel": (bytes,), "signatures": (bytes,)}
    found = fields(record, session=bytes, **of_each)
    masks, channels, signatures = by_client(found["clients"], found["mask"], found["channel"], found["signatures"])
    if masks and not 0 <= min(masks) <= max(masks) < LARGEST:
        raise ProtocolError(f"clients are numbered from 0 on, below {LARGEST}")
    return found["session"], {n: (PublicKeys(mask=masks[n], channel=channels[n]), signatures[n]) for n in masks}


def shared(made: Shared) -> Record:
    """Lay out what a client shares."""
    clients = sorted(made.packages)
    return {
        "clients": clients,
        "packages": [made.packages[client] for client in clients],
        "self-digests": [made.digests[client][0] for client in clients],
        "key-digests": [made.digests[client][1] for client in clients],
        "commitment": made.commitment,
    }


def read_shared(record: Mapping[str, Any]) -> Shared:
    """Read it."""
    found = fields(
        record, clients=(int,), packages=(bytes,), self_digests=(bytes,), key_digests=(bytes,), commitment=bytes
    )
    packages, first, second = by_client(
        found["clients"], found["packages"], found["self_digests"], found["key_digests"]
    )
    digests = {client: (first[client], second[client]) for client in packages}
    return Shared(packages=packages, digests=digests, commitment=found["commitment"])


def tokens(made: Mapping[int, bytes]) -> Record:
    """Lay out tokens by client: what one confirms to its neighbours, and what these have confirmed to it."""
    clients = sorted(made)
    return {"clients": clients, "tokens": [made[client] for client in clients]}


def read_tokens(record: Mapping[str, Any]) -> dict[int, bytes]:
    """Read them."""
    found = fields(record, clients=(int,), tokens=(bytes,))
    return by_client(found["clients"], found["tokens"])[0]


def revealed(told: Revealed) -> Record:
    """Lay out what a client tells of the masks."""
    return {
        "seed": told.self_seed,
        "survivors": list(told.self_shares),
        "self-shares": list(told.self_shares.values()),
        "dropped": list(told.key_shares),
        "key-shares": list(told.key_shares.values()),
    }


def read_revealed(record: Mapping[str, Any]) -> Revealed:
    """Read it."""
    found = fields(record, seed=bytes, survivors=(int,), self_shares=(bytes,), dropped=(int,), key_shares=(bytes,))
    (self_shares,) = by_client(found["survivors"], found["self_shares"])
    (key_shares,) = by_client(found["dropped"], found["key_shares"])
    return Revealed(self_seed=found["seed"], self_shares=self_shares, key_shares=key_shares)


def secret(known: Secrets) -> Record:
    """Lay out what a client keeps from step to step, in its memory and nowhere else.

    It does so for each message: what there is of each neighbour stands in one field, for Flower checks each item of a
    list.
    """
    clients, held = sorted(known.peers), sorted(known.held)
    return {
        "session": known.session,
        "own": known.own,
        "step": known.step,
        "self-seed": known.self_seed,
        "key-seed": known.key_seed,
        "channel": known.channel,
        "threshold": known.threshold,
        "roster": known.roster,
        "task": known.task,
        "alive": list(known.alive),
        "clients": clients,
        "masks": b"".join(known.peers[client] for client in clients),
        "agreed": b"".join(known.agreed[client] for client in clients),
        "held": held,
        "shares": b"".join(share for client in held for share in known.held[client]),
    }


def read_secret(record: Mapping[str, Any]) -> Secrets:
    """Read it."""
    clients, shares = record["clients"], _cut(record["shares"], SEED_BYTES)
    return Secrets(
        session=record["session"],
        own=record["own"],
        step=_STEPS[_STEPS.index(record["step"])],
        self_seed=record["self-seed"],
        key_seed=record["key-seed"],
        channel=record["channel"],
        threshold=record["threshold"],
        roster=record["roster"],
        task=record["task"],
        agreed=dict(zip(clients, _cut(record["agreed"], KEY_BYTES), strict=True)),
        peers=dict(zip(clients, _cut(record["masks"], KEY_BYTES), strict=True)),
        alive=tuple(record["alive"]),
        held=dict(zip(record["held"], zip(shares[::2], shares[1::2], strict=True), strict=True)),
    )


def _cut(text: bytes, size: int) -> list[bytes]:
    return [text[start : start + size] for start in range(0, len(text), size)]
