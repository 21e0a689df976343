"""What the sums of rounds with different clients tell of one client, against what that client has sent."""

from __future__ import annotations

import csv
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from experiments import cli
from experiments.audit.summary import SUMMED
from snnfl.attacks import Budget, get_attack
from snnfl.auditing.cohorts import listed
from snnfl.auditing.differences import KNOWN, NOISES, TIMES, Disaggregation, read_differences
from snnfl.auditing.recording import Received, RecordingError
from snnfl.auditing.scoring import Scorer
from snnfl.auditing.victims import Scope, scope_of, setting_of, victims_of
from snnfl.config import ConfigError
from snnfl.membership_attacks.federated import get_federated_attack
from snnfl.protocol import EXAMPLES
from snnfl.threat import Exchange, hidden_by_sums
from snnfl.workspace import Workspace
from tests.masked_runs import NOISED, SECURE, player, seen

CHANGING = (
    "strategy.fraction_train=0.75", "strategy.minimum_replies=3", "run.rounds=8", "training.learning_rate=0.01",
)  # fmt: skip
"""Three of the four clients take part in each round, and move little."""


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """Play a run of four clients, once for all tests that ask for it."""
    return player(lambda: tmp_path_factory.mktemp("runs"))


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def change(victim):
    exchange = victim.view.exchange
    return torch.cat([(exchange.received[name] - array).flatten() for name, array in exchange.sent.items()])


def assert_sees(found, expected, bound):
    """Compare estimates with what the same clients have sent without masks."""
    sent = {(victim.server_round, victim.partition): change(victim) for victim in expected}
    assert len(found) == len({(victim.server_round, victim.partition) for victim in found})
    assert all(tuple(victim.members) == (victim.partition,) for victim in found)
    alike = [cosine(change(victim), sent[victim.server_round, victim.partition]) for victim in found]
    assert sum(alike) / len(alike) > bound
    return alike


cohorts_of_rounds = st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=2, max_size=9)


def fitted(cohorts, sums, weights=None):
    """Fit the process to sums of clients who weigh alike, or not."""
    weighted = {number: {c: weights[c] if weights else 1.0 for c in cohort} for number, cohort in cohorts.items()}
    return Disaggregation(weighted, np.stack(sums))


def test_clients_that_stand_still_are_told_wherever_the_equations_can():
    told = 0

    @settings(max_examples=80)
    @given(cohorts_of_rounds, st.integers(0, 2**32 - 1))
    def all_are_told(cohorts, seed):
        nonlocal told
        updates = np.random.default_rng(seed).standard_normal((5, 300))
        by_round = {number: sorted(cohort) for number, cohort in enumerate(cohorts, 1)}
        sums = np.stack([updates[cohort].sum(0) for cohort in by_round.values()])
        process = fitted(by_round, sums)
        takes_part = np.array([[client in cohort for client in range(5)] for cohort in cohorts], dtype=float)
        solvable = np.abs(takes_part.T @ np.linalg.pinv(takes_part.T) - np.eye(5)).max(axis=0) < 1e-9
        if (process.time, process.noise) != (max(TIMES), min(NOISES)):
            return  # of few rounds, other processes are as likely
        for number in by_round:
            for estimate in process.estimates(number):
                if solvable[estimate.clients[0]]:
                    made = np.array([*estimate.coefficients.values()]) @ sums
                    wanted = updates[estimate.clients[0]]
                    assert np.linalg.norm(made - wanted) < 0.2 * np.linalg.norm(wanted)
                    told += 1

    all_are_told()
    assert told > 20


@pytest.mark.parametrize("weights", [None, [1, 1, 2, 3, 5, 8]], ids=["alike", "weighted"])
@pytest.mark.parametrize("time", [8, 32])
def test_how_much_is_told_is_said_without_the_truth(time, weights):
    """The parts that estimates say they explain are those that they do, on average."""
    draw = np.random.default_rng(time)
    clients, rounds, size, kept = 6, 25, 2000, np.exp(-1 / time)
    heavy = np.array(weights or [1] * clients, dtype=float)[:, None]
    updates = [draw.standard_normal((clients, size))]
    for _ in range(rounds - 1):
        updates.append(kept * updates[-1] + np.sqrt(1 - kept**2) * draw.standard_normal((clients, size)))
    cohorts = {number: sorted(draw.choice(clients, 4, replace=False).tolist()) for number in range(1, rounds + 1)}
    sums = np.stack([(heavy * each)[cohorts[number]].sum(0) for number, each in enumerate(updates, 1)])
    process = fitted(cohorts, sums, weights)
    assert (process.time, process.common) == (time, 0)
    said, true = [], []
    for number, each in enumerate(updates, 1):
        cohort = cohorts[number]
        for estimate in process.estimates(number):
            made = np.array([*estimate.coefficients.values()]) @ sums
            (client,) = estimate.clients
            own = (heavy * each)[client]
            share = heavy[client] ** 2 / (heavy[cohort] ** 2).sum()  # of the round's sum: the best guess without others
            without = np.mean((share * sums[number - 1] - own) ** 2)
            said.append(estimate.explained)
            true.append(1 - np.mean((made - own) ** 2) / without)
    assert len(said) > 20
    assert min(said) > KNOWN
    assert np.mean(said) == pytest.approx(np.mean(true), abs=0.05)


def test_what_clients_have_in_common_tells_no_single_one():
    """Updates whose own part is drawn anew each round: estimates would be the rounds' means, and none is made."""
    draw = np.random.default_rng(0)
    common = draw.standard_normal(1000)
    cohorts = {number: sorted(draw.choice(6, 4, replace=False).tolist()) for number in range(1, 20)}
    sums = [sum(2 * common + draw.standard_normal(1000) for _ in cohort) for cohort in cohorts.values()]
    process = fitted(cohorts, sums)
    assert process.common > 0
    assert [estimate for number in cohorts for estimate in process.estimates(number)] == []


@pytest.mark.parametrize("scale", [1, 10])
def test_a_client_whose_update_is_larger_stands_still_too(scale):
    """Sums are of one size, or not, as is likelier."""
    draw = np.random.default_rng(1)
    updates = draw.standard_normal((6, 1000))
    updates[0] *= scale
    cohorts = {number: sorted(draw.choice(6, 4, replace=False).tolist()) for number in range(1, 25)}
    sums = np.stack([updates[cohort].sum(0) for cohort in cohorts.values()])
    process = fitted(cohorts, sums)
    for number in cohorts:
        for estimate in process.estimates(number):
            made = np.array([*estimate.coefficients.values()]) @ sums
            assert np.linalg.norm(made - updates[estimate.clients[0]]) < 0.1 * np.linalg.norm(made)


def test_a_round_between_two_tells_who_joined_and_no_more():
    updates = np.random.default_rng(0).standard_normal((3, 500))
    cohorts = {1: [0, 1], 2: [0, 1, 2], 3: [0, 1]}
    process = fitted(cohorts, [updates[cohort].sum(0) for cohort in cohorts.values()])
    assert [estimate.clients for estimate in process.estimates(2)] == [(0, 1), (2,)]  # those two are always together
    assert list(process.estimates(1)) == []  # and are the sum of that round, no less


def test_hundreds_of_rounds_of_hundreds_of_clients_take_seconds():
    draw = np.random.default_rng(0)
    cohorts = {number: sorted(draw.choice(500, 50, replace=False).tolist()) for number in range(1, 151)}
    started = time.process_time()
    process = fitted(cohorts, draw.standard_normal((150, 100)))
    assert len(list(process.estimates(70))) == 0
    assert time.process_time() - started < 60


@pytest.mark.parametrize("variant", [(), ("strategy.spiking=true",)], ids=["plain", "spiking"])
def test_single_clients_are_told_from_the_sums_of_rounds(play, variant):
    _, plain = seen(play, *CHANGING, *variant)
    _, sums = seen(play, *CHANGING, *variant, SECURE)
    setting, found = seen(play, *CHANGING, *variant, SECURE, differences=True)
    assert len(found) > 12
    alike = assert_sees(found, plain, 0.9)
    of_sums = {victim.server_round: change(victim) for victim in sums}
    sent = {(victim.server_round, victim.partition): change(victim) for victim in plain}
    before = [cosine(of_sums[server_round], each) for (server_round, _), each in sent.items()]
    assert sum(alike) / len(alike) > sum(before) / len(before) + 0.2
    known = found[0].view.knowledge
    assert (known.clients, known.rounds, known.thresholds, known.colluding) == (1, 8, False, 0)
    assert "individual" in known.facts
    assert setting.updates in ("estimated plain update", "estimated S-update")  # a sum is not what is attacked
    for victim in found:
        assert victim.view.knowledge.images == len(victim.truth.labels)


def test_noise_within_the_masks_hides_single_clients(play):
    noised = (*CHANGING, SECURE, *NOISED[:-1])
    with pytest.raises(
        ConfigError, match="can be told from the others by the sums of 8 rounds, for updates move too much"
    ):
        seen(play, *noised, differences=True)


def test_next_to_no_noise_hides_nobody(play):
    little = ("privacy.mechanism=distributed", "privacy.noise_multiplier=1e-6", "privacy.noise_seed=0")
    same = (*CHANGING, "data.training_images=12")
    _, plain = seen(play, *same)
    _, found = seen(play, *same, SECURE, *little, "privacy.clipping_norm=1", differences=True)
    assert len(found) > 12
    assert_sees(found, plain, 0.9)


def test_an_attack_finds_more_of_a_difference_than_of_the_sum(play):
    """Of each client alike much is known without an update: nothing, for the attack is denied public images."""
    setting, (whole,) = seen(play, *CHANGING, SECURE, rounds=[4])
    _, apart = seen(play, *CHANGING, SECURE, differences=True, rounds=[4])
    scorer, psnr = Scorer(setting), []
    for victims in ([whole], apart):
        values = []
        for victim in victims:
            result = get_attack("inverting_gradients").run(
                replace(victim.view, public=None),
                budget=Budget(iterations=40),
                generator=torch.Generator().manual_seed(0),
            )
            arrays = {**setting.initial_state, **victim.view.exchange.sent}
            values.append(scorer.score(result, victim.truth, arrays).values["psnr"])
        psnr.append(sum(values) / len(values))
    assert psnr[1] > psnr[0] + 1


def test_nothing_but_sums_is_read(play, tmp_path):
    config, folder = play(*CHANGING, SECURE)
    (tmp_path / "recording").symlink_to(folder / "recording")  # and no truth beside it
    found = list(read_differences(Workspace(config), tmp_path, frozenset({3})))
    assert {each.server_round for each in found} == {3}


def test_the_command_says_that_rounds_are_compared(play):
    _, folder = play(*CHANGING, SECURE)
    options = ["--round", "4", "--attack", "inverting_gradients", "--iterations", "2", "--no-controls", "--differences"]
    named = ["--attack", "fingerprint", "--attack", "round_loss"]
    done = CliRunner().invoke(cli.app, ["audit", str(folder.parent), *options, *named])
    assert done.exit_code == 0, done.output
    said, page = re.sub(r"\s+", " ", done.output), (folder / "report.html").read_text().replace("<wbr>", "")
    (entry,) = json.loads((folder / "scorecard.json").read_text())
    assert "which compares the sums of 8 rounds" in entry["threat_model"]["who"]
    assert "an estimate of one client's update, made by comparing the sums of 8 rounds" in said
    assert "sums of 8 rounds" in (folder / "proof.csv").read_text()
    for text in (said, page):
        assert "on estimated plain updates of round 4" in text
        assert "update sum" not in text
        assert SUMMED in text.replace("&#39;", "'")
    (row,) = csv.DictReader((folder / "sums.csv").read_text().splitlines())
    cohort, apart = {*range(4)} - {int(row["absent"])}, {int(client) for client in row["attacked"].split(", ")}
    assert (row["round"], int(row["clients_in_the_sum"])) == ("4", len(cohort))
    assert row["who"] == listed(cohort).removeprefix("clients ")
    assert apart <= cohort
    untold = listed(cohort - apart).partition(" ")[2] if cohort - apart else "–"
    assert row["not_told_apart"] == untold
    assert f"round 4: the sum of 3, {listed(cohort)}; told apart: {row['attacked']}" in said
    assert f"absent: {row['absent']}" in said
    assert "not told apart" in page
    for name, reason in (
        ("fingerprint", "attacks converted updates, those of this run are plain ones"),
        ("round_loss", "no client of round 4 told 10 samples whose labels test samples have, too"),
    ):
        assert name in page
        assert reason in page
        assert re.search(f"{name}(, refused:)? {re.escape(reason)}", said)
        assert said.count(reason) == 1


def test_what_sums_hide_is_not_called_denied(play):
    """Thresholds stay each round's mean, whatever sums of other rounds tell of the rest of an update."""
    _, found = seen(play, *CHANGING, "strategy.spiking=true", SECURE, differences=True)
    _, sums = seen(play, *CHANGING, "strategy.spiking=true", SECURE)
    why = "needs one client's thresholds, and sums tell each round's mean of them alone, however many are compared"
    fingerprint, denied = get_federated_attack("fingerprint"), {"individual", "thresholds"}
    assert get_attack("thresholds_alone").refusal(found[0].view) == f"thresholds_alone: {why}"
    assert fingerprint.needs & denied
    assert hidden_by_sums(fingerprint.needs - found[0].view.knowledge.facts, found[0].view.knowledge) == why
    assert (
        get_attack("thresholds_alone").refusal(sums[0].view).endswith("one client's update, and this is the sum of 3")
    )
    _, others = seen(play, *CHANGING, "strategy.spiking=true", denied=frozenset({"thresholds"}))
    assert (
        get_attack("thresholds_alone")
        .refusal(others[0].view)
        .endswith("needs thresholds, which the threat model denies")
    )


def test_clients_that_are_not_there_are_named_with_those_that_are(play):
    """One that the run doesn't have, one that is in no sum, and one that sums don't tell from the others."""
    few = (SECURE, "strategy.fraction_train=0.75", "strategy.minimum_replies=3", "run.rounds=1")
    _, (whole,) = seen(play, *few)
    (absent,) = {*range(4)} - {*whole.members}
    for differences in (True, False):
        with pytest.raises(RecordingError, match=r"^--client 9: there is no such client; the run has clients 0 to 3$"):
            seen(play, *few, differences=differences, partitions=frozenset({9}))
        there = re.escape(listed(whole.members))
        with pytest.raises(
            RecordingError, match=f"^--client {absent}: it is in no sum of these rounds; in them are {there}$"
        ):
            seen(play, *few, differences=differences, partitions=frozenset({absent}))
    (cohort,) = setting_of(Workspace(play(*few)[0])).cohorts(play(*few)[1], frozenset())
    assert (cohort.clients, cohort.absent) == (tuple(whole.members), (absent,))


def test_a_client_that_is_not_told_is_named_with_those_that_are(play, monkeypatch):
    found = Received(
        server_round=1, partition=2, exchange=Exchange(server_round=1, sent={}, received={}), metrics={EXAMPLES: 3},
        members={2: 3}, rounds=2,
    )  # fmt: skip
    config, folder = play(SECURE)
    setting = replace(setting_of(Workspace(config), differences=True), recorded=lambda folder, rounds: iter([found]))
    with pytest.raises(
        ConfigError, match=r"^--differences: clients 0 and 3 cannot be told from the others; client 2 can$"
    ):
        victims_of(setting, folder, Scope(differences=True, partitions=frozenset({0, 3})))


def test_what_cannot_be_compared_is_said_in_one_line(play):
    with pytest.raises(
        ConfigError, match="by the sums of 2 rounds, for the same clients are in all of them; leave it out, and"
    ):
        seen(play, SECURE, differences=True)
    with pytest.raises(ConfigError, match="sees each client's update, there are no sums to compare"):
        setting_of(Workspace(play()[0]), differences=True)
    asked = {"rounds": (), "partitions": (), "labels": False, "differences": True}
    with pytest.raises(ConfigError, match="--deny takes earlier_rounds away"):
        scope_of(**asked, denied=["earlier_rounds"])
    with pytest.raises(ConfigError, match="--differences and --colluding 2: are two attackers"):
        scope_of(**asked, denied=[], colluding=2)
