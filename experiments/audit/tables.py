"""The tables of ``docs/audit*.md``, from the rows of ``docs/data/audit_*.csv`` (:mod:`experiments.audit_study`)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from snnfl.config import ConfigError

BEGIN, END = "<!-- begin scorecards: generated, don't edit -->", "<!-- end scorecards -->"

BEGIN_SUMMARY, END_SUMMARY = "<!-- begin summary: generated, don't edit -->", "<!-- end summary -->"

SUMMARISED = ("lenet", "lenet_trained", "lenet_rounds", "lenet_bn", "lenet_bn_trained", "convnet", "mlp")
"""Tables with a row in the summary, as many as a page may open with."""

TWINS = "plain twin"

Row: TypeAlias = Mapping[str, str]


def write_tables(titles: Mapping[str, str], found: Mapping[str, Sequence[Row]], document: Path) -> None:
    """Replace what stands between the document's two markers by the tables of some rows.

    Args:
        titles: Of the tables, by name, in their order. One without rows is left out.
        found: Rows by the file that they stand in: ``scorecards.csv``, ``best.csv``, ``noise.csv`` and ``biases.csv``.
        document: Is rewritten.

    Raises:
        ConfigError: If it has no markers.
    """
    parts = [part for name, title in titles.items() for part in _table(name, title, found)]
    _replace(document, BEGIN, END, "\n\n".join(parts))


def write_summary(titles: Mapping[str, str], found: Mapping[str, Sequence[Row]], document: Path) -> None:
    """Replace what stands between the document's markers of a summary by a row per table: what its best attack finds.

    Args:
        titles: As for :func:`write_tables`.
        found: Likewise.
        document: Is rewritten.

    Raises:
        ConfigError: If it has no markers.
    """
    lines = [line for name in SUMMARISED if (line := _summarised(name, titles, found)) is not None]
    head = ["clients of two images", "best attack", "PSNR in dB", "best guess", "images told from 2,000 others"]
    _replace(document, BEGIN_SUMMARY, END_SUMMARY, _grid([*head, "labels found", "PSNR over plain updates"], lines))


def _summarised(name: str, titles: Mapping[str, str], found: Mapping[str, Sequence[Row]]) -> list[str] | None:
    """Say what the best attacks of a table find, seed by seed; ``None`` if none is known."""
    best = [row for row in found["best.csv"] if row["table"] == name]
    cards = {(row["seed"], row["attack"]): row for row in found["scorecards.csv"]
             if row["table"] == name and _kind(row) != TWINS and row["psnr"]}  # fmt: skip
    if not best:
        return None
    of = [cards[row["seed"], row["attack"]] for row in best]
    return [
        f"{titles[name]} (seed{'s' if len(best) > 1 else ''} {_joined(row['seed'] for row in best)})",
        _joined(f"`{row['attack']}`" for row in best),
        _joined(f"{float(row['value']):.1f}" for row in best),
        _joined(f"{float(card['floor_psnr']):.1f}" for card in of),
        _joined(f"{float(card['identified']):.0%}" for card in of),
        _joined(f"{float(card['label_accuracy']):.0%}" for card in of),
        _joined(_difference(row, "over_control") for row in best),
    ]


def _replace(document: Path, begin: str, end: str, tables: str) -> None:
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    if begin not in text or end not in text:
        raise ConfigError(f"{document}: put the lines {begin!r} and {end!r} where the tables belong")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    document.write_text("\n".join([before + begin, tables, end + after]), encoding="utf-8")


def _table(name: str, title: str, found: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Lay out a table: what it is of, its best attacks, and all of them."""
    cards, best, noise, biases = (
        [row for row in found[file] if row["table"] == name]
        for file in ("scorecards.csv", "best.csv", "noise.csv", "biases.csv")
    )
    if not cards:
        return
    seeds = list(dict.fromkeys(row["seed"] for row in cards))
    scored = [row for row in cards if row["psnr"]]
    yield f"**{title}**\n\n{_about(seeds, scored)}"
    if best:
        yield _best(seeds, best)
    if noise:
        yield _noise(seeds, noise)
    else:
        yield _attacks(seeds, cards, scored)
        if biases:
            yield _biases(seeds, biases)


def _about(seeds: Sequence[str], scored: Sequence[Row]) -> str:
    """Say of which clients the table is, and what it cost."""
    first = [next(row for row in scored if row["seed"] == seed) for seed in seeds]
    floors = [f"{float(row['floor_psnr']):.1f} dB and SSIM {float(row['floor_ssim']):.2f}" for row in first]
    many = "Seeds" if len(seeds) > 1 else "**One seed alone:**"
    said = f"{many} {_joined(seeds)}; {_joined(row['victims'] for row in first)} clients"
    if all(row["accuracy"] for row in first):
        said += f"; test accuracy {_joined(format(float(row['accuracy']), '.1%') for row in first)}"
    said += f"; best guess {_joined(floors)}"
    return f"{said}; {_joined(row['cpu_s'] for row in first)} CPU-s of attacks."


def _best(seeds: Sequence[str], rows: Sequence[Row]) -> str:
    """Say what the best attack on S-updates finds, corrected for having been chosen."""
    by_seed = [next((row for row in rows if row["seed"] == seed), None) for seed in seeds]
    lines = [
        [
            row["seed"],
            f"`{row['attack']}`",
            f"{float(row['value']):.1f}",
            _difference(row, "over_floor"),
            f"`{row['control']}`" if row["control"] else "–",
            _difference(row, "over_control"),
        ]
        for row in by_seed
        if row is not None
    ]
    head = ["seed", "best attack on S-updates", "PSNR in dB", "over the best guess", "best on plain twins", "over it"]
    return _grid(head, lines)


def _difference(row: Row, name: str) -> str:
    if not row[name]:
        return "–"
    text = f"{float(row[name]):+.1f}"
    if row[f"{name}_low"]:
        text += f" ({float(row[f'{name}_low']):+.1f} to {float(row[f'{name}_high']):+.1f})"
    return text


def _attacks(seeds: Sequence[str], cards: Sequence[Row], scored: Sequence[Row]) -> str:
    """Lay out a row per attack: PSNR with its interval, and the rest, seed by seed."""
    keys = list(dict.fromkeys((row["attack"], _kind(row)) for row in scored))
    head = ["attack", "on", *(f"PSNR in dB, seed {seed} (95 %)" for seed in seeds), "SSIM", "labels", "IIP", "images"]
    lines = []
    for attack, kind in keys:
        of = {row["seed"]: row for row in scored if (row["attack"], _kind(row)) == (attack, kind)}
        values = [_with_interval(of[seed]) if seed in of else "–" for seed in seeds]
        rest = [
            _each(seeds, of, lambda row: f"{float(row['ssim']):.2f}"),
            _each(seeds, of, lambda row: f"{float(row['label_accuracy']):.0%}"),
            _each(seeds, of, lambda row: f"{float(row['identified']):.0%}"),
            _each(seeds, of, lambda row: row["verdict"]),
        ]
        lines.append([f"`{attack}`", kind, *values, *rest])
    notes = ""
    for verdict, text in {"refused": "Refused", "failed": "Failed"}.items():
        if named := sorted({f"`{row['attack']}` ({_kind(row)})" for row in cards if row["verdict"] == verdict}):
            notes += f"\n\n{text}: {', '.join(named)}."
    return _grid(head, lines) + notes


def _noise(seeds: Sequence[str], rows: Sequence[Row]) -> str:
    """Lay out what noise of each strength leaves."""
    lines = []
    for z in dict.fromkeys(row["z"] for row in rows):
        of = {row["seed"]: row for row in rows if row["z"] == z}
        rest = [
            _each(seeds, of, lambda row: f"{float(row['ssim']):.2f}"),
            _each(seeds, of, lambda row: f"{float(row['identified']):.0%}"),
            _each(seeds, of, lambda row: row["verdict"]),
        ]
        lines.append([z, *(_with_interval(of[seed]) if seed in of else "–" for seed in seeds), *rest])
    head = ["deviation over clipping norm", *(f"PSNR in dB, seed {seed} (95 %)" for seed in seeds)]
    return _grid([*head, "SSIM", "IIP", "images"], lines)


def _biases(seeds: Sequence[str], rows: Sequence[Row]) -> str:
    """Say how far each guess of private biases is off, over clients."""
    texts = []
    for guess in dict.fromkeys(row["guess"] for row in rows):
        values = [
            statistics.fmean(float(row["relative"]) for row in rows if (row["guess"], row["seed"]) == (guess, seed))
            for seed in seeds
        ]
        texts.append(f"{guess} {_joined(f'{value:.0%}' for value in values)}")
    return f"Distance of guessed biases to the trained ones, relative to their norm: {'; '.join(texts)}."


def _kind(row: Row) -> str:
    return TWINS if row["run"].endswith("plain twins") else "S-update" if row["algorithm"].startswith("S-") else "plain"


def _with_interval(row: Row) -> str:
    value, low, high = (f"{float(row[f'psnr{part}']):.1f}" for part in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def _each(seeds: Sequence[str], of: Mapping[str, Row], text: Callable[[Row], str]) -> str:
    return _joined(text(of[seed]) if seed in of else "–" for seed in seeds)


def _joined(texts: Iterable[str]) -> str:
    """Join what the seeds have, once if it is the same."""
    known = list(texts)
    return known[0] if len({*known}) == 1 else " / ".join(known)


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])
