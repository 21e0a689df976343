"""What an attack returns is checked: an attack is code that anybody may have written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from victims import attacked, small_mlp

from snnfl.attacks import AttackError, Budget, Reconstruction, registry

GOOD = Reconstruction(
    images=torch.zeros(2, 1, 8, 8),
    labels=torch.tensor([3, 4]),
    objective=0.5,
    curve=((0, 1.0), (5, 0.5)),
    trail=(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)),
)
NAN = torch.full((2, 1, 8, 8), torch.nan)

WRONG = {
    "nothing": (None, "expected a list of 1 reconstructions, one per view, found NoneType"),
    "an empty list": ([], "expected a list of 1 reconstructions, one per view, found a list of 0"),
    "too many": ([GOOD, GOOD], "expected a list of 1 reconstructions, one per view, found a list of 2"),
    "images alone": ([GOOD.images], "expected a Reconstruction per view, found Tensor"),
    "no images": ([replace(GOOD, images=None)], "images: expected a tensor of floating-point numbers, found NoneType"),
    "no batch": ([replace(GOOD, images=torch.zeros(1, 8, 8))], "images: expected shape [N, 1, 8, 8]"),
    "another shape": ([replace(GOOD, images=torch.zeros(2, 3, 8, 8))], "found [2, 3, 8, 8]"),
    "zero images": ([replace(GOOD, images=torch.zeros(0, 1, 8, 8))], "with N of at least 1, found [0, 1, 8, 8]"),
    "whole numbers": ([replace(GOOD, images=GOOD.images.int())], "found a tensor of torch.int32"),
    "NaN": ([replace(GOOD, images=NAN)], "images: not all values are finite"),
    "infinity": ([replace(GOOD, images=NAN / 0)], "images: not all values are finite"),
    "a list of labels": ([replace(GOOD, labels=[3, 4])], "labels: expected a tensor of whole numbers, found list"),
    "logits": ([replace(GOOD, labels=torch.zeros(2))], "labels: expected a tensor of whole numbers"),
    "a label too few": ([replace(GOOD, labels=torch.tensor([3]))], "labels: expected one per image, [2], found [1]"),
    "label -1": ([replace(GOOD, labels=torch.tensor([3, -1]))], "labels: expected classes, 0 or more, found -1"),
    "objective NaN": ([replace(GOOD, objective=float("nan"))], "objective: expected a finite number, found nan"),
    "objective None": ([replace(GOOD, objective=None)], "objective: expected a finite number, found None"),
    "no curve": ([replace(GOOD, curve=None)], "curve: expected pairs of iteration and objective, found NoneType"),
    "an empty curve": ([replace(GOOD, curve=(), trail=())], "curve: expected at least one pair"),
    "a curve of values": ([replace(GOOD, curve=(1.0, 0.5))], "curve: expected pairs"),
    "a curve with NaN": ([replace(GOOD, curve=((0, 1.0), (5, float("nan"))))], "curve: expected at least one pair"),
    "a curve backwards": ([replace(GOOD, curve=((5, 1.0), (0, 0.5)))], "curve: expected ascending iterations"),
    "no trail": ([replace(GOOD, trail=())], "trail: expected the images at each of the curve's 2 points, found 0"),
    "a trail with NaN": ([replace(GOOD, trail=(GOOD.images, NAN))], "trail: not all values are finite"),
}


@pytest.fixture
def returning(own_registries):
    """Register an attack ``odd`` that returns what it is told; run it on one victim."""

    def run(answer):
        registry.register("odd", source="here", needs=(), against="plain")(lambda views, budget, generator: answer)
        view = attacked(small_mlp()).view
        return registry.get_attack("odd").run(view, budget=Budget(iterations=1), generator=torch.Generator())

    return run


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_reconstruction_is_refused_by_the_attacks_name(returning, kind):
    answer, message = WRONG[kind]
    with pytest.raises(AttackError) as error:
        returning(answer)
    assert str(error.value).startswith("odd: ")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("labels", [torch.tensor([3, 10**15]), torch.tensor([3, 4], dtype=torch.uint8)])
def test_what_is_one_becomes_a_result(returning, labels):
    result = returning([replace(GOOD, labels=labels)])
    assert result.attack == "odd"
    assert torch.equal(result.labels, labels)
    assert result.images.shape == (2, 1, 8, 8)


@pytest.mark.usefixtures("own_registries")
def test_an_attack_that_raises_is_named_with_its_reason():
    @registry.register("raises", source="here", needs=(), against="plain")
    def raises(views, budget, generator):
        raise KeyError("fc9\nweight")

    with pytest.raises(AttackError, match=r"^raises: KeyError: 'fc9\\nweight'$") as error:
        registry.get_attack("raises").run(
            attacked(small_mlp()).view, budget=Budget(iterations=1), generator=torch.Generator()
        )
    assert isinstance(error.value.__cause__, KeyError)
