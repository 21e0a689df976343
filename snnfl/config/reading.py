"""Read a YAML file of a user's: what is wrong with it is one line with file, line and cause."""

from __future__ import annotations

import copy
import difflib
import io
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import MarkedYAMLError, YAMLError

from snnfl.config.declaration import ConfigError, show
from snnfl.installation import app_folder

CAUSES = {
    r"tab character|'\\t' that cannot start": "a tab; indent with spaces",
    r"cannot start any token": "text that begins with {character} needs quotation marks",
    r"found duplicate key (.*)": r"the key '\1' is given twice",
    r"mapping values are not allowed": "a colon where none can be: text with a colon needs quotation marks, and what "
    "stands below a key is indented alike",
    r"expected ':'": "expected KEY: VALUE",
    r"unexpected end of stream": "a quotation mark that nothing closes",
    r"expected ',' or '(.)'": r"nothing closes it with \1, or a comma is missing",
    r"undefined alias": "text that begins with * needs quotation marks; without them it refers to what & names",
    r"another document": "a second document after ---; a file holds one",
    r"expected (key|'-' indicator|<block end>)": "indented otherwise than the lines before it, or text behind a "
    "quotation mark",
}
"""What the words of YAML's two parsers mean to whoever has written the file."""

OPENED = ("while parsing a flow", "while scanning a quoted scalar")
"""What they notice long after the line that is wrong."""


def read_yaml(path: Path, expected: str) -> dict[str, Any]:
    """Return the mapping that a file holds, with its interpolations as they stand.

    Args:
        path: Of the file.
        expected: What the mapping is to hold, for the error of a file that doesn't.

    Raises:
        ConfigError: If it is missing, empty, malformed or no mapping.
    """
    text = _text(path)
    try:
        content = copy.deepcopy(_parsed(text))
    except MarkedYAMLError as error:
        raise ConfigError(f"{path}, {_cause(error, text)}") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    except Exception as error:  # OmegaConf's own, for a single number and for keys that it doesn't take
        if ":" in text:
            raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
        content = None
    if isinstance(content, dict) and (":" in text or not content):
        if not content and "{" not in text:
            raise ConfigError(f"{path}: it is empty; expected {expected}")
        return {str(key): value for key, value in content.items()}
    found = "a list" if isinstance(content, list) else show(text)
    raise ConfigError(f"{path}: expected {expected}; found {found}")


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Parse YAML; a run's file is read several times, and a study's base by each of its cells."""
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def _text(path: Path) -> str:
    if path.is_dir():
        inner = path / "config.yaml"
        hint = f"; did you mean {inner}?" if inner.is_file() else "; name a YAML file"
        raise ConfigError(f"{path}: it is a folder{hint}")
    if not path.exists() and "=" in path.name:
        raise ConfigError(f"{path}: options come after the file, as in FILE.yaml {path}")
    if not path.exists():
        siblings = {each.stem: each for each in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
        close = difflib.get_close_matches(path.stem, siblings, n=1)
        brought = app_folder() / path  # of a wheel, experiments/conf/ is no folder of the user's
        hint = f"; did you mean {siblings[close[0]]}?" if close else ""
        raise ConfigError(f"{path}: no such file" + (f"; snnfl brings it as {brought}" if brought.is_file() else hint))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read as YAML (it is no text in UTF-8)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _cause(error: MarkedYAMLError, text: str) -> str:
    """Say in which line what is wrong."""
    mark = error.context_mark if (error.context or "").startswith(OPENED) else error.problem_mark
    if mark is None:
        return str(error.problem)
    lines = [*text.splitlines(), ""]
    character = lines[min(mark.line, len(lines) - 1)][mark.column : mark.column + 1]
    problem = "tab character" if character == "\t" else str(error.problem)
    found = ((re.search(cause, problem), words) for cause, words in CAUSES.items())
    words = next((match.expand(words) for match, words in found if match), problem)
    return f"line {mark.line + 1}: {words.replace('{character}', character)}"
