"""How long a command takes is said once: where two pages state a duration of one command, they state the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

COMMANDS = {
    "make demo": r"make demo\b",
    "make test": r"make test\b(?!-)",
    "make test-deployment": r"make test-deployment\b",
    "make docs": r"make docs\b",
    "spiking clients": r"conf/spiking_clients\.yaml",
    "the quick start's audit": r"snnfl audit runs/watched\b",
    "the README's audit": r"snnfl audit runs/s runs/plain\b",
}
"""Commands that pages may state the duration of, as they are written."""

DURATION = re.compile(
    r"\b(?:under |about |some |less than )?(?:\d+(?:\.\d+)?|an?|one|two|three|five|ten|half a|few)[ \u00a0]"
    r"(?:CPU-)?(?:s|seconds?|min|minutes?|h|hours?)\b"
)


def stated(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command and a duration that a line states behind it."""
    for line in text.splitlines():
        for name, pattern in COMMANDS.items():
            if (found := re.search(pattern, line)) is not None:
                yield from ((name, duration) for duration in DURATION.findall(line[found.end() :])[:1])


def test_pages_agree_on_the_duration_of_a_command() -> None:
    durations: dict[str, dict[str, list[str]]] = {}
    for page in PAGES:
        for name, duration in stated(page.read_text(encoding="utf-8")):
            durations.setdefault(name, {}).setdefault(duration, []).append(page.name)
    assert {name: pages for name, pages in durations.items() if len(pages) > 1} == {}
    assert {"make demo", "make test", "spiking clients", "the quick start's audit"} <= durations.keys()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("make demo   # ten clients, under a minute after the install", [("make demo", "under a minute")]),
        ("| `make test` | 5,107 | | 10.6 min |", [("make test", "10.6 min")]),
        ("| `make test-deployment` | 106 | 12.3 min |", [("make test-deployment", "12.3 min")]),
        ("`make demo` prints a line a second", [("make demo", "a second")]),
        ("the tests take 30 minutes", []),
    ],
)
def test_a_stated_duration_is_found(line: str, found: list[tuple[str, str]]) -> None:
    assert list(stated(line)) == found
