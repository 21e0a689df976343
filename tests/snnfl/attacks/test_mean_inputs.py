"""Mean inputs of a spiking network's linear layer, and the samples that public ones are expected to be by them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial

import pytest
import torch
from spiking_victims import spiking, spiking_victim, trained
from torch import Tensor, nn
from torch.func import functional_call, grad
from victims import Victim, digits, shown

from snnfl.attacks import Budget, get_attack, native_matching, public_regression
from snnfl.attacks.mean_inputs import CHOICE, mean_inputs, regressed, regresses
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import Problem, problem_of
from snnfl.attacks.public_regression import _examples, expected, others
from snnfl.metrics.images import floors, matched, psnr
from snnfl.threat import PublicImages

lenet5 = partial(spiking, "lenet5", threshold=0.3, surrogate_slope=10.0)
LAYER = "fc3"


@pytest.fixture(scope="module", autouse=True)
def few_examples():
    """Learn from as few as tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public_regression, "MOST_EXAMPLES", 600)
        yield


@pytest.fixture(scope="module")
def attacked() -> list[Victim]:
    model = trained(lenet5())
    return [shown(spiking_victim(model, start=start)) for start in (0, 1, 2)]


def found_of(victims: list[Victim], iterations: int = 30):
    views, draw = [victim.view for victim in victims], torch.Generator().manual_seed(0)
    return get_attack("native_features").run_many(views, budget=Budget(iterations=iterations), generator=draw)


@pytest.fixture(scope="module")
def by_means(attacked: list[Victim]):
    return found_of(attacked)


@pytest.fixture(scope="module")
def by_rows(attacked: list[Victim]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_matching, "regressed", lambda *given: None)
        return found_of(attacked)


def mean_psnr(images, victims: list[Victim]) -> float:
    truth = torch.cat([victim.truth.images for victim in victims])
    return float(psnr(torch.cat(list(images)), truth).mean())


def unit(row: Tensor) -> Tensor:
    return row / row.norm()


def own_gradient(model: nn.Module, sample: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Differentiate the loss of one sample by all parameters."""

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        logits = functional_call(model, {**parameters, **dict(model.named_buffers())}, (sample[None],))
        return nn.functional.cross_entropy(logits, label[None])

    return grad(loss)({name: array.detach() for name, array in model.named_parameters()})


def test_mean_inputs_are_those_of_each_samples_own_gradient():
    model, (pixels, labels, mean, std) = lenet5(), digits(6)
    samples = (pixels - mean) / std
    found = mean_inputs(model, dict(model.named_parameters()), LAYER, samples, labels)
    for sample, label, own in zip(samples, labels, found, strict=True):
        gradient = own_gradient(model, sample, label)
        wanted = gradient[f"{LAYER}.bias"] @ gradient[f"{LAYER}.weight"]
        torch.testing.assert_close(own, unit(wanted), atol=1e-5, rtol=1e-4)


def test_an_update_tells_its_samples_mean_input(attacked):
    (victim, *_) = attacked
    problem, labels = problem_of(victim.view), victim.truth.labels
    samples = victim.view.inputs(victim.truth.images)
    wanted = mean_inputs(victim.view.model, problem.arrays, LAYER, samples, labels)
    told = problem.finite(f"{LAYER}.bias") @ problem.finite(f"{LAYER}.weight")
    torch.testing.assert_close(unit(told).float(), wanted[0], atol=1e-3, rtol=1e-2)


def test_where_they_are_regressed_more_is_found_than_by_matched_rows(attacked, by_means, by_rows):
    assert [item.choice for item in by_means] == [CHOICE] * 3
    assert all(item.choice.startswith("hidden") for item in by_rows)
    found, rows = (mean_psnr([item.images for item in items], attacked) for items in (by_means, by_rows))
    assert found > rows + 2


def test_the_spikes_tell_more_than_the_regression_alone(attacked, by_means):
    views = [victim.view for victim in attacked]
    said = regressed(views[0], [problem_of(view) for view in views], [None] * 3, [], torch.Generator().manual_seed(0))
    alone = mean_psnr([view.pixels(sample[None]) for view, sample in zip(views, said.samples, strict=True)], attacked)
    assert mean_psnr([item.images for item in by_means], attacked) > alone + 0.1


def test_of_a_random_update_no_more_is_found_than_without_one(attacked):
    (victim, *_) = attacked
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(7)
    noise = {name: array + 0.01 * torch.randn(array.shape, generator=draw) for name, array in exchange.sent.items()}
    blind = replace(victim, view=replace(victim.view, exchange=replace(exchange, received=noise)))
    guess = floors(victim.truth.images, digits(600, 600)[0])["mean_image"]
    (found,) = found_of([blind], 10)
    assert mean_psnr([found.images], [blind]) < float(psnr(guess, victim.truth.images).mean()) + 0.5


def test_where_rehearsals_find_less_by_them_rows_are_matched(attacked, monkeypatch):
    def grey(*given):
        said = regressed(*given)
        return replace(said, samples=0 * said.samples, root=1e3 * said.root)

    monkeypatch.setattr(native_matching, "regressed", grey)
    (found,) = found_of(attacked[:1], 10)
    assert found.choice.startswith("hidden")


def said_of(victim: Victim, problem: Problem | None = None, rates: Tensor | None = None):
    draw = torch.Generator().manual_seed(0)
    return regressed(victim.view, [problem or problem_of(victim.view)], [rates], [], draw)


def test_of_a_batch_samples_are_regressed_on_their_rates():
    victim = shown(spiking_victim(lenet5(), images=3))
    found = found_of([victim], 30)
    assert found[0].choice == CHOICE
    truth, guess = victim.truth.images, digits(600, 600)[0].mean(0, keepdim=True).expand(3, -1, -1, -1)
    ordered = found[0].images[matched(found[0].images, truth)]
    assert float(psnr(ordered, truth).mean()) > float(psnr(guess, truth).mean()) + 2


@pytest.mark.parametrize("value", [1e38, -3e38, 0.0])
def test_an_update_that_the_server_accepts_never_breaks_it(attacked, value):
    view = attacked[0].view
    hostile = {name: torch.full_like(array, value) for name, array in view.exchange.received.items()}
    view = replace(view, exchange=replace(view.exchange, received=hostile))
    for name in ("native_features", "native_adaptive"):
        found = get_attack(name).run(view, budget=Budget(iterations=2), generator=torch.Generator().manual_seed(0))
        assert found.images.isfinite().all()


def test_a_regression_finds_what_is_smooth_in_what_is_given_and_costs_what_it_gets_wrong():
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 3, generator=draw)
    public, private = (torch.randn(count, 6, generator=draw) for count in (400, 20))
    said = expected(public, lambda samples, _: samples @ mixing, private @ mixing, draw)
    plane = torch.linalg.qr(mixing).Q
    errors = private - said.samples
    assert (errors @ plane).square().mean() < 0.1 * (private @ plane).square().mean()
    known = said.samples + 0.1 * plane[:, :1].T  # against what is given, which says nothing of what lies beyond
    beyond = said.samples + 0.1 * torch.linalg.qr(torch.cat([plane, torch.eye(6)], 1)).Q[:, 3:4].T
    assert (said.cost(known, said.samples) > 4 * said.cost(beyond, said.samples)).all()


def test_of_a_sample_whose_rates_are_not_told_the_mean_is_expected():
    victim = shown(spiking_victim(lenet5(), images=2))
    model, problem = victim.view.model, problem_of(victim.view)
    samples, labels = victim.view.inputs(victim.truth.images), victim.truth.labels
    rates = mean_inputs(model, problem.arrays, last_linear(model), samples, labels)
    told, missing = said_of(victim, rates=rates[:1]).samples
    mean = victim.view.public.inputs.mean(0)
    errors = [float((own - samples[0]).square().mean()) for own in (told, mean)]
    assert errors[0] < 0.7 * errors[1]
    assert float((missing - mean).square().mean()) < 0.1 * float((samples[1] - mean).square().mean())


def test_what_is_not_regressed():
    victim = shown(spiking_victim(lenet5()))
    problem = problem_of(victim.view)
    assert regresses(victim.view, problem)
    assert not regresses(victim.view, problem_of(spiking_victim(lenet5()).view))  # nothing is public
    assert not regresses(replace(victim.view, model=spiking("lenet5", encoding="poisson")), problem)
    assert not regresses(replace(victim.view, model=spiking("lenet5", batch_norm=True)), problem)
    contrast = replace(problem.local, penalty=lambda *given: torch.zeros(()))
    assert not regresses(victim.view, replace(problem, local=contrast))
    assert not regresses(victim.view, replace(problem, local=replace(problem.local, epochs=2)))
    unbiased = {name: array for name, array in problem.target.items() if not name.endswith("bias")}
    assert not regresses(victim.view, replace(problem, target=unbiased))
    assert said_of(shown(victim, count=7)) is None


def test_rehearsed_images_are_not_learned_from():
    victim = shown(spiking_victim(lenet5()), count=20)
    public, problem = victim.view.public.inputs, problem_of(victim.view)
    assert torch.equal(
        others(public, [public[2:4], public[7:8]]).nonzero()[:, 0], torch.tensor([0, 1, 4, 5, 6, *range(8, 20)])
    )
    draw = torch.Generator().manual_seed(0)
    assert regressed(victim.view, [problem], [None], [public[:12]], draw) is not None
    assert regressed(victim.view, [problem], [None], [public[:13]], draw) is None


def test_without_labels_the_network_says_what_public_images_show(attacked):
    (victim, *_) = attacked
    public = victim.view.public
    shown_as = torch.cat([problem_of(victim.view).network(problem_of(victim.view).arrays, public.inputs).argmax(1)])
    views = [replace(victim.view, public=replace(public, labels=labels)) for labels in (None, shown_as)]
    unlabelled, labelled = (said_of(replace(victim, view=view)).samples for view in views)
    assert torch.equal(unlabelled, labelled)


def test_examples_are_public_images_and_copies_shifted_by_a_pixel():
    public = torch.arange(3 * 16.0).view(3, 1, 4, 4)
    samples, which = _examples(public, 12, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(public, (1, 1, 1, 1), mode="replicate")
    cuts = [padded[..., top : top + 4, left : left + 4] for top, left in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
    assert torch.equal(samples[:3], public[which[:3]])
    for sample, number in zip(samples, which, strict=True):
        assert any(torch.equal(sample, cut[number]) for cut in cuts)
    assert len({tuple(sample.flatten().tolist()) for sample in samples}) == 12


def test_dropout_draws_nothing():
    model, (pixels, labels, mean, std) = lenet5(), digits(3)
    layers = list(model.body.named_children())
    model.body = nn.Sequential(OrderedDict([*layers[:-3], ("dropout", nn.Dropout(0.5)), *layers[-3:]]))
    model.train()
    layer = last_linear(model)
    arrays = dict(model.named_parameters())
    found = [mean_inputs(model, arrays, layer, (pixels - mean) / std, labels) for _ in range(2)]
    assert torch.equal(*found)


@pytest.mark.parametrize("hidden", [0, 1])
def test_a_batch_that_hides_its_rates_protects_no_other(hidden):
    victims = [shown(spiking_victim(lenet5(), images=3, start=start)) for start in (0, 3)]
    coarse = {name: 1e-3 for name in victims[hidden].view.exchange.received}
    exchange = replace(victims[hidden].view.exchange, rounding=coarse)
    victims[hidden] = replace(victims[hidden], view=replace(victims[hidden].view, exchange=exchange))
    found = found_of(victims, 10)
    assert found[1 - hidden].choice == CHOICE
    assert found[hidden].choice.startswith("hidden")


def test_sequences_are_regressed_on_the_last_hidden_neurons():
    model = spiking("mlp", shape=(8, 8), sequence=True)  # the rows of digits, one after the other
    (pixels, labels, mean, std), victims = digits(400, 600), [spiking_victim(model, start=start) for start in range(4)]
    public = ((pixels - mean) / std).view(-1, 8, 8)
    views = [replace(victim.view, public=PublicImages(inputs=public, labels=labels)) for victim in victims]
    said = regressed(views[0], [problem_of(view) for view in views], [None] * 4, [], torch.Generator().manual_seed(0))
    truth = torch.cat([view.inputs(victim.truth.images) for view, victim in zip(views, victims, strict=True)])
    errors = [float((guess - truth).square().mean()) for guess in (said.samples, public.mean(0))]
    assert errors[0] < 0.6 * errors[1]
