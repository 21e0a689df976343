"""Triggers touch exactly the pixels that the papers name."""

from __future__ import annotations

import pytest
import torch

from snnfl.poisoning.triggers import Trigger, TriggerError, blended_trigger, distributed_trigger, square_trigger


def dark(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((2, 3, 12, 12), 4).to(dtype)


def touched(images: torch.Tensor) -> set[tuple[int, int]]:
    """Return the pixels that differ from :func:`dark`; they are the same of all images and channels."""
    changed = images != dark(images.dtype)
    assert (changed == changed[0, 0]).all()
    return {(int(row), int(column)) for row, column in changed[0, 0].nonzero()}


@pytest.mark.parametrize("size", [1, 3])
def test_the_square_stands_in_the_bottom_right_corner(size: int) -> None:
    stamped = square_trigger((3, 12, 12), size=size).stamp(dark(torch.uint8), white=255)
    assert touched(stamped) == {(r, c) for r in range(12 - size, 12) for c in range(12 - size, 12)}
    assert stamped.dtype == torch.uint8
    assert set(stamped.flatten().tolist()) == {4, 255}


def test_white_is_the_brightest_value_of_the_data() -> None:
    images = dark()
    stamped = square_trigger((3, 12, 12), size=2).stamp(images, white=16)
    assert set(stamped.flatten().tolist()) == {4.0, 16.0}
    assert bool((images == 4).all())  # the given ones stay


def test_the_distributed_triggers_parts_are_those_of_the_papers_code() -> None:
    # 0_poison_pattern to 3_poison_pattern of mnist_params.yaml in github.com/AI-secure/DBA.
    literal = [
        {(0, 0), (0, 1), (0, 2), (0, 3)},
        {(0, 6), (0, 7), (0, 8), (0, 9)},
        {(3, 0), (3, 1), (3, 2), (3, 3)},
        {(3, 6), (3, 7), (3, 8), (3, 9)},
    ]
    for part, pixels in enumerate(literal):
        assert touched(distributed_trigger((3, 12, 12), part=part).stamp(dark(), white=1)) == pixels
    assert touched(distributed_trigger((3, 12, 12)).stamp(dark(), white=1)) == set().union(*literal)


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255.0), (torch.float32, 16.0)])
def test_blending_is_a_convex_mixture_of_every_pixel(dtype: torch.dtype, white: float) -> None:
    trigger = blended_trigger((3, 12, 12), strength=0.2, generator=torch.Generator().manual_seed(1))
    stamped = trigger.stamp(dark(dtype), white=white)
    again = blended_trigger((3, 12, 12), strength=0.2, generator=torch.Generator().manual_seed(1))
    for image in stamped:
        for channel in range(3):
            for row, column in [(0, 0), (5, 7), (11, 11)]:
                value = 0.8 * 4 + 0.2 * white * float(again.pattern[channel, row, column])
                expected = round(value) if dtype == torch.uint8 else value
                assert image[channel, row, column].item() == pytest.approx(expected, abs=1e-4)
    assert 0 <= float(trigger.pattern.min()) < 0.1 < 0.9 < float(trigger.pattern.max()) <= 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_on_a_recording_every_frame_is_stamped_as_a_picture_of_its_channels(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    recordings = torch.randint(0, 19, (3, 5, 2, 12, 12), generator=draw).to(dtype)

    def makers(shape: tuple[int, ...]) -> list[Trigger]:
        pattern = torch.Generator().manual_seed(1)
        return [
            square_trigger(shape),
            distributed_trigger(shape),
            distributed_trigger(shape, part=2),
            blended_trigger(shape, strength=0.5, generator=pattern),
        ]

    for trigger, picture in zip(makers((5, 2, 12, 12)), makers((2, 12, 12)), strict=True):
        stamped = trigger.stamp(recordings, white=18)
        for step in range(5):
            assert torch.equal(stamped[:, step], picture.stamp(recordings[:, step], white=18))
        assert not torch.equal(stamped, recordings)


def test_a_trigger_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(TriggerError, match="trigger_size=13: images have 12x12"):
        square_trigger((1, 12, 12), size=13)
    with pytest.raises(TriggerError, match="at most 3 do"):
        distributed_trigger((1, 8, 8), size=4)
    with pytest.raises(TriggerError, match="are no images"):
        blended_trigger((30,), generator=torch.Generator())
    with pytest.raises(TriggerError, match=r"\[50, 40\] are no images.*try label_flip"):
        square_trigger((50, 40))
