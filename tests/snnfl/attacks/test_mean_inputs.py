"""Mean inputs of a spiking network's linear layer, and the samples that public ones are expected to be by them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from spiking_victims import spiking, spiking_victim, trained
from torch import Tensor, nn
from torch.func import functional_call, grad
from victims import Victim, digits

from snnfl.attacks import Budget, get_attack, native_matching, public_regression
from snnfl.attacks.mean_inputs import CHOICE, mean_inputs, regressed
from snnfl.attacks.problem import Problem, problem_of
from snnfl.attacks.public_regression import expected
from snnfl.metrics.images import floors, matched, psnr
from snnfl.threat import PublicImages

lenet5 = partial(spiking, "lenet5", threshold=0.3, surrogate_slope=10.0)
LAYER = "fc3"


def shown(victim: Victim, *, labels: bool = True, count: int = 600) -> Victim:
    """Let the server have images of its own, none of them a victim's."""
    pixels, classes, mean, std = digits(count, 600)
    public = PublicImages(inputs=(pixels - mean) / std, labels=classes if labels else None)
    return replace(victim, view=replace(victim.view, public=public))


@pytest.fixture(scope="module", autouse=True)
def few_examples():
    """Learn from as few as tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public_regression, "MOST_EXAMPLES", 600)
        yield


@pytest.fixture(scope="module")
def attacked() -> list[Victim]:
    return [shown(spiking_victim(trained(lenet5()), start=start)) for start in (0, 1, 2)]


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
    assert mean_psnr([item.images for item in by_means], attacked) > alone + 0.3


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
    assert (said.cost(known) > 4 * said.cost(beyond)).all()


def test_what_is_not_regressed():
    victim = shown(spiking_victim(lenet5()))
    assert said_of(victim) is not None
    assert said_of(shown(spiking_victim(lenet5(), images=4))) is None
    assert said_of(shown(victim, labels=False)) is None
    assert said_of(shown(victim, count=7)) is None
    problem = problem_of(victim.view)
    contrast = replace(problem.local, penalty=lambda *given: torch.zeros(()))
    assert said_of(victim, replace(problem, local=contrast)) is None
    unbiased = {name: array for name, array in problem.target.items() if not name.endswith("bias")}
    assert said_of(victim, replace(problem, target=unbiased)) is None


def test_sequences_are_regressed_on_the_last_hidden_neurons():
    model = spiking("mlp", shape=(8, 8), sequence=True)  # the rows of digits, one after the other
    (pixels, labels, mean, std), victims = digits(400, 600), [spiking_victim(model, start=start) for start in range(4)]
    public = ((pixels - mean) / std).view(-1, 8, 8)
    views = [replace(victim.view, public=PublicImages(inputs=public, labels=labels)) for victim in victims]
    said = regressed(views[0], [problem_of(view) for view in views], [None] * 4, [], torch.Generator().manual_seed(0))
    truth = torch.cat([view.inputs(victim.truth.images) for view, victim in zip(views, victims, strict=True)])
    errors = [float((guess - truth).square().mean()) for guess in (said.samples, public.mean(0))]
    assert errors[0] < 0.6 * errors[1]
