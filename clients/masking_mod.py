"""The client's half of secure aggregation: a mod that masks what leaves, and the answers to the server's questions.

It stands outside of the mod that writes the client's state to its disk: the secrets of a round live in memory, and only
until the round's last step. A run with ``strategy.secure_aggregation`` sends nothing of an update without masks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Array, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.arrays import to_tensors
from clients.flower_internals import filled, whole_numbers
from clients.ground_truth_mod import place_of_truth
from clients.participant import arrays_of, metrics_of, partition_of, round_of, run_workspace
from clients.taken_steps import advance, begin
from snnfl.auditing.recording import write_vector
from snnfl.config import Config, secure_tolerance
from snnfl.masking import FEWEST_CLIENTS, Layout, ProtocolError, Roster, Secrets, layout, wire
from snnfl.masking import participant as steps
from snnfl.masking.identity import IdentityError, read_private, read_public, sign, verify
from snnfl.protocol import ARRAYS, EXAMPLES, IDENTITIES, IDENTITY_KEY, MASKED, METRICS, NOISED, SECURE, STATE_ROUND
from snnfl.rng import derive_seed
from snnfl.updates import summed

SECRETS = "secure-aggregation"
"""Of the state: what a client knows between two steps."""


def advertised_keys(message: Message, context: Context) -> Message:
    """Draw the secrets of a session, whatever an earlier one has left; advertise keys, signed if the node has one."""
    session = wire.fields(_record(message), session=bytes)["session"]
    secrets, public = steps.advertise(session, _own(context), os.urandom)
    key = _identity(context, secrets.own)
    signature = b"" if key is None else sign(key, session, secrets.own, public)
    begin(context, secrets)
    _keep(context, secrets)
    return _answer(message, wire.advertised(public, signature))


def shared_seeds(message: Message, context: Context) -> Message:
    """Share the seeds among the neighbours that follow from who is in the round, if this node knows who they are."""
    secrets = _taken(context)
    session, known = wire.read_roster(_record(message))
    _expect_session(secrets, session)
    rule = _rule(run_workspace(context).config, len(known))
    roster = Roster(session=session, public={client: public for client, (public, _) in known.items()}, rule=rule)
    if (folder := context.node_config.get(IDENTITIES)) is not None:
        nodes = read_public(Path(str(folder)))
        for client in roster.peers(secrets.own):
            verify(nodes, session, client, *known[client])
    after, made = steps.share(secrets, roster)
    advance(context, secrets, after)
    _keep(context, after)
    return _answer(message, wire.shared(made))


def confirmed_survivors(message: Message, context: Context) -> Message:
    """Confirm to each neighbour that is in the sum that it is taken to be."""
    secrets = _taken(context)
    found = wire.fields(_record(message), session=bytes, survivors=(int,), dropped=(int,))
    _expect_session(secrets, found["session"])
    after, tokens = steps.confirm(secrets, found["survivors"], found["dropped"])
    advance(context, secrets, after)
    _keep(context, after)
    return _answer(message, wire.tokens(tokens))


def unmasking_shares(message: Message, context: Context) -> Message:
    """Tell what takes the masks out of the sum, once, to a server that has not declared this client gone."""
    secrets = _taken(context)
    record = dict(_record(message))
    _expect_session(secrets, record.pop("session", b""))
    told = steps.reveal(secrets, wire.read_tokens(record))
    advance(context, secrets, None)
    return _answer(message, wire.revealed(told))


def masking_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Mask the update of a train message; runs without secure aggregation, and other messages, pass through.

    Raises:
        ProtocolError: If the run is one with secure aggregation, and the message or the client's secrets aren't.
    """
    config = run_workspace(context).config
    if not config.strategy.secure_aggregation or message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
        return call_next(message, context)
    secrets = _taken(context)  # nor does the mod that writes the state see them
    record = message.content.get(SECURE)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError("strategy.secure_aggregation=true, but the server asks for an update without masks")
    found = wire.fields(record, session=bytes, senders=(int,), packages=(bytes,), examples=int, follows=bool)
    _expect_session(secrets, found["session"])
    (packages,) = wire.by_client(found["senders"], found["packages"])
    sent, place = to_tensors(arrays_of(message)), place_of_truth(message, context)
    del message.content[SECURE]
    task = task_of(message.content)
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    if NOISED in arrays_of(reply):
        vector = arrays_of(reply)[NOISED].numpy()
    else:
        vector = _vector(reply, context, sent, found["examples"], round_of(message), follows=found["follows"])
    if place is not None:  # what it would tell a server that it colludes with
        write_vector(*place, vector)
    after, masked = steps.mask(secrets, vector, packages, task)
    advance(context, secrets, after)
    _keep(context, after)
    told = {name: value for name, value in metrics_of(reply).items() if name == STATE_ROUND}
    content = RecordDict({ARRAYS: filled([(MASKED, whole_numbers(masked))]), METRICS: MetricRecord(told)})
    return Message(content, reply_to=message)


def task_of(content: RecordDict) -> bytes:
    """Return a hash of all that a server sends: the weights, bit by bit, and the settings."""
    found = hashlib.sha256()
    for name in sorted(content):
        record = content[name]
        items = [(key, record[key]) for key in sorted(record)]
        plain = [
            (key, (value.dtype, value.shape, value.stype, len(value.data)) if isinstance(value, Array) else value)
            for key, value in items
        ]
        line = repr((name, type(record).__name__, plain)).encode()
        found.update(len(line).to_bytes(8) + line)
        for _, value in items:
            if isinstance(value, Array):
                found.update(value.data)
    return found.digest()


def _vector(
    reply: Message, context: Context, sent: Mapping[str, Any], examples: int, server_round: int, *, follows: bool
) -> np.ndarray[Any, Any]:
    """Return the vector that the update of a reply is."""
    work = run_workspace(context)
    seed, strategy = work.config.run.seed, work.config.strategy
    layout = summed(work.config, work.format, examples=examples, follows=follows)
    metrics: dict[str, Any] = dict(metrics_of(reply))
    draw = None
    if strategy.secure_rounding == "stochastic":
        draw = np.random.default_rng(derive_seed(seed, "rounding under masks", server_round, _own(context)))
    return layout.encode(to_tensors(arrays_of(reply)), sent, metrics, int(metrics[EXAMPLES]), draw)


def _rule(config: Config, count: int) -> Layout:
    """Return the rule of a round of so many clients, which a client doesn't have from the server.

    Raises:
        ProtocolError: If the run has no rounds of so few or so many clients.
    """
    fewest, most = max(FEWEST_CLIENTS, config.strategy.minimum_replies), config.data.clients
    if not fewest <= count <= most:
        raise ProtocolError(f"the server names a round of {count} clients, and this run's have {fewest} to {most}")
    return layout(count, secure_tolerance(config))


def _identity(context: Context, own: int) -> EllipticCurvePrivateKey | None:
    """Return the key with which this node signs, if it has one: not one that would make its neighbours leave the round.

    Raises:
        IdentityError: If it cannot be read, or the node knows all nodes' keys and this isn't its own.
    """
    path, folder = context.node_config.get(IDENTITY_KEY), context.node_config.get(IDENTITIES)
    key = None if path is None else read_private(Path(str(path)))
    if folder is not None and (key is None or read_public(Path(str(folder))).get(own) != key.public_key()):
        raise IdentityError(
            f"node config {IDENTITY_KEY}={path}: isn't the private half of node-{own} in {IDENTITIES}={folder}, and "
            f"this node holds partition {own}; no node that knows the others' keys would share with it"
        )
    return key


def _own(context: Context) -> int:
    return partition_of(context, run_workspace(context).config.data.clients)


def _record(message: Message) -> Mapping[str, Any]:
    record = message.content.get(SECURE)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError(f"expected the record {SECURE!r}")
    return record


def _keep(context: Context, secrets: Secrets) -> None:
    context.state[SECRETS] = ConfigRecord(dict(wire.secret(secrets)))


def _taken(context: Context) -> Secrets:
    """Take the secrets out of the state: each step puts back what the next one needs, and the last nothing.

    Of a step that raises Flower may put the old state back, but such a step has told nothing.
    """
    record = context.state.pop(SECRETS, None)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError("this client knows of no round's masks: it has begun anew, or a step has failed")
    return wire.read_secret(record)


def _expect_session(secrets: Secrets, session: bytes) -> None:
    if secrets.session != session:
        raise ProtocolError("the server asks for a step of another session")


def _answer(message: Message, record: wire.Record) -> Message:
    return Message(RecordDict({SECURE: ConfigRecord(dict(record))}), reply_to=message)
