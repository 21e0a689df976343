import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfl.config import ConfigError
from snnfl.data import Dataset


def make(images, labels=None, mean=(0.0,), std=(1.0,), classes=3, test_labels=None, **others):
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return Dataset(
        name="made",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels if test_labels is None else test_labels,
        class_names=tuple("abcdefghij"[:classes]),
        mean=torch.tensor(mean),
        std=torch.tensor(std),
        **others,
    )


@given(value=st.integers(0, 255), channel=st.integers(0, 2))
def test_bytes_are_scaled_to_one_before_they_are_standardised(value, channel):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    images = torch.full((2, 3, 4, 4), value, dtype=torch.uint8)
    normal = make(images, mean=mean, std=std).normalise(images)
    assert normal.dtype == torch.float32
    assert normal.shape == images.shape
    expected = (value / 255 - mean[channel]) / std[channel]
    assert normal[1, channel, 2, 3].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_floats_are_standardised_in_their_own_unit_and_not_changed_in_place():
    features = torch.tensor([[1.0, 20.0], [3.0, 40.0]])
    normal = make(features, mean=(1.0, 30.0), std=(2.0, 10.0)).normalise(features)
    assert normal.tolist() == [[0.0, -1.0], [1.0, 1.0]]
    assert features.tolist() == [[1.0, 20.0], [3.0, 40.0]]


def test_shape_and_classes_come_from_the_data():
    dataset = make(torch.zeros(5, 3, 8, 6, dtype=torch.uint8), classes=4)
    assert (dataset.input_shape, dataset.classes) == ((3, 8, 6), 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1]), "3 train images but 2 labels"),
        (torch.tensor([0, 1, 3]), "train label 3, but there are 3 classes"),
        (torch.tensor([0, -1, 2]), "train label -1"),
    ],
)
def test_splits_that_do_not_fit_together_are_refused(labels, message):
    with pytest.raises(ConfigError, match=message):
        make(torch.zeros(3, 2), labels, test_labels=torch.zeros(3, dtype=torch.int64))


def test_counts_of_events_are_taken_as_they_are_and_standardised_by_channel():
    counts = torch.arange(2 * 3 * 2 * 4 * 4).reshape(2, 3, 2, 4, 4).to(torch.uint8)
    dataset = make(counts, mean=(1.0, 5.0), std=(2.0, 4.0), sequence=True)
    normal = dataset.normalise(counts)
    assert normal.dtype == torch.float32
    assert torch.equal(normal[:, :, 0], (counts[:, :, 0].float() - 1) / 2)
    assert torch.equal(normal[:, :, 1], (counts[:, :, 1].float() - 5) / 4)
    assert dataset.scale == 191
    assert dataset.input_shape == (3, 2, 4, 4)


def test_series_are_standardised_by_feature():
    series = torch.arange(2 * 5 * 3, dtype=torch.float32).reshape(2, 5, 3)
    normal = make(series, mean=(0.0, 1.0, 2.0), std=(1.0, 2.0, 3.0), sequence=True).normalise(series)
    assert torch.equal(normal, (series - torch.tensor([0.0, 1.0, 2.0])) / torch.tensor([1.0, 2.0, 3.0]))


def test_each_training_example_needs_a_user():
    with pytest.raises(ConfigError, match="3 train images but 2 users"):
        make(torch.zeros(3, 2), users=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.0, 0.0)}, "mean is a tuple, and must be a tensor"),
        ({"users": [0, 1, 0]}, "users is a list, and must be a tensor"),
        ({"train_labels": torch.tensor([0.0, 1.0, 2.0])}, r"train_labels are torch.float32.*labels.long\(\)"),
        ({"test_images": torch.zeros(3, 6, 2, 5, 4, dtype=torch.uint8)}, r"\[6, 2, 4, 4\] and a test image of"),
        ({"std": torch.ones(3)}, r"std holds 3 values.*give 2, one for each channel.*torch.ones\(2\)"),
    ],
)
def test_what_would_fail_in_training_is_refused_when_the_data_set_is_made(change, message):
    events = torch.zeros(3, 6, 2, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])
    whole = {
        "train_images": events,
        "train_labels": labels,
        "test_images": events,
        "test_labels": labels,
        "mean": torch.zeros(2),
        "std": torch.ones(2),
    }
    with pytest.raises(ConfigError, match="data.source=made: .*" + message):
        Dataset(name="made", class_names=("a", "b", "c"), sequence=True, **(whole | change))
