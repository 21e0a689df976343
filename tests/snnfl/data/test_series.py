import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfl import data
from snnfl.config import ConfigError, DataConfig
from snnfl.data.series import windows


def load(root, source="series", **options):
    return data.load(DataConfig(source=source, root=str(root), **options))


@given(steps=st.integers(0, 40), length=st.integers(1, 12))
def test_windows_follow_each_other_without_overlap(steps, length):
    recording = np.arange(steps * 2).reshape(steps, 2)
    cut = windows(recording, length)
    assert cut.shape == (steps // length, length, 2)
    np.testing.assert_array_equal(cut.reshape(-1, 2), recording[: steps // length * length])


@pytest.fixture
def tables(tmp_path):
    """Five series of 10 to 14 steps of two features in each of two classes."""
    for label, name in enumerate(("up", "down")):
        folder = tmp_path / "mine" / name
        folder.mkdir(parents=True)
        for number in range(5):
            rows = [f"{(1 - 2 * label) * step},{number}" for step in range(10 + number)]
            heading = ["level,number"] if number % 2 else []
            (folder / f"p{number}_{label}.csv").write_text("\n".join([*heading, *rows]) + "\n")
    return tmp_path


def test_a_folder_of_tables_is_cut_to_the_shortest(tables):
    dataset = load(tables, folder="mine")
    assert dataset.class_names == ("down", "up")
    assert dataset.input_shape == (10, 2)
    assert dataset.sequence
    assert len(dataset.train_labels) == 8
    assert len(dataset.test_labels) == 2
    assert torch.equal(dataset.train_images[:, 3, 0], torch.where(dataset.train_labels == 1, 3.0, -3.0))
    assert torch.equal(dataset.train_images[:, 0, 1], dataset.users.float())


def test_windows_of_a_recording_are_all_for_training_or_all_for_testing(tables):
    dataset = load(tables, folder="mine", time_bins=4)
    assert dataset.input_shape == (4, 2)
    key = {
        (int(label), int(image[0, 1])) for image, label in zip(dataset.train_images, dataset.train_labels, strict=True)
    }
    other = {
        (int(label), int(image[0, 1])) for image, label in zip(dataset.test_images, dataset.test_labels, strict=True)
    }
    assert len(key) == 8
    assert len(other) == 2
    assert not key & other
    assert len(dataset.train_labels) + len(dataset.test_labels) == 2 * (2 + 2 + 3 + 3 + 3)
    assert len(dataset.users) == len(dataset.train_labels)


def test_a_window_longer_than_a_series_is_refused(tables):
    with pytest.raises(ConfigError, match=r"data\.time_bins=11: .*p0_1\.csv has 10 time steps; take at most as many"):
        load(tables, folder="mine", time_bins=11)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n\n3,x\n", "cannot be read, line 3: could not convert .*; expected rows of numbers"),
        ("1,2\n3\n", "cannot be read, line 2: 1 numbers, and 2 in the first row; expected rows of numbers"),
        ("level,number\n", "has no rows; expected rows of numbers"),
        ("", "has no rows; expected rows of numbers"),
        ("1,2,3\n" * 12, "has 3 columns, .* has 2; give all the same"),
        ("1,nan\n" * 12, "holds a NaN or an infinity; leave it out"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line_that_names_it(tables, content, message):
    path = tables / "mine/up/p3_0.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"^data\.source=series: {path} {message}$"):
        load(tables, folder="mine")


def test_arrays_of_series_may_tell_the_users(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 9, 3))
    y = np.array(["sit", "run"])[np.arange(40) % 2]
    np.savez(tmp_path / "mine.npz", x=x, y=y, users=np.arange(40) % 5 + 10)
    dataset = load(tmp_path, folder="mine.npz")
    assert dataset.class_names == ("run", "sit")
    assert dataset.input_shape == (9, 3)
    places = [
        int(np.flatnonzero((x.astype(np.float32) == image.numpy()).all((1, 2)))[0]) for image in dataset.train_images
    ]
    assert dataset.train_labels.tolist() == [1 - place % 2 for place in places]
    assert dataset.users.tolist() == [place % 5 for place in places]
    assert len(places) == 32
    torch.testing.assert_close(dataset.normalise(dataset.train_images).mean((0, 1)), torch.zeros(3), atol=1e-6, rtol=0)


def test_series_of_one_feature_need_no_axis_for_it(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.ones((10, 6)), y=np.arange(10) % 2)
    dataset = load(tmp_path, folder="mine.npz")
    assert dataset.input_shape == (6, 1)
    assert dataset.users is None
    assert dataset.normalise(dataset.train_images).abs().max() == 0  # a constant feature is no division by zero


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "has no array 'x'; expected x, y and maybe users"),
        ({"x": np.zeros((3, 4)), "y": np.zeros(2)}, r"has x of \[3, 4, 1\] beside \[2\]; expected x \[N, T, F\]"),
        ({"x": np.zeros((3, 4)), "y": np.zeros(3), "users": np.zeros(2)}, r"beside \[3\] and \[2\]; expected"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, r"has x of \[3\] beside"),
        ({"x": np.array([None] * 3), "y": np.zeros(3)}, "cannot be read as .npz"),
        (None, "cannot be read as .npz"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path, arrays, message):
    path = tmp_path / "mine.npz"
    path.write_bytes(b"no arrays") if arrays is None else np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=rf"^data\.source=series: {path} .*{message}") as caught:
        load(tmp_path, folder="mine.npz")
    assert "\n" not in str(caught.value)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages as seglearn and aeon lay their data, with numbers of ours."""
    folder = tmp_path / "seglearn/data"
    folder.mkdir(parents=True)
    (tmp_path / "seglearn/__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    recordings = [np.full((250 + place, 6), float(place)) for place in range(20)]
    content = {"X": recordings, "y": np.arange(20) % 2, "subject": np.arange(20) % 10 + 1, "y_labels": ["PEN", "ROW"]}
    np.save(folder / "watch_dataset.npy", content, allow_pickle=True)
    (tmp_path / "aeon").mkdir()
    (tmp_path / "aeon/__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    for place, stem in (("BasicMotions", "BasicMotions"), ("JapaneseVowels", "JapaneseVowels_eq")):
        folder = tmp_path / "aeon/datasets/data" / place
        folder.mkdir(parents=True)
        for split, rows in (("TRAIN", ["1,2,3:4,5,6:b", "0,0,0:1,1,1:a"]), ("TEST", ["7,7,7:8,8,8:b"])):
            (folder / f"{stem}_{split}.ts").write_text(
                "\n".join(["#words", "@classLabel true a b", "@data", *rows, ""])
            )
    for name in ("seglearn", "aeon"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_watch_recordings_are_windows_with_the_subjects_as_users(packages):
    dataset = load(packages, "watch")
    assert dataset.input_shape == (100, 6)
    assert dataset.class_names == ("PEN", "ROW")
    assert len(dataset.train_labels) == 32
    assert len(dataset.test_labels) == 8
    places = dataset.train_images[:, 0, 0].long()
    assert torch.equal(dataset.users, places % 10 + 1)
    assert torch.equal(dataset.train_labels, places % 2)
    assert not set(places.tolist()) & set(dataset.test_images[:, 0, 0].long().tolist())
    assert load(packages, "watch", time_bins=50).input_shape == (50, 6)


@pytest.mark.parametrize("source", ["basic_motions", "japanese_vowels"])
def test_archives_have_their_own_splits(packages, source):
    dataset = load(packages, source)
    assert dataset.class_names == ("a", "b")
    assert dataset.train_images.tolist() == [[[1, 4], [2, 5], [3, 6]], [[0, 1], [0, 1], [0, 1]]]
    assert dataset.train_labels.tolist() == [1, 0]
    assert dataset.test_images.tolist() == [[[7, 8], [7, 8], [7, 8]]]


def test_a_damaged_archive_is_one_line(packages):
    path = packages / "aeon/datasets/data/BasicMotions/BasicMotions_TEST.ts"
    path.write_text("@data\n1,2:3:a\n")
    with pytest.raises(
        ConfigError, match=rf"^data\.source=basic_motions: {path} cannot be read .*; install aeon anew$"
    ):
        load(packages, "basic_motions")


@pytest.mark.parametrize(
    ("source", "package"), [("watch", "seglearn"), ("italy_power_demand", "aeon"), ("japanese_vowels", "aeon")]
)
def test_a_package_that_is_not_installed_is_one_line(tmp_path, monkeypatch, source, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=rf"={source}: comes with {package}, which is not installed; type: pip install"
    ):
        load(tmp_path, source)
