"""Data of nodes' own: what is read, how it is split, and each way of not fitting, in one line that tells no secret."""

from __future__ import annotations

import csv
import io
import os
import pickle
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_data import CLASSES, OPTIONS, lay_arrays, lay_dataset, lay_pictures, pictures
from PIL import Image
from safetensors.torch import save_file

from snnfl.config import ConfigError, DataConfig, compose
from snnfl.data import Dataset
from snnfl.data.own import agreed, client_places, read_own, server_data
from snnfl.data.own_samples import READERS, OwnDataError, Samples, register_reader
from snnfl.registry import forget

DIGITS = compose(None, OPTIONS).data
TABLE = compose(None, ["data.source=own", "data.classes=[healthy,ill]", "data.features=[age,weight]"]).data
SERIES = compose(None, ["data.source=own", "data.classes=[a,b]", "data.shape=[5,2]", "data.test_share=0.5"]).data


def refused(place: Path, config: DataConfig = DIGITS) -> OwnDataError:
    with pytest.raises(OwnDataError) as error:
        read_own(place, config)
    assert len(str(error.value).splitlines()) == 1
    assert str(place.name) in str(error.value)
    assert not re.search(r"/|\.(png|npz|csv)", error.value.told)  # what a server hears
    return error.value


def outcome(place: Path, config: DataConfig) -> Dataset | OwnDataError:
    try:
        return read_own(place, config)
    except OwnDataError as error:
        return error


def table(path: Path, rows: Iterable[Iterable[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_pictures_arrays_tensors_and_datasets_become_the_same(tmp_path: Path) -> None:
    numbers = range(200)
    images, labels = pictures(numbers)
    order = np.argsort(labels, kind="stable")  # as a folder has them
    inside = [int(number) for number in order]
    save_file({"x": torch.from_numpy(images[order]), "y": torch.from_numpy(labels[order])}, tmp_path / "s.safetensors")
    found = [
        read_own(lay_pictures(tmp_path / "pictures", numbers), DIGITS),
        read_own(lay_arrays(tmp_path / "arrays.npz", inside), DIGITS),
        read_own(tmp_path / "s.safetensors", DIGITS),
        read_own(lay_dataset(tmp_path / "dataset", inside), DIGITS),
    ]
    for each in found:
        assert torch.equal(each.train_images, found[0].train_images)
        assert torch.equal(each.test_images, found[0].test_images)
        assert torch.equal(each.train_labels, found[0].train_labels)
    whole = torch.cat([found[0].train_images, found[0].test_images]).flatten(1).sum(1).sort().values
    assert torch.equal(whole, torch.from_numpy(images).flatten(1).sum(1).sort().values)
    assert (found[0].kind, found[0].input_shape, found[0].class_names) == ("images", (1, 8, 8), CLASSES)
    assert torch.equal(found[0].normalise(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)), torch.ones(1, 1, 8, 8))


def test_the_test_part_is_the_stated_share_of_each_class_and_of_no_run(tmp_path: Path) -> None:
    place = lay_arrays(tmp_path / "a.npz", range(500))
    half = compose(None, [*OPTIONS, "data.test_share=0.5", "run.seed=3"]).data
    found, fifth = read_own(place, half), read_own(place, DIGITS)
    counts = torch.bincount(torch.cat([found.train_labels, found.test_labels]))
    assert len(found.test_labels) == 250
    assert ((torch.bincount(found.test_labels) - counts / 2).abs() < 1).all()
    assert len(fifth.test_labels) == 100
    assert read_own(place, compose(None, [*OPTIONS, "run.seed=9"]).data) is fifth


def test_a_node_may_lack_classes(tmp_path: Path) -> None:
    chosen = [number for number in range(300) if pictures([number])[1][0] in (1, 7)]
    found = read_own(lay_pictures(tmp_path / "some", chosen), DIGITS)
    assert sorted(set(found.train_labels.tolist())) == [1, 7]
    assert found.classes == 10


def test_pictures_in_no_folder_of_a_class_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tidy, place = (lay_pictures(tmp_path / name, range(50)) for name in ("tidy", "loose"))
    (tidy / "notes.txt").touch()
    (tidy / "_thumb.png").touch()  # neither is said: one is no picture, one is left out on purpose
    read_own(tidy, DIGITS)
    assert not caplog.messages
    for name in ("b.png", "a.JPG"):
        (place / name).touch()
    found = read_own(place, DIGITS)
    (line,) = caplog.messages
    assert line.startswith(f"{place}: 2 pictures that lie in no folder of a class (a.JPG, …) left out; move ")
    assert len(found.train_labels) + len(found.test_labels) == 50


def test_tables_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    rows = [["id", "weight", "label", "age"], *([n, 50 + n, "ill" if n % 2 else "healthy", n] for n in range(20))]
    found = read_own(table(tmp_path / "t.csv", rows), TABLE)
    both = torch.cat([found.train_images, found.test_images])
    assert torch.equal(both[:, 1], both[:, 0] + 50)
    assert torch.equal(torch.cat([found.train_labels, found.test_labels]), both[:, 0].long() % 2)
    assert (found.kind, found.train_images.dtype) == ("table", torch.float32)


def test_columns_of_a_saved_dataset_are_too(tmp_path: Path) -> None:
    import datasets

    columns = {"weight": [50 + n for n in range(20)], "label": [n % 2 for n in range(20)], "age": list(range(20))}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "d"))
    rows = [["age", "weight", "label"], *([n, 50 + n, ("healthy", "ill")[n % 2]] for n in range(20))]
    found, same = read_own(tmp_path / "d", TABLE), read_own(table(tmp_path / "t.csv", rows), TABLE)
    assert torch.equal(found.train_images, same.train_images)
    assert torch.equal(found.train_labels, same.train_labels)
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)}).save_to_disk(str(tmp_path / "splits"))
    assert "holds the splits train; save one of them" in str(refused(tmp_path / "splits", TABLE))


def test_series_are_sequences(tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.float64).reshape(4, 5, 2)
    np.savez(tmp_path / "s.npz", x=x, y=np.array(["a", "b", "a", "b"]))
    found = read_own(tmp_path / "s.npz", SERIES)
    assert (found.sequence, found.kind, found.train_images.dtype) == (True, "series", torch.float32)
    assert sorted([*found.train_labels.tolist(), *found.test_labels.tolist()]) == [0, 0, 1, 1]


def test_what_the_run_states_holds_no_samples() -> None:
    found = agreed(Path(), compose(None, [*OPTIONS, "data.mean=[0.1]", "data.std=[0.3]"]).data)
    assert (len(found.train_images), found.input_shape, found.classes) == (0, (1, 8, 8), 10)
    assert torch.equal(found.mean, torch.tensor([0.1]))
    assert torch.equal(agreed(Path(), TABLE).std, torch.ones(2))


def test_the_server_tests_on_all_that_it_has(tmp_path: Path) -> None:
    assert len(server_data(tmp_path / "nowhere", DIGITS).test_labels) == 0
    lay_arrays(tmp_path / "server.npz", range(50))
    assert len(server_data(tmp_path, DIGITS).test_labels) == 50
    lay_pictures(tmp_path / "server", range(20))
    with pytest.raises(ConfigError, match=r"holds both server and server\.npz; keep one"):
        server_data(tmp_path, DIGITS)


def test_clients_of_a_simulation_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a.npz", "c", ".hidden", "_left-out"):
        (tmp_path / "clients" / name).mkdir(parents=True)
    assert [path.name for path in client_places(tmp_path, 3)] == ["a.npz", "b", "c"]
    with pytest.raises(ConfigError, match=r"data\.clients=2: .*holds 3 \(a\.npz, b, c\).*; say data\.clients=3"):
        client_places(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"data\.root=.*nowhere/clients cannot be read .*No such file"):
        client_places(tmp_path / "nowhere", 2)


def test_what_is_kept_of_a_folder_is_for_its_user_alone_and_follows_its_files(tmp_path: Path) -> None:
    place = lay_pictures(tmp_path / "p", range(30))
    before = os.umask(0)
    try:
        read_own(place, DIGITS)
    finally:
        os.umask(before)
    (kept,) = (place / ".snnfl").iterdir()
    assert (stat.S_IMODE(kept.stat().st_mode), stat.S_IMODE(kept.parent.stat().st_mode)) == (0o600, 0o700)
    lay_pictures(place, range(30, 40))
    other = compose(None, [*OPTIONS, "data.test_share=0.3"]).data  # as another process reads it
    assert len(read_own(place, other).train_labels) + len(read_own(place, other).test_labels) == 40


def test_what_is_kept_of_a_folder_follows_the_files_of_the_folders_that_it_links_to(tmp_path: Path) -> None:
    place, away = tmp_path / "ours", lay_pictures(tmp_path / "away", range(40))
    place.mkdir()
    for folder in away.iterdir():
        (place / folder.name).symlink_to(folder)
    assert len(read_own(place, DIGITS).train_labels) == 32
    assert list((place / ".snnfl").iterdir())
    lay_pictures(away, range(40, 60))
    other = compose(None, [*OPTIONS, "data.test_share=0.3"]).data  # as another process reads it
    assert len(read_own(place, other).train_labels) + len(read_own(place, other).test_labels) == 60


def test_a_server_whose_data_cannot_be_read_does_not_go_on_without(tmp_path: Path) -> None:
    (tmp_path / "server.npz").symlink_to("gone.npz")
    with pytest.raises(OwnDataError, match=r"server\.npz: cannot be read"):
        server_data(tmp_path, DIGITS)
    with pytest.raises(ConfigError, match=r"data\.root=.*/server\.npz/below: cannot be read \(Not a directory\)"):
        server_data(lay_arrays(tmp_path / "real" / "server.npz", range(5)) / "below", DIGITS)


def spoil_nothing_there(place: Path) -> Path:
    return place / "missing"


def spoil_class(place: Path) -> Path:
    (place / "two").rename(place / "2")
    return place


def spoil_empty(place: Path) -> Path:
    for path in (place / "two").iterdir():
        path.rename(path.with_suffix(".txt"))
    return place


def spoil_picture(place: Path) -> Path:
    next((place / "two").iterdir()).write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    return place


def spoil_size(place: Path) -> Path:
    Image.new("L", (9, 8)).save(place / "two" / "wide.png")
    return place


def spoil_depth(place: Path) -> Path:
    Image.new("I;16", (8, 8)).save(place / "two" / "deep.png")
    return place


def spoil_all(place: Path) -> Path:
    (place / "nothing").mkdir()
    return place / "nothing"


@pytest.mark.parametrize(
    ("spoil", "text", "told"),
    [
        (spoil_nothing_there, "missing: is not there; name the folder or file of your data", "are not there"),
        (
            spoil_class,
            r"'2' is none of data.classes=\['zero', .*; rename the folder",
            "a class that is none of",
        ),
        (
            spoil_empty,
            r"two: holds no picture \(\.bmp, .*; put some into it, or remove the folder",
            "an empty folder",
        ),
        (spoil_picture, r"\d{4}\.png: cannot be read \(.*; mend it", "a file of its data cannot be read"),
        (spoil_size, r"wide\.png: has 9x8 pixels, the run states 8x8 \(data.shape=\[1, 8, 8\]\)", "not of the shape"),
        (spoil_depth, r"deep\.png: has more than 8 bits a channel \(mode I", "not of the shape"),
        (spoil_all, "holds no folder of a class; make one for each", "it has no samples"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], Path], text: str, told: str
) -> None:
    error = refused(spoil(lay_pictures(tmp_path / "place", range(40))))
    assert re.search(text, str(error))
    assert told in error.told


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros((3, 8, 8), np.uint8)}, "expected arrays x and y"),
        ({"x": np.zeros((3, 9, 8), np.uint8), "y": np.arange(3)}, r"x is of shape \[3, 1, 9, 8\] and y of \[3\]"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.arange(4)}, r"y of \[4\], the run states \[1, 8, 8\]"),
        ({"x": np.zeros((3, 8, 8), np.float32), "y": np.arange(3)}, "x is float32; pictures and events are uint8"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array([0, 1, 10])}, "label 10 is none of data.classes"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array([0, 1, -1])}, "label -1 is none of"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array([0.0, 1, 2])}, "label 0.0 is none of"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array(["one", "two", "elf"])}, "label elf is none of"),
        ({"x": np.zeros((0, 8, 8), np.uint8), "y": np.arange(0)}, "holds no samples; add some"),
        ({"x": np.zeros((1, 8, 8), np.uint8), "y": np.arange(1)}, "holds 1 sample, and data.test_share=0.2"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert re.search(text, str(refused(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([["age", "label"], [1, "ill"]], r"has no column 'weight', only \['age', 'label'\]; name it so"),
        ([["age", "weight"], [1, 2]], "has no column 'label'"),
        ([["age", "age", "weight", "label"]], "has 2 columns 'age'"),
        ([["age", "weight", "label"], [1, "heavy", "ill"]], "row 1 below the names: could not convert string to float"),
        ([["age", "weight", "label"], [1, 2, "ill"], [1, 2]], "row 2 below the names: 2 columns in place of 3"),
        ([["age", "weight", "label"], [1, "nan", "ill"]], "holds a NaN, an infinity"),
        ([["age", "weight", "label"], [1, 1e39, "ill"]], "what float32 cannot hold"),
        ([["age", "weight", "label"], [1, 2, "dead"]], r"label dead is none of data.classes=\['healthy', 'ill'\]"),
        ([["age", "weight", "label"]], "holds no samples"),
        ([], "has no column 'age'"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path: Path, rows: list[list[Any]], text: str) -> None:
    assert re.search(text, str(refused(table(tmp_path / "t.csv", rows), TABLE)))


def test_data_of_another_kind_than_the_run_states_are_refused(tmp_path: Path) -> None:
    arrays, folder = lay_arrays(tmp_path / "a.npz", range(20)), lay_pictures(tmp_path / "p", range(20))
    assert "arrays have no names of columns" in str(refused(arrays, TABLE))
    assert "holds pictures, but the run states data.features" in str(refused(folder, TABLE))
    assert "whose columns data.features must name" in str(refused(table(tmp_path / "t.csv", [["a"]])))
    (tmp_path / "notes.txt").touch()
    assert "expected a folder with a sub-folder of pictures for each class" in str(refused(tmp_path / "notes.txt"))


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["SNNFL_BOMB"],))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNFL_BOMB", str(tmp_path / "exploded"))
    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], object), y=np.zeros(1, np.int64))
    assert "a.npz: holds Python objects (a pickle), which are never loaded, or" in str(refused(tmp_path / "a.npz"))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    assert "b.npz: holds Python objects (a pickle), which are never loaded, or" in str(refused(tmp_path / "b.npz"))
    assert not (tmp_path / "exploded").exists()


def _npz() -> bytes:
    content, (images, labels) = io.BytesIO(), pictures(range(6))
    np.savez(content, x=images, y=labels)
    return content.getvalue()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ending=st.sampled_from([".npz", ".safetensors", ".csv"]))
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(tmp_path: Path, data: Any, ending: str) -> None:
    content = bytearray(_npz())
    kind = data.draw(st.sampled_from(["bytes", "changed", "cut"]))
    if kind == "bytes":
        content = bytearray(data.draw(st.binary(max_size=200)))
    elif kind == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    place = tmp_path / f"{len(list(tmp_path.iterdir()))}{ending}"  # what is read once stays read
    place.write_bytes(bytes(content))
    config = TABLE if ending == ".csv" else DIGITS
    if isinstance(found := outcome(place, config), OwnDataError):
        assert len(str(found).splitlines()) == 1
        assert place.name not in found.told
    else:
        assert tuple(found.train_images.shape[1:]) == config.sample_shape
        assert 0 <= int(found.train_labels.min()) <= int(found.train_labels.max()) < len(config.classes)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(st.text(max_size=6) | st.floats(width=32).map(str), max_size=4), max_size=6))
def test_whatever_a_table_holds_it_is_read_or_refused_in_one_line(tmp_path: Path, rows: list[list[str]]) -> None:
    place = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
    header = ["age", "weight", "label"]
    with place.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows([header, *(row for row in rows if "\x00" not in "".join(row))])
    if isinstance(found := outcome(place, TABLE), OwnDataError):
        assert len(str(found).splitlines()) == 1
    else:
        assert torch.isfinite(found.train_images).all()


def test_a_plug_in_reads_what_it_says_that_it_reads(tmp_path: Path) -> None:
    @register_reader("study", lambda place: str(place).startswith("study:"))
    def study(place: Path, config: DataConfig) -> Samples:
        if str(place) == "study:wrong":
            return Samples(values=torch.zeros(4, 3), labels=torch.zeros(4, dtype=torch.int64))
        images, labels = pictures(range(50))
        return Samples(values=torch.from_numpy(images[:, None]), labels=torch.from_numpy(labels))

    try:
        assert len(read_own(Path("study:42"), DIGITS).train_labels) == 40
        assert "holds torch.float32 [4, 3] beside 4 labels" in str(refused(Path("study:wrong")))
    finally:
        forget([("reader of own data", "study", READERS.homes["study"])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.classes=[]"], r"data\.classes=\[\]: data\.source=own needs the names of two classes or more"),
        (["data.classes=[a,a]"], "'a' stands there twice"),
        (["data.classes=[a,../b]"], r"'\.\./b' is no name of a class's folder"),
        (["data.shape=[]"], r"data\.shape=\[\], data\.features=\[\]: data\.source=own needs one of them"),
        (["data.features=[a]"], "needs one of them"),
        (["data.shape=[1,0,8]"], r"expected \[C,H,W\]"),
        (["data.shape=[]", "data.features=[a,label]"], "'label' is the column of the classes"),
        (["data.mean=[1,2]"], r"data\.mean=\[1\.0, 2\.0\]: expected one number, or 1, one per channel"),
        (["data.std=[0]"], "expected finite numbers above 0"),
        (["data.partition=dirichlet"], r"data\.partition=dirichlet: data\.source=own divides nothing"),
        (["data.training_images=5"], r"data\.training_images=5: data\.source=own divides nothing"),
        (["data.shape=[4]", "audit.record=true"], r"audit\.record=true: .*shape \[4\] doesn't state"),
    ],
)
def test_what_a_run_states_must_be_enough_and_make_sense(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(None, [*OPTIONS, *options])
