import hashlib
import pickle
import struct
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch

from snnfl import data
from snnfl.config import ConfigError, DataConfig
from snnfl.torchvision_guard import guard

guard()
from torchvision import datasets as torchvision_datasets  # noqa: E402
from torchvision.datasets import utils  # noqa: E402


def load(name, root):
    return data.load(DataConfig(source=name, root=str(root)))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no route\nto host")

    monkeypatch.setattr(utils, "_get_redirect_url", refuse)


@pytest.fixture
def mnist_root(tmp_path):
    """Write five training and three test pictures in the official IDX format."""
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    for split, count in (("train", 5), ("t10k", 3)):
        pixels = (np.arange(count * 28 * 28) % 256).astype(np.uint8).tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(range(count)))
    return tmp_path


@pytest.fixture
def cifar100_root(tmp_path, monkeypatch):
    """Write four training and two test pictures in the official pickles, and teach torchvision their checksums."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = (np.arange(4 * 3072) % 251).astype(np.uint8).reshape(4, 3072)
    contents = {
        "train": {"data": pixels, "fine_labels": [3, 1, 2, 99]},
        "test": {"data": pixels[:2], "fine_labels": [0, 7]},
        "meta": {"fine_label_names": [f"class {number}" for number in range(100)]},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    reader = torchvision_datasets.CIFAR100
    monkeypatch.setattr(reader, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(reader, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(reader, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})
    return tmp_path


def test_idx_files_are_read(mnist_root):
    dataset = load("mnist", mnist_root)
    assert (dataset.input_shape, dataset.classes, dataset.flip) == ((1, 28, 28), 10, False)
    assert dataset.train_images.dtype == torch.uint8
    assert dataset.train_images.flatten().tolist() == [number % 256 for number in range(5 * 28 * 28)]
    assert dataset.test_labels.tolist() == [0, 1, 2]


def test_cifar_pickles_are_read_channel_first(cifar100_root):
    dataset = load("cifar100", cifar100_root)
    assert (dataset.input_shape, dataset.classes, dataset.flip) == ((3, 32, 32), 100, True)
    assert dataset.train_images.flatten().tolist() == [number % 251 for number in range(4 * 3072)]
    assert dataset.train_images.is_contiguous()
    assert dataset.train_labels.tolist() == [3, 1, 2, 99]
    assert dataset.class_names[99] == "class 99"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_an_absent_data_set_says_where_it_looked_and_what_to_type(name, tmp_path):
    with pytest.raises(data.DataNotFoundError) as caught:
        load(name, tmp_path)
    for words in (str(tmp_path), f"snnfl data fetch {name}", "SNNFL_DATA"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 3, 16, 1000])
@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_a_cut_idx_file_is_one_line(mnist_root, part, length):
    path = mnist_root / f"MNIST/raw/train-{part}-ubyte"
    path.write_bytes(path.read_bytes()[: min(length, path.stat().st_size - 1)])
    with pytest.raises(ConfigError, match=r"raw is incomplete or damaged .*delete it and type: snnfl data") as caught:
        load("mnist", mnist_root)
    assert "\n" not in str(caught.value)
    with pytest.raises(data.DataNotFoundError, match=r"where files are damaged, delete .*MNIST/raw"):
        data.fetch("mnist", mnist_root)


def test_labels_that_do_not_match_the_images_are_an_error(mnist_root):
    (mnist_root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 4) + bytes(4))
    with pytest.raises(ConfigError, match="5 train images but 4 labels"):
        load("mnist", mnist_root)


def test_a_changed_pickle_is_one_line(cifar100_root):
    path = cifar100_root / "cifar-100-python/train"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ConfigError, match="cifar-100-python is incomplete or damaged"):
        load("cifar100", cifar100_root)


def test_fetching_what_is_there_needs_no_network(offline, mnist_root, cifar100_root):
    assert data.fetch("mnist", mnist_root) == mnist_root / "MNIST/raw"
    assert data.fetch("cifar100", cifar100_root) == cifar100_root / "cifar-100-python"


@pytest.mark.parametrize(
    ("name", "file"), [("fashion_mnist", "FashionMNIST/raw/{train"), ("cifar10", "cifar-10-python.tar.gz")]
)
def test_without_network_the_files_to_lay_by_hand_are_named(offline, tmp_path, name, file):
    with pytest.raises(data.DataNotFoundError) as caught:
        data.fetch(name, tmp_path)
    assert f"lay {tmp_path / file}" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(data.DataNotFoundError, match="is not there"):  # the attempt leaves nothing that looks damaged
        load(name, tmp_path)


def test_an_archive_laid_by_hand_is_unpacked_without_network(offline, cifar100_root, monkeypatch):
    folder, archive = cifar100_root / "cifar-100-python", cifar100_root / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(folder, folder.name)
    folder.rename(cifar100_root / "kept")
    monkeypatch.setattr(torchvision_datasets.CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert data.fetch("cifar100", cifar100_root) == folder
    assert (folder / "train").read_bytes() == (cifar100_root / "kept/train").read_bytes()


def test_embedded_sources_have_nothing_to_fetch(tmp_path):
    with pytest.raises(ConfigError, match="digits: nothing to fetch"):
        data.fetch("digits", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        data.fetch("cifar-10", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "shape", "first"),
    [
        ("mnist", "MNIST", (60000, 1, 28, 28), [5, 0, 4, 1, 9]),
        ("fashion_mnist", "FashionMNIST", (60000, 1, 28, 28), [9, 0, 0, 3, 0]),
        ("cifar10", "cifar-10-batches-py", (50000, 3, 32, 32), [6, 9, 9, 4, 1]),
    ],
)
def test_the_real_data_have_the_published_mean_and_deviation(data_root, name, folder, shape, first):
    if not (data_root / folder).is_dir():
        pytest.skip(f"{folder} is not in {data_root}; type: snnfl data fetch {name}")
    dataset = load(name, data_root)
    assert dataset.train_images.shape == shape
    assert len(dataset.test_images) == 10000
    assert dataset.train_labels[:5].tolist() == first
    assert len(dataset.train_labels.unique()) == dataset.classes == 10
    # Moments from the histogram of the bytes, in whole numbers.
    for channel in range(shape[1]):
        counts = torch.bincount(dataset.train_images[:, channel].flatten(), minlength=256).double()
        levels = torch.arange(256) / 255
        mean = (counts * levels).sum() / counts.sum()
        std = ((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt()
        assert dataset.mean[channel].item() == pytest.approx(mean.item(), abs=1e-4)
        assert dataset.std[channel].item() == pytest.approx(std.item(), abs=1e-4)
