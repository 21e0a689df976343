"""The simulated local training against the one that clients run, and the distances against literal formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from victims import attacked, digits, small_cnn, small_mlp

from snnfl.attacks import Budget, get_attack
from snnfl.attacks.decay import decay_in
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.local import cosine_distance, l2_distance, simulate, total_variation
from snnfl.attacks.networks import network_of, soft_cross_entropy
from snnfl.attacks.problem import problem_of
from snnfl.auditing.sums import joined_orders
from snnfl.config import ConversionConfig, TrainingConfig
from snnfl.metrics.images import label_accuracy, matched, psnr
from snnfl.threat import Exchange, Knowledge, ThreatModelError
from snnfl.training import exchangeable
from snnfl.training.objectives import model_contrastive, proximal


def one_hot(labels):
    return functional.one_hot(labels, 10).float()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "training",
    [
        TrainingConfig(epochs=1, batch_size=5, learning_rate=0.1, momentum=0.9, weight_decay=0.0),
        TrainingConfig(epochs=1, batch_size=5, learning_rate=0.1, momentum=0.0, weight_decay=0.01),
        TrainingConfig(epochs=3, batch_size=2, learning_rate=0.05, momentum=0.9, weight_decay=0.01),
    ],
)
def test_simulation_gives_the_update_of_the_clients_own_loop(norm, training):
    victim = attacked(small_cnn(norm=norm), images=5, training=training)
    problem = problem_of(victim.view)
    inputs = victim.view.inputs(victim.truth.images)
    found = simulate(
        problem.network, problem.arrays, tuple(problem.target), inputs, one_hot(victim.truth.labels), problem.local
    )
    for name, array in problem.target.items():
        torch.testing.assert_close(found[name], array, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_several_clients_are_the_mean_of_what_each_does_alone(norm):
    """In batches and orders of its own, with its own batch statistics: no client of all their images does that."""
    training = TrainingConfig(epochs=2, batch_size=2, learning_rate=0.05, momentum=0.9, weight_decay=0.01)
    orders = [torch.tensor(each) for each in ([[2, 0, 1, 3], [3, 1, 0, 2]], [[0, 3, 2, 1], [1, 2, 3, 0]])]
    model = small_cnn(norm=norm)
    alone = [attacked(model, images=4, start=4 * n, training=training, orders=order) for n, order in enumerate(orders)]
    returned = [victim.view.exchange.received for victim in alone]
    view = alone[0].view
    view = replace(
        view,
        exchange=replace(view.exchange, received={n: (a + returned[1][n]) / 2 for n, a in returned[0].items()}),
        knowledge=replace(view.knowledge, images=8, batch_size=4, clients=2),
        orders=joined_orders(orders),
    )
    problem = problem_of(view)
    images, labels = (torch.cat([getattr(v.truth, name) for v in alone]) for name in ("images", "labels"))
    found = simulate(
        problem.network, problem.arrays, tuple(problem.target), view.inputs(images), one_hot(labels), problem.local,
        problem.orders,
    )  # fmt: skip
    for name, array in problem.target.items():
        torch.testing.assert_close(found[name], array, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_the_weights_of_an_s_update_are_recovered_exactly(norm):
    plain = problem_of(attacked(small_cnn(norm=norm), images=4).view)
    victim = attacked(small_cnn(norm=norm), images=4, conversion=ConversionConfig(steps=4))
    spiking = problem_of(victim.view, guesses=victim.truth.biases)
    assert set(plain.target) - set(spiking.target) == set(victim.truth.biases)
    for name, array in spiking.target.items():
        torch.testing.assert_close(array, plain.target[name], rtol=1e-3, atol=2e-5)


def test_batch_statistics_cancel_the_bias_before_them_and_running_ones_do_not():
    model = small_cnn(norm=True)
    arrays = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    arrays = {name: array.detach() for name, array in arrays.items() if array.is_floating_point()}
    images = digits(4)[0]
    shifted = {**arrays, "conv1.bias": arrays["conv1.bias"] + 1}
    train, evaluation = network_of(model, "train"), network_of(model, "eval")
    torch.testing.assert_close(train(arrays, images), train(shifted, images), rtol=1e-4, atol=1e-5)
    assert (evaluation(arrays, images) - evaluation(shifted, images)).abs().max() > 0.1
    torch.testing.assert_close(train(arrays, images), model.train()(images))


def test_the_models_own_arrays_are_never_read():
    model = small_mlp()
    images = digits(2)[0]
    arrays = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    network = network_of(model, "train")
    with torch.no_grad():
        expected = model(images)
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(network(arrays, images), expected)


def test_distances_are_those_of_the_flattened_gradients():
    draw = torch.Generator().manual_seed(0)
    one, other = ({"a": torch.randn(3, 2, generator=draw), "b": torch.randn(4, generator=draw)} for _ in range(2))
    flat = [torch.cat([array.flatten() for array in side.values()]) for side in (one, other)]
    torch.testing.assert_close(l2_distance(one, other), (flat[0] - flat[1]).square().sum())
    torch.testing.assert_close(cosine_distance(one, other), 1 - functional.cosine_similarity(*flat, dim=0))


def test_total_variation_is_the_literal_sum():
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    down = sum(float((images[:, :, i + 1] - images[:, :, i]).abs().sum()) for i in range(3)) / (2 * 3 * 3 * 5)
    across = sum(float((images[..., i + 1] - images[..., i]).abs().sum()) for i in range(4)) / (2 * 3 * 4 * 4)
    assert float(total_variation(images)) == pytest.approx(down + across, rel=1e-5)
    assert float(total_variation(torch.rand(2, 3))) == 0


def test_cross_entropy_of_certain_labels_is_pytorchs():
    logits, labels = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3, 9])
    torch.testing.assert_close(soft_cross_entropy(logits, one_hot(labels)), functional.cross_entropy(logits, labels))


def simulated(victim):
    """Return what an attacker who has guessed the images sees of their training, and what it saw."""
    problem = problem_of(victim.view)
    inputs = victim.view.inputs(victim.truth.images)
    targets = one_hot(victim.truth.labels)
    found = simulate(
        problem.network, problem.arrays, tuple(problem.target), inputs, targets, problem.local, problem.orders
    )
    return found, problem.target


STEPS = TrainingConfig(epochs=2, batch_size=2, learning_rate=0.1, momentum=0.9, weight_decay=0.01)
TOLD = Knowledge(images=4, batch_size=2, epochs=2, learning_rate=0.1, momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize("norm", [False, True])
def test_simulation_knows_the_proximal_term(norm):
    victim = attacked(
        small_cnn(norm=norm), images=4, training=STEPS, objective=lambda model: proximal(model, 2.0),
        knowledge=replace(TOLD, proximal_mu=2.0),
    )  # fmt: skip
    found, seen = simulated(victim)
    for name, array in seen.items():
        torch.testing.assert_close(found[name], array, rtol=1e-3, atol=5e-5)
    unaware, _ = simulated(replace(victim, view=replace(victim.view, knowledge=TOLD)))
    assert max(float((unaware[name] - array).abs().max()) for name, array in seen.items()) > 1e-2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_pulled_weights_decay_is_taken_out_exactly(momentum):
    training = TrainingConfig(epochs=5, batch_size=1, learning_rate=0.1, momentum=momentum, weight_decay=0.01)
    known = Knowledge(
        images=1, batch_size=1, epochs=5, learning_rate=0.1, momentum=momentum, weight_decay=0.01, proximal_mu=1.0
    )
    victim = attacked(small_mlp(), training=training, knowledge=known, objective=lambda model: proximal(model, 1.0))
    found = get_attack("closed_form").run(victim.view, budget=Budget(), generator=torch.Generator().manual_seed(0))
    assert float(psnr(found.images, victim.truth.images)) > 120  # 70 and 67 as if it had decayed freely


@pytest.mark.parametrize("norm", [False, True])
def test_simulation_knows_the_model_contrastive_term(norm):
    """Also in one step, where the term has a gradient unlike FedProx's."""
    model = small_cnn(norm=norm)
    draw = torch.Generator().manual_seed(1)
    previous = {
        name: array + 0.1 * torch.rand(array.shape, generator=draw) for name, array in exchangeable(model).items()
    }
    known = replace(TOLD, contrastive_mu=5.0, temperature=0.5)
    for training, knowledge in (
        (STEPS, known),
        (replace(STEPS, epochs=1, batch_size=4), replace(known, epochs=1, batch_size=4)),
    ):
        victim = attacked(
            model, images=4, training=training, knowledge=knowledge,
            objective=lambda model: model_contrastive(model, previous, mu=5.0, temperature=0.5),
        )  # fmt: skip
        earlier = Exchange(server_round=0, sent=previous, received=previous)
        told = replace(victim, view=replace(victim.view, earlier=(earlier,)))
        found, seen = simulated(told)
        for name, array in seen.items():
            torch.testing.assert_close(found[name], array, rtol=1e-3, atol=1e-4)
        unaware = replace(knowledge, contrastive_mu=0.0)
        other, _ = simulated(replace(told, view=replace(told.view, knowledge=unaware)))
        assert max(float((other[name] - array).abs().max()) for name, array in seen.items()) > 1e-2


def test_a_model_contrastive_round_needs_the_clients_earlier_ones():
    known = replace(TOLD, contrastive_mu=5.0, earlier_rounds=False)
    with pytest.raises(ThreatModelError, match="needs earlier_rounds"):
        problem_of(attacked(small_mlp(), images=4, training=STEPS, knowledge=known).view)


def test_simulation_clips_each_step():
    training = replace(STEPS, clip_norm=0.5)
    found, seen = simulated(attacked(small_cnn(), images=4, training=training, knowledge=replace(TOLD, clip_norm=0.5)))
    for name, array in seen.items():
        torch.testing.assert_close(found[name], array, rtol=1e-3, atol=5e-5)


def test_simulation_takes_the_images_in_the_orders_that_are_known():
    orders = torch.tensor([[3, 1, 0, 2], [1, 2, 3, 0]])
    victim = attacked(small_cnn(), images=4, training=STEPS, orders=orders)
    told = replace(victim, view=replace(victim.view, orders=orders))
    found, seen = simulated(told)
    for name, array in seen.items():
        torch.testing.assert_close(found[name], array, rtol=1e-3, atol=5e-5)
    unaware, _ = simulated(victim)
    assert max(float((unaware[name] - array).abs().max()) for name, array in seen.items()) > 1e-2


def test_a_shortened_update_tells_the_labels_that_it_told_before():
    """A server that took a clipped update for a gradient read other labels off it than one that knows less."""
    known = Knowledge(images=16, batch_size=16, epochs=1, learning_rate=0.1)
    settings = {
        "whole": (None, known),
        "clipped": (0.005, replace(known, clipped=True)),
        "denied": (0.005, replace(known, learning_rate=None)),
        "unaware": (0.005, known),
    }
    right: dict[str, list[float]] = {name: [] for name in settings}
    for name, (length, knowledge) in settings.items():
        for start in range(0, 120, 20):
            victim = attacked(small_cnn(), start=start, images=16, knowledge=knowledge, length=length)
            labels = infer_labels(victim.view, problem_of(victim.view), torch.Generator().manual_seed(0))
            right[name].append(label_accuracy(labels, victim.truth.labels))
    assert right["clipped"] == right["denied"]
    assert sum(right["clipped"]) > 5
    assert sum(right["unaware"]) < sum(right["clipped"]) - 1


DECAYS = TrainingConfig(epochs=1, batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=0.005)
DECAYED = Knowledge(images=4, batch_size=4, epochs=1, learning_rate=0.1, weight_decay=0.005)
ALONE = replace(DECAYS, epochs=5, batch_size=1)
FIVE = replace(DECAYED, images=1, batch_size=1, epochs=5)
SHORTENED = {
    "shortened": (DECAYS, replace(DECAYED, clipped=True), {"length": 0.01}),
    "without learning_rate": (DECAYS, DECAYED.without({"learning_rate"}), {}),
    "without optimizer": (DECAYS, DECAYED.without({"optimizer"}), {}),
    "five steps, shortened": (ALONE, replace(FIVE, clipped=True), {"length": 0.01}),
    "five steps, the pull clipped": (
        replace(ALONE, clip_norm=0.1),
        replace(FIVE, proximal_mu=1.0, clip_norm=0.1),
        {"objective": lambda model: proximal(model, 1.0)},
    ),
}


@pytest.mark.parametrize("case", SHORTENED)
def test_an_update_tells_the_decay_in_it_where_its_length_does_not(case):
    training, knowledge, options = SHORTENED[case]
    victim = attacked(
        small_mlp(200), images=knowledge.images, training=training, knowledge=knowledge, start=20, **options
    )
    found = get_attack("closed_form").run(victim.view, budget=Budget(), generator=torch.Generator().manual_seed(0))
    truth = victim.truth.images
    assert (
        float(psnr(found.images[matched(found.images, truth)], truth).min()) > 100
    )  # 51 and 57 as if there were none, 85 unclipped


def test_a_shortened_s_update_tells_the_decay_in_it():
    training = replace(DECAYS, batch_size=2)
    known = replace(DECAYED, images=2, batch_size=2, clipped=True)
    conversion = ConversionConfig(steps=4)
    victim = attacked(small_mlp(200), images=2, training=training, knowledge=known, length=0.01, conversion=conversion)
    found = get_attack("closed_form").run(victim.view, budget=Budget(), generator=torch.Generator().manual_seed(0))
    truth = victim.truth.images
    assert float(psnr(found.images[matched(found.images, truth)], truth).min()) > 90  # 27 as if there were none


@pytest.mark.parametrize("images", [1, 4])
def test_steps_of_a_shortened_update_decay_in_the_simulation(images):
    training = replace(STEPS, batch_size=min(2, images))
    knowledge = replace(TOLD, images=images, batch_size=training.batch_size, clipped=True)
    victim = attacked(small_cnn(), images=images, training=training, knowledge=knowledge, length=0.01)
    found, seen = simulated(victim)
    assert float(cosine_distance(found, seen)) < 1e-5
    assert problem_of(victim.view).decay > 0


@given(st.integers(1, 4), st.integers(6, 40), st.integers(6, 40), st.floats(1e-4, 1.0), st.integers(0, 2**31))
def test_ranks_and_sums_over_classes_tell_the_decay(images, rows, columns, share, seed):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw)
    gradient = torch.randn(rows, images, generator=draw) @ torch.randn(images, columns, generator=draw)
    bias, slope = torch.randn(rows, generator=draw), torch.randn(rows, generator=draw)
    balanced = {"fc.weight": gradient - gradient.mean(0), "fc.bias": slope - slope.mean()}
    sent = {"fc.weight": weight, "fc.bias": bias}
    for gradients, ranks, logits in (
        (balanced, {}, "fc"),
        (balanced, {"fc": images + 1}, "fc"),
        ({"fc.weight": gradient}, {"fc": images}, None),
    ):
        seen = {name: array + share * sent[name] for name, array in gradients.items()}
        assert decay_in(seen, sent, ranks, logits) == pytest.approx(share, rel=0.01, abs=1e-6)
    assert decay_in(sent, {name: 0 * array for name, array in sent.items()}, {"fc": images}, "fc") == 0


def test_the_decay_does_not_depend_on_the_names_of_layers():
    draw, sizes = torch.Generator().manual_seed(0), [(40 + 7 * i, 50 + 3 * i) for i in range(6)]
    weights = [torch.randn(size, generator=draw) for size in sizes]
    gradients = [torch.randn(a, 3, generator=draw) @ torch.randn(3, b, generator=draw) for a, b in sizes]
    found = set[float]()
    for naming in range(30):  # of which a set, ordered by hashes that each process draws, would make other sums
        names = [f"{naming}.{i}" for i in range(len(sizes))]
        sent = {f"{name}.weight": weight for name, weight in zip(names, weights, strict=True)}
        pairs = zip(sent.items(), gradients, strict=True)
        seen = {name: gradient + 0.01 * weight for (name, weight), gradient in pairs}
        found.add(decay_in(seen, sent, dict.fromkeys(names, 3), None))
    assert len(found) == 1


def resent(view, change):
    """The view of an update that changed what was sent by other changes."""
    received = {name: array - change.get(name, torch.zeros_like(array)) for name, array in view.exchange.sent.items()}
    return replace(view, exchange=replace(view.exchange, received=received))


@pytest.mark.parametrize("denied", ["learning_rate", None])
def test_a_layer_that_is_not_trained_has_no_decay(denied):
    known = replace(DECAYED, images=1, batch_size=1).without({denied} if denied else set())
    view = attacked(small_mlp(40), images=1, knowledge=known, training=replace(DECAYS, batch_size=1)).view
    first, *_ = (name for name, _ in view.model.named_parameters())
    changes = {name: array - view.exchange.received[name] for name, array in view.exchange.sent.items()}
    problem = problem_of(resent(view, {name: change for name, change in changes.items() if name != first}))
    assert not problem.gradient(first).any()
    assert all(problem.gradient(name).any() for name in changes if name != first)


def test_sums_over_classes_tell_no_decay_where_nobody_said_the_loss():
    """Of squared errors they aren't zero: the rank of other layers tells it all the same."""
    known = DECAYED.without({"learning_rate", "loss"})
    draw = torch.Generator().manual_seed(0)
    view = attacked(small_mlp(40), images=4, knowledge=known, training=DECAYS).view
    weights = {name: array for name, array in view.exchange.sent.items() if array.dim() == 2}
    gradients = {
        name: torch.rand(len(array), 4, generator=draw) @ torch.rand(4, array.shape[1], generator=draw)
        for name, array in weights.items()
    }
    changed = resent(view, {name: 0.01 * (gradients[name] + 0.5 * array) for name, array in weights.items()})
    problem = problem_of(changed)
    for name, gradient in gradients.items():
        assert float(cosine_distance({name: problem.gradient(name)}, {name: gradient})) < 1e-6
    last = list(weights)[-1]
    told = problem_of(replace(changed, knowledge=replace(known, loss=True)))
    assert float(cosine_distance({last: told.gradient(last)}, {last: gradients[last]})) > 1e-5


def test_distances_that_compare_lengths_are_refused_for_shortened_updates():
    known = Knowledge(images=1, batch_size=1, epochs=1, learning_rate=0.1, clipped=True)
    view = attacked(small_cnn(), knowledge=known, length=0.005).view
    for name in ("dlg", "idlg"):
        assert "clipping hides" in str(get_attack(name).refusal(view))
    assert get_attack("inverting_gradients").refusal(view) is None
