"""Prior and step size, chosen on public images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from victims import attacked, digits, small_cnn

from snnfl.attacks import Budget, get_attack, matching
from snnfl.attacks.matching import Matching, choose, prepare
from snnfl.attacks.problem import problem_of
from snnfl.attacks.selection import PUBLISHED, Choice, rehearsals
from snnfl.attacks.statistics import with_statistics
from snnfl.threat import PublicImages

SHORT = Budget(iterations=80)
GOOD, FLAT = Choice(0.01, 0.1), Choice(1000.0, 0.1)


def view_of(*, norm=False, images=1, count=100):
    victim = attacked(small_cnn(norm=norm), images=images)
    pixels, labels, mean, std = digits(count, 600)
    return replace(victim.view, public=PublicImages(inputs=(pixels - mean) / std, labels=labels))


def draw():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("order", [(GOOD, FLAT), (FLAT, GOOD)])
def test_what_finds_more_of_public_images_is_chosen(monkeypatch, order):
    monkeypatch.setattr(matching, "CANDIDATES", order)
    assert choose([problem_of(view_of())], Matching(), SHORT, draw()) == GOOD
    found = get_attack("inverting_gradients").run(view_of(), budget=SHORT, generator=draw())
    assert found.choice == "TV 0.01, step 0.1"


def test_what_is_given_is_not_chosen():
    problem = problem_of(view_of())
    assert choose([problem], Matching(total_variation_weight=7.0, learning_rate=3.0), SHORT, draw()) == Choice(7.0, 3.0)
    assert choose([problem], Matching(total_variation_weight=7.0), SHORT, draw()).total_variation_weight == 7.0


def test_without_enough_public_images_it_is_the_published_choice():
    few, none = view_of(images=2, count=1), replace(view_of(), public=None)
    for view in (few, none):
        assert choose([problem_of(view)], Matching(), SHORT, draw()) == PUBLISHED


def test_a_rehearsal_is_the_victims_training_on_public_images():
    """What a client sends that trains on these images is what was rehearsed, statistics included."""
    view = view_of(norm=True, images=2)
    problem = with_statistics(view, problem_of(view))
    rehearsed = rehearsals([problem], draw())
    pixels, _, mean, std = digits(100, 600)
    first = int(((pixels - mean) / std - rehearsed[0].images[0]).abs().flatten(1).sum(1).argmin())
    second = int(((pixels - mean) / std - rehearsed[0].images[1]).abs().flatten(1).sum(1).argmin())
    assert rehearsed[0].psnr(rehearsed[0].images.flip(0)) == 200
    assert not any(torch.equal(each.images, rehearsed[0].images) for each in rehearsed[1:])
    assert first != second
    problem = rehearsed[0].problem
    assert torch.isfinite(problem.seen).all()
    assert not torch.equal(problem.seen, with_statistics(view, problem_of(view)).seen)
    assert problem.target.keys() == problem_of(view).target.keys()


def test_each_victim_has_its_own_prior_and_step():
    """Lanes don't mix: two choices at once find what each finds alone."""
    problem = problem_of(view_of())
    labels, choices = torch.tensor([3]), [Choice(0.01, 0.1), Choice(0.5, 0.02)]
    both = prepare([problem] * 2, [labels] * 2, Matching(), SHORT, draw(), choices).run()
    starts = torch.randn(2, 1, 1, 8, 8, generator=draw())
    for lane, choice in enumerate(choices):
        alone = prepare([problem], [labels], Matching(), SHORT, draw(), [choice])
        alone.start["images"].copy_(torch.clamp(starts[lane], problem.low, problem.high)[None])
        found = alone.run()[0]
        torch.testing.assert_close(found.images, both[lane].images, atol=1e-2, rtol=0)
        assert both[lane].choice == str(choice)


def test_an_update_of_other_training_than_stated_is_told_from_one_as_stated():
    """A client that sends the signs of its gradients alone was not trained as the threat model says."""
    budget, view = Budget(iterations=150), view_of()
    assert get_attack("inverting_gradients").run(view, budget=budget, generator=draw()).explained
    sent = view.exchange.sent
    signs = {name: array - 0.01 * (array - view.exchange.received[name]).sign() for name, array in sent.items()}
    other = replace(view, exchange=replace(view.exchange, received=signs))
    assert not get_attack("inverting_gradients").run(other, budget=budget, generator=draw()).explained


def test_what_was_not_rehearsed_counts_as_explained():
    assert PUBLISHED.explains(1e9)
    assert replace(PUBLISHED, rehearsed=0.1).explains(0.15)
    assert not replace(PUBLISHED, rehearsed=0.1).explains(0.16)
