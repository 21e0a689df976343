"""Nodes' own data in folders: pictures by class, and what ``datasets`` has saved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snnfl.config import DataConfig
from snnfl.config.declaration import show
from snnfl.config.own_data import LABEL, is_pictures
from snnfl.data.own_arrays import NO_COLUMN, as_bytes, check_columns
from snnfl.data.own_samples import (
    Numbers,
    OwnDataError,
    Samples,
    finite,
    from_arrays,
    labels_of,
    register_reader,
    stated_shape,
    unfit,
    unreadable,
)

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of pictures."""

DEEP = ("I", "F")
"""How Pillow's names of modes begin whose values go beyond a byte; their conversion would cut them off."""

logger = logging.getLogger(__name__)


@register_reader("images", Path.is_dir)
def read_images(place: Path, config: DataConfig) -> Samples:
    """Read a folder with a sub-folder of pictures for each class, of the size that the run states.

    A class without a sub-folder has no samples here. Pictures are turned into grey ones or RGB where the run states 1
    or 3 channels. Names that begin with ``.`` or ``_`` are left out, and so is what isn't a picture by its ending.
    Pictures beside the folders of classes have no label: they are left out, and the log says so.
    """
    if not is_pictures(config):
        raise unfit(place, f"holds pictures, but the run states {stated_shape(config)}")
    folders = {path.name: path for path in sorted(place.iterdir()) if path.is_dir() and path.name[0] not in "._"}
    classes = f"data.classes={show(list(config.classes))}"
    if unknown := [name for name in folders if name not in config.classes]:
        raise OwnDataError(
            f"{place}: '{unknown[0]}' is none of {classes}; rename the folder, or let its name begin with _",
            f"it has a class that is none of {classes}",
        )
    if not folders:
        raise OwnDataError(f"{place}: holds no folder of a class; make one for each", "it has no samples")
    if loose := [path.name for path in sorted(place.iterdir()) if _is_picture(path, place)]:
        logger.warning(
            "%s: %d %s in no folder of a class (%s) left out; move what counts into one, or let its name begin with _",
            place,
            len(loose),
            "pictures that lie" if len(loose) > 1 else "picture that lies",
            show(loose[0]) + (", …" if len(loose) > 1 else ""),
        )
    images: list[Tensor] = []
    labels: list[int] = []
    for label, name in enumerate(config.classes):
        for path in _pictures_in(folders[name]) if name in folders else ():
            images.append(_picture(path, config))
            labels.append(label)
    return Samples(values=torch.stack(images), labels=torch.tensor(labels, dtype=torch.int64))


def _is_saved(place: Path) -> bool:
    return any((place / name).is_file() for name in ("state.json", "dataset_dict.json"))


@register_reader("datasets", _is_saved)
def read_datasets(place: Path, config: DataConfig) -> Samples:
    """Read a folder of ``Dataset.save_to_disk``: a column ``label`` beside one of samples, or those of the features."""
    import datasets  # takes a second

    try:
        found = datasets.load_from_disk(str(place))
    except Exception as error:  # whatever a damaged folder makes pyarrow raise
        raise unreadable(place, error) from None
    if not isinstance(found, datasets.Dataset):
        splits = ", ".join(map(str, found))
        text = f"{place}: holds the splits {splits}; save one of them, as in dataset['train'].save_to_disk"
        raise OwnDataError(text, "its data hold several splits")
    columns = _columns(place, found.column_names, config)
    feature, plain = found.features[LABEL], found.with_format(None)
    try:
        labels = [row[LABEL] for row in plain.select_columns([LABEL])]
        if isinstance(feature, datasets.ClassLabel):
            labels = [feature.names[label] for label in labels]
        rows = [[row[name] for name in columns] for row in plain.select_columns(columns)]
        if config.features:
            table = np.array(rows, np.float64).reshape(-1, len(columns))
            return Samples(values=finite(place, table), labels=labels_of(place, labels, config))
        values = [_sample(place, value, config) for (value,) in rows]
        x = np.stack(values) if values else np.empty((0, *config.sample_shape), np.uint8)
    except OwnDataError:
        raise
    except Exception as error:  # likewise
        raise unreadable(place, error) from None
    return from_arrays(place, x, np.asarray(labels), config)


def _columns(place: Path, names: Sequence[str], config: DataConfig) -> list[str]:
    """Return the columns of a sample."""
    if config.features:
        check_columns(place, names, config)
        return list(config.features)
    others = [name for name in names if name != LABEL]
    if LABEL not in names or len(others) != 1:
        text = f"{place}: expected the columns {LABEL} and one of samples, found {show(list(names))}"
        raise OwnDataError(text, NO_COLUMN)
    return others


def _sample(place: Path, value: Any, config: DataConfig) -> Numbers:
    """Return a sample of ``datasets`` as an array: a picture's bytes, or numbers."""
    if not isinstance(value, Image.Image):
        return as_bytes(value, config)
    if not is_pictures(config):
        raise unfit(place, f"holds pictures, but the run states {stated_shape(config)}")
    return _pixels(place, value, config)


def _pictures_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if _is_picture(path, folder))
    if not found:
        raise OwnDataError(
            f"{folder}: holds no picture ({', '.join(ENDINGS)}); put some into it, or remove the folder: a node may "
            "lack a class",
            "it has an empty folder of a class",
        )
    return found


def _is_picture(path: Path, folder: Path) -> bool:
    hidden = any(part[0] in "._" for part in path.relative_to(folder).parts)
    return path.suffix.lower() in ENDINGS and not hidden


def _picture(path: Path, config: DataConfig) -> Tensor:
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(_pixels(path, picture, config))
    except OwnDataError:
        raise
    except Exception as error:  # Pillow's decoders raise what their format makes them
        raise unreadable(path, error) from None


def _pixels(place: Path, picture: Image.Image, config: DataConfig) -> Numbers:
    """Return a picture as ``uint8 [C, H, W]``."""
    depth, height, width = config.sample_shape
    if picture.size != (width, height):  # before it is decoded: it may claim any size
        found = f"{picture.size[0]}x{picture.size[1]}"
        raise unfit(place, f"has {found} pixels, the run states {width}x{height} ({stated_shape(config)}); resize it")
    if depth not in (1, 3):
        raise unfit(place, f"is a picture, but the run states {stated_shape(config)}; give arrays, or 1 or 3 channels")
    if picture.mode.startswith(DEEP):
        raise unfit(place, f"has more than 8 bits a channel (mode {picture.mode}); save it with 8")
    array = np.array(picture.convert("L" if depth == 1 else "RGB")).reshape(height, width, depth)
    return np.ascontiguousarray(array.transpose(2, 0, 1))
