"""Each attack where it must succeed, and where it must fail: an update that holds nothing of the image."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import spiking_victims
import torch
from torch import nn
from victims import (
    Direct,
    PrincipalComponents,
    Victim,
    attacked,
    digits,
    imprinted_victim,
    loki_victim,
    recordings,
    settled_cnn,
    small_cnn,
    small_mlp,
    spiking_victim,
)

from snnfl.attacks import AttackResult, Budget, biases, get_attack, names
from snnfl.config import ConversionConfig, TrainingConfig
from snnfl.metrics.images import floors, matched, psnr
from snnfl.threat import Knowledge, PublicImages, ThreatModelError

CONVERSION = ConversionConfig(steps=16)
SOME, MANY, MOST = (Budget(iterations=iterations) for iterations in (80, 150, 300))
LEAKED = 18.0
"""In dB. Of these digits the mean image, the best of the floors, scores 12."""


def run(name: str, victim: Victim, budget: Budget = MANY) -> AttackResult:
    return get_attack(name).run(victim.view, budget=budget, generator=torch.Generator().manual_seed(0))


def score(found: AttackResult, victim: Victim) -> float:
    truth = victim.truth.images
    return float(psnr(found.images[matched(found.images, truth)], truth).mean())


@cache
def of(name: str) -> tuple[Victim, Budget]:
    """Return a victim whom the attack must succeed against, and a budget."""
    if name in ("dlg", "idlg"):
        return attacked(small_cnn(activation=nn.Sigmoid, spread=0.5)), Budget(iterations=40, restarts=2)
    if name == "closed_form":
        return attacked(small_mlp()), MANY
    if name == "native_closed_form":
        return spiking_victim(*digits(1)[:2], sequence=False), MANY
    if name == "event_recovery":
        return spiking_victim(recordings(2), torch.tensor([3, 8]), sequence=True), MANY
    if name == "image_recovery":
        return spiking_victims.spiking_victim(spiking_victims.spiking("mlp"), images=4), MANY
    if name == "sequence_recovery":
        model = spiking_victims.spiking("mlp", shape=(8, 8), sequence=True)
        return spiking_victims.spiking_victim(model), MANY
    if name.startswith("native"):
        return spiking_victims.spiking_victim(spiking_victims.spiking("mlp")), Budget(iterations=70)
    if name == "imprint":
        return imprinted_victim(), MANY
    if name == "loki":
        return loki_victim(), MANY
    if name == "generative":
        victim = attacked(small_cnn())
        known = replace(victim.view.knowledge, generative_model=True)
        view = replace(victim.view, knowledge=known, generative_model=PrincipalComponents())
        return replace(victim, view=view), SOME
    if name == "order_invariant":
        return shuffled(), Budget(iterations=150)
    if name in ("inverting_gradients", "huang", "feature_inversion"):
        return attacked(small_cnn()), MANY if name == "feature_inversion" else SOME
    if name == "inverting_statistics":
        return attacked(small_cnn(norm=True), images=2), MANY
    if name in ("reconverted_calibrated", "thresholds_alone"):
        conversion = ConversionConfig(steps=2, thresholds="channel_mmse", calibration="none")
        victim = attacked(small_mlp(128), conversion=conversion, calibrating=None)
        if name == "thresholds_alone":
            return victim, MOST  # with the published prior
        pixels, labels, mean, std = digits(40, 800)
        public = PublicImages(inputs=(pixels - mean) / std, labels=labels)
        return replace(victim, view=replace(victim.view, public=public)), SOME
    if name == "reconverted_statistics":
        return attacked(small_cnn(norm=True), images=2, conversion=CONVERSION), MANY
    if name == "reconverted_train":
        # Where the first layer isn't normalised, batch statistics cancel no brightness.
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)]
        model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        model.load_state_dict(renamed(small_cnn(norm=True).state_dict(), model))
        return attacked(model, images=2, conversion=CONVERSION), MANY
    if name == "snn_surrogate":
        return attacked(small_cnn(), conversion=ConversionConfig(steps=4)), Budget(iterations=100)
    if name == "snn_naive":
        return attacked(Direct(), conversion=CONVERSION), Budget(iterations=100)
    if name == "reconverted_inferred":
        return attacked(settled_cnn(), images=2, conversion=CONVERSION), Budget(iterations=120)
    if name in ("reconverted_rounds", "joint_rounds"):
        return second_round(), SOME
    victim = attacked(small_mlp() if name == "reconverted_joint" else small_cnn(), conversion=CONVERSION)
    if name == "reconverted_zero":
        zeros = {key: torch.zeros_like(array) for key, array in victim.truth.biases.items()}
        victim = attacked(small_cnn(spread=0.3), conversion=CONVERSION, biases=zeros)
    initial = {**victim.view.exchange.sent, **victim.truth.biases}
    budget = MOST if name == "reconverted_zero" else SOME
    return replace(victim, view=replace(victim.view, initial=initial)), budget


@cache
def found_of(name: str) -> AttackResult:
    """Return what the attack finds of that victim."""
    return run(name, *of(name))


def shuffled() -> Victim:
    """Return a client that takes its four images in two orders."""
    training = TrainingConfig(epochs=2, batch_size=2, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    draw = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(4, generator=draw) for _ in range(2)])
    return attacked(small_mlp(), images=4, training=training, orders=orders)


def second_round() -> Victim:
    """Return a client of an S-run in its second round: it starts from what it trained, and calibrates anew."""
    model, first = small_cnn(), attacked(small_cnn(), conversion=CONVERSION)
    model.load_state_dict(dict(attacked(small_cnn()).view.exchange.received))
    second = attacked(model, conversion=CONVERSION, calibrating=600)
    return replace(second, view=replace(second.view, earlier=(first.view.exchange,)))


def renamed(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Give a network's arrays another one's names: ``conv1, conv2, norm2, fc``."""
    kept = [array for name, array in state.items() if not name.startswith("norm1")]
    return dict(zip(model.state_dict(), kept, strict=True))


@pytest.mark.parametrize("name", names())
def test_succeeds(name):
    victim, found = of(name)[0], found_of(name)
    assert score(found, victim) > LEAKED
    assert sorted(found.labels.tolist()) == sorted(victim.truth.labels.tolist())
    assert found.setting == "realistic"


def test_the_naive_attack_finds_labels_alone_where_every_path_spikes():
    """The true derivative of spikes is zero, so only a path around them tells the image (as in test_succeeds)."""
    victim = attacked(small_cnn(), conversion=CONVERSION)
    found = run("snn_naive", victim)
    assert found.labels.tolist() == victim.truth.labels.tolist()
    assert len({value for _, value in found.curve}) == 1  # no gradient, no progress
    noise = torch.randn(1, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(found.images, victim.view.pixels(noise))


@pytest.mark.parametrize("name", names())
def test_fails_on_a_random_update(name):
    victim, _ = of(name)
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(7)
    before = {**exchange.received, **exchange.sent}  # of a spiking update, thresholds and statistics stay
    trained = [key for key in exchange.received if key.endswith((".weight", ".bias"))]
    noisy = {key: before[key] + 0.01 * torch.randn(before[key].shape, generator=draw) for key in trained}
    noisy = {**exchange.received, **noisy}
    if "statistics" in name:  # these tell of the images by themselves
        noisy |= {
            key: torch.ones_like(noisy[key]) for key in noisy if "running" in key or key.endswith(("mean", "var"))
        }
    if name in ("reconverted_calibrated", "thresholds_alone"):
        noisy |= {key: torch.ones_like(noisy[key]) for key in noisy if key.endswith("threshold")}
    random = replace(victim, view=replace(victim.view, exchange=replace(exchange, received=noisy)))
    budget = Budget(iterations=40)
    found = run(name, random, budget)
    public = recordings(100, seed=1) / 8 if name == "event_recovery" else digits(200, 100)[0]
    public = public.view(-1, *victim.view.input_shape)
    guess = floors(victim.truth.images, public)["mean_image"]
    assert score(found, random) < float(psnr(guess, victim.truth.images).mean())


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("value", [1e12, 0.0])
def test_an_update_that_the_server_accepts_never_breaks_an_attack(name, value):
    """Values up to 1e12 and thresholds above zero pass the server's check."""
    victim, _ = of(name)
    exchange = victim.view.exchange
    received = {
        key: array if key.endswith("threshold") else torch.full_like(array, value)
        for key, array in exchange.received.items()
    }
    hostile = replace(victim.view, exchange=replace(exchange, received=received))
    found = run(name, replace(victim, view=hostile), Budget(iterations=1))
    assert torch.isfinite(found.images).all()
    assert len(found.labels) == len(found.images) == hostile.knowledge.images
    assert ((found.labels >= 0) & (found.labels < 10)).all()


def test_a_trail_ends_in_the_result():
    for name in ("inverting_gradients", "dlg", "closed_form"):
        victim, _ = of(name)
        found = run(name, victim, Budget(iterations=6))
        assert len(found.trail) == len(found.curve)
        assert torch.equal(found.trail[-1], found.images)
        if len(found.curve) > 1:
            assert not torch.equal(found.trail[0], found.images)


def test_several_steps_are_simulated():
    training = TrainingConfig(epochs=2, batch_size=1, learning_rate=0.05, momentum=0.9, weight_decay=1e-4)
    victim = attacked(small_cnn(), images=2, training=training)
    known = score(run("inverting_gradients", victim, Budget(iterations=240)), victim)
    single = replace(victim.view.knowledge, batch_size=2, epochs=1)
    ignored = replace(victim, view=replace(victim.view, knowledge=single))
    assert known > LEAKED
    assert score(run("inverting_gradients", ignored, Budget(iterations=240)), victim) < known


def test_inferring_biases_helps_where_batch_normalisation_is_folded_into_them():
    victim, budget = of("reconverted_inferred")
    assert score(found_of("reconverted_inferred"), victim) > LEAKED
    assert score(run("reconverted_as_is", victim, budget), victim) < LEAKED - 3


def test_averaging_over_rounds_helps():
    victim, _ = of("reconverted_rounds")
    true = dict(victim.truth.trained_biases)
    distances = [biases.bias_distance(guess(victim.view), true) for guess in (biases.over_rounds, biases.inferred)]
    assert distances[0] < distances[1] / 2
    assert score(run("reconverted_rounds", victim), victim) > score(run("reconverted_as_is", victim), victim)


@pytest.mark.parametrize("images", [1, 2, 4, 8])
def test_a_denied_number_of_images_is_counted_and_costs_nothing(images):
    told = attacked(small_cnn(), images=images)
    denied = replace(told.view.knowledge, images=None, batch_size=None, epochs=None)
    counted = replace(told, view=replace(told.view, knowledge=denied))
    found, known = (run("huang", victim, Budget(iterations=3)) for victim in (counted, told))
    assert len(found.images) == images
    assert torch.equal(found.images, known.images)
    assert found.labels.tolist() == sorted(told.truth.labels.tolist())


def test_given_labels_say_how_many_images_there_are():
    flags = Knowledge(learning_rate=0.1, labels=True)
    victim = attacked(small_cnn(), images=2, knowledge=flags)
    assert len(run("huang", victim, Budget(iterations=2)).images) == 2
    wrong = replace(victim.view, knowledge=replace(flags, images=3))
    assert get_attack("huang").refusal(wrong) == "huang: the client claims 3 images, and there are 2 labels"


def test_victims_of_whom_nobody_knows_how_many_images_they_have_are_attacked_together():
    views = [
        attacked(small_cnn(), images=images, start=start, knowledge=Knowledge(learning_rate=0.1)).view
        for images, start in ((1, 0), (1, 5), (3, 9))
    ]
    found = get_attack("huang").run_many(views, budget=Budget(iterations=1), generator=torch.Generator())
    assert [len(each.images) for each in found] == [1, 1, 3]


@pytest.mark.parametrize("statistics", ["known", "estimated"])
def test_running_statistics_stand_in_for_those_of_the_batch(statistics):
    """The case of Huang et al.: batch normalisation whose private batch statistics are unknown."""

    def scored(model):
        victim = attacked(model, images=2)
        known = replace(victim.view.knowledge, norm_statistics=statistics)
        return score(run("huang", replace(victim, view=replace(victim.view, knowledge=known))), victim)

    settled, foreign = scored(settled_cnn()), scored(small_cnn(norm=True))
    assert settled > LEAKED
    assert foreign < settled - 5  # a network that has seen no image has statistics of none


def test_steps_that_nobody_can_simulate_are_refused_before_the_attack():
    training = TrainingConfig(epochs=2, batch_size=1, learning_rate=0.05, momentum=0.9, weight_decay=1e-4)
    view = attacked(small_cnn(), images=2, training=training).view
    for flags, fact in (({"learning_rate": None}, "learning_rate"), ({"momentum": None}, "optimizer")):
        denied = replace(view, knowledge=replace(view.knowledge, **flags))
        reason = f"needs {fact}, which the threat model denies; the client took 4 steps"
        assert get_attack("inverting_gradients").refusal(denied) == f"inverting_gradients: {reason}"
        assert get_attack("huang").refusal(denied) is None  # takes the round as one step


@pytest.mark.parametrize("decay", [1e-5, 1e-2])
@pytest.mark.parametrize(("epochs", "momentum"), [(1, 0.0), (3, 0.9)])
def test_known_weight_decay_is_no_gradient(decay, epochs, momentum):
    training = TrainingConfig(epochs=epochs, batch_size=1, learning_rate=0.1, momentum=momentum, weight_decay=decay)
    victim = attacked(small_mlp(), training=training)
    assert score(run("closed_form", victim), victim) > 130


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_labels_of_a_batch_need_no_learning_rate(rate):
    training = TrainingConfig(epochs=1, batch_size=8, learning_rate=rate, momentum=0.0, weight_decay=0.0)
    victim = attacked(small_cnn(), images=8, start=20, training=training)
    denied = replace(victim.view, knowledge=replace(victim.view.knowledge, learning_rate=None))
    found = run("inverting_gradients", replace(victim, view=denied), Budget(iterations=1))
    assert found.labels.tolist() == sorted(victim.truth.labels.tolist())


def test_several_victims_at_once_are_attacked_as_one_by_one():
    victims = [attacked(small_cnn(), start=start, conversion=CONVERSION) for start in (0, 5)]
    attack, budget = get_attack("reconverted_as_is"), Budget(iterations=60, restarts=2)
    together = attack.run_many(
        [victim.view for victim in victims], budget=budget, generator=torch.Generator().manual_seed(0)
    )
    draw = torch.Generator().manual_seed(0)
    for victim, found in zip(victims, together, strict=True):
        alone = attack.run(victim.view, budget=budget, generator=draw)
        assert found.objective == pytest.approx(alone.objective, rel=0.1)
        assert found.labels.tolist() == alone.labels.tolist() == victim.truth.labels.tolist()


def test_restarts_never_raise_the_objective_and_the_curve_never_rises():
    victim, _ = of("inverting_gradients")
    one, three = (run("inverting_gradients", victim, Budget(iterations=30, restarts=count)) for count in (1, 3))
    assert three.objective <= one.objective * 1.001  # several lanes round otherwise than one
    values = [value for _, value in three.curve]
    assert values == sorted(values, reverse=True)
    assert three.curve[0][0] == 0
    assert three.curve[-1] == (29, three.objective)


def test_equal_generators_give_equal_results():
    victim, _ = of("inverting_gradients")
    first, second = (run("inverting_gradients", victim, Budget(iterations=5)) for _ in range(2))
    assert torch.equal(first.images, second.images)


def test_given_labels_make_a_diagnosis():
    flags = Knowledge(images=1, batch_size=1, epochs=1, learning_rate=0.1, labels=True, norm_mode="eval")
    victim = attacked(small_mlp(), knowledge=flags)
    found = run("closed_form", victim)
    assert found.setting == "diagnostic"
    assert found.reasons == ("the labels are given", "the client's batch normalisation ran in eval mode")


@pytest.mark.parametrize("spiking", [True, False])
def test_the_direction_of_a_rank_one_update_is_enough(spiking):
    victim = attacked(small_mlp(), conversion=CONVERSION if spiking else None)
    if not spiking:  # a plain update whose biases are denied
        denied = replace(victim.view.knowledge, biases=False)
        victim = replace(victim, view=replace(victim.view, knowledge=denied))
    found = run("closed_form", victim)
    assert score(found, victim) > 25
    truth = victim.truth.images.flatten() - victim.truth.images.mean()
    ours = found.images.flatten() - found.images.mean()
    assert float(nn.functional.cosine_similarity(truth, ours, dim=0)) > 0.99


@pytest.mark.parametrize(
    ("name", "model", "images", "spiking", "reason"),
    [
        ("closed_form", small_cnn, 1, False, "isn't linear on the image"),
        ("idlg", small_mlp, 2, False, "the round had more"),
        ("dlg", small_mlp, 1, True, "attacks native and plain updates, this is a converted one"),
        ("reconverted_zero", small_mlp, 1, False, "attacks converted updates, this is a plain one"),
        ("reconverted_train", small_mlp, 1, True, "has no batch normalisation"),
        ("reconverted_rounds", small_mlp, 1, True, "no earlier round"),
        ("reconverted_initial", small_mlp, 1, True, "no initial weights"),
        ("inverting_statistics", small_mlp, 1, False, "has no batch normalisation"),
        ("reconverted_inferred", small_cnn, 1, True, "no batch normalisation follows a private bias"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(name, model, images, spiking, reason):
    victim = attacked(model(), images=images, conversion=CONVERSION if spiking else None)
    with pytest.raises(ThreatModelError, match=reason):
        run(name, victim)


def test_statistics_that_the_threat_model_only_lets_estimate_are_refused():
    victim = attacked(small_cnn(norm=True), images=2)
    view = replace(victim.view, knowledge=replace(victim.view.knowledge, norm_statistics="estimated"))
    assert get_attack("inverting_statistics").refusal(view) is not None


def test_victims_of_different_knowledge_are_not_attacked_together():
    views = [attacked(small_mlp()).view, attacked(small_mlp(), images=2).view]
    with pytest.raises(ThreatModelError, match="different knowledge"):
        get_attack("inverting_gradients").run_many(views, budget=Budget(iterations=1), generator=torch.Generator())


@pytest.mark.parametrize("field", ["iterations", "restarts", "points"])
def test_a_budget_of_nothing_is_an_error(field):
    with pytest.raises(ValueError, match=f"{field}=0"):
        Budget(**{field: 0})


@pytest.mark.parametrize("name", ["inverting_gradients", "native_adaptive"])
def test_who_watches_is_told_each_iteration(name: str) -> None:
    told: list[tuple[int, int]] = []
    budget = Budget(iterations=3, watch=lambda *at: told.append(at))
    get_attack(name).run(of(name)[0].view, budget=budget, generator=torch.Generator().manual_seed(0))
    assert told[-3:] == [(1, 3), (2, 3), (3, 3)]
    assert budget == Budget(iterations=3)
