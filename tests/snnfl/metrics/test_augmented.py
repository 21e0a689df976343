from __future__ import annotations

import pytest
import torch

from snnfl import rng
from snnfl.data.augmentation import augment
from snnfl.metrics.augmented import Freedom, costs, nearest_variant, variants

DRAW = rng.generator(0, "pictures")
TRUE = torch.rand(5, 3, 8, 8, generator=DRAW)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_whatever_a_client_trains_on_is_a_variant(padding: int, flip: bool) -> None:
    assert len(list(variants(TRUE, Freedom(padding=padding, flip=flip)))) == (2 * padding + 1) ** 2 * (1 + flip)
    for seed in range(5):
        trained = augment(TRUE, rng.generator(seed, "draw"), padding=padding, flip=flip)
        assert torch.equal(nearest_variant(trained, TRUE, Freedom(padding=padding, flip=flip)), trained)
        assert costs(trained, TRUE, Freedom(padding=padding, flip=flip)).diagonal().sum() < 1e-12


def test_no_other_picture_is_one() -> None:
    mirrored = TRUE.flip(-1)
    assert not torch.equal(nearest_variant(mirrored, TRUE, Freedom(padding=2, flip=False)), mirrored)
    upside_down = TRUE.flip(-2)
    assert (costs(upside_down, TRUE, Freedom(padding=2, flip=True)).diagonal() > 1).all()


def test_without_any_freedom_the_image_itself_is_meant() -> None:
    noise = torch.rand(5, 3, 8, 8, generator=DRAW)
    assert torch.equal(nearest_variant(noise, TRUE, Freedom(padding=0, flip=False)), TRUE)
    expected = (TRUE[:, None] - noise[None]).square().flatten(2).sum(2).double()
    torch.testing.assert_close(costs(noise, TRUE, Freedom(padding=0, flip=False)), expected, rtol=1e-5, atol=1e-5)
