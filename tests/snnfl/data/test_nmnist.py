import time
import tracemalloc

import numpy as np
import pytest
import torch

from snnfl import data
from snnfl.config import ConfigError, DataConfig
from snnfl.data.nmnist import read
from snnfl.data.sources import _load, _part


def packed(*events):
    """Write events ``(x, y, polarity, time)`` of 40 bits each."""
    return b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for x, y, p, t in events)


def one_by_one(content):
    """Read as tonic's ``read_mnist_file`` does, an event at a time: ``(time, polarity, row, column)``."""
    events, late = [], 0
    for start in range(0, len(content), 5):
        x, y, high, middle, low = content[start : start + 5]
        if y == 240:
            late += 2**13
        else:
            events.append((((high & 127) << 16 | middle << 8 | low) + late, high >> 7, y, x))
    return events


@pytest.fixture
def root(tmp_path):
    """Two recordings of each digit for training and one for testing; digit d is at column d."""
    for split, numbers in (("Train", (2, 1)), ("Test", (3,))):
        for digit in range(10):
            folder = tmp_path / "NMNIST" / split / str(digit)
            folder.mkdir(parents=True)
            for number in numbers:
                events = packed(*[(digit, number, 1, 10 * step) for step in range(20)], (33, 33, 0, 399))
                (folder / f"{number:05}.bin").write_bytes(events)
    return tmp_path


def load(root, **options):
    return data.load(DataConfig(source="nmnist", root=str(root), **options))


def test_the_official_layout_is_read_in_the_order_of_names(root):
    dataset = load(root)
    assert dataset.input_shape == (10, 2, 34, 34)
    assert dataset.sequence
    assert dataset.train_images.dtype == torch.uint8
    assert dataset.train_labels.tolist() == [digit for digit in range(10) for _ in range(2)]
    assert dataset.test_labels.tolist() == list(range(10))
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train_images[:, :, 1].sum((1, 2)).argmax(1).tolist() == dataset.train_labels.tolist()
    assert [image[:, 1].sum((0, 2)).argmax().item() for image in dataset.train_images[:4]] == [1, 2, 1, 2]
    assert dataset.train_images.sum((1, 2, 3, 4)).tolist() == [21] * 20


def test_steps_are_of_equal_time_or_of_equally_many_events(root):
    by_time, by_count = load(root, time_bins=2), load(root, time_bins=2, binning="count")
    assert by_time.train_images[0].sum((1, 2, 3)).tolist() == [20, 1]
    assert by_count.train_images[0].sum((1, 2, 3)).tolist() == [11, 10]


def test_half_the_resolution_sums_blocks_of_four_pixels(root):
    whole, half = load(root).train_images.long(), load(root, resolution=17).train_images.long()
    assert torch.equal(half, whole.unflatten(3, (17, 2)).unflatten(5, (17, 2)).sum((4, 6)))


def test_the_other_published_name_is_accepted(root):
    (root / "NMNIST").rename(root / "N-MNIST")
    assert len(load(root).train_labels) == 20


def test_a_time_beyond_23_bits_goes_on_after_an_overflow(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(
        packed((1, 2, 1, 8000), (0, 240, 0, 0), (3, 4, 0, 5), (0, 240, 0, 0), (0, 240, 0, 0), (5, 6, 1, 7))
    )
    events = read(path)
    assert events.times.tolist() == [8000, 5 + 2**13, 7 + 3 * 2**13]
    found = zip(events.times, events.channels, events.rows, events.columns, strict=True)
    assert [tuple(map(int, event)) for event in found] == one_by_one(path.read_bytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed((1, 1, 0, 1))[:-1], r"ends within an event \(4 bytes\)"),
        (b"", "has no event"),
        (packed((1, 240, 0, 1)), "has no event"),
        (packed((34, 0, 0, 1)), "has an event outside of 34x34 pixels"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(root, content, message):
    path = root / "NMNIST/Train/4/00002.bin"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^data.source=nmnist: {path} {message}.*; unpack .* anew$"):
        load(root)


def test_an_absent_folder_says_where_to_get_it(tmp_path):
    for ask in (load, lambda root: data.fetch("nmnist", root)):
        with pytest.raises(data.DataNotFoundError) as caught:
            ask(tmp_path)
        for words in (str(tmp_path / "NMNIST"), "garrickorchard", "Test/9/*.bin", "SNNFL_DATA"):
            assert words in str(caught.value)
    (tmp_path / "NMNIST/Train/0").mkdir(parents=True)
    with pytest.raises(data.DataNotFoundError, match=r"not there or lacks Train/0/\*\.bin"):
        load(tmp_path)


@pytest.fixture
def published(tmp_path, data_root):
    """The recordings of this machine, below a folder of their own, so that nothing is written beside them."""
    if not (data_root / "NMNIST").is_dir():
        pytest.skip("no N-MNIST here")
    (tmp_path / "NMNIST").mkdir()
    for split in ("Train", "Test"):
        (tmp_path / "NMNIST" / split).symlink_to(data_root / "NMNIST" / split)
    return tmp_path


def test_recordings_are_what_a_loop_reads(published):
    paths = sorted((published / "NMNIST/Test").glob("?/*.bin"))[::25]
    assert paths
    for path in paths:
        events = read(path)
        expected = np.array(one_by_one(path.read_bytes()))
        found = np.stack([events.times, events.channels, events.rows, events.columns], axis=1)
        np.testing.assert_array_equal(found, expected)
        assert found[:, 0].max() > 250_000  # three movements of 100 ms


@pytest.fixture
def thousand(tmp_path):
    """A thousand recordings of 4,000 events, which is what N-MNIST's have on average, and one for testing."""
    generator = np.random.default_rng(0)
    for number in range(1001):
        times = np.sort(generator.integers(0, 300_000, 4000))
        columns, rows, polarities = (generator.integers(0, most, 4000) for most in (34, 34, 2))
        table = np.stack([columns, rows, polarities << 7 | times >> 16, times >> 8 & 255, times & 255], axis=1)
        path = tmp_path / "NMNIST" / ("Train" if number else "Test") / str(number % 10) / f"{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(table.astype(np.uint8).tobytes())
    return tmp_path


def seconds(root):
    _load.cache_clear()
    _part.cache_clear()
    start = time.process_time()
    assert len(load(root).train_labels) == 1000
    return time.process_time() - start


def test_a_thousand_recordings_are_read_in_bounded_time_and_memory(thousand):
    assert seconds(thousand) < 2  # 0.35 where it was measured
    assert seconds(thousand) < 0.2  # from the cache: 0.01
    tracemalloc.start()
    dataset = load(thousand, time_bins=11)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < dataset.train_images.nbytes + 10_000_000
