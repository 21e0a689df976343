"""Uploads of which not everything was sent as it is: recognised, matched on what was sent, and said to be so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from unittest import mock

import pytest
import torch
import victims
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from victims import Victim, attacked, digits, recordings, small_cnn, small_mlp, spiking_victim

from snnfl.attacks import Budget, get_attack, problem
from snnfl.attacks.compressed import as_sent, made_by, rounding_share, sent_alone
from snnfl.attacks.networks import rows_of
from snnfl.config import ModelConfig, TrainingConfig
from snnfl.metrics.images import matched, psnr
from snnfl.models import build_model
from snnfl.threat import PublicImages, ThreatModelError
from snnfl.updates import Packing, Plain

SHORT = Budget(iterations=100, compiled=False)


def lenet() -> nn.Module:
    config, draw = ModelConfig(name="lenet5", batch_norm=False), torch.Generator().manual_seed(0)
    return build_model(config, input_shape=(1, 8, 8), classes=10, generator=draw)


def score(name: str, victim: Victim, budget: Budget = SHORT) -> float:
    found = get_attack(name).run(victim.view, budget=budget, generator=torch.Generator().manual_seed(0))
    truth = victim.truth.images
    return float(psnr(found.images[matched(found.images, truth)], truth).mean())


def scores(name: str, victims: list[Victim]) -> float:
    """Return the mean over victims that are attacked at once."""
    views, draw = [victim.view for victim in victims], torch.Generator().manual_seed(0)
    found = get_attack(name).run_many(views, budget=SHORT, generator=draw)
    return sum(float(psnr(each.images, of.truth.images).mean()) for each, of in zip(found, victims, strict=True)) / len(
        victims
    )


def received(victim: Victim, arrays: Mapping[str, Tensor], **told: Mapping[str, float]) -> Victim:
    exchange = replace(victim.view.exchange, received=dict(arrays), **told)
    return replace(victim, view=replace(victim.view, exchange=exchange))


def top(victim: Victim, part: float, *, by_array: bool = False, seed: int | None = None) -> Victim:
    """Leave out all but the largest changes, of all arrays or of each; with a seed, all but some drawn at random."""
    sent, after = victim.view.exchange.sent, victim.view.exchange.received
    draw = torch.Generator().manual_seed(seed or 0)
    changes = {name: after[name] - array for name, array in sent.items()}
    sizes = {n: torch.rand(c.shape, generator=draw) if seed is not None else c.abs() for n, c in changes.items()}
    everything = torch.cat([size.flatten() for size in sizes.values()])

    def least(size: Tensor) -> Tensor:
        of = size.flatten() if by_array else everything
        return of.topk(max(1, int(part * len(of)))).values[-1]

    kept = {name: torch.where(size >= least(size), after[name], sent[name]) for name, size in sizes.items()}
    return received(victim, kept)


def rounded(victim: Victim, bits: int) -> Victim:
    """Upload in few bits, by the format that clients use."""
    sent, after = victim.view.exchange.sent, victim.view.exchange.received
    packing = Packing(Plain(sent), bits)
    packed, _ = packing.encode(after, sent, {}, torch.Generator().manual_seed(0))
    victim = received(victim, packing.decode(packed, sent), rounding=packing.steps(packed))
    return replace(victim, view=replace(victim.view, knowledge=replace(victim.view.knowledge, upload_bits=bits)))


def with_public(victim: Victim) -> Victim:
    pixels, labels, mean, std = digits(60, 600)
    public = PublicImages(inputs=(pixels - mean) / std, labels=labels)
    return replace(victim, view=replace(victim.view, public=public))


MODELS = {"lenet": lenet, "mlp": small_mlp, "cnn": small_cnn, "normalised": lambda: small_cnn(norm=True)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("images", [1, 2, 4, 12])
@pytest.mark.parametrize("rate", [0.1, 1e-4])
def test_no_gradient_is_taken_for_a_sparse_upload(model: str, images: int, rate: float) -> None:
    training = TrainingConfig(epochs=2, batch_size=2, learning_rate=rate, momentum=0.9, weight_decay=0.0)
    for option in (training, replace(training, epochs=1, batch_size=images)):
        if images > 1 or model != "normalised":
            victim = attacked(MODELS[model](), images=images, training=option, start=3)
            assert not problem.sparse(victim.view)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("images", [2, 12])
@pytest.mark.parametrize("by_array", [False, True])
@pytest.mark.parametrize("part", [0.2, 0.05])
def test_the_largest_entries_are_taken_for_one(model: str, images: int, by_array: bool, part: float) -> None:
    view = top(attacked(MODELS[model](), images=images), part, by_array=by_array).view
    assert problem.sparse(view)
    assert "sparse upload of" in problem.said_of_upload(view)


@pytest.mark.parametrize("model", ["lenet", "mlp"])
def test_entries_drawn_at_random_are_taken_for_one_where_few_images_cannot_make_them(model: str) -> None:
    assert problem.sparse(top(attacked(MODELS[model](), images=2), 0.1, seed=1).view)


def of_two_values(count: int, start: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return digits of black and white pixels alone, zero and one as the network sees them."""
    pixels, labels, mean, std = digits(count, start)
    return (pixels > 0.5).float(), labels, torch.zeros_like(mean), torch.ones_like(std)


def of_one_value(count: int, start: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows of eight features, each one of eight categories, with digits' labels."""
    _, labels, mean, std = digits(count, start)
    drawn = torch.randint(8, (count, 8), generator=torch.Generator().manual_seed(start))
    return nn.functional.one_hot(drawn, 8).float().view(-1, 1, 8, 8), labels, torch.zeros_like(mean), std / std


def started_at_zero() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


SMALL = {
    **{f"{units} units": lambda units=units: small_mlp(units) for units in (8, 16, 32)},
    "regression": started_at_zero,
    "lenet": lenet,
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SMALL)),
    st.sampled_from([of_two_values, of_one_value]),
    st.sampled_from([1, 2, 3, 4, 12]),
    st.integers(0, 300),
    st.sampled_from([(1, 0.0), (2, 0.001)]),
)
def test_images_of_two_values_are_not_taken_for_an_upload_that_left_something_out(model, made, images, start, rounds):  # type: ignore[no-untyped-def]
    epochs, decay = rounds
    training = TrainingConfig(epochs=epochs, batch_size=images, learning_rate=0.1, momentum=0.9, weight_decay=decay)
    with mock.patch.object(victims, "digits", made):
        view = attacked(SMALL[model](), images=images, start=start, training=training).view
    assert not problem.rounding(view)
    assert not problem.sparse(view)


@pytest.mark.parametrize("denied", [(), ("optimizer",), ("learning_rate",)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.005, 0.05])
def test_layers_that_a_client_does_not_train_were_not_left_out(decay, denied):
    training = TrainingConfig(epochs=1, batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=decay)
    view = attacked(small_mlp(200), images=4, training=training).view
    sent = view.exchange.sent
    received = {name: sent[name] if "fc1" in name else array for name, array in view.exchange.received.items()}
    exchange, known = replace(view.exchange, received=received), view.knowledge.without(denied)
    tuned = replace(view, exchange=exchange, knowledge=known)
    assert not problem.sparse(tuned)
    found = problem.problem_of(tuned)
    gradient = found.gradient("fc2.weight")
    assert float(gradient.sum(0).norm()) < 1e-4 * float(gradient.norm())  # decay would leave sums over classes


@pytest.mark.parametrize("images", [2, 4, 12])
@pytest.mark.parametrize("kind", ["largest of all", "largest of each", "drawn"])
def test_uploads_that_left_something_out_are_recognised(images: int, kind: str) -> None:
    found = list[bool]()
    for model in SMALL:
        for start in range(0, 40, 10):
            whole = attacked(SMALL[model](), images=images, start=start)
            for part in (0.05, 0.2):
                seed = start if kind == "drawn" else None
                victim = top(whole, part, by_array=kind == "largest of each", seed=seed)
                found.append(problem.sparse(victim.view))
    assert sum(found) > 0.95 * len(found)  # 40 of 40; by sizes and patterns of zeros 0 to 33


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(8, 20), st.integers(8, 40), st.integers(0, 2**31))
def test_a_rank_tells_who_left_out_or_rounded_entries(images, rows, columns, seed):  # type: ignore[no-untyped-def]
    draw = torch.Generator().manual_seed(seed)
    slopes, inputs = torch.randn(rows, images, generator=draw), torch.randn(images, columns, generator=draw)
    sent, ranks = {"fc.weight": torch.randn(rows, columns, generator=draw)}, {"fc": images}
    change = slopes @ inputs
    assert made_by(sent, {"fc.weight": change}, ranks, None)
    assert made_by(sent, {"fc.weight": slopes.relu() @ (inputs > 0).float()}, ranks, None) is not False
    kept = torch.rand(change.shape, generator=draw) < 0.6
    assert made_by(sent, {"fc.weight": torch.where(kept, change, 0.0)}, ranks, None) is False
    step = float(change.abs().max()) / 7
    codes = (change / step + torch.rand(change.shape, generator=draw)).floor()
    assert made_by(sent, {"fc.weight": step * codes}, ranks, None) is False


def test_logits_change_by_what_sums_to_zero_over_classes() -> None:
    errors, features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.rand(3, 2)
    change, sent = errors @ features, {"fc.weight": torch.zeros(5, 2)}
    assert made_by(sent, {"fc.weight": change}, {"fc": 3}, None) is None
    assert made_by(sent, {"fc.weight": change}, {"fc": 3}, "fc") is False
    assert made_by(sent, {"fc.weight": change - change.mean(0)}, {"fc": 3}, "fc")


def test_rows_are_counted_over_time_and_of_layers_that_are_called() -> None:
    assert rows_of(small_mlp(), (1, 8, 8)) == {"fc1": 1, "fc2": 1}
    model = spiking_victim(recordings(1, steps=5), torch.tensor([3]), sequence=True).view.model
    assert set(rows_of(model, (5, 2, 12, 12)).values()) == {5}


def test_matching_what_was_sent_finds_more_than_matching_all(monkeypatch: pytest.MonkeyPatch) -> None:
    victims = [top(attacked(small_cnn(), start=start), 0.05) for start in (0, 5)]
    masked = scores("inverting_gradients", victims)
    monkeypatch.setattr(problem, "sparse", lambda view: False)
    assert masked > scores("inverting_gradients", victims) + 2


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("model", ["lenet", "mlp", "cnn"])
def test_codes_are_recognised_where_nobody_tells_of_them(model: str, bits: int) -> None:
    victim = rounded(attacked(MODELS[model](), images=2), bits)
    view = replace(victim.view, exchange=replace(victim.view.exchange, rounding={}))
    view = replace(view, knowledge=replace(view.knowledge, upload_bits=None))
    told, found = victim.view.exchange.rounding, problem.rounding(view)
    assert all(found[name] == pytest.approx(told[name], rel=0.01) for name in found)
    large = [name for name, array in view.exchange.sent.items() if array.numel() > 500]
    assert found.keys() >= set(large)
    assert "a quantised upload, of whose norm" in problem.said_of_upload(view)
    assert not problem.sparse(view)


@pytest.mark.parametrize("model", MODELS)
def test_no_gradient_is_taken_for_codes(model: str) -> None:
    for images, rate in ((2, 0.1), (12, 1e-4)):
        training = TrainingConfig(epochs=1, batch_size=images, learning_rate=rate, momentum=0.0, weight_decay=0.0)
        assert not problem.rounding(attacked(MODELS[model](), images=images, training=training).view)


@pytest.mark.parametrize(("bits", "least"), [(8, 30.0), (4, 18.0)])
def test_few_bits_are_divided_as_all_are(bits: int, least: float) -> None:
    scores = [score("closed_form", rounded(attacked(small_mlp(), start=start), bits)) for start in range(6)]
    assert sum(scores) / 6 > least


def test_a_pixel_is_read_off_the_entries_that_were_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    victims = [top(attacked(small_mlp(64), start=start), 0.2) for start in range(4)]
    assert all(problem.sparse(victim.view) for victim in victims)
    masked = [score("closed_form", victim) for victim in victims]
    monkeypatch.setattr(problem, "sparse", lambda view: False)
    assert sum(masked) / 4 > sum(score("closed_form", victim) for victim in victims) / 4 + 3


@pytest.mark.parametrize("made", [lambda v: rounded(v, 8), lambda v: top(v, 0.1)])
@pytest.mark.parametrize(("name", "model"), [("closed_form", small_mlp), ("feature_inversion", lenet)])
def test_what_is_solved_exactly_is_refused(made, name, model) -> None:  # type: ignore[no-untyped-def]
    victim = made(attacked(model(), images=4))
    assert "solves for exact numbers" in str(get_attack(name).refusal(victim.view))
    with pytest.raises(ThreatModelError, match="exact numbers"):
        score(name, victim)


def test_rehearsals_are_rounded_and_left_out_as_the_victims_are() -> None:
    draw = torch.Generator().manual_seed(0)
    gradient, other = torch.randn(30, 40, generator=draw), torch.randn(30, 40, generator=draw)
    sparse = torch.where(other.abs() > 1.5, other, 0.0)
    made = as_sent({"w": gradient}, {"w": sparse}, {}, draw, sparse=True)["w"]
    assert (made != 0).sum() == (sparse != 0).sum()
    assert made[made != 0].abs().min() >= gradient[made == 0].abs().max()
    coded = as_sent({"w": gradient}, {"w": other}, {"w": 0.5}, draw, sparse=False)["w"]
    assert torch.equal(coded / 0.5, (coded / 0.5).round())
    assert (coded - gradient).abs().max() < 0.5


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_share_of_rounding_is_about_what_it_is(bits: int) -> None:
    victim = attacked(small_mlp(), images=4)
    seen = rounded(victim, bits)
    share = rounding_share(problem.observed(seen.view, 1.0), seen.view.exchange.rounding)
    error = [seen.view.exchange.received[n] - array for n, array in victim.view.exchange.received.items()]
    norm = torch.cat([array.flatten() for array in problem.observed(seen.view, 1.0).values()]).norm()
    true = float(torch.cat([array.flatten() for array in error]).norm() / norm)
    assert 0.5 * true < share < 2 * true + 0.02


def test_what_could_have_been_left_out_costs_nothing() -> None:
    wanted = {"w": torch.tensor([2.0, -1.0, 0.0, 0.0])}
    kept = sent_alone({"w": torch.tensor([5.0, 3.0, 0.9, -1.5])}, wanted)["w"]
    assert kept.tolist() == [5.0, 3.0, 0.0, -0.5]
    assert sent_alone({"w": torch.ones(2)}, {"w": torch.zeros(2)})["w"].tolist() == [0, 0]


def test_the_result_says_what_was_not_sent_as_it_is() -> None:
    victim = with_public(rounded(attacked(small_mlp()), 4))
    found = get_attack("inverting_gradients").run(
        victim.view, budget=Budget(iterations=8), generator=torch.Generator().manual_seed(0)
    )
    assert "TV" in found.choice
    assert "an upload in 4 bits, of whose norm about" in found.choice
