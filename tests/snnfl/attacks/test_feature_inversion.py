"""Images by a convolutional network's features, and what public images, regressed on theirs, say of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from victims import Victim, attacked, digits, shown

from snnfl import rng
from snnfl.attacks import Budget, feature_inversion, get_attack, public_regression
from snnfl.attacks.feature_inversion import REGRESSED
from snnfl.config import ConversionConfig
from snnfl.metrics.images import matched, psnr
from snnfl.models import initialise
from snnfl.training import private_biases

CONVERSION = ConversionConfig(steps=8)


def cnn(*, norm: bool = False) -> nn.Module:
    """Build a network whose linear layer is given fewer numbers, 36, than an image has, 64."""
    norms = [nn.BatchNorm2d(4)] if norm else []
    features = [nn.Conv2d(1, 4, 3, stride=2), *norms, nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*features, nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 10))
    initialise(model, rng.generator(0, "weights"))
    return model


@pytest.fixture(scope="module", autouse=True)
def few_examples():
    """Learn from as few as tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (public_regression, feature_inversion):
            patch.setattr(module, "MOST_EXAMPLES", 600)
        patch.setattr(feature_inversion, "LEAST_EXAMPLES", 300)
        yield


@pytest.fixture(scope="module")
def victims() -> list[Victim]:
    return [shown(attacked(cnn(), start=start)) for start in (0, 1, 2)]


def found_of(victims: list[Victim], iterations: int = 60):
    views, draw = [victim.view for victim in victims], torch.Generator().manual_seed(0)
    return get_attack("feature_inversion").run_many(views, budget=Budget(iterations=iterations), generator=draw)


def mean_psnr(found, victims: list[Victim]) -> float:
    pairs = [(item.images, victim.truth.images) for item, victim in zip(found, victims, strict=True)]
    return float(torch.cat([psnr(images[matched(images, truth)], truth) for images, truth in pairs]).mean())


def smooth_of(victims: list[Victim], monkeypatch: pytest.MonkeyPatch, iterations: int = 60):
    """Attack with the total variation alone, whatever is public."""
    with monkeypatch.context() as patch:
        patch.setattr(feature_inversion, "LEAST", 10**9)
        return found_of(victims, iterations)


@pytest.mark.parametrize("kind", ["one image", "three images", "S-update"])
def test_where_public_images_are_regressed_more_is_found(kind, victims, monkeypatch):
    others = {
        "one image": victims,
        "three images": [shown(attacked(cnn(), images=3))],
        "S-update": [shown(attacked(cnn(), start=start, conversion=CONVERSION)) for start in (0, 1)],
    }[kind]
    found, smooth = found_of(others), smooth_of(others, monkeypatch)
    assert all(item.choice.startswith(REGRESSED) for item in found)
    assert all(item.choice.startswith("TV") for item in smooth)
    assert mean_psnr(found, others) > mean_psnr(smooth, others) + 5


def test_the_features_tell_more_than_the_regression_alone(monkeypatch):
    victims, said = [shown(attacked(cnn(), start=start)) for start in range(10)], []

    def noted(*given):
        said.append(public_regression.expected(*given))
        return said[-1]

    monkeypatch.setattr(feature_inversion, "expected", noted)
    found = found_of(victims)
    alone = [
        replace(item, images=victim.view.pixels(start[None]))
        for item, victim, start in zip(found, victims, said[0].samples[-len(victims) :], strict=True)
    ]
    assert mean_psnr(found, victims) > mean_psnr(alone, victims) + 0.2
    assert sum(item.explained for item in found) >= 9


def test_the_biases_of_an_s_update_are_guessed_by_what_public_images_explain():
    """The others are far off: first those that were received, then the initial ones."""
    victim = shown(attacked(cnn(), conversion=CONVERSION))
    own = {name: array for name, array in cnn().state_dict().items() if name in private_biases(victim.view.model)}
    draw = torch.Generator().manual_seed(2)
    far = {name: array + torch.randn(array.shape, generator=draw) for name, array in own.items()}
    received = {**victim.view.exchange.received, **far}
    spoilt = replace(victim.view, exchange=replace(victim.view.exchange, received=received))
    views = [replace(view, initial=dict(cnn().state_dict())) for view in (victim.view, spoilt)]
    views.append(replace(victim.view, initial={**dict(cnn().state_dict()), **far}))
    views.append(replace(victim.view, initial=None))
    found = [
        get_attack("feature_inversion").run(
            view, budget=Budget(iterations=60), generator=torch.Generator().manual_seed(0)
        )
        for view in views
    ]
    right, sent, wrong, without = (mean_psnr([each], [victim]) for each in found)
    assert [each.choice.rpartition(", ")[2] for each in found] == 2 * ["initial biases"] + 2 * ["received biases"]
    assert sent == pytest.approx(right, abs=0.1)
    assert wrong == pytest.approx(without, abs=0.1)


@pytest.mark.parametrize("norm", [False, True], ids=["one image", "two images, normalised"])
def test_of_a_client_the_same_is_found_whoever_is_attacked_beside_it(norm, victims):
    some = [shown(attacked(cnn(norm=True), start=start, images=2)) for start in (0, 2)] if norm else victims[:2]
    alone, beside = found_of(some[1:], 10)[0], found_of(some, 10)[1]
    assert alone.choice.startswith(REGRESSED)
    torch.testing.assert_close(alone.images, beside.images, atol=1e-3, rtol=0)


def test_guesses_of_biases_in_a_first_round_are_the_initial_ones_unless_others_fit_twice_as_well():
    """Where the initial ones are right, those that were received fit by chance, too."""
    initial = dict(cnn().state_dict())
    views = [shown(attacked(cnn(), start=start, conversion=CONVERSION)).view for start in range(8)]
    views = [replace(view, initial=initial) for view in views]
    later = [replace(view, exchange=replace(view.exchange, server_round=2)) for view in views[:2]]
    for some, kind in ((views, "initial"), (later, "received")):
        draw = torch.Generator().manual_seed(0)
        found = get_attack("feature_inversion").run_many(some, budget=Budget(iterations=1), generator=draw)
        assert all(item.choice.endswith(f"{kind} biases") for item in found)


def test_of_a_random_update_no_more_is_found_than_without_one(victims):
    (victim, *_) = victims
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(7)
    noise = {name: array + 0.01 * torch.randn(array.shape, generator=draw) for name, array in exchange.sent.items()}
    blind = replace(victim, view=replace(victim.view, exchange=replace(exchange, received=noise)))
    guess = digits(600, 600)[0].mean(0, keepdim=True)
    assert mean_psnr(found_of([blind], 20), [blind]) < float(psnr(guess, victim.truth.images).mean()) + 0.5


def test_where_rehearsals_find_less_by_them_images_are_smooth(victims, monkeypatch):
    def grey(*given):
        said = public_regression.expected(*given)
        return replace(said, samples=0 * said.samples, root=1e3 * said.root)

    monkeypatch.setattr(feature_inversion, "expected", grey)
    (found,) = found_of(victims[:1])
    assert found.choice.startswith("TV")


def test_what_is_rehearsed_is_not_learned_from(victims, monkeypatch):
    made, learned = [], []
    rehearse = feature_inversion.rehearsals

    def rehearsals(*given):
        made.append(rehearse(*given))
        return made[-1]

    def expected(public, *given):
        learned.append(public)
        return public_regression.expected(public, *given)

    monkeypatch.setattr(feature_inversion, "rehearsals", rehearsals)
    monkeypatch.setattr(feature_inversion, "expected", expected)
    found_of(victims[:1], 1)
    for each in made[-1]:
        assert not (learned[0] == each.images).flatten(1).all(1).any()


@pytest.mark.parametrize("case", ["normalised in batches, statistics denied", "seven public images", "nothing public"])
def test_what_is_not_regressed(case):
    mixed = case == "normalised in batches, statistics denied"
    victim = attacked(cnn(norm=mixed), images=2 if mixed else 1)
    if mixed:
        denied = victim.view.knowledge.without(["update_statistics"])
        victim = replace(victim, view=replace(victim.view, knowledge=denied))
    if case != "nothing public":
        victim = shown(victim, count=7 if case == "seven public images" else 600)
    (found,) = found_of([victim], 4)
    assert found.choice.startswith("TV")


def test_features_of_one_normalised_image_are_regressed_too(monkeypatch):
    victims = [shown(attacked(cnn(norm=True), start=start)) for start in (0, 1)]
    found, smooth = found_of(victims), smooth_of(victims, monkeypatch)
    assert all(item.choice.startswith(REGRESSED) for item in found)
    assert mean_psnr(found, victims) > mean_psnr(smooth, victims) + 3


def test_features_of_a_batch_that_is_normalised_as_a_whole_are_regressed_by_its_statistics(monkeypatch):
    victims = [shown(attacked(cnn(norm=True), start=start, images=2)) for start in (0, 2)]
    found, smooth = found_of(victims), smooth_of(victims, monkeypatch)
    assert all(item.choice.startswith(REGRESSED) for item in found)
    assert mean_psnr(found, victims) > mean_psnr(smooth, victims) + 3


def spoilt(victim: Victim, field: str, value: float) -> Victim:
    """Let a client send other statistics than its batch's."""
    exchange = victim.view.exchange
    received = {
        name: torch.full_like(array, value) if field in name else array for name, array in exchange.received.items()
    }
    return replace(victim, view=replace(victim.view, exchange=replace(exchange, received=received)))


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize(("field", "value"), [("running_var", -1.0), ("running_mean", 30.0)])
def test_who_spoils_the_statistics_that_it_sends_hides_no_more_than_without_them(field, value, public, monkeypatch):
    victim = attacked(cnn(norm=True), images=2)
    victim = shown(victim) if public else victim
    (found,), (smooth,) = found_of([spoilt(victim, field, value)], 30), smooth_of([victim], monkeypatch, 30)
    assert found.choice.startswith("TV")
    assert mean_psnr([found], [victim]) > mean_psnr([smooth], [victim]) - 1


@pytest.mark.parametrize("case", ["momentum None", "momentum 0", "not tracked", "not sent"])
def test_batches_whose_statistics_are_not_told_are_inverted_together(case):
    model = cnn(norm=True)
    if case == "not tracked":
        model[1] = nn.BatchNorm2d(4, track_running_stats=False)
    elif case.startswith("momentum"):
        model[1].momentum = None if case == "momentum None" else 0.0
    victim = shown(attacked(model, images=2), count=60)
    if case == "not sent":
        received = {name: array for name, array in victim.view.exchange.received.items() if "running" not in name}
        victim = replace(victim, view=replace(victim.view, exchange=replace(victim.view.exchange, received=received)))
    (found,) = found_of([victim], 4)
    assert found.choice.startswith("TV")


def test_many_who_send_wild_biases_decide_nothing_for_an_honest_client():
    views = [shown(attacked(cnn(), start=start, conversion=CONVERSION)).view for start in range(5)]
    wild = [
        replace(view, exchange=replace(view.exchange, received={
            name: 1e4 + array if "bias" in name else array for name, array in view.exchange.received.items()
        }))
        for view in views[:4]
    ]  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    together, alone = (
        get_attack("feature_inversion").run_many(some, budget=Budget(iterations=30), generator=draw)[-1]
        for some in ([*wild, views[4]], views[4:])
    )
    assert together.choice == alone.choice
    assert (together.explained, alone.explained) == (True, True)
    truth = digits(1, 4)[0]
    near, nearest = (float(psnr(item.images, truth)) for item in (together, alone))
    assert near > nearest - 2  # of fewer examples


@pytest.mark.parametrize("conversion", [None, CONVERSION], ids=["plain", "S-update"])
@pytest.mark.parametrize(
    ("value", "norm"), [*((value, False) for value in (1e38, -3e38, 1e6, 1e4, 1e2, 0.0)), (1e38, True), (1e2, True)]
)
def test_an_update_that_the_server_accepts_breaks_nothing_for_others(value, conversion, norm):
    hostile, honest = (
        shown(attacked(cnn(norm=norm), start=start, images=1 + norm, conversion=conversion), count=60)
        for start in (0, 2)
    )
    sent = hostile.view.exchange.received
    for of in (sent, [name for name in sent if "bias" in name]):
        received = {name: torch.full_like(array, value) if name in of else array for name, array in sent.items()}
        view = replace(hostile.view, exchange=replace(hostile.view.exchange, received=received))
        draw = torch.Generator().manual_seed(0)
        attack = get_attack("feature_inversion")
        views = [each for each in (view, honest.view) if attack.refusal(each) is None]  # equal codes are no numbers
        found = attack.run_many(views, budget=Budget(iterations=2), generator=draw)
        assert views[-1] is honest.view
        assert all(item.images.isfinite().all() for item in found)
