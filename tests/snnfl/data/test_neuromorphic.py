import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from snnfl import data
from snnfl.config import ConfigError, DataConfig


def load(source, root, **options):
    return data.load(DataConfig(source=source, root=str(root), **options))


@pytest.fixture
def gestures(tmp_path):
    """Two gestures of two people for training, one of a third for testing, as tonic lays them."""
    for split, people in (("Train", ("user02_fluorescent", "user10_led")), ("Test", ("user24_lab",))):
        for person in people:
            folder = tmp_path / f"DVSGesture/ibmGesture{split}" / person
            folder.mkdir(parents=True)
            for gesture in (3, 10):
                table = [[gesture, 5, 0, 1], [gesture, 5, 1, 2], [127, 127, 1, 16]]  # x, y, polarity, ms
                np.save(folder / f"{gesture}.npy", np.array(table, dtype=np.int16))
    return tmp_path


def test_gestures_have_the_people_as_users(gestures):
    dataset = load("dvs128_gesture", gestures)
    assert dataset.input_shape == (16, 2, 128, 128)
    assert dataset.train_labels.tolist() == [10, 3, 10, 3]
    assert dataset.users.tolist() == [2, 2, 10, 10]
    assert dataset.test_labels.tolist() == [10, 3]
    image = dataset.train_images[1]
    assert image.nonzero().tolist() == [[0, 0, 5, 3], [1, 1, 5, 3], [15, 1, 127, 127]]


def test_resolution_and_steps_are_options(gestures):
    dataset = load("dvs128_gesture", gestures, resolution=32, time_bins=1, binning="count")
    assert dataset.input_shape == (1, 2, 32, 32)
    assert dataset.train_images[1].nonzero().tolist() == [[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 31, 31]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no array", "cannot be read"),
        (np.zeros((0, 4), np.int16), "has no event"),
        (np.full((1, 4), 128, np.int16), "has an event outside of 128x128 pixels"),
    ],
)
def test_a_damaged_recording_is_one_line_that_names_it(gestures, content, message):
    path = gestures / "DVSGesture/ibmGestureTrain/user10_led/3.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(ConfigError, match=rf"^data.source=dvs128_gesture: {path} {message}.*; unpack .* anew$"):
        load("dvs128_gesture", gestures)


def test_a_file_of_another_name_is_refused(gestures):
    folder = gestures / "DVSGesture/ibmGestureTest/user24_lab"
    (folder / "3.npy").rename(folder / "three.npy")
    with pytest.raises(ConfigError, match=r"three.npy is not called userNN_LIGHT/GESTURE.npy"):
        load("dvs128_gesture", gestures)


@pytest.mark.parametrize(
    ("source", "folder"),
    [("dvs128_gesture", "DVSGesture"), ("cifar10_dvs", "CIFAR10DVS"), ("shd", "SHD")],
)
def test_an_absent_folder_says_where_to_get_it(tmp_path, monkeypatch, source, folder):
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace())
    for ask in (lambda: load(source, tmp_path), lambda: data.fetch(source, tmp_path)):
        with pytest.raises(data.DataNotFoundError, match=rf"{tmp_path / folder} is not there; download .*https://"):
            ask()
    (tmp_path / folder).mkdir()
    with pytest.raises(data.DataNotFoundError, match=rf"{folder} is not there or lacks .*; download"):
        load(source, tmp_path)


EVENT = np.dtype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")])


class Decoder:
    """What the library aedat makes of a file; here of one that NumPy wrote."""

    def __init__(self, path):
        self.events = np.load(path)

    def id_to_stream(self):
        return {0: {"type": "frame"}, 2: {"type": "events"}, 1: {"type": "events"}}

    def __iter__(self):
        yield {"stream_id": 2, "events": self.events[:0]}
        yield {"stream_id": 0, "frame": {}}
        yield {"stream_id": 1, "events": self.events[:1]}
        yield {"stream_id": 1, "events": self.events[1:]}


@pytest.fixture
def objects(tmp_path, monkeypatch):
    """Twenty recordings of two classes, two of the others."""
    monkeypatch.setitem(sys.modules, "aedat", SimpleNamespace(Decoder=Decoder))
    for label, name in enumerate(data.neuromorphic.OBJECTS):
        folder = tmp_path / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        for number in range(20 if label < 2 else 2):
            events = np.array([(10, label, number, True), (29, 127, 0, False)], dtype=EVENT)
            with (folder / f"cifar10_{name}_{number}.aedat4").open("wb") as file:
                np.save(file, events)
    return tmp_path


def test_the_last_tenth_of_each_class_is_for_testing(objects):
    dataset = load("cifar10_dvs", objects, time_bins=2)
    assert torch.bincount(dataset.train_labels).tolist() == [18, 18, *[1] * 8]
    assert torch.bincount(dataset.test_labels).tolist() == [2, 2, *[1] * 8]
    numbers = dataset.test_images[:4, 0, 1].sum(2).argmax(1)
    assert numbers.tolist() == [18, 19, 18, 19]
    assert dataset.train_images[0].nonzero().tolist() == [[0, 1, 0, 0], [1, 0, 0, 127]]


@pytest.mark.parametrize(("source", "library"), [("cifar10_dvs", "aedat"), ("shd", "h5py")])
def test_a_library_that_is_not_installed_is_one_line(objects, monkeypatch, source, library):
    (objects / "SHD").mkdir()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"={source}: .* {library}, which is not installed; type: pip install"):
        load(source, objects)


@pytest.fixture
def spoken(tmp_path):
    """Three spoken digits for training, one for testing, in the published format."""
    h5py = pytest.importorskip("h5py")
    (tmp_path / "SHD").mkdir()
    for split, labels, speakers in (("train", [2, 0, 1], [4, 0, 4]), ("test", [1], [7])):
        with h5py.File(tmp_path / f"SHD/shd_{split}.h5", "w") as file:
            times = file.create_dataset("spikes/times", (len(labels),), h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", (len(labels),), h5py.vlen_dtype(np.uint16))
            for place, label in enumerate(labels):
                times[place] = np.array([0.0, 0.5, 1.0], np.float16)
                units[place] = np.array([label, 699, 699], np.uint16)
            file["labels"] = np.array(labels, np.uint16)
            file["extra/speaker"] = np.array(speakers, np.uint16)
            file["extra/keys"] = np.array([b"zero", b"one", b"null"])
    return tmp_path


def test_spoken_digits_are_lines_of_channels_with_the_speakers_as_users(spoken):
    dataset = load("shd", spoken)
    assert dataset.input_shape == (100, 700)
    assert dataset.class_names == ("zero", "one", "null")
    assert dataset.train_labels.tolist() == [2, 0, 1]
    assert dataset.users.tolist() == [4, 0, 4]
    assert dataset.train_images[0].nonzero().tolist() == [[0, 2], [49, 699], [99, 699]]
    assert torch.equal(dataset.normalise(dataset.train_images), dataset.train_images.float())
    assert load("shd", spoken, resolution=70, time_bins=5).input_shape == (5, 70)


def test_damaged_spoken_digits_are_one_line(spoken):
    path = spoken / "SHD/shd_test.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(ConfigError, match=rf"^data.source=shd: {path} .*; unpack .* anew$") as caught:
        load("shd", spoken)
    assert "\n" not in str(caught.value)


def test_spikes_outside_of_the_channels_are_refused(spoken):
    h5py = pytest.importorskip("h5py")
    with h5py.File(spoken / "SHD/shd_test.h5", "r+") as file:
        file["spikes/units"][0] = np.array([1, 2, 700], np.uint16)
    with pytest.raises(ConfigError, match=r"shd_test\.h5 has a recording without spikes, or with one outside of 700"):
        load("shd", spoken)
