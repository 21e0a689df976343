import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from snnfl import data
from snnfl.config import DataConfig
from snnfl.data.embedded import SPLIT_SEED, TEST_SHARE, stratified_split

LOADERS = {
    "digits": sklearn_datasets.load_digits,
    "iris": sklearn_datasets.load_iris,
    "breast_cancer": sklearn_datasets.load_breast_cancer,
}


@pytest.mark.parametrize(
    ("name", "shape", "train", "test", "classes"),
    [("digits", (1, 8, 8), 1437, 360, 10), ("iris", (4,), 120, 30, 3), ("breast_cancer", (30,), 455, 114, 2)],
)
def test_sizes(name, shape, train, test, classes):
    dataset = data.load(DataConfig(source=name))
    assert dataset.input_shape == shape
    assert (len(dataset.train_images), len(dataset.test_images), dataset.classes) == (train, test, classes)
    assert (dataset.train_images.dtype, dataset.train_labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("name", LOADERS)
def test_both_splits_together_are_the_published_examples(name):
    dataset, bunch = data.load(DataConfig(source=name)), LOADERS[name]()
    ours = torch.cat([dataset.train_images, dataset.test_images]).flatten(1).numpy()
    labels = torch.cat([dataset.train_labels, dataset.test_labels]).numpy()
    published = bunch.data.astype(np.float32)

    def rows(values, targets):
        return sorted((*row, target) for row, target in zip(values.tolist(), targets.tolist(), strict=True))

    assert rows(ours, labels) == rows(published, bunch.target)


@pytest.mark.parametrize("name", LOADERS)
def test_files_and_split_are_scikit_learns(name):
    dataset, bunch = data.load(DataConfig(source=name)), LOADERS[name]()
    values = bunch.data.astype(np.float32).reshape(-1, *dataset.input_shape)
    expected = train_test_split(
        values, bunch.target, test_size=TEST_SHARE, stratify=bunch.target, random_state=SPLIT_SEED
    )
    found = (dataset.train_images, dataset.test_images, dataset.train_labels, dataset.test_labels)
    assert all(np.array_equal(ours.numpy(), theirs) for ours, theirs in zip(found, expected, strict=True))
    assert dataset.class_names == tuple(map(str, bunch.target_names))


@given(  # scikit-learn wants an example of each class in the test split
    st.lists(st.integers(3, 40), min_size=2, max_size=6).filter(lambda sizes: sum(sizes) * TEST_SHARE >= len(sizes)),
    st.integers(0, 2**32 - 1),
)
def test_any_split_is_scikit_learns(sizes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    expected = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED)
    assert all(np.array_equal(*pair) for pair in zip(stratified_split(labels), expected, strict=True))


@pytest.mark.parametrize("name", LOADERS)
def test_the_test_split_has_a_fifth_of_each_class(name):
    dataset = data.load(DataConfig(source=name))
    train, test = torch.bincount(dataset.train_labels), torch.bincount(dataset.test_labels)
    assert ((test - 0.2 * (train + test)).abs() <= 1).all()


@pytest.mark.parametrize("name", ["iris", "breast_cancer"])
def test_tables_are_standardised_by_the_training_split(name):
    dataset = data.load(DataConfig(source=name))
    scaler = StandardScaler().fit(dataset.train_images.double().numpy())
    expected = torch.from_numpy(scaler.transform(dataset.test_images.double().numpy()))
    torch.testing.assert_close(dataset.normalise(dataset.test_images).double(), expected, rtol=1e-4, atol=1e-4)


def test_digits_are_standardised_by_the_training_split():
    dataset = data.load(DataConfig(source="digits"))
    normal = dataset.normalise(dataset.train_images)
    assert normal.mean().item() == pytest.approx(0, abs=1e-5)
    assert normal.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert dataset.train_images.max() == 16


def test_the_split_is_the_same_on_every_machine():
    dataset = data.load(DataConfig(source="digits"))
    assert dataset.test_labels[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]
