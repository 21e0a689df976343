import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfl.config import ConfigError
from snnfl.data import Dataset


def make(images, labels=None, mean=(0.0,), std=(1.0,), classes=3, test_labels=None):
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
