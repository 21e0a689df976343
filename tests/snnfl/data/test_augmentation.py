import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfl import rng
from snnfl.data import augment
from snnfl.data.augmentation import crop

SIDES = st.integers(1, 7)


def literal_crop(images, tops, lefts, mirrored, padding):
    count, channels, height, width = images.shape
    result = torch.empty_like(images)
    for n in range(count):
        canvas = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=images.dtype)
        canvas[:, padding : padding + height, padding : padding + width] = images[n]
        window = canvas[:, tops[n] : tops[n] + height, lefts[n] : lefts[n] + width]
        result[n] = window.flip(-1) if mirrored[n] else window
    return result


@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=SIDES,
    width=SIDES,
    padding=st.integers(0, 4),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_crop_is_the_loop_over_pictures(count, channels, height, width, padding, dtype, seed):
    generator = rng.generator(seed, "test")
    images = torch.randint(1, 256, (count, channels, height, width), generator=generator).to(dtype)
    tops, lefts = torch.randint(2 * padding + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    cropped = crop(images, tops, lefts, mirrored, padding)
    assert cropped.dtype == dtype
    assert torch.equal(cropped, literal_crop(images, tops, lefts, mirrored, padding))


@pytest.mark.parametrize("flip", [False, True])
def test_every_shift_and_mirroring_occurs_equally_often_and_nothing_else(flip):
    count, padding = 9000, 1
    picture = torch.arange(1, 17, dtype=torch.uint8).view(1, 4, 4)
    images = augment(picture.expand(count, 1, 4, 4), rng.generator(0, "test"), padding=padding, flip=flip)
    windows = [
        literal_crop(picture[None], [top], [left], [mirrored], padding)[0]
        for top in range(3)
        for left in range(3)
        for mirrored in ([False, True] if flip else [False])
    ]
    shares = torch.stack([(images == window).flatten(1).all(1).float().mean() for window in windows])
    assert shares.sum().item() == pytest.approx(1)
    # six standard deviations of a share of 9,000 draws
    assert ((shares - 1 / len(windows)).abs() < 6 * (1 / len(windows) / count) ** 0.5).all()


def test_the_generator_alone_decides():
    images = torch.randint(0, 256, (20, 3, 8, 8), generator=rng.generator(0, "pixels"), dtype=torch.uint8)
    first, again, other = (augment(images, rng.generator(seed, "a"), flip=True) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
