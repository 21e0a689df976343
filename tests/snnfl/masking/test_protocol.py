"""The protocol as its participants play it: what the sum is, and what nobody learns beside it."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl.masking import (
    Layout,
    Ledger,
    ProtocolError,
    PublicKeys,
    Roster,
    UnmaskingError,
    advertise,
    check_keys,
    confirm,
    graph_of,
    keys,
    layout,
    mask,
    reveal,
    share,
)

SESSION = bytes(range(32))
LENGTH = 7
TASK = bytes(reversed(range(32)))


def ledger_of(roster):
    return Ledger(session=SESSION, threshold=roster.rule.threshold, graph=roster.graph, public=roster.public)


class Federation:
    """Clients that play a round, as far as they are let."""

    def __init__(self, count, plan=None, seed=0, length=LENGTH):
        self.plan = plan or layout(count, 0.1)
        self.secrets, public = {}, {}
        draw = np.random.default_rng(seed)
        self.vectors = {n: draw.integers(0, 2**32, length, dtype=np.uint32) for n in range(count)}
        for client in range(count):
            self.secrets[client], public[client] = advertise(SESSION, client, os.urandom)
        self.roster = Roster(session=SESSION, public=public, rule=self.plan)
        self.ledger = ledger_of(self.roster)
        self.uploads = {}

    def share(self, clients):
        for client in clients:
            self.secrets[client], shared = share(self.secrets[client], self.roster)
            self.ledger.accept(client, shared)

    def mask(self, clients, task=TASK):
        for client in clients:
            packages = self.ledger.packages(client)
            self.secrets[client], self.uploads[client] = mask(
                self.secrets[client], self.vectors[client], packages, task
            )

    def confirm(self, clients):
        for client in clients:
            asked = self.ledger.asked(client, self.uploads)
            self.secrets[client], tokens = confirm(self.secrets[client], *asked)
            self.ledger.confirmed(client, tokens, self.uploads)

    def reveal(self, clients):
        for client in clients:
            told = reveal(self.secrets[client], self.ledger.tokens.get(client, {}))
            self.ledger.check(client, told, self.uploads)

    def sum_of(self, clients):
        return np.sum([self.vectors[client] for client in clients], axis=0, dtype=np.uint32)


def played(count, sharing, masking, confirming, revealing, plan=None):
    federation = Federation(count, plan)
    federation.share(sharing)
    federation.mask(masking)
    federation.confirm(confirming)
    federation.reveal(revealing)
    return federation


@st.composite
def dropouts(draw):
    """Draw a federation and who is left after each step, whatever that does to it."""
    count = draw(st.integers(3, 9))
    left = list(range(count))
    stages = []
    for _ in range(4):
        left = sorted(draw(st.sets(st.sampled_from(left), min_size=1))) if left else []
        stages.append(left)
    return count, *stages


def recoverable(federation):
    """Tell, from the definition of the protocol, whether the shares that were told give every mask in the sum."""
    ledger, told = federation.ledger, federation.ledger.revealed

    def enough(owner):
        return sum(holder in told for holder in ledger.graph[owner]) >= ledger.threshold

    gone = [u for u in ledger.shared if u not in federation.uploads]
    touched = [u for u in gone if any(n in federation.uploads for n in ledger.graph[u])]
    silent = [u for u in federation.uploads if u not in told]
    return all(map(enough, [*touched, *silent]))


@settings(max_examples=40, deadline=None)
@given(dropouts())
def test_any_dropout_pattern_gives_the_exact_sum_or_nothing(pattern):
    count, sharing, masking, confirming, revealing = pattern
    federation = Federation(count)
    federation.share(sharing)
    try:
        federation.mask(masking)
        federation.confirm(confirming)
        federation.reveal(revealing)
    except ProtocolError:  # a client that finds too few neighbours refuses to go on
        return
    if recoverable(federation):
        found = federation.ledger.unmask(federation.uploads)
        np.testing.assert_array_equal(found, federation.sum_of(masking))
    else:
        with pytest.raises(UnmaskingError, match="are needed"):
            federation.ledger.unmask(federation.uploads)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 12), st.data())
def test_what_the_layout_tolerates_gives_the_sum_at_every_stage(count, data):
    """As many dropouts as the layout was asked for, at any stage each: never nothing."""
    gone = data.draw(st.sets(st.integers(0, count - 1), max_size=-(-count // 10)))
    stages = {client: data.draw(st.integers(0, 3)) for client in sorted(gone)}
    left = [[c for c in range(count) if stages.get(c, 4) > stage] for stage in range(4)]
    federation = played(count, *left)
    np.testing.assert_array_equal(federation.ledger.unmask(federation.uploads), federation.sum_of(left[1]))


def test_a_step_is_taken_once_and_in_order():
    """One mask on two vectors would tell their difference."""
    federation = Federation(4)
    with pytest.raises(ProtocolError, match="after 'shared', and this client is at 'advertised'"):
        mask(federation.secrets[0], federation.vectors[0], {}, TASK)
    federation.share(range(4))
    with pytest.raises(ProtocolError, match="after 'advertised'"):
        federation.share([0])
    federation.mask(range(4))
    with pytest.raises(ProtocolError, match="after 'shared', and this client is at 'masked'"):
        federation.mask([0])


def test_a_client_refuses_to_tell_both_seeds_of_another():
    federation = Federation(5)
    federation.share(range(5))
    federation.mask(range(5))
    neighbours = sorted(federation.secrets[0].held)
    with pytest.raises(ProtocolError, match=f"client {neighbours[0]} is asked for both of its seeds"):
        confirm(federation.secrets[0], neighbours, neighbours[:1])
    with pytest.raises(ProtocolError, match="are in the sum, 4 are needed"):
        confirm(federation.secrets[0], neighbours[:1], neighbours[1:])
    with pytest.raises(ProtocolError, match="not of all"):
        confirm(federation.secrets[0], neighbours[1:], [])
    with pytest.raises(ProtocolError, match="no neighbours"):
        confirm(federation.secrets[0], neighbours, [99])
    federation.confirm(range(5))
    with pytest.raises(ProtocolError, match="after 'masked', and this client is at 'confirmed'"):
        confirm(federation.secrets[0], neighbours, [])


def test_a_client_that_is_called_gone_elsewhere_doesnt_tell_its_own_seed():
    """The lie that would need no accomplice: its key from the neighbours, its seed from itself."""
    federation = Federation(6, Layout(neighbours=5, threshold=4))
    federation.share(range(6))
    federation.mask(range(6))
    others = list(range(1, 6))
    tokens, shares = {}, 0
    for helper in others:
        rest = [c for c in range(6) if c not in (0, helper)]
        alive, gone = ([0, *rest], []) if helper <= 2 else (rest, [0])
        federation.secrets[helper], made = confirm(federation.secrets[helper], alive, gone)
        tokens |= {helper: made[0]} if 0 in made else {}
        shares += 0 in gone
    federation.secrets[0], _ = confirm(federation.secrets[0], others, [])
    assert (len(tokens), shares) == (2, 3)  # three would do for its own seed, four shares for its key
    with pytest.raises(ProtocolError, match="3 of this client and its neighbours confirm that it is in the sum, 4 are"):
        reveal(federation.secrets[0], tokens)
    for false in ({3: bytes(32)}, {3: tokens[1]}, {3: b""}, {9: tokens[1]}):
        with pytest.raises(
            ProtocolError, match=r"3 of this .* confirm that it is in the sum \(besides [1-2] that were"
        ):
            reveal(federation.secrets[0], {**tokens, **false})


def test_clients_that_were_told_other_weights_dont_help_to_a_sum():
    """Weights of each client's own would tell their updates apart in the sum: so it stays masked."""
    federation = Federation(6, Layout(neighbours=5, threshold=4))
    federation.share(range(6))
    for client in range(6):
        federation.mask([client], task=TASK if client < 4 else bytes([client] * 32))
    federation.confirm(range(6))
    federation.reveal(range(4))  # who stood with as many as the threshold that were told the same
    for other in (4, 5):
        with pytest.raises(
            ProtocolError, match=r"1 of this client and its .*\(besides 5 that were told something else"
        ):
            federation.reveal([other])


@pytest.mark.parametrize("task", [b"", bytes(31), bytes(33)])
def test_a_task_is_a_hash(task):
    federation = Federation(4)
    federation.share(range(4))
    with pytest.raises(ProtocolError, match=f"a task's hash of {len(task)} bytes: expected 32"):
        federation.mask([0], task=task)


def test_a_server_that_lies_about_who_is_gone_gets_no_client_twice():
    """Half of the neighbours are told that the victim is there, half that it is gone: neither seed comes out."""
    federation = Federation(9, Layout(neighbours=8, threshold=6))
    federation.share(range(9))
    federation.mask(range(9))
    victim, others = 0, list(range(1, 9))
    for helper in others:
        alive = [c for c in range(9) if c != helper and (c != victim or helper < 5)]
        federation.secrets[helper], _ = confirm(federation.secrets[helper], alive, [] if helper < 5 else [victim])
    for helper in others:
        tokens = {c: wire_token(federation, c, helper) for c in others if c != helper}
        federation.ledger.revealed[helper] = reveal(federation.secrets[helper], tokens)
    with pytest.raises(UnmaskingError, match="4 neighbours of client 0 have told their share of its mask, 6"):
        federation.ledger.unmask(federation.uploads)
    without = {client: vector for client, vector in federation.uploads.items() if client != victim}
    with pytest.raises(UnmaskingError, match="4 neighbours of client 0 have told their share of its key, 6"):
        federation.ledger.unmask(without)


def test_a_server_that_tells_clients_different_things_singles_out_nobody():
    """The attack of a false graph: neighbours confirm the victim, and have helpers of their own who call them gone.

    All clients are honest, and keys are their own. The victim is told of four others; each of these is told of the
    victim and of helpers that the victim doesn't know of. What they were told differently, they don't understand.
    """
    rule, victim, neighbours = Layout(neighbours=4, threshold=4), 0, [1, 2, 3, 4]
    helpers = {neighbour: range(5 + 3 * (neighbour - 1), 8 + 3 * (neighbour - 1)) for neighbour in neighbours}
    made = {client: advertise(SESSION, client, os.urandom) for client in range(17)}

    def named(*clients):
        return Roster(session=SESSION, public={client: made[client][1] for client in clients}, rule=rule)

    told = {victim: named(victim, *neighbours)}
    for neighbour in neighbours:
        told |= dict.fromkeys([neighbour, *helpers[neighbour]], named(victim, neighbour, *helpers[neighbour]))
    shared = {client: share(made[client][0], roster) for client, roster in told.items()}
    assert len({secrets.roster for secrets, _ in shared.values()}) == 5
    packages = {
        client: {n: shared[n][1].packages[client] for n in roster.graph[client] if client in shared[n][1].packages}
        for client, roster in told.items()
    }
    with pytest.raises(ProtocolError, match="1 of this client and its neighbours have shared their seeds, 4 are"):
        mask(shared[victim][0], np.zeros(LENGTH, np.uint32), packages[victim], TASK)
    for neighbour in neighbours:  # their helpers are enough for them, and of the victim they hold nothing to tell
        after, _ = mask(shared[neighbour][0], np.zeros(LENGTH, np.uint32), packages[neighbour], TASK)
        assert sorted(after.held) == sorted(helpers[neighbour])
        assert victim in after.peers


def test_a_neighbour_of_another_list_doesnt_help_to_single_out_a_client():
    """A lie in two lists, with honest clients and keys alone: whom a client takes for there may be gone elsewhere.

    In a circle of four, each with two neighbours, the victim and the client across tell their shares of the key of one
    between them. For that both must call the other one there. It was told another list, in which it is gone.
    """
    rule = layout(4, 0.0)
    assert rule == Layout(neighbours=2, threshold=2)
    made = {client: advertise(SESSION, client, os.urandom) for client in range(6)}
    public = {client: keys_of_it for client, (_, keys_of_it) in made.items()}
    first = Roster(session=SESSION, public={client: public[client] for client in range(4)}, rule=rule)
    victim, (gone, stranger) = 0, first.graph[0]
    (across,) = {1, 2, 3} - {gone, stranger}
    second = Roster(session=SESSION, public={c: public[c] for c in (stranger, 4, 5)}, rule=layout(3, 0.0))
    told = {**dict.fromkeys((victim, gone, across), first), **dict.fromkeys((stranger, 4, 5), second)}
    shared = {client: share(made[client][0], roster) for client, roster in told.items()}

    def step(client, alive, dropped):
        nothing = bytes(48)  # what a stranger has sealed for nobody here
        near = [n for n in told[client].graph[client] if n in (*alive, *dropped)]
        packages = {n: shared[n][1].packages.get(client, nothing) for n in near}
        after, upload = mask(shared[client][0], np.zeros(LENGTH, np.uint32), packages, TASK)
        return (*confirm(after, alive, dropped), upload)

    steps = {
        victim: step(victim, [stranger], [gone]),
        gone: step(gone, [victim, across], []),
        across: step(across, [stranger], [gone]),
        4: step(4, [5], [stranger]),
        5: step(5, [4], [stranger]),
    }
    for helper, other in ((4, 5), (5, 4)):  # they are right: in what they were told one is gone, and its key is known
        assert stranger in reveal(steps[helper][0], {other: steps[other][1][helper]}).key_shares
    for client in (victim, across):
        with pytest.raises(
            ProtocolError, match=r"1 of this client .* is in the sum \(besides 1 that were told something else"
        ):
            reveal(steps[client][0], {gone: steps[gone][1][client]})


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("clients", range(3, 10))
def test_a_server_that_lies_about_who_is_there_learns_no_sum_of_few(clients, tolerance):
    """By trying all that it may tell to whom: no group of fewer honest clients than the threshold stands by itself.

    A server wants the sum of a group. Masks within it cancel; each one to somebody outside must be of a client whose
    key as many neighbours tell as the threshold says, by calling it gone, and who tells such things is confirmed, so
    that its own key isn't told. Each member was told of so many neighbours that have shared, and calls so many of them
    there, that with itself they are the threshold, and so does each who calls others gone. Who was told another list
    needn't be tried: nobody opens what it has sealed or counts what it confirms, and that it is there gives no more
    than that it isn't.
    """
    rule = layout(clients, tolerance)
    graph = graph_of(tuple(range(clients)), rule.neighbours, bytes(1))
    assert not smallest_groups(graph, rule, range(1, rule.threshold))
    assert smallest_groups(graph, rule, range(rule.threshold, clients))  # what it may learn is less than the sum of all


def test_a_server_that_chooses_neighbours_singles_out_a_client():
    """So the search finds what there is: each neighbour of the victim has three helpers of its own to call it gone."""
    victim, neighbours, others = 0, [1, 2, 3, 4], [11, 12, 13]
    helped = dict(zip(range(5, 11), itertools.combinations(neighbours, 2), strict=True))
    graph = {
        victim: neighbours,
        **{c: [victim, *(h for h, pair in helped.items() if c in pair)] for c in neighbours},
        **{h: [*pair, *(o for o in others if (h - o) % 3)] for h, pair in helped.items()},
        **{o: [h for h in helped if (h - o) % 3] for o in others},
    }
    assert {len(known) for known in graph.values()} == {4}
    too_low = Layout(neighbours=4, threshold=3)  # a layout's is more than k / 2 + 1, with more than two neighbours
    assert smallest_groups(graph, too_low, [1]) == {victim}
    assert smallest_groups(graph_of(tuple(range(14)), 4, bytes(1)), too_low, [1])


def test_an_accomplice_costs_a_group_one_client_and_two_of_eleven_may_single_out_one():
    """The limit that docs/provable-privacy.md states; with three clients one accomplice is enough."""
    for clients in range(3, 10):
        rule = layout(clients, 0.1)
        graph = graph_of(tuple(range(clients)), rule.neighbours, bytes(1))
        assert not smallest_groups(graph, rule, range(1, rule.threshold - 1), {0})
        assert clients > 3 or len(smallest_groups(graph, rule, [1], {0})) == 1
    rule = layout(11, 0.1)
    graph = graph_of(tuple(range(11)), rule.neighbours, bytes(1))
    both = [set(pair) for pair in itertools.combinations(range(11), 2)]
    assert any(smallest_groups(graph, rule, [1], pair) for pair in both)


def smallest_groups(graph, rule, sizes, colluding=frozenset()):
    """Return the first group of one of the sizes that stands by itself; nothing if none does.

    Who colludes calls all neighbours there and gone, and tells its keys.
    """
    honest = sorted({*graph} - colluding)
    for size in sizes:
        for group in map(set, itertools.combinations(honest, size)):
            outside = [client for client in honest if client not in group]
            for others in subsets(outside):
                tell = group | set(others)
                known = tell | colluding
                gone = {v for v in outside if v not in others and len(known & {*graph[v]}) >= rule.threshold}
                if alone(graph, rule, group, tell, gone, colluding):
                    return group
    return set()


def subsets(items):
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))


def alone(graph, rule, group, tell, gone, colluding):
    """Tell whether some of those who may be gone are enough for a group, and whether so many votes are to be had."""
    near = {client: {n for n in graph[client] if n in group | gone | colluding} for client in group}
    if any(len(those) < rule.threshold - 1 for those in near.values()):
        return False
    touched = set().union(*near.values()) - group - colluding
    return any(
        all(len(near[c] - set(left)) >= rule.threshold - 1 for c in group)
        and enough_votes(graph, rule, group, tell, touched - set(left), colluding)
        for left in subsets(sorted(touched))
    )


def enough_votes(graph, rule, group, tell, gone, colluding):
    """Tell whether each of those that are gone can be called so by enough, none of whom calls more gone than it may.

    By augmenting paths: a bipartite matching with capacities.
    """
    told = {w: group | gone | colluding if w in group else {*graph} for w in tell}
    room = {w: len({*graph[w]} & told[w]) - (rule.threshold - 1) for w in tell}
    votes = dict[int, set[int]]()

    def push(v, seen):
        for w in graph[v]:
            if w not in tell or w in seen or v in votes.get(w, set()):
                continue
            seen.add(w)
            if len(votes.setdefault(w, set())) < room[w]:
                votes[w].add(v)
                return True
            for other in sorted(votes[w]):
                if push(other, seen):
                    votes[w] ^= {other, v}
                    return True
        return False

    needed = {v: max(0, rule.threshold - len(colluding & {*graph[v]})) for v in gone}
    return all(push(v, set()) for v in sorted(gone) for _ in range(needed[v]))


def test_who_was_told_another_rule_confirms_nothing():
    """A server cannot have a client count those on whom a rule of its own making is binding."""
    federation = Federation(5, Layout(neighbours=4, threshold=3))
    other = replace(federation.roster, rule=Layout(neighbours=4, threshold=4))
    federation.share([0])
    federation.roster = other
    federation.share(range(1, 5))
    with pytest.raises(ProtocolError, match="1 of this client and its neighbours have shared their seeds, 3 are"):
        federation.mask([0])
    federation.mask(range(1, 5))
    federation.confirm(range(1, 5))
    federation.reveal(range(1, 5))
    assert all(0 not in told.key_shares for told in federation.ledger.revealed.values())


def test_neighbours_follow_from_who_is_there_and_from_nothing_else():
    """Whatever changes in what clients are told gives another graph; the same gives the same, in whatever order."""
    federation = Federation(40)
    roster, one = federation.roster, advertise(SESSION, 0, os.urandom)[1]
    backwards = replace(roster, public=dict(reversed(roster.public.items())))
    assert (backwards.name, backwards.graph) == (roster.name, roster.graph)
    for changed in (
        replace(roster, session=bytes(32)),
        replace(roster, public={**roster.public, 0: one}),
        replace(roster, public={**roster.public, 40: one}),
        replace(roster, rule=replace(roster.rule, threshold=roster.rule.threshold + 1)),
    ):
        assert changed.name != roster.name
        assert any(changed.graph[client] != roster.graph[client] for client in roster.graph)


def test_a_client_is_in_the_round_with_its_own_keys():
    federation = Federation(4)
    roster = federation.roster
    swapped = {**roster.public, 0: advertise(SESSION, 0, os.urandom)[1]}
    without = {client: public for client, public in roster.public.items() if client != 0}
    for public, reason in ((swapped, "that it hasn't advertised in this session"), (without, "doesn't name client 0")):
        with pytest.raises(ProtocolError, match=reason):
            share(federation.secrets[0], replace(roster, public=public))
    with pytest.raises(ProtocolError, match="that it hasn't advertised in this session"):
        share(federation.secrets[0], replace(roster, session=bytes(32)))


@pytest.mark.parametrize("replayed", [(1, 2, 3, 4), (3, 4)])
def test_keys_of_an_old_session_tell_the_masks_of_pairs_and_no_update(replayed):
    """A server replays what some advertised in a session of this name, in which they then dropped out."""
    federation, victim = Federation(5, Layout(neighbours=4, threshold=3)), 0
    there, privates = [c for c in range(1, 5) if c not in replayed], {}
    for client in replayed:
        privates[client] = keys.mask_key(federation.secrets.pop(client).key_seed, SESSION)
    federation.share([victim, *there])
    packages = dict.fromkeys(replayed, bytes(48)) | federation.ledger.packages(victim)
    secrets, public = federation.secrets[victim], federation.roster.public[victim]
    if not there:
        with pytest.raises(ProtocolError, match="1 of this client and its neighbours have shared their seeds, 3 are"):
            mask(secrets, federation.vectors[victim], packages, TASK)
        return
    secrets, upload = mask(secrets, federation.vectors[victim], packages, TASK)
    for client in (*replayed, *there):  # as if those who are there had told their keys, too
        private = privates.get(client) or keys.mask_key(federation.secrets[client].key_seed, SESSION)
        pair = keys.pair_key(private, public.mask, SESSION, victim, client)
        keys.add_mask(upload, pair, subtract=client > victim)
    assert (upload != federation.vectors[victim]).all()
    keys.add_mask(upload, keys.derive(secrets.self_seed, SESSION, b"self mask", victim), subtract=True)
    assert (upload == federation.vectors[victim]).all()
    federation.mask(there)
    tokens = {
        client: keys.derive(keys.agree(private, public.channel), secrets.roster + TASK, b"in the sum", client, victim)
        for client, private in privates.items()
    }
    for client in there:
        others = [c for c in there if c != client]
        tokens |= {client: confirm(federation.secrets[client], [victim, *others], [])[1][victim]}
    secrets, _ = confirm(secrets, replayed, there)
    with pytest.raises(
        ProtocolError, match=r"1 of this client .* is in the sum \(besides 4 that were told something else"
    ):
        reveal(secrets, tokens)


def wire_token(federation, sender, receiver):
    """Return what a sender confirms to a receiver."""
    known = federation.secrets[sender]
    return confirm(replace(known, step="masked"), [*known.alive], set(known.held) - set(known.alive))[1][receiver]


def test_a_wrong_share_is_noticed_and_does_without_it():
    """A hostile neighbour cannot keep the others from their sum."""
    federation = Federation(6, Layout(neighbours=5, threshold=4))
    federation.share(range(6))
    federation.mask(range(5))  # client 5 is gone
    federation.confirm(range(5))
    federation.reveal([0, 1, 2, 3, 4])
    liar = federation.ledger.revealed[0]
    federation.ledger.revealed[0] = replace(liar, key_shares={5: bytes(16)}, self_shares=dict(liar.self_shares))
    assert list(federation.ledger.liars()) == [
        "the share of client 5 that client 0 tells isn't the one that was announced"
    ]
    np.testing.assert_array_equal(federation.ledger.unmask(federation.uploads), federation.sum_of(range(5)))


def test_who_confirms_garbage_costs_nobody_else_the_sum():
    federation = Federation(10)
    federation.share(range(10))
    federation.mask(range(10))
    federation.confirm(range(10))
    for tokens in federation.ledger.tokens.values():
        tokens |= {0: bytes(32)} if 0 in tokens else {}
    federation.reveal(range(10))
    np.testing.assert_array_equal(federation.ledger.unmask(federation.uploads), federation.sum_of(range(10)))


def test_a_wrong_seed_of_its_own_is_refused():
    federation = played(4, range(4), range(4), range(4), range(3))
    told = reveal(federation.secrets[3], federation.ledger.tokens[3])
    with pytest.raises(ProtocolError, match="isn't the one that it has committed to"):
        federation.ledger.check(3, replace(told, self_seed=bytes(16)), federation.uploads)
    federation.ledger.unmask(federation.uploads)  # the neighbours' shares give it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, 1: p[2]}, "names one key twice"),
        (lambda p: {**p, 1: PublicKeys(mask=p[1].mask, channel=p[0].mask)}, "names one key twice"),
        (lambda p: {**p, 1: PublicKeys(mask=bytes(32), channel=p[1].channel)}, None),
    ],
)
def test_hostile_keys_are_refused(change, message):
    federation = Federation(4)
    public = change(dict(federation.roster.public))
    if message is not None:
        with pytest.raises(ProtocolError, match=message):
            share(federation.secrets[0], replace(federation.roster, public=public))
        return
    with pytest.raises(ProtocolError, match="low order"):
        check_keys(public[1])
    share(federation.secrets[0], federation.roster)


@pytest.mark.parametrize("threshold", [0, 1, 2, 4])
def test_a_threshold_that_protects_nobody_is_refused(threshold):
    federation = Federation(4)
    with pytest.raises(ProtocolError, match="expected more than half of a client"):
        share(federation.secrets[0], replace(federation.roster, rule=Layout(neighbours=3, threshold=threshold)))


def test_a_package_is_for_one_client_of_one_session():
    federation = Federation(4)
    federation.share(range(4))
    packages = federation.ledger.packages(0)
    for wrong in ({**packages, 1: packages[2]}, {**packages, 1: bytes(len(packages[1]))}, {**packages, 1: b""}):
        after, _ = mask(federation.secrets[0], federation.vectors[0], wrong, TASK)
        assert sorted(after.held) == [2, 3]


def test_who_seals_garbage_costs_nobody_else_its_update():
    federation = Federation(5)
    federation.share(range(5))
    honest = federation.ledger.shared[1]
    garbage = {neighbour: bytes(len(package)) for neighbour, package in honest.packages.items()}
    federation.ledger.accept(1, replace(honest, packages=garbage))
    federation.mask(range(5))
    federation.confirm(range(5))
    federation.reveal(range(5))
    np.testing.assert_array_equal(federation.ledger.unmask(federation.uploads), federation.sum_of(range(5)))


def test_packages_are_of_neighbours_and_enough():
    federation = Federation(4)
    federation.share(range(4))
    packages = federation.ledger.packages(0)
    with pytest.raises(ProtocolError, match="no neighbour"):
        mask(federation.secrets[0], federation.vectors[0], {**packages, 9: packages[1]}, TASK)
    with pytest.raises(ProtocolError, match="2 of this client and its neighbours have shared their seeds, 3"):
        mask(federation.secrets[0], federation.vectors[0], {1: packages[1]}, TASK)


def test_masked_vectors_look_uniform_and_differ_from_session_to_session():
    """Zeros, masked: bits are even, and neighbouring elements, clients and sessions have nothing to do with each other.

    Four standard deviations of 32 x 20,000 fair bits; a stream of 32-bit seeds would pass this, see the attack on it.
    """
    federations = [Federation(4, length=20_000) for _ in range(2)]
    vectors = []
    for federation in federations:
        federation.vectors = {n: np.zeros(20_000, np.uint32) for n in range(4)}
        federation.share(range(4))
        federation.mask(range(4))
        vectors += federation.uploads.values()
    for number, vector in enumerate(vectors):
        others = [vector[1:] ^ vector[:-1], *(vector ^ other for other in vectors[:number])]
        for bits in (np.unpackbits(each.view(np.uint8)) for each in (vector, *others)):
            assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(bits.size)
