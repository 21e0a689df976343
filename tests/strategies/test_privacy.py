"""Central differential privacy: what leaves the server is a noised sum of clipped vectors, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import Config, ConfigError, ConversionConfig, compose, flatten
from snnfl.privacy.accounting import Ledger
from snnfl.privacy.empirical import trials_bound
from snnfl.updates import ArraySpec, Converted, Plain
from snnfl.updates.coordinates import OWN, coordinates
from strategies.bases import build_base
from strategies.checkpoint import intact_checkpoints
from strategies.combinations import build_checked
from strategies.guarded import Guarded
from strategies.population import Population
from strategies.privacy import Protection, build_protection
from strategies.run_directory import CHECKPOINTS, read_metrics, simulated_node
from strategies.server_app import server_app
from strategies.spiking import Spiking
from strategies.update import UpdateSpec

CLIENTS, SIZE = 4, 1000
METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
SPEC = UpdateSpec(arrays={"w": ArraySpec(shape=(SIZE,))}, metrics=METRICS)
ONES = {"w": torch.ones(SIZE)}

Reply = Callable[..., Message]


def config(*overrides: str, clients: int = CLIENTS) -> Config:
    central = ["privacy.mechanism=central", "privacy.noise_seed=0", f"data.clients={clients}"]
    return compose(None, [*central, "strategy.spiking=false", *overrides])


def guarded(*overrides: str, clients: int = CLIENTS) -> Guarded:
    """Make a server of one array with 1,000 numbers."""
    found = config(*overrides, clients=clients)
    strategy = Guarded(build_checked(found), SPEC, seed=0)
    strategy.privacy = build_protection(found, Plain(ONES), sizes=[10] * clients, sent=ONES)
    return strategy


def population(scripted: Any, clients: int = CLIENTS) -> Population:
    return Population(scripted(range(clients), lambda message: message), partitions={n: n for n in range(clients)})


def play(
    strategy: Guarded, updates: list[Tensor], update_reply: Reply, scripted: Any, server_round: int = 1
) -> np.ndarray:
    """Send ones, receive the updates, and return what is made of them."""
    strategy.configure_train(server_round, ArrayRecord(dict(ONES)), ConfigRecord(), population(scripted))
    replies = [update_reply({"w": update}, node) for node, update in enumerate(updates)]
    result, _ = strategy.aggregate_train(server_round, replies)
    return result["w"].numpy()


def test_updates_are_clipped_and_divided_by_the_expected_number(update_reply: Reply, scripted: Any) -> None:
    far, near = torch.ones(SIZE), torch.ones(SIZE)
    far[0], near[1] = 101.0, 1.5
    strategy = guarded("privacy.noise_multiplier=0", "privacy.clipping_norm=2")
    found = play(strategy, [far, near, near], update_reply, scripted)  # one of four is missing
    np.testing.assert_allclose(found[:3], [1 + 2 / 4, 1 + 2 * 0.5 / 4, 1], rtol=1e-6)


def test_a_client_counts_one_whatever_it_claims(update_reply: Reply, scripted: Any) -> None:
    strategy = guarded("privacy.noise_multiplier=0", "privacy.clipping_norm=2")
    strategy.configure_train(1, ArrayRecord(dict(ONES)), ConfigRecord(), population(scripted))
    moved = ONES["w"].clone()
    moved[0] = 2.0
    replies = [update_reply({"w": moved}, 0, num_examples=1000), update_reply(dict(ONES), 1, num_examples=1)]
    result, _ = strategy.aggregate_train(1, replies)
    assert result["w"].numpy()[0] == pytest.approx(1 + 1 / 4)


def test_noise_has_the_promised_deviation_is_new_each_round_and_follows_from_no_public_seed(
    update_reply: Reply, scripted: Any
) -> None:
    def noisy(server_round: int, *options: str) -> np.ndarray:
        strategy = guarded("privacy.noise_multiplier=3", "privacy.clipping_norm=2", *options)
        return play(strategy, [torch.ones(SIZE)] * CLIENTS, update_reply, scripted, server_round)

    first = noisy(1)
    assert (first - 1).std() == pytest.approx(3 * 2 / CLIENTS, rel=0.1)
    assert (first - 1).mean() == pytest.approx(0, abs=5 * 1.5 / SIZE**0.5)
    np.testing.assert_array_equal(noisy(1), first)
    others = [noisy(2), noisy(1, "privacy.noise_seed=1"), noisy(1, "privacy.noise_seed=null"),
              noisy(1, "privacy.noise_seed=null")]  # fmt: skip
    for other in others:
        assert not np.array_equal(other, first)
    assert not np.array_equal(others[-1], others[-2])


def test_without_a_reply_noise_is_released_all_the_same(update_reply: Reply, scripted: Any) -> None:
    """A round that keeps its weights would say that nobody took part."""
    found = play(guarded("privacy.noise_multiplier=1"), [], update_reply, scripted)
    assert (found - 1).std() == pytest.approx(1 / CLIENTS, rel=0.1)


def test_no_update_is_refused_for_what_others_sent(update_reply: Reply, scripted: Any) -> None:
    """``strategy.update_bound`` compares with the median, so that one client decides whether another one counts."""
    updates = [torch.ones(SIZE)] * 2 + [torch.full((SIZE,), 1e6)]
    strategy = guarded("privacy.noise_multiplier=0", "privacy.clipping_norm=1")
    found = play(strategy, updates, update_reply, scripted)
    assert np.linalg.norm(found - 1) == pytest.approx(1 / CLIENTS, rel=1e-5)
    assert strategy.report.refused == 0


def test_the_cohort_is_drawn_client_by_client(scripted: Any) -> None:
    """Poisson sampling: its size is binomial, its members independent, and nobody who knows the run's seed knows it."""
    strategy = guarded("strategy.fraction_train=0.3", clients=200)
    grid, drawn = population(scripted, 200), []
    for server_round in range(1, 101):
        messages = strategy.configure_train(server_round, ArrayRecord(dict(ONES)), ConfigRecord(), grid)
        drawn.append({message.metadata.dst_node_id for message in messages})
    sizes = np.array([len(each) for each in drawn])
    assert sizes.mean() == pytest.approx(60, abs=5 * (200 * 0.3 * 0.7 / 100) ** 0.5)
    assert sizes.std() == pytest.approx((200 * 0.3 * 0.7) ** 0.5, rel=0.3)  # a fixed size would have none
    together = sum({0, 1} <= each for each in drawn) / 100
    assert together == pytest.approx(0.09, abs=5 * (0.09 * 0.91 / 100) ** 0.5)
    other = guarded("strategy.fraction_train=0.3", "privacy.noise_seed=1", clients=200)
    messages = other.configure_train(1, ArrayRecord(dict(ONES)), ConfigRecord(), grid)
    assert {message.metadata.dst_node_id for message in messages} != drawn[0]


def test_a_round_without_anybody_asks_nobody(scripted: Any) -> None:
    strategy = guarded("strategy.fraction_train=0.001", clients=3)
    assert strategy.configure_train(1, ArrayRecord(dict(ONES)), ConfigRecord(), population(scripted, 3)) == []


@pytest.mark.parametrize("initial", [0.01, 100.0])
def test_the_adaptive_bound_finds_the_quantile(update_reply: Reply, scripted: Any, initial: float) -> None:
    strategy = guarded(
        "privacy.noise_multiplier=0.001", "privacy.clip_norm_lr=1", "privacy.target_clipped_quantile=0.5",
        "privacy.clipped_count_stddev=0.01", f"privacy.clipping_norm={initial}",
    )  # fmt: skip
    norms = [1.0, 2.0, 4.0, 8.0]
    updates = [torch.ones(SIZE) + norm * torch.eye(SIZE)[0] for norm in norms]
    for server_round in range(1, 41):
        strategy.privacy.reference = {"w": torch.ones(SIZE)}
        play(strategy, updates, update_reply, scripted, server_round)
    assert 2 / np.exp(0.3) < strategy.privacy.norm < 4 * np.exp(0.3)


def test_the_noise_fits_the_bound_that_updates_were_clipped_to(update_reply: Reply, scripted: Any) -> None:
    strategy = guarded(
        "privacy.noise_multiplier=0.3", "privacy.clip_norm_lr=5", "privacy.clipped_count_stddev=0.2",
        "privacy.target_clipped_quantile=0.5", "privacy.clipping_norm=2",
    )  # fmt: skip
    found = play(strategy, [torch.ones(SIZE)] * CLIENTS, update_reply, scripted)
    left = (0.3**-2 - (2 * 0.2) ** -2) ** -0.5
    assert (found - 1).std() == pytest.approx(left * 2 / CLIENTS, rel=0.1)
    assert strategy.privacy.norm < 1  # nobody was clipped, so the next bound is far smaller
    assert strategy.privacy.spending.noise == 0.3  # what is counted is both releases together


def test_a_count_that_alone_spends_the_wanted_epsilon_is_refused_before_a_round() -> None:
    with pytest.raises(ConfigError, match=r"twice the noise of the count .* privacy.clipped_count_stddev=0.2"):
        guarded("privacy.target_epsilon=1", "privacy.target_clipped_quantile=0.5")


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedavgm"])
def test_a_step_of_the_server_is_taken_with_the_noised_mean(name: str, update_reply: Reply, scripted: Any) -> None:
    """What a strategy makes of one reply follows from it, so it costs nothing."""
    updates = [torch.ones(SIZE) + 0.1 * torch.eye(SIZE)[n] for n in range(3)]
    mean = play(guarded("privacy.noise_multiplier=1"), updates, update_reply, scripted)
    found = play(guarded(f"strategy.name={name}", "privacy.noise_multiplier=1"), updates, update_reply, scripted)
    base = build_base(config(f"strategy.name={name}"))
    base.configure_train(1, ArrayRecord(dict(ONES)), ConfigRecord(), population(scripted))
    expected, _ = base.aggregate_train(1, [update_reply({"w": torch.from_numpy(mean)}, 0)])
    np.testing.assert_allclose(found, expected["w"].numpy(), rtol=1e-5, atol=1e-6)


class Faulty(Protection):
    """A mechanism that forgets the thresholds: they are averaged as they come."""

    def release(self, server_round: int, updates: list[Mapping[str, Tensor]], sent: Mapping[str, Tensor]) -> Message:
        found = super().release(server_round, updates, sent)
        for name in (name for name in self.reference if name.endswith(".threshold")):
            values = [coordinates(self.format, update, sent)[name] for update in updates]
            self.reference[name] = torch.stack(values).sum(0) / self.expected
        return found


def spiking(federation: Any, kind: type[Protection], noise: float, seed: int) -> Spiking:
    format = Converted(federation.graph, federation.state, ConversionConfig())
    options = [f"privacy.noise_multiplier={noise}", f"privacy.noise_seed={seed}", "privacy.clipping_norm=2"]
    found = compose(None, ["privacy.mechanism=central", "data.clients=3", *options])
    strategy = Spiking(build_checked(found), format, metrics=METRICS)
    sent = {name: federation.state[name] for name in format.sent_specs}
    strategy.privacy = kind(found, format, sizes=[10] * 3, sent=sent)
    return strategy


def released_thresholds(
    federation: Any, kind: type[Protection], canary: bool, noise: float, seed: int, update_reply: Reply, scripted: Any
) -> float:
    """Play a round with two clients, and a third whose thresholds alone are others; return what the server's are."""
    strategy = spiking(federation, kind, noise, seed)
    _, update = federation.trained(1)
    strategy.configure_train(1, federation.without_biases(), ConfigRecord(), population(scripted, 3))
    replies = [update_reply(update, node) for node in range(2)]
    if canary:
        thresholds = {n: torch.full_like(a, 50.0) for n, a in update.items() if n.endswith(".threshold")}
        replies.append(update_reply({**federation.trained(2)[1], **thresholds}, 2))
    strategy.aggregate_train(1, replies)
    parameters = strategy.network.parameters
    return float(sum(a.log().sum() for name, a in parameters.items() if name.endswith(".threshold")))


def test_thresholds_that_are_left_out_refute_the_proof_and_those_in_the_vector_do_not(
    federation: Any, update_reply: Reply, scripted: Any
) -> None:
    proven, scores = Ledger([(3.0, 1.0, 1)]).epsilon(1e-3), {}
    for kind in (Protection, Faulty):
        for canary in (True, False):
            scores[kind, canary] = [
                released_thresholds(federation, kind, canary, 3.0, 2 * seed + canary, update_reply, scripted)
                for seed in range(40)
            ]
    right = trials_bound(scores[Protection, True], scores[Protection, False], delta=1e-3)
    faulty = trials_bound(scores[Faulty, True], scores[Faulty, False], delta=1e-3)
    assert right < proven < faulty, (right, proven, faulty)


def test_everything_that_an_s_server_holds_follows_from_the_noised_vector(
    federation: Any, update_reply: Reply, scripted: Any
) -> None:
    strategy = spiking(federation, Protection, 0.5, 0)
    strategy.configure_train(1, federation.without_biases(), ConfigRecord(), population(scripted, 3))
    aggregate, _ = strategy.aggregate_train(1, [update_reply(federation.trained(n)[1], n) for n in range(3)])
    released = strategy.privacy.reference
    again = spiking(federation, Protection, 0.5, 1)
    again.configure_train(1, federation.without_biases(), ConfigRecord(), population(scripted, 3))
    again.aggregate_train(1, [update_reply(federation.trained(n)[1], n) for n in range(3)])
    for name, array in strategy.network.parameters.items():  # no array is without noise
        assert not torch.equal(array, again.network.parameters[name]), name
    for name, array in aggregate.items():
        if not name.endswith("running_var"):
            np.testing.assert_allclose(array.numpy(), released[name].numpy(), rtol=1e-6)
    thresholds = {n: a.log() for n, a in strategy.network.parameters.items() if n.endswith(".threshold")}
    for name, array in thresholds.items():
        torch.testing.assert_close(array, released[f"{OWN}{name}"], rtol=1e-4, atol=1e-5)


def test_the_whole_s_update_has_the_norm_that_is_allowed(federation: Any, update_reply: Reply, scripted: Any) -> None:
    strategy = spiking(federation, Protection, 0.0, 0)
    before = strategy.privacy.layout.vector(strategy.privacy.reference)
    strategy.configure_train(1, federation.without_biases(), ConfigRecord(), population(scripted, 3))
    strategy.aggregate_train(1, [update_reply(federation.trained(1)[1], 0)])
    moved = strategy.privacy.layout.vector(strategy.privacy.reference) - before
    assert np.linalg.norm(moved) == pytest.approx(2 / 3, rel=1e-3)


SMALL = [
    "run.rounds=3", "data.clients=6", "data.training_images=120", "data.test_images=50", "data.minimum_samples=5",
    "training.epochs=1", "model.name=mlp", "model.batch_norm=false", "conversion.steps=4", "conversion.candidates=5",
    "conversion.calibration_images=8", "evaluation.clients=false", "strategy.fraction_train=0.7",
]  # fmt: skip


def play_run(path: Path, *overrides: str) -> Config:
    found = compose(None, [*SMALL, f"run.directory={path}", *overrides])
    run_in_process(
        server_app(),
        client_app.app,
        run_config=flatten(found),
        clients=found.data.clients,
        node_config=simulated_node(found),
    )
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "bytes")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in read_metrics(path / "run")]


@pytest.mark.parametrize(
    "options",
    [
        ["privacy.mechanism=central", "privacy.canaries=50"],
        ["privacy.mechanism=central", "privacy.target_clipped_quantile=0.5", "privacy.noise_multiplier=0.4"],
        ["privacy.mechanism=local", "privacy.noise_multiplier=0.5"],
        ["privacy.mechanism=example", "strategy.spiking=false"],
        pytest.param(
            ["privacy.mechanism=distributed", "strategy.secure_aggregation=true", "strategy.minimum_replies=4"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(tmp_path: Path, options: list[str]) -> None:
    play_run(tmp_path / "whole", *options, "privacy.noise_seed=5")
    play_run(tmp_path / "parts", *options, "privacy.noise_seed=5", "run.rounds=2")
    play_run(tmp_path / "parts", *options, "privacy.noise_seed=5", "run.resume=true")
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert whole == parts
    assert [row["epsilon"] for row in whole] == sorted({row["epsilon"] for row in whole})
    name = "final_snn.safetensors" if "spiking" not in options[-1] else "final_ann.safetensors"
    files = [(tmp_path / each / "run" / name).read_bytes() for each in ("whole", "parts")]
    assert files[0] == files[1]


def test_the_key_of_the_noise_outlives_the_process_and_is_no_other_runs(tmp_path: Path) -> None:
    keys = []
    for name, rounds in (("one", 1), ("one", 2), ("other", 1)):
        resume = "true" if rounds == 2 else "false"
        options = ["privacy.mechanism=central", f"run.resume={resume}", f"run.rounds={rounds}"]
        play_run(tmp_path / name, *options)
        checkpoint = next(intact_checkpoints(tmp_path / name / "run" / CHECKPOINTS))
        keys.append(checkpoint.privacy["key"])
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("spent", ["privacy.budget=3", "privacy.target_epsilon=3"])
def test_a_budget_holds_across_resumes(tmp_path: Path, spent: str, caplog: pytest.LogCaptureFixture) -> None:
    noise = ["privacy.noise_multiplier=2"] if "budget" in spent else []
    options = ["privacy.mechanism=central", "strategy.fraction_train=1", spent, *noise]
    play_run(tmp_path, *options, "run.rounds=2")
    two = [row["epsilon"] for row in rows_of(tmp_path)]
    for rounds in (6, 9):
        play_run(tmp_path, *options, f"run.rounds={rounds}", "run.resume=true")
    epsilons = [row["epsilon"] for row in rows_of(tmp_path)]
    assert epsilons[: len(two)] == two
    assert max(epsilons) <= 3
    assert f"{spent}: round {len(epsilons) + 1} would spend an epsilon of " in caplog.text
    if "target" in spent:
        assert len(epsilons) == 2  # which the noise was found for, and a resumed run doesn't find another one
        assert epsilons[-1] > 2.98


def test_a_budget_that_no_round_fits_into_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy.budget=0.5: round 1 would spend an epsilon of .*; take more noise"):
        play_run(tmp_path, "privacy.mechanism=central", "privacy.budget=0.5")
    assert not (tmp_path / "run").exists()


def test_batch_normalisation_that_the_option_leaves_there_is_refused(tmp_path: Path) -> None:
    """``model.batch_norm=false`` is of some networks alone."""
    options = ["privacy.mechanism=example", "strategy.spiking=false", "model.name=resnet20"]
    with pytest.raises(ConfigError, match=r"model.name=resnet20: has batch normalisation whatever model.batch_norm"):
        play_run(tmp_path, *options)
    assert not (tmp_path / "run").exists()
