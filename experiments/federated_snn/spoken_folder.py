"""Make a folder of short prompts in five languages for ``data.source=audio_folder``, from Debian's recordings.

Type ``apt-get install asterisk-core-sounds-{en,es,fr,it,ru}-wav`` (CC-BY-SA 3.0, 8 kHz) and then
``python -m experiments.federated_snn.spoken_folder``. Each language has one voice, so who tells languages apart tells
voices apart, too. Digits cannot be the classes: each is spoken once in a language, and languages hardly share words.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import wave
from pathlib import Path

from rich.console import Console

from snnfl.config import ConfigError
from snnfl.data import data_root

SOUNDS = Path("/usr/share/asterisk/sounds")
LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "ru": "Russian"}
NO_SPEECH = ("silence/", "beep", "tone", "tt-")
"""In the names of prompts that say nothing, or are a joke."""

LONGEST = 3.0
"""Seconds: a longer prompt would make longer frames than the others."""


def prompts(sounds: Path) -> list[str]:
    """Return the names of the prompts that every language has, in each of them short.

    Raises:
        ConfigError: If a language isn't installed, with the command that installs it.
    """
    names: set[str] | None = None
    for language in LANGUAGES:
        folder = _folder(sounds, language)
        own = {path.relative_to(folder).as_posix() for path in folder.rglob("*.wav")}
        if not own:
            raise ConfigError(
                f"{sounds / language}: not there; type: apt-get install asterisk-core-sounds-{language}-wav"
            )
        names = own if names is None else names & own
    spoken = [name for name in sorted(names or ()) if not any(part in name for part in NO_SPEECH)]
    folders = [_folder(sounds, language) for language in LANGUAGES]
    return [name for name in spoken if max(_seconds(folder / name) for folder in folders) <= LONGEST]


def make_folder(sounds: Path, folder: Path) -> int:
    """Copy the prompts to ``FOLDER/LANGUAGE/PROMPT.wav`` and return how many there are of each language.

    Raises:
        ConfigError: If a language isn't installed, or the folder is there and not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty; remove it, or name another")
    names = prompts(sounds)
    for language in LANGUAGES:
        (folder / language).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(_folder(sounds, language) / name, folder / language / name.replace("/", "-"))
    return len(names)


def _folder(sounds: Path, language: str) -> Path:
    """Return where a language's prompts are: below its name, if the packages made that link, else below the voice's."""
    named = sounds / language
    return named.resolve() if named.exists() else next(iter(sorted(sounds.glob(f"{language}_*"))), named)


def _seconds(path: Path) -> float:
    with wave.open(str(path)) as file:
        return float(file.getnframes() / file.getframerate())


def main() -> None:
    """Make the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Make a folder of short prompts in five languages.")
    parser.add_argument("folder", nargs="?", type=Path, help="to make; default: spoken, below SNNFL_DATA")
    parser.add_argument("--sounds", type=Path, default=SOUNDS, help="where the packages lay their recordings")
    arguments = parser.parse_args()
    folder = arguments.folder or data_root(None) / "spoken"
    try:
        count = make_folder(arguments.sounds, folder)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    Console(highlight=False, soft_wrap=True).print(
        f"{folder}: {count} prompts in each of {', '.join(LANGUAGES.values())}"
    )


if __name__ == "__main__":
    main()
