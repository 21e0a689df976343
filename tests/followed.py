"""A page of the documentation, followed: its files are written, its commands typed, and what they print is compared."""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
IN_PYTHON = [DOCS / "python.md", DOCS / "how-to" / "convert.md"]
"""Pages whose examples are one session of Python."""

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?: title=\"(?P<title>.+?)\")?\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
SET_UP = ("make ", "git clone", "cd ")  # what whoever runs this test has done


def blocks(page: Path) -> Iterator[tuple[str, str | None, str]]:
    """Yield language, title and code of each fenced block."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield match["language"], match["title"], textwrap.dedent(match["code"])


def follow(page: Path, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Do what a page says: write or extend each titled file, run each ``sh`` block; return what each printed."""
    printed: list[str] = []
    for language, title, code in blocks(page):
        if title is not None:
            with (folder / title).open("a", encoding="utf-8") as file:
                file.write(code)
        elif language == "sh":
            commands = "".join(line for line in code.splitlines(keepends=True) if not line.startswith(SET_UP))
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", commands],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{page.name}: {commands}\n{done.stdout}\n{done.stderr}"
            printed.append(done.stdout)
    return printed


LEFT_BEHIND = {
    "audit-your-flower-app": ["recorded/report.html", "recorded/scorecard.csv"],
    "quickstart": ["first/final_snn.nir", "first_study/report.html", "watched/audit/report.html"],
    "data-of-nodes": ["hospitals/final_snn.safetensors"],
    "own-attack": ["watched/audit/scorecard.csv"],
    "own-data": ["parity/accuracy.png"],
    "own-model": ["tiny/final_snn.safetensors"],
    "own-spiking-model": ["spiking/final_snn.safetensors"],
    "own-strategy": [
        "s_damped/final_snn.safetensors",
        "damped/final_ann.safetensors",
        "smoothed/final_snn.safetensors",
    ],
    "own-tracker": ["tracked/rounds.txt"],
    "plugins": ["judged/final_snn.safetensors"],
    "spiking-clients": [
        "spiking_clients/final_snn.safetensors",
        "spiking_clients/final_snn.nir",
        "three_networks/report.html",
    ],
    "spiking-networks": ["looked_at/raster.png", "looked_at/membrane.png", "looked_at/final_snn.pt"],
}


def check(page: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Follow a page; compare what it shows with what is printed, but for numbers, and look for what is left behind."""
    printed = follow(page, folder, environment)
    assert printed
    lines = NUMBER.sub("#", "".join(printed))
    for shown in (code for language, _, code in blocks(page) if language == "text"):
        assert NUMBER.sub("#", shown) in lines
    for name in LEFT_BEHIND[page.stem]:
        assert (folder / "runs" / name).stat().st_size > 0
