"""Records that travel: what is written is read, and whatever else is an error that says so."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl.masking import Layout, ProtocolError, Roster, advertise, mask, share, wire

SESSION = bytes(32)
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=40),
    st.lists(st.integers(), max_size=3), st.lists(st.binary(max_size=33), max_size=3),
)  # fmt: skip
READERS = {
    wire.read_advertised: ("mask", "channel", "signature"),
    wire.read_roster: ("session", "clients", "mask", "channel", "signatures"),
    wire.read_shared: ("clients", "packages", "self-digests", "key-digests", "commitment"),
    wire.read_tokens: ("clients", "tokens"),
    wire.read_revealed: ("seed", "survivors", "self-shares", "dropped", "key-shares"),
}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(READERS)), st.data())
def test_any_record_is_read_or_refused(read, data):
    """No reader raises anything else, whatever a stranger writes."""
    record = {name: data.draw(values) for name in READERS[read]}
    record |= data.draw(st.dictionaries(st.text(max_size=4), values, max_size=1))
    with suppress(ProtocolError):
        read(record)


def test_what_a_client_keeps_is_read_back():
    secrets, public = advertise(SESSION, 3, os.urandom)
    assert wire.read_secret(wire.secret(secrets)) == secrets
    pairs = {client: advertise(SESSION, client, os.urandom) for client in (1, 2, 4, 5)}
    known = {3: public} | {client: keys for client, (_, keys) in pairs.items()}
    roster = Roster(session=SESSION, public=known, rule=Layout(neighbours=4, threshold=3))
    secrets, _ = share(secrets, roster)
    assert wire.read_secret(wire.secret(secrets)) == secrets
    packages = {}
    for client, (own, _) in pairs.items():
        packages[client] = share(own, roster)[1].packages[3]
    secrets, _ = mask(secrets, np.zeros(1, "<u4"), packages, bytes(32))
    assert len(secrets.held) == 4
    assert wire.read_secret(wire.secret(secrets)) == secrets
    assert wire.read_advertised(wire.advertised(public, b"signed")) == (public, b"signed")
    signed = {client: (keys, bytes([client])) for client, keys in known.items()}
    assert wire.read_roster(wire.roster(SESSION, signed, signed)) == (SESSION, dict(sorted(signed.items())))
    told = wire.read_roster(wire.roster(SESSION, signed, roster.graph[3]))[1]
    assert told == {client: (keys, b"" if client == 3 else bytes([client])) for client, keys in known.items()}
    for client in (-1, 2**64):
        with pytest.raises(ProtocolError, match="numbered from 0 on"):
            wire.read_roster(wire.roster(SESSION, {client: signed[1]}, ()))
    tokens = {4: bytes(32), 1: bytes(31) + b"1"}
    assert wire.read_tokens(wire.tokens(tokens)) == tokens


@pytest.mark.parametrize(("clients", "message"), [([2, 1], "increasing"), ([1, 1], "increasing"), ([1], "lengths")])
def test_clients_stand_in_order_and_once(clients, message):
    with pytest.raises(ProtocolError, match=message):
        wire.read_tokens({"clients": clients, "tokens": [bytes(32)] * 2})
