from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfl import data, rng
from snnfl.config import ConfigError, DataConfig


def numbered(count, name="numbered", **changes):
    """Make a data set whose example i has every feature equal to i, and label i modulo 5."""
    values, labels = torch.arange(count, dtype=torch.float32)[:, None].expand(-1, 2), torch.arange(count) % 5
    fields = {
        "name": name,
        "train_images": values,
        "train_labels": labels,
        "test_images": values,
        "test_labels": labels,
        "class_names": tuple("abcde"),
        "mean": torch.zeros(2),
        "std": torch.ones(2),
    }
    if "train_images" in changes:
        changes = {"test_images": changes["train_images"][:count], **changes}
    return data.Dataset(**{**fields, **changes})


def pictures(flip):
    images = torch.full((50, 1, 8, 8), 200, dtype=torch.uint8)
    images[..., 4:] = 100
    labels = torch.zeros(50, dtype=torch.int64)
    one = {"mean": torch.tensor([0.5]), "std": torch.tensor([0.25])}
    return numbered(
        50, train_images=images, train_labels=labels, test_images=images, test_labels=labels, flip=flip, **one
    )


@given(count=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 100))
def test_an_epoch_has_every_example_once_with_its_label(count, batch_size, seed):
    indices = torch.randperm(100, generator=rng.generator(seed, "indices"))[:count]
    generator = rng.generator(seed, "batches")
    epoch = list(data.batches(numbered(100), indices, batch_size, generator=generator, augment=False))
    seen = torch.cat([images[:, 0] for images, _ in epoch]).long()
    assert sorted(seen.tolist()) == sorted(indices.tolist())
    assert torch.equal(torch.cat([labels for _, labels in epoch]), seen % 5)
    sizes = [len(labels) for _, labels in epoch]
    if batch_size > 1 and count > 1:
        assert min(sizes) > 1
    assert max(sizes) <= batch_size + 1
    assert all(size == batch_size for size in sizes[:-1])


@given(
    count=st.integers(1, 40), batch_size=st.integers(1, 9), epochs=st.integers(1, 3), augment=st.booleans(),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_whoever_has_the_generator_knows_the_order_of_every_epoch(count, batch_size, epochs, augment, seed):
    labels = torch.arange(50)
    dataset = replace(pictures(flip=True), train_labels=labels, class_names=tuple(map(str, range(50))))
    indices = torch.randperm(50, generator=rng.generator(seed, "indices"))[:count]
    draw = rng.generator(seed, "batches")
    taken = [
        torch.cat([some for _, some in data.batches(dataset, indices, batch_size, generator=draw, augment=augment)])
        for _ in range(epochs)
    ]
    draw = rng.generator(seed, "batches")
    orders = data.epoch_orders(dataset, count, batch_size, epochs, generator=draw, augment=augment)
    assert torch.equal(indices[orders], torch.stack(taken))


def test_the_generator_decides_the_order():
    def order(generator):
        epoch = data.batches(numbered(40), torch.arange(40), 8, generator=generator, augment=False)
        return torch.cat([images[:, 0] for images, _ in epoch]).tolist()

    generator = rng.generator(0, "a")
    first, second = order(generator), order(generator)
    assert order(rng.generator(0, "a")) == first
    assert first != second
    assert first != sorted(first)


def test_what_is_padded_is_black_before_normalisation():
    dataset = pictures(flip=False)
    epoch = data.batches(dataset, torch.arange(50), 50, generator=rng.generator(0, "a"), augment=True)
    images, _ = next(epoch)
    assert images.dtype == torch.float32
    black, left, right = ((value / 255 - 0.5) / 0.25 for value in (0, 200, 100))
    found = torch.tensor(sorted(images.unique().tolist()))
    torch.testing.assert_close(found, torch.tensor([black, right, left]))


@pytest.mark.parametrize("flip", [False, True])
def test_pictures_are_mirrored_only_where_the_source_says_so(flip):
    dataset = pictures(flip)
    epoch = data.batches(dataset, torch.arange(50), 10, generator=rng.generator(0, "a"), augment=True)
    images = torch.cat([images for images, _ in epoch])[:, 0, 4]  # a row that no shift can make black
    brighter_to_the_right = (images.diff(dim=1) > 0) & (images[:, :-1] > -1)  # not out of the black margin
    assert brighter_to_the_right.any() == flip


def test_tables_cannot_be_augmented():
    with pytest.raises(ConfigError, match=r"data.augment=true: iris .*set data.augment=false"):
        data.batches(
            data.load(DataConfig(source="iris")),
            torch.arange(9),
            3,
            generator=rng.generator(0, "a"),
            augment=True,
        )


@given(batch_size=st.integers(1, 50))
def test_the_whole_test_split_comes_in_order(batch_size):
    epoch = list(data.test_batches(numbered(43), batch_size))
    assert torch.cat([images[:, 0] for images, _ in epoch]).tolist() == list(range(43))
    assert torch.cat([labels for _, labels in epoch]).tolist() == [number % 5 for number in range(43)]


def subset(dataset, limit, batch_size=7):
    return torch.cat([images[:, 0] for images, _ in data.test_batches(dataset, batch_size, limit)]).tolist()


def test_a_limited_test_is_a_fixed_part_that_depends_on_the_name_alone():
    chosen = subset(numbered(100), 30)
    assert len(set(chosen)) == 30
    assert chosen == subset(numbered(100), 30, batch_size=30)
    assert chosen[:10] == subset(numbered(100), 10)
    assert chosen != subset(numbered(100, name="other"), 30)
    assert len(subset(numbered(20), 30)) == 20


def test_a_limited_test_mixes_classes_that_lie_in_blocks():
    dataset = numbered(100, test_labels=torch.arange(100) // 20)
    labels = torch.cat([labels for _, labels in data.test_batches(dataset, 50, 30)])
    assert (torch.bincount(labels, minlength=5) >= 2).all()


@given(count=st.integers(1, 60), seed=st.integers(0, 50))
def test_a_calibration_batch_is_drawn_from_the_client_without_replacement(count, seed):
    indices = torch.arange(10, 40)
    batch = data.calibration_batch(numbered(100), indices, count, rng.generator(seed, "calibration"))
    drawn = batch[:, 0].tolist()
    assert len(drawn) == len(set(drawn)) == min(count, 30)
    assert set(drawn) <= set(map(float, indices))


def test_a_calibration_batch_is_normalised_and_not_augmented():
    dataset = pictures(flip=True)
    batch = data.calibration_batch(dataset, torch.arange(50), 5, rng.generator(0, "calibration"))
    assert torch.equal(batch, dataset.normalise(dataset.train_images[:5]))


def test_events_are_shifted_alike_in_all_time_steps():
    step = torch.zeros(30, 1, 2, 8, 8, dtype=torch.uint8)
    step[..., 3:5, 3:5] = torch.tensor([3, 7]).to(torch.uint8)[:, None, None]
    fields = {"train_images": step.repeat(1, 4, 1, 1, 1), "train_labels": torch.zeros(30, dtype=torch.int64)}
    dataset = numbered(30, sequence=True, padding=2, **fields)
    epoch = data.batches(dataset, torch.arange(30), 30, generator=rng.generator(0, "a"), augment=True)
    images, _ = next(epoch)
    assert images.shape == (30, 4, 2, 8, 8)
    assert torch.equal(images, images[:, :1].expand_as(images))
    assert torch.equal(images[:, :, 0] * 7, images[:, :, 1] * 3)
    assert len(images.flatten(1).unique(dim=0)) > 10
    assert images.sum((1, 2, 3, 4)).tolist() == [160.0] * 30


def test_series_are_not_augmented():
    series = torch.zeros(4, 10, 2)
    dataset = numbered(4, train_images=series, sequence=True)
    with pytest.raises(ConfigError, match=r"numbered has no pictures to crop; set data\.augment=false"):
        data.batches(dataset, torch.arange(4), 2, generator=rng.generator(0, "a"), augment=True)


@pytest.mark.parametrize("numbers", [1, 50, 10**9])
def test_how_many_are_normalised_at_once_changes_nothing(monkeypatch, numbers):
    def epoch():
        pairs = data.batches(numbered(40), torch.arange(40), 3, generator=rng.generator(0, "a"), augment=False)
        return [(images.tolist(), labels.tolist()) for images, labels in pairs]

    expected = epoch()
    monkeypatch.setattr(data.loaders, "NUMBERS_AT_ONCE", numbers)
    assert epoch() == expected


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_images_are_laid_out_as_pytorch_does(channels, layout):
    images = torch.randn(6, channels, 5, 7)
    found = data.laid_out(images, layout, torch.device("cpu"))
    expected = images.to(memory_format=layout)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    part = images[:, :, 1:]
    assert torch.equal(data.laid_out(part, layout, torch.device("cpu")), part)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("channels", [3, 8])
def test_pictures_lie_as_is_asked(channels, augment):
    images = torch.randint(0, 256, (50, channels, 8, 8), generator=rng.generator(0, "pictures")).to(torch.uint8)
    one = {"mean": torch.full((channels,), 0.5), "std": torch.full((channels,), 0.25)}
    dataset = replace(pictures(flip=True), train_images=images, test_images=images, **one)

    def epoch(**where):
        draw = rng.generator(0, "a")
        return list(data.batches(dataset, torch.arange(50), 8, generator=draw, augment=augment, **where))

    there = {"layout": torch.channels_last, "device": torch.device("cpu")}
    for (plain, labels), (last, same) in zip(epoch(), epoch(**there), strict=True):
        assert plain.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(plain, last)
        assert torch.equal(labels, same)
