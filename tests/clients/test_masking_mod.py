"""What a client of secure aggregation refuses to do for its server."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flwr.app import ConfigRecord, Message, RecordDict

from clients.client_app import app
from clients.masking_mod import task_of
from snnfl.masking import ProtocolError, PublicKeys, advertise, wire
from snnfl.masking.identity import IdentityError, sign
from snnfl.workspace import workspace

SESSION = bytes(32)


@pytest.fixture
def config(configure):
    return configure("strategy.secure_aggregation=true", "model.name=mlp", "run.keep_checkpoints=0")


@pytest.fixture
def context(config, context_of):
    return context_of(config)


def asked(question: str, record: object) -> Message:
    message = Message(RecordDict({"secure": ConfigRecord(dict(record))}), 100, f"query.{question}")
    message.metadata.__dict__["_message_id"] = "asked"
    return message


def with_own(public: PublicKeys, known: dict[int, tuple[PublicKeys, bytes]]) -> dict[int, tuple[PublicKeys, bytes]]:
    """Return who is in a round, client 0 with what it has advertised."""
    return {0: (public, b""), **known}


def begun(context) -> PublicKeys:
    reply = app(asked("secure_keys", {"session": SESSION}), context)
    return wire.read_advertised(reply.content["secure"])[0]


def listed(known: dict[int, tuple[PublicKeys, bytes]]) -> wire.Record:
    """Return the list of a round that is so small that all are neighbours."""
    return wire.roster(SESSION, known, known)


def neighbours(count: int = 3) -> dict[int, tuple[PublicKeys, bytes]]:
    return {client: (advertise(SESSION, client, os.urandom)[1], b"") for client in range(1, 1 + count)}


def test_no_update_leaves_without_masks(config, context, ask):
    """A server that forgets the protocol, or its client's place in it, gets an error and no update."""
    state = {name: workspace(config).initial_state[name] for name in workspace(config).format.sent_specs}
    with pytest.raises(ProtocolError, match="this client knows of no round's masks"):
        app(ask("train", state), context)
    begun(context)
    with pytest.raises(ProtocolError, match="asks for an update without masks"):
        app(ask("train", state), context)
    message = ask("train", state)
    order = {"session": SESSION, "senders": [1], "packages": [b""], "examples": 80, "follows": False}
    message.content["secure"] = ConfigRecord(order)
    begun(context)
    with pytest.raises(ProtocolError, match="asks for a step after 'shared'"):
        app(message, context)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "'session' is missing"),
        ({"session": "x" * 32}, "'session' is no bytes"),
        ({"session": bytes(31)}, "a session of 31 bytes"),
        ({"session": SESSION, "more": 1}, "'more' is unknown"),
        ({"session": bytes(20_000)}, "more than 10000 bytes"),
    ],
)
def test_questions_are_checked_as_hostile_input(record, reason, context):
    with pytest.raises(ProtocolError, match=reason):
        app(asked("secure_keys", record), context)


def test_who_is_in_the_round_is_checked(context):
    known = neighbours()
    for change, reason in (
        ({"clients": [0, 1, 1, 2]}, "aren't in increasing order"),
        ({"clients": [-1, 0, 1, 2]}, "numbered from 0 on"),
        ({"clients": [1, 2, 3, 4]}, "doesn't name client 0"),
        ({"mask": [bytes(32)] * 2}, "lists of different lengths"),
        ({"mask": [bytes(32)] * 4}, "names one key twice"),
        ({"mask": [bytes(31)] * 4}, "expected public keys of 32 bytes"),
        ({"threshold": 1}, "'threshold' is unknown"),  # nor can the server name a graph, for both follow
        ({"session": bytes(31) + b"1"}, "another session"),
    ):
        good = listed(with_own(begun(context), known))
        with pytest.raises(ProtocolError, match=reason):
            app(asked("secure_shares", {**good, **change}), context)
    for count in (1, 20):
        good = listed(with_own(begun(context), neighbours(count)))
        with pytest.raises(ProtocolError, match=f"a round of {count + 1} clients, and this run's have 3 to 20"):
            app(asked("secure_shares", good), context)
    begun(context)
    with pytest.raises(ProtocolError, match="keys for this client that it hasn't advertised"):
        app(asked("secure_shares", listed({0: neighbours(1)[1], **known})), context)


def test_secrets_of_a_round_never_reach_the_disk(config, context_of, ask, tmp_path):
    """They stand in the state between messages, and the mod that writes the state doesn't see them."""
    from clients.masking_mod import SECRETS

    context = context_of(config)
    context.node_config["state-directory"] = str(tmp_path)
    begun(context)
    assert SECRETS in context.state
    state = {name: workspace(config).initial_state[name] for name in workspace(config).format.sent_specs}
    message = ask("train", state)
    message.content["secure"] = ConfigRecord({"session": bytes(31) + b"1", "senders": [], "packages": []})
    with pytest.raises(ProtocolError):
        app(message, context)
    assert not list(tmp_path.rglob("*"))


@pytest.fixture
def nodes(tmp_path):
    """Write the keys of four nodes; return their private halves."""
    made = [ec.generate_private_key(ec.SECP384R1()) for _ in range(4)]
    (tmp_path / "known").mkdir()
    for number, key in enumerate(made):
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (tmp_path / f"known/node-{number}.pub").write_bytes(public)
    own = made[0].private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "own").write_bytes(own)
    return made


def test_a_node_that_knows_the_others_shares_with_nobody_else(context, nodes, tmp_path):
    context.node_config |= {"identity-key": str(tmp_path / "own"), "identities": str(tmp_path / "known")}
    context.node_config["state-directory"] = str(tmp_path / "state")
    reply = app(asked("secure_keys", {"session": SESSION}), context)
    public, signature = wire.read_advertised(reply.content["secure"])
    nodes[0].public_key().verify(signature, _statement(0, public), _algorithm())
    known = {n: (keys, sign(nodes[n], SESSION, n, keys)) for n, (keys, _) in neighbours().items()}
    before = context.state["secure-aggregation"]
    roster = listed(with_own(public, known))
    app(asked("secure_shares", roster), context)
    context.state["secure-aggregation"] = before  # as a SuperNode's second process finds it
    with pytest.raises(ProtocolError, match="asks twice for the step after 'advertised'"):
        app(asked("secure_shares", roster), context)
    stranger, unsigned = ec.generate_private_key(ec.SECP384R1()), b""
    in_its_name = sign(nodes[1], SESSION, 2, known[2][0])  # by a node that is known, too
    for signature, reason in (
        (sign(stranger, SESSION, 2, known[2][0]), "client 2 aren't signed by the node that is known as it"),
        (unsigned, "client 2 aren't signed by the node"),
        (sign(nodes[2], bytes(31) + b"1", 2, known[2][0]), "client 2 aren't signed by the node"),
        (in_its_name, "client 2 aren't signed by the node"),
    ):
        changed = with_own(begun(context), {**known, 2: (known[2][0], signature)})
        with pytest.raises(ProtocolError, match=reason):
            app(asked("secure_shares", listed(changed)), context)
    context.node_config["identities"] = str(tmp_path)
    with pytest.raises(IdentityError, match="holds no public key"):
        app(asked("secure_shares", listed(with_own(begun(context), known))), context)


@pytest.mark.parametrize("wrong", ["another node's", "none"])
def test_a_node_with_a_wrong_key_leaves_its_neighbours_alone(wrong, context, nodes, tmp_path):
    """Whoever signs what is of no use makes each neighbour leave the round; a node can tell that by itself."""
    context.node_config |= {"identities": str(tmp_path / "known"), "state-directory": str(tmp_path / "state")}
    path = None
    if wrong != "none":
        path = tmp_path / "other"
        path.write_bytes(nodes[1].private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        context.node_config["identity-key"] = str(path)
    with pytest.raises(IdentityError, match=rf"identity-key={path}: isn't the private half of node-0 in identities="):
        begun(context)
    assert not (tmp_path / "state").exists()


def _statement(client: int, public: PublicKeys) -> bytes:
    from snnfl.masking import identity

    return identity._statement(SESSION, client, public)


def _algorithm() -> ec.ECDSA:
    from cryptography.hazmat.primitives.hashes import SHA384

    return ec.ECDSA(SHA384())


def test_the_hash_of_a_task_is_of_all_that_is_told_but_the_masks(config, ask):
    state = {name: workspace(config).initial_state[name] for name in workspace(config).format.sent_specs}
    name = next(iter(state))

    def hashed(change=lambda content: None, arrays=state):
        content = ask("train", arrays).content
        change(content)
        return task_of(content)

    same = hashed()
    assert hashed() == same
    assert len(same) == 32
    changed = state[name].clone()
    changed.view(-1)[0] += 1e-6
    told = [
        hashed(arrays={**state, name: changed}),
        hashed(arrays={**state, name: state[name].view(-1)}),
        hashed(arrays={f"{key}x": array for key, array in state.items()}),
        hashed(lambda content: content["config"].update({"more": 1})),
        hashed(lambda content: content["config"].update({"more": "1"})),
        hashed(lambda content: content.update({"more": ConfigRecord()})),
    ]
    assert len({same, *told}) == 1 + len(told)
