"""Sums as a server with secure aggregation has them, against the updates that the same clients send without it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from clients.client_app import app as client_app
from experiments import cli
from experiments.engines.in_process import run_in_process
from snnfl.attacks import Budget, get_attack
from snnfl.auditing.recording import RECORDING, SUM, TRUTH, RecordingError, client_folder, round_folder
from snnfl.auditing.scoring import Scorer
from snnfl.auditing.suite import attack_all
from snnfl.auditing.sums import read_sums
from snnfl.auditing.victims import setting_of
from snnfl.checksummed import read_checksummed, write_checksummed
from snnfl.config import ConfigError, compose, flatten
from snnfl.membership_attacks.federated import get_federated_attack
from snnfl.protocol import EXAMPLES
from snnfl.threat import FederationView, RoundView
from snnfl.workspace import Workspace
from strategies.run_directory import node_folders, run_path
from strategies.server_app import server_app
from tests.masked_runs import CLIENTS, NOISED, SECURE, SMALL, player, seen


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """Play a run of four clients with two or three images each, once for all tests that ask for it."""
    return player(lambda: tmp_path_factory.mktemp("runs"))


def assert_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        torch.testing.assert_close(
            found[name], array, rtol=1e-5, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def resolution(play, *options):
    """Return how far an element of a client's change may be off: half a level of the ring, at the smallest weight."""
    config, _ = play(*options)
    return 64 * CLIENTS / 2**30 * max(map(len, Workspace(config).partitions))


def test_a_sum_is_the_update_of_one_client_with_all_images(play):
    _, plain = seen(play)
    _, (first, second) = seen(play, SECURE)
    of_first = [victim for victim in plain if victim.server_round == 1]
    weights = [victim.view.knowledge.images for victim in of_first]
    mean = {
        name: sum(w * v.view.exchange.received[name] for w, v in zip(weights, of_first, strict=True)) / sum(weights)
        for name in first.view.exchange.received
    }
    assert_near(first.view.exchange.received, mean, resolution(play, SECURE))
    assert first.members == dict(enumerate(weights))
    known = first.view.knowledge
    assert (known.clients, known.images, known.batch_size, known.steps, known.colluding) == (4, 10, 10, 1, 0)
    assert torch.equal(first.truth.images, torch.cat([victim.truth.images for victim in of_first]))
    model = Workspace(play(SECURE)[0]).model
    for name, parameter in model.named_parameters():  # the gradient of all their images is what the sum tells
        parameter.data.copy_(first.view.exchange.sent[name])
    loss = torch.nn.functional.cross_entropy(model(first.view.inputs(first.truth.images)), first.truth.labels)
    told = {
        name: (first.view.exchange.sent[name] - array) / 0.1 for name, array in first.view.exchange.received.items()
    }
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert_near(told, dict(zip(dict(model.named_parameters()), gradients, strict=True)), 1e-4)
    assert [each.server_round for each in second.view.earlier] == [1]  # of the same clients


@pytest.mark.parametrize("variant", [(), ("strategy.spiking=true",)], ids=["plain", "spiking"])
def test_of_one_client_that_is_left_a_server_has_the_unprotected_update(play, variant):
    _, plain = seen(play, *variant, rounds=[1])
    _, left = seen(play, *variant, SECURE, colluding=CLIENTS - 1, rounds=[1])
    assert [victim.partition for victim in left] == [victim.partition for victim in plain] == [*range(CLIENTS)]
    for found, expected in zip(left, plain, strict=True):
        assert_near(
            found.view.exchange.received, expected.view.exchange.received, 20 * resolution(play, *variant, SECURE)
        )
        assert found.view.knowledge == replace(expected.view.knowledge, colluding=3)
        assert found.view.knowledge.facts == expected.view.knowledge.facts
    attack = get_attack("reconverted_initial" if variant else "closed_form")
    found, expected = (
        attack.run(
            replace(victim.view, public=None), budget=Budget(iterations=4), generator=torch.Generator().manual_seed(0)
        )
        for victim in (left[3], plain[3])
    )
    torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-4)
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("variant", [(SECURE,), (SECURE, *NOISED)], ids=["plain", "noised"])
def test_what_is_left_of_clients_one_by_one_adds_up_to_the_sum(play, variant):
    """Noise and rounding included: what a client has put in is taken out to the bit."""
    config, _ = play(*variant)
    _, (whole,) = seen(play, *variant, rounds=[1])
    _, pairs = seen(play, *variant, colluding=2, rounds=[1])
    assert [tuple(pair.members) for pair in pairs] == [(0, 1), (2, 3)]
    weigh = [1 if NOISED[0] in variant else pair.view.knowledge.images for pair in pairs]
    for name, array in whole.view.exchange.received.items():
        mean = sum(w * pair.view.exchange.received[name] for w, pair in zip(weigh, pairs, strict=True)) / sum(weigh)
        torch.testing.assert_close(mean, array, rtol=0, atol=1e-6)
    assert {pair.view.knowledge.clipped for pair in pairs} == {config.privacy.mechanism == "distributed"}
    _, (chosen,) = seen(play, *variant, colluding=2, rounds=[1], partitions=frozenset({3}))
    assert tuple(chosen.members) == (2, 3)


def test_each_client_of_a_sum_is_scored(play):
    setting, victims = seen(play, SECURE, rounds=[1])
    outcome, refused = attack_all(setting, victims, ["closed_form", "order_invariant"], Budget(iterations=1))
    assert [finding.victim.partition for finding in outcome.findings] == [*range(CLIENTS)]
    for finding in outcome.findings:
        assert finding.score.values["psnr"] > 60
        assert finding.score.label_accuracy == 1
        assert len(finding.score.true) == victims[0].members[finding.victim.partition]
    assert refused.refusal == "order_invariant: needs one client's update, and this is the sum of 4"


def test_clients_are_scored_by_what_is_found_of_all_of_them(play):
    """Of equally large clients the means are those of one that has all; a label that lacks counts in part."""
    setting, (victim,) = seen(play, SECURE, rounds=[1])
    result = get_attack("closed_form").run(
        victim.view, budget=Budget(iterations=1), generator=torch.Generator().manual_seed(0)
    )
    truth = victim.truth
    result = replace(result, labels=truth.labels.roll(1).index_fill(0, torch.tensor([0]), int(truth.labels[0])))
    scorer, arrays = Scorer(setting), {**setting.initial_state, **victim.view.exchange.sent}
    whole, parts = scorer.score(result, truth, arrays), scorer.scores(result, truth, [5, 5], arrays)
    for name in ("psnr", "ssim"):
        assert sum(part.values[name] for part in parts) / 2 == pytest.approx(whole.values[name])
    assert sum(part.label_accuracy for part in parts) / 2 == pytest.approx(whole.label_accuracy)
    assert sum(part.label_floor for part in parts) / 2 == pytest.approx(whole.label_floor)
    assert [len(part.found) for part in parts] == [5, 5]


def test_the_command_says_who_colludes(play):
    path = play(SECURE)[1]
    options = ["--round", "1", "--attack", "closed_form", "--iterations", "1", "--no-controls", "--colluding", "2"]
    done = CliRunner().invoke(cli.app, ["audit", str(path.parent), *options])
    assert done.exit_code == 0, done.output
    (entry,) = json.loads((path / "scorecard.json").read_text())
    who = (
        "honest-but-curious server with secure aggregation, which colludes with 2 others: it has the sum of 2 clients'"
    )
    assert entry["threat_model"]["who"].startswith(who)
    assert (entry["victims"], entry["updates"], entry["verdict"]) == (4, "plain update sum", "leaks")
    assert "The server and 2 clients that collude with it" in " ".join(done.output.split())
    assert "a sum of 2; 2 colluding" in (path / "proof.csv").read_text()
    assert "Proof and attack" in (path / "report.html").read_text()


def test_membership_in_a_sum_is_asked_and_what_needs_a_client_says_so(play):
    _, (victim,) = seen(play, SECURE, rounds=[1])
    view = FederationView(
        inputs=victim.view.inputs(victim.truth.images), labels=victim.truth.labels, rounds=[RoundView(own=victim.view)]
    )
    assert len(get_federated_attack("round_loss").run(view, torch.Generator())) == 10
    reason = "fedmia_loss: needs one client's update, and this is the sum of 4"
    assert get_federated_attack("fedmia_loss").refusal(view) == reason


def test_clients_that_are_not_alike_are_refused_for_several_steps(play):
    setting, victims = seen(play, SECURE, "training.epochs=2", rounds=[1])
    (outcome,) = attack_all(setting, victims, ["inverting_gradients"], Budget(iterations=1))
    assert "2 to 3 images each, of which only the mean is seen" in outcome.refusal


def test_a_resumed_run_goes_on_with_the_sums(play, tmp_path):
    config, _ = play(SECURE)
    folders = []
    for rounds, resume in ((1, "false"), (2, "true")):
        options = [f"run.directory={tmp_path}", SECURE, f"run.rounds={rounds}", f"run.resume={resume}"]
        own = compose(overrides=[*SMALL, *options])
        run_in_process(
            server_app(), client_app, run_config=flatten(own), clients=CLIENTS, node_config=node_folders(run_path(own))
        )
        folders.append(run_path(own) / "audit")
    work = Workspace(config)
    found, expected = (list(read_sums(work, 1, folder)) for folder in (folders[1], play(SECURE)[1]))
    assert [each.server_round for each in found] == [1, 2]
    for one, other in zip(found, expected, strict=True):
        assert_near(one.exchange.received, other.exchange.received, 1e-7)
        assert one.metrics[EXAMPLES] == other.metrics[EXAMPLES] == 8


def test_what_cannot_collude_is_said_in_one_line(play):
    config, _ = play(SECURE)
    work = Workspace(config)
    with pytest.raises(ConfigError, match="--colluding 4: round 1 has 4 clients, and one at least is to be attacked"):
        seen(play, SECURE, colluding=4)
    with pytest.raises(ConfigError, match="sees each client's update, there is no sum to take any out of"):
        setting_of(Workspace(play()[0]), 1)
    assert setting_of(work).updates == "plain update sum"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": [0, 0, 1, 2]}, "expected a sum of clients that are each in it once"),
        ({"clients": [0, 1, 2, "3"]}, "expected whole numbers"),
        ({"clients": [0, 1, 2, 9]}, "of which the run has none or not as many"),
        ({"images": [0, 3, 2, 2]}, "expected 1 to"),
        ({"examples": float("nan")}, "expected a number of at least 0"),
        ({"numbers": 5}, "holds no sum of the run beside it"),
        ({"weight": 0}, "it isn't of the run beside it"),
    ],
    ids=["twice", "text", "unknown", "images", "examples", "short", "weight"],
)
def test_a_made_up_sum_is_an_error_and_no_crash(play, tmp_path, change, message):
    config, folder = play(SECURE)
    for name in ("sent.safetensors", SUM):
        target = round_folder(tmp_path / RECORDING, 1) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((round_folder(folder / RECORDING, 1) / name).read_bytes())
    arrays, about = read_checksummed(target)
    if "numbers" in change:
        arrays["numbers"] = arrays["numbers"][: change["numbers"]]
    elif "weight" in change:
        arrays["numbers"][0] = change["weight"]
    else:
        about |= change
    write_checksummed(target, arrays, about)
    with pytest.raises(RecordingError, match=message):
        list(read_sums(Workspace(config), 0, tmp_path))


def test_a_client_that_told_nothing_cannot_collude(play, tmp_path):
    config, folder = play(SECURE)
    for name in ("sent.safetensors", SUM):
        target = round_folder(tmp_path / RECORDING, 1) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((round_folder(folder / RECORDING, 1) / name).read_bytes())
    assert not client_folder(tmp_path / TRUTH, 1, 0).exists()
    with pytest.raises(RecordingError, match=r"client 0 hasn't told what it put into the sum of round 1; run with"):
        list(read_sums(Workspace(config), 1, tmp_path))


@pytest.mark.parametrize("variant", [(), ("strategy.spiking=true",)], ids=["plain", "spiking"])
def test_a_sum_with_next_to_no_noise_is_the_sum(play, variant):
    """What a file of its round gives in the order of names is read in that of the vector."""
    little = ("privacy.mechanism=distributed", "privacy.noise_multiplier=1e-6", "privacy.clipping_norm=10",
              "privacy.noise_seed=0", "strategy.minimum_replies=4")  # fmt: skip
    options = (*variant, SECURE, "data.training_images=12", "strategy.weighting=uniform")
    _, (whole,) = seen(play, *options, rounds=[1])
    _, (noised,) = seen(play, *options, *little, rounds=[1])
    for name, array in whole.view.exchange.received.items():
        if not name.endswith("threshold"):  # of these the mean is of logarithms
            torch.testing.assert_close(noised.view.exchange.received[name], array, rtol=1e-2, atol=1e-3)
