from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snnfl import data
from snnfl.config import ConfigError, DataConfig


def paint(path, level, mode="RGB", side=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (level, 255 - level, 10) if mode == "RGB" else level
    Image.new(mode, (side, side), colour).save(path, quality=95)


@pytest.fixture
def root(tmp_path):
    """Write two classes with two training and one validation picture each, in the official layout."""
    folder = tmp_path / "tiny-imagenet-200"
    paint(folder / "train/n02/images/n02_1.JPEG", 40)
    paint(folder / "train/n02/images/n02_0.JPEG", 80, mode="L")
    paint(folder / "train/n01/images/n01_0.JPEG", 120)
    paint(folder / "train/n01/images/n01_1.JPEG", 160)
    paint(folder / "val/images/val_0.JPEG", 200)
    paint(folder / "val/images/val_1.JPEG", 240)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tbullfrog\n")
    (folder / "val/val_annotations.txt").write_text("val_1.JPEG\tn01\t0\t0\t1\t1\nval_0.JPEG\tn02\t0\t0\t1\t1\n")
    return tmp_path


def load(root):
    return data.load(DataConfig(source="tiny_imagenet", root=str(root)))


@pytest.mark.parametrize("backwards", [False, True])
def test_the_official_layout_is_read_in_a_fixed_order(root, monkeypatch, backwards):
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *args: iter(sorted(listed(*args), reverse=backwards)))
    dataset = load(root)
    assert dataset.class_names == ("goldfish", "bullfrog")
    assert dataset.train_labels.tolist() == [0, 0, 1, 1]
    assert dataset.test_labels.tolist() == [1, 0]
    assert dataset.train_images.dtype == torch.uint8
    assert dataset.train_images.shape == (4, 3, 64, 64)
    reds = [round(image[0].float().mean().item()) for image in [*dataset.train_images, *dataset.test_images]]
    np.testing.assert_allclose(reds, [120, 160, 80, 40, 200, 240], atol=2)


def test_grey_pictures_become_three_equal_channels(root):
    grey = load(root).train_images[2]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


def test_pixels_are_pillows(root):
    generator = np.random.default_rng(0)
    path = root / "tiny-imagenet-200/val/images/val_0.JPEG"
    Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    assert np.array_equal(load(root).test_images[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))


def test_an_absent_folder_says_where_to_get_it(tmp_path):
    with pytest.raises(data.DataNotFoundError) as caught:
        load(tmp_path)
    for words in (str(tmp_path / "tiny-imagenet-200"), "http://cs231n", "wnids.txt", "SNNFL_DATA"):
        assert words in str(caught.value)
    with pytest.raises(data.DataNotFoundError, match="http://cs231n"):
        data.fetch("tiny_imagenet", tmp_path)


def empty_class(folder):
    for path in (folder / "train/n01/images").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, "n01/images has no pictures"),
        (lambda folder: (folder / "val/images/val_0.JPEG").unlink(), "val_0.JPEG cannot be read"),
        (lambda folder: (folder / "val/images/val_0.JPEG").write_bytes(b"no picture"), "val_0.JPEG cannot be read"),
        (lambda folder: paint(folder / "val/images/val_0.JPEG", 1, side=32), "has 32x32 pixels, not 64x64"),
        (lambda folder: (folder / "words.txt").unlink(), "words.txt cannot be read"),
        (lambda folder: (folder / "words.txt").write_bytes(b"\xff\xfe"), "words.txt cannot be read"),
        (lambda folder: (folder / "wnids.txt").write_text(""), "wnids.txt doesn't have 1"),
        (lambda folder: (folder / "val/val_annotations.txt").write_text("val_0.JPEG\n"), "doesn't have 2 tab"),
        (lambda folder: (folder / "val/val_annotations.txt").write_text("val_0.JPEG\tn09\n"), "names n09"),
    ],
)
def test_a_damaged_folder_is_one_line(root, damage, message):
    damage(root / "tiny-imagenet-200")
    with pytest.raises(ConfigError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)
