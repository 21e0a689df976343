import re

import pytest

from snnfl import data
from snnfl.config import ConfigError, DataConfig
from snnfl.data.own_folders import find_files, own_place

CONFIG = DataConfig(source="series", folder="mine")


def lay(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_a_fifth_of_each_class_is_for_testing(tmp_path):
    lay(tmp_path, *(f"{label}/{number:02}.csv" for label in "ba" for number in range(20)), "a/notes.txt", "_x/1.csv")
    files = find_files(tmp_path, ".csv", CONFIG)
    assert files.class_names == ("a", "b")
    assert [path.name for path in files.paths] == [f"{number:02}.csv" for _ in "ab" for number in range(20)]
    assert files.labels.tolist() == [0] * 20 + [1] * 20
    assert files.labels[files.test].tolist() == [0] * 4 + [1] * 4
    assert sorted([*files.train.tolist(), *files.test.tolist()]) == list(range(40))
    assert files.users is None


def test_folders_of_training_and_testing_are_the_splits(tmp_path):
    lay(tmp_path, "train/a/1.csv", "train/a/2.csv", "train/b/1.CSV", "test/b/9.csv")
    files = find_files(tmp_path, ".csv", CONFIG)
    assert [str(files.paths[index].relative_to(tmp_path)) for index in files.test] == ["test/b/9.csv"]
    assert files.labels[files.train].tolist() == [0, 0, 1]
    assert files.labels[files.test].tolist() == [1]


@pytest.mark.parametrize(
    ("names", "users"),
    [
        (["a/zoe/1.csv", "a/ann/1.csv", "b/zoe/1.csv", "b/ann/deep/1.csv"], [0, 1, 0, 1]),
        (["a/zoe_1.csv", "a/ann_1.csv", "b/zoe_1.csv", "b/ann_2.csv"], [0, 1, 0, 1]),
        (["a/zoe_1.csv", "a/ann_1.csv", "b/bob_1.csv", "b/eve_2.csv"], None),  # nobody in two classes
        (["a/a_1.csv", "a/a_2.csv", "b/b_1.csv", "b/b_2.csv"], None),  # the class again
        (["a/zoe_1.csv", "a/ann_1.csv", "b/zoe_1.csv", "b/2.csv"], None),
        (["a/zoe/1.csv", "a/1.csv", "b/zoe/1.csv", "b/2.csv"], None),
    ],
)
def test_users_are_sub_folders_or_what_is_before_an_underline(tmp_path, names, users):
    found = find_files(lay(tmp_path, *names), ".csv", CONFIG).users
    assert (None if found is None else found.tolist()) == users


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.csv"], "expected a folder for each class, two or more, found ['a']"),
        (["a/1.csv", "b/1.txt"], "b has no file that ends in .csv"),
        (["train/a/1.csv", "train/b/1.csv", "test/c/1.csv"], "test/c has no training files"),
        (["train/a/1.csv", "train/b/1.txt", "test/a/1.csv"], "train/b has no file that ends in .csv"),
    ],
)
def test_a_folder_without_classes_is_one_line(tmp_path, names, message):
    with pytest.raises(ConfigError, match=rf"^data\.folder=mine: {re.escape(message)}$"):
        find_files(lay(tmp_path, *names), ".csv", CONFIG)


def test_what_lies_elsewhere_than_below_the_root_is_refused(tmp_path):
    root = lay(tmp_path, "mine/1.csv")
    assert own_place(root, CONFIG) == root / "mine"
    for folder in ("../mine", str(root / "mine")):
        with pytest.raises(ConfigError, match=r"expected a path below data\.root; set data\.root to its parent"):
            own_place(root, DataConfig(source="series", folder=folder))
    with pytest.raises(ConfigError, match=r"data\.folder=null: data\.source=series reads your own; name it, below"):
        own_place(root, DataConfig(source="series"))
    with pytest.raises(data.DataNotFoundError, match=r"data\.folder=other: .*other is not there \(data\.root="):
        own_place(root, DataConfig(source="series", folder="other"))
