"""Tables, CSV and figures of what attacks on published networks got."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from experiments.privatesnn.attacking import Result, haul_of
from experiments.privatesnn.setting import slug
from snnfl.auditing.published import recognition, shares
from snnfl.files import write_bytes
from snnfl.metrics.roc import Estimate, mean_of
from strategies.figures import save_figure

FIELDS = (
    "setting", "seeds", "network", "attack", "owner", "recognised", "recognised_low", "recognised_high",
    "judge_on_real", "frechet", "kernel", "accuracy", "accuracy_low", "accuracy_high", "agreement", "extractor",
    "refused",
)  # fmt: skip
"""Columns of ``attacks.csv``: an attack on a network of one setting a line, over all seeds."""

Line = Mapping[str, Any]
"""Of a table: a text by column."""

COPIES = ("scenario_1", "scenario_1_thresholds", "priors", "mean_rates")
"""Attacks that make a network of what is published alone, without a question to it."""

ASKED = ("logits_public", "logits_synthetic", "labels_public", "labels_synthetic")
"""Attacks of somebody who holds none of the network's values, and only asks it."""

ROWS = (
    ("ann", "scenario_1"), ("converted", "scenario_1"), ("encrypted", "scenario_1"), ("converted", "scenario_2"),
    ("encrypted", "scenario_2"), ("encrypted", "priors"), ("encrypted", "surrogate"), ("encrypted", "labels_public"),
    ("random", "scenario_1"),
)  # fmt: skip
"""Target and attack of the pictures: Fig. 6 of the paper, and what it doesn't show."""


def place_of(result: Result) -> str:
    """Name the setting of a result, without the seed."""
    return ", ".join(label for axis, label in result["labels"].items() if axis != "seed") or "network"


def grouped(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """Put the seeds of a setting, target and attack together."""
    found: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        found.setdefault((place_of(result), result["target"], result["attack"]), []).append(result)
    return found


def lines_of(results: Sequence[Result], images: int) -> list[dict[str, Any]]:
    """Return the lines of ``attacks.csv``.

    Args:
        results: Of all settings and seeds.
        images: Test images that accuracies are measured on.
    """
    lines = []
    for (place, target, attack), some in grouped(results).items():
        hauls = [haul for haul in map(haul_of, some) if haul is not None]
        seeds = " ".join(result["labels"]["seed"] for result in some)
        line: dict[str, Any] = dict.fromkeys(FIELDS, "") | {
            "setting": place, "seeds": seeds, "network": target, "attack": attack, "extractor": some[0]["judge"],
            "owner": _mean([result["owner"] for result in some]), "judge_on_real": some[0]["judge_accuracy"],
        }  # fmt: skip
        if hauls:
            seen, right = recognition(hauls), shares([haul.accuracy for haul in hauls], images)
            same = shares([haul.agreement for haul in hauls], images)
            line |= {"recognised": seen.value, "recognised_low": seen.low, "recognised_high": seen.high}
            line |= {"frechet": _mean([h.frechet for h in hauls]), "kernel": _mean([h.kernel for h in hauls])}
            if right is not None and same is not None:
                line |= {"accuracy": right.value, "accuracy_low": right.low, "accuracy_high": right.high}
                line["agreement"] = same.value
        else:
            line["refused"] = some[0]["refused"]
        lines.append({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in line.items()})
    return lines


WORDS = ("setting", "seeds", "network", "attack", "extractor", "refused")
"""Columns of :data:`FIELDS` that are no numbers."""


def with_numbers(line: Line) -> dict[str, Any]:
    """Return a line whose numbers are numbers, and ``None`` where there is none."""
    return {key: value if key in WORDS else float(value) if value else None for key, value in line.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_csv(lines: Sequence[Line], fields: Sequence[str]) -> str:
    """Write lines with a head."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def as_markdown(lines: Sequence[Line]) -> str:
    """Lay out a table for each setting: attacks by networks, recognition and the copy's accuracy in per cent."""
    parts = []
    for place in dict.fromkeys(line["setting"] for line in lines):
        head, body = _table([line for line in lines if line["setting"] == place])
        rows = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))
        parts.append(f"**{place}**: class images recognised / accuracy of the copy, %\n\n{rows}\n")
    return "\n".join(parts)


def rich_tables(lines: Sequence[Line]) -> list[Table]:
    """Lay the same tables out for the terminal."""
    tables = []
    for place in dict.fromkeys(line["setting"] for line in lines):
        head, body = _table([line for line in lines if line["setting"] == place])
        table = Table(*head, title=f"{place}: class images recognised / accuracy of the copy, %")
        for cells in body:
            table.add_row(*cells)
        tables.append(table)
    return tables


def _table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    targets = list(dict.fromkeys(line["network"] for line in lines))
    by_place = {(line["attack"], line["network"]): line for line in lines}
    owners = {line["network"]: line["owner"] for line in lines}
    body = [["(the network itself)", *(f"– / {_percent(owners[target])}" for target in targets)]]
    for attack in dict.fromkeys(line["attack"] for line in lines):
        body.append([attack, *(_cell(by_place.get((attack, target))) for target in targets)])
    return ["attack", *targets], body


def _cell(line: Line | None) -> str:
    if line is None or line["refused"]:
        return "–"
    low, high = _percent(line["recognised_low"]), _percent(line["recognised_high"])
    return f"{_percent(line['recognised'])} [{low}, {high}] / {_percent(line['accuracy'])}"


def _percent(text: str) -> str:
    return f"{100 * float(text):.1f}" if text else "–"


def picture(rows: Sequence[tuple[str, Tensor]], classes: Sequence[str]) -> Figure:
    """Draw rows of pictures ``[classes, C, H, W]`` of pixels in [0, 1], one a class, on a white grid."""
    framed = torch.stack([functional.pad(images, (1, 1, 1, 1), value=1.0) for _, images in rows])
    height, width = framed.shape[-2:]
    mosaic = framed.permute(0, 3, 1, 4, 2).reshape(len(rows) * height, len(classes) * width, -1)
    figure = Figure(figsize=(0.62 * len(classes) + 3.2, 0.66 * len(rows) + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(mosaic.expand(*mosaic.shape[:2], 3).numpy(), interpolation="nearest")
    axes.set_xticks([(number + 0.5) * width for number in range(len(classes))], classes, fontsize="xx-small")
    axes.set_yticks(
        [(number + 0.5) * height for number in range(len(rows))], [name for name, _ in rows], fontsize="x-small"
    )
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


FRONTIER_FIELDS = (
    "setting",
    "lock",
    "owner",
    "best_copy",
    "copy_by",
    "best_thief",
    "thief_by",
    "best_asked",
    "asked_by",
    "most_recognised",
    "seen_by",
)
"""Columns of ``frontier.csv``: a lock a line."""


def frontier_of(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return for each encryption the owner's accuracy beside those of the best copy, thief, and thief who only asks."""
    found = []
    for place, lock in dict.fromkeys((line["setting"], line["network"]) for line in lines):
        some = [line for line in lines if (line["setting"], line["network"]) == (place, lock) and line["recognised"]]
        able = [line for line in some if line["accuracy"]]
        copies = [line for line in able if line["attack"] in COPIES]
        if lock in ("ann", "random") or not copies:
            continue
        copy, thief = (max(each, key=_accuracy) for each in (copies, able))
        asked = max((line for line in able if line["attack"] in ASKED), key=_accuracy, default=None)
        seen = max(some, key=lambda line: float(line["recognised"]))
        found.append({
            "setting": place, "lock": lock, "owner": copy["owner"], "best_copy": copy["accuracy"],
            "copy_by": copy["attack"], "best_thief": thief["accuracy"], "thief_by": thief["attack"],
            "best_asked": asked["accuracy"] if asked else "", "asked_by": asked["attack"] if asked else "",
            "most_recognised": seen["recognised"], "seen_by": seen["attack"],
        })  # fmt: skip
    return found


def _accuracy(line: Line) -> float:
    return float(line["accuracy"])


def frontier(points: Sequence[Line]) -> Figure:
    """Draw the owner's accuracy against the best thief's: a lock that holds lies low and right."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot(xlabel="accuracy of the owner's network (%)", ylabel="accuracy of the thief's (%)")
    for kind, marker, label in (
        ("best_thief", "o", "best of all attacks"),
        ("best_copy", "x", "best without questions"),
        ("best_asked", "+", "best of questions alone"),
    ):
        across, up = ([100 * float(point[key]) for point in points if point[kind]] for key in ("owner", kind))
        axes.plot(across, up, marker, label=label)
    for point in points:
        axes.annotate(
            point["lock"], (100 * float(point["owner"]), 100 * float(point["best_copy"])), fontsize="xx-small"
        )
    axes.axline((50, 50), slope=1, color="gray", linewidth=0.8, linestyle="--", label="as good as the owner's")
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure


DATA_FIELDS = (
    "setting", "seeds", "space", "nearest", "nearest_low", "nearest_high", "membership", "membership_low",
    "membership_high", "synthetic", "members",
)  # fmt: skip
"""Columns of ``data_free.csv``; chance is one half for both."""


def data_lines(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the lines of ``data_free.csv``: means over seeds."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((place_of(result), result["space"]), []).append(result)
    lines = []
    for (place, space), some in found.items():
        estimates = {key: _over([result[key] for result in some]) for key in ("nearest", "membership")}
        line = {"setting": place, "seeds": " ".join(result["labels"]["seed"] for result in some), "space": space}
        for key, each in estimates.items():
            line |= {key: f"{each.value:.4f}", f"{key}_low": f"{each.low:.4f}", f"{key}_high": f"{each.high:.4f}"}
        lines.append({**line, "synthetic": some[0]["synthetic"], "members": some[0]["members"]})
    return lines


def _over(values: Sequence[Mapping[str, float]]) -> Estimate:
    """Return the mean over seeds: its interval is Student's, or that of one seed where that is wider."""
    mean = mean_of([value["value"] for value in values])
    own = max((value["high"] - value["low"]) / 2 for value in values) / len(values) ** 0.5
    half = own if len(values) == 1 else max(own, mean.high - mean.value)
    return Estimate(value=mean.value, low=max(0.0, mean.value - half), high=min(1.0, mean.value + half))


def write_tables(folder: Path, lines: Sequence[Line], data: Sequence[Line]) -> None:
    """Write ``attacks.csv``, ``attacks.md``, ``data_free.csv``, and of locks ``frontier.csv`` and its figures."""
    write_bytes(folder / "attacks.csv", as_csv(lines, FIELDS).encode())
    write_bytes(folder / "attacks.md", as_markdown(lines).encode())
    write_bytes(folder / "data_free.csv", as_csv(data, DATA_FIELDS).encode())
    points = frontier_of(lines)
    write_bytes(folder / "frontier.csv", as_csv(points, FRONTIER_FIELDS).encode())
    for place in dict.fromkeys(point["setting"] for point in points):
        some = [point for point in points if point["setting"] == place]
        for suffix in ("svg", "png") if len(some) > 2 else ():
            save_figure(frontier(some), folder / f"{slug(place.replace(', ', '-'))}-frontier.{suffix}")
