"""Data sets that nobody may download for you: where they come from, and how their folders look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snnfl.data.dataset import DataNotFoundError


@dataclass(frozen=True, kw_only=True)
class ByHand:
    """What an error says of a data set that isn't there.

    Attributes:
        folder: Below the root.
        download: What to download from where.
        holds: What the folder holds then.
    """

    folder: str
    download: str
    holds: str


BY_HAND = {
    "tiny_imagenet": ByHand(
        folder="tiny-imagenet-200",
        download="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        holds="wnids.txt, words.txt, train/WNID/images/*.JPEG, val/images and val/val_annotations.txt",
    ),
    "nmnist": ByHand(
        folder="NMNIST",
        download="Train.zip and Test.zip of N-MNIST (https://www.garrickorchard.com/datasets/n-mnist)",
        holds="Train/0/*.bin to Test/9/*.bin",
    ),
    "dvs128_gesture": ByHand(
        folder="DVSGesture",
        download="ibmGestureTrain.tar.gz and ibmGestureTest.tar.gz as tonic.datasets.DVSGesture does "
        "(https://figshare.com/ndownloader/files/38022171 and 38020584)",
        holds="ibmGestureTrain/userNN_LIGHT/0.npy and so on, and ibmGestureTest likewise",
    ),
    "cifar10_dvs": ByHand(
        folder="CIFAR10DVS",
        download="CIFAR10DVS.zip as tonic.datasets.CIFAR10DVS does (https://figshare.com/ndownloader/files/38023437)",
        holds="airplane/*.aedat4 to truck/*.aedat4",
    ),
    "shd": ByHand(
        folder="SHD",
        download="shd_train.h5.zip and shd_test.h5.zip (https://zenkelab.org/datasets/)",
        holds="shd_train.h5 and shd_test.h5",
    ),
    "speech_commands": ByHand(
        folder="SpeechCommands/speech_commands_v0.02",
        download="speech_commands_v0.02.tar.gz as torchaudio.datasets.SPEECHCOMMANDS does "
        "(http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz)",
        holds="backward/*.wav to zero/*.wav, testing_list.txt and validation_list.txt",
    ),
}


def missing(name: str, root: Path, lacks: str = "") -> DataNotFoundError:
    """Return the error that says where a data set comes from and how to lay it.

    Args:
        name: Of the source.
        root: Folder of all data sets.
        lacks: What its folder might lack, if it is there.
    """
    source = BY_HAND[name]
    return DataNotFoundError(
        f"data.source={name}: {root / source.folder} is not there{lacks and f' or lacks {lacks}'}; download "
        f"{source.download} and unpack it (or set SNNFL_DATA or data.root), so that {source.folder}/ holds "
        f"{source.holds}"
    )
