"""The parts of this folder's README on attacks: Tables 3 and 4 and Fig. 6 of the paper, beside what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.privatesnn.setting import slug
from experiments.privatesnn.thefts import Line, as_markdown

FILES = {
    "attacks": "privatesnn_attacks/attacks.csv",
    "more_attacks": "privatesnn_more_attacks/attacks.csv",
    "data_free": "privatesnn_attacks/data_free.csv",
    "copies": "privatesnn_copies/attacks.csv",
    "copies_of_laptop": "privatesnn_laptop/attacks.csv",
    "locks": "privatesnn_locks/frontier.csv",
}
"""What is copied, and what studies call it in ``runs/``."""

TABLE_4 = {
    ("scenario_1", "converted"): 354.8,
    ("scenario_1", "encrypted"): 448.2,
    ("scenario_2", "converted"): 447.9,
    ("scenario_2", "encrypted"): 422.4,
}
"""FID by Inception on CIFAR-10: Kim et al. 2022, Table 4. Without encryption the network is ``converted``."""


def copy_pictures(runs: Path, folder: Path) -> None:
    """Copy the pictures of each setting's first seed, and the frontiers, of finished studies."""
    for picture in sorted(runs.glob("privatesnn_attacks/class_images-*-0.png")):
        shutil.copyfile(picture, folder / f"{picture.stem.removesuffix('-0')}.png")
    for picture in sorted(runs.glob("privatesnn_locks/*-frontier.png")):
        shutil.copyfile(picture, folder / "frontier.png")


def leakage_part(lines: Sequence[Line], near: Sequence[Line], told: Mapping[str, str]) -> str:
    """Lay out what attacks got, with a verdict for each setting."""
    parts = [_where(told)]
    for place in dict.fromkeys(line["setting"] for line in lines):
        some = {(line["attack"], line["network"]): line for line in lines if line["setting"] == place}
        judge = next(iter(some.values()))
        parts.append(
            f"**{place}**, seeds {judge['seeds']}; Fréchet distance by a {judge['extractor']}, which sees the class in "
            f"{_percent(judge['judge_on_real'])} % of real images; chance is 10 %:"
        )
        parts.append(_table(some))
        parts.append(f"Verdict: {verdict(some)}")
        parts += [_nearness(line) for line in near if line["setting"] == place]
        parts.append(f"![class images of {place}](class_images-{slug(place)}.png)")
    return "\n\n".join(parts)


COPIES = {"copies": "T=32", "copies_of_laptop": "T=64, the networks of laptop.yaml"}
"""Studies whose copies are told of, and which networks theirs are."""


def copies_part(studies: Mapping[str, Sequence[Line]], told: Mapping[str, str]) -> str:
    """Lay out attack 1 after encryption: the copied ReLU network beside the spiking one and the original.

    Args:
        studies: Lines of ``attacks.csv``, by a name of :data:`COPIES`.
        told: When they were collected, and with which versions.
    """
    head = [
        "setting",
        "seeds",
        "original, %",
        "converted, %",
        "encrypted, %",
        "its weights as ReLU, %",
        "its class images recognised, %",
    ]
    rows, held = [head, ["---"] * len(head)], []
    for name, lines in studies.items():
        by_place = {(line["setting"], line["network"]): line for line in lines if line["attack"] == "scenario_1"}
        for place in dict.fromkeys(place for place, _ in by_place):
            ann, converted, encrypted = (by_place[place, network] for network in ("ann", "converted", "encrypted"))
            seen = f"{_interval(encrypted, 'recognised')}; of the original {_percent(ann['recognised'])}"
            owners = [_percent(line["owner"]) for line in (ann, converted, encrypted)]
            rows.append(
                [f"{place}, {COPIES[name]}", encrypted["seeds"], *owners, _interval(encrypted, "accuracy"), seen]
            )
            held.append(float(encrypted["accuracy_high"]) < float(encrypted["owner"]))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    said = (
        f"Verdict: in {len(held) - sum(held)} of {len(held)} settings the copied ReLU network isn't worse than the "
        "encrypted network beyond its interval; the paper says that attack 1 then finds nothing."
    )
    return "\n\n".join([_where(told), table, said])


def _where(told: Mapping[str, str]) -> str:
    return f"Measured on {told['collected']}, Python {told['python']}, torch {told['torch']}."


def _table(some: Mapping[tuple[str, str], Line]) -> str:
    rows = [
        ["attack", "network", "paper's FID", "Fréchet", "recognised, %", "copy's accuracy, %", "owner's, %"],
        ["---"] * 7,
    ]
    for (attack, network), line in some.items():
        if line["recognised"]:
            seen = _interval(line, "recognised")
            paper = TABLE_4.get((attack, network))
            copy = _percent(line["accuracy"]) if line["accuracy"] else "–"
            rows.append([
                attack, network, f"{paper:.1f}" if paper else "", f"{float(line['frechet']):,.0f}", seen, copy,
                _percent(line["owner"]),
            ])  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def verdict(some: Mapping[tuple[str, str], Line]) -> str:
    """Say in a sentence whether encryption kept the copied network from working, and its class images from showing."""
    ann, before, after = (some["scenario_1", network] for network in ("ann", "converted", "encrypted"))
    held = float(after["accuracy_high"]) < float(before["accuracy_low"])
    shown = float(after["recognised_high"]) < float(before["recognised_low"])
    return (
        f"the ReLU network with the encrypted weights has {_percent(after['accuracy'])} % (the encrypted network "
        f"{_percent(after['owner'])} %, the original {_percent(ann['owner'])} %), "
        f"{'less than' if held else 'not less beyond its interval than'} the {_percent(before['accuracy'])} % before "
        f"encryption; its class images are recognised in {_percent(after['recognised'])} %, before in "
        f"{_percent(before['recognised'])} %: class leakage is {'reduced' if shown or held else 'not addressed'}."
    )


def _nearness(line: Line) -> str:
    area, low, high = (float(line[f"membership{end}"]) for end in ("", "_low", "_high"))
    return (
        f"Of {line['synthetic']} synthetic images {_interval(line, 'nearest')} % have a training image as their "
        f"nearest by {line['space']}, 50 % being chance; nearness to them tells {line['members']} training images "
        f"from as many others with an AUC of {area:.3f} [{low:.3f}, {high:.3f}]."
    )


def more_part(lines: Sequence[Line], told: Mapping[str, str]) -> str:
    """Lay out the attacks of ``more_attacks.yaml``, with the best of them on the encrypted network."""
    some = [line for line in lines if line["network"] == "encrypted" and line["recognised"]]
    thief = max((line for line in some if line["accuracy"]), key=lambda line: float(line["accuracy"]))
    seen = max(some, key=lambda line: float(line["recognised"]))
    said = (
        f"Verdict: of the encrypted network, which has {_percent(thief['owner'])} %, the best copy of these has "
        f"{_interval(thief, 'accuracy')} % ({thief['attack']}), and at most {_interval(seen, 'recognised')} % of class "
        f"images are recognised ({seen['attack']})."
    )
    return "\n\n".join([_where(told), as_markdown(lines).strip(), said])


def locks_part(points: Sequence[Line], told: Mapping[str, str]) -> str:
    """Lay out each lock: the owner's accuracy beside those of thieves, and whether it holds."""
    head = ["lock", "owner, %", "best copy, %", "by", "best of questions alone, %", "by", "best thief, %", "by"]
    rows = [head, ["---"] * len(head)]
    for point in points:
        rows.append([
            point["lock"], _percent(point["owner"]), _percent(point["best_copy"]), point["copy_by"],
            _percent(point["best_asked"]) if point["best_asked"] else "–", point["asked_by"],
            _percent(point["best_thief"]), point["thief_by"],
        ])  # fmt: skip
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join([_where(told), table, f"Verdict: {locks_verdict(points)}", "![frontier](frontier.png)"])


def locks_verdict(points: Sequence[Line], within: float = 0.05) -> str:
    """Say which locks hold: a thief's network that is worse than the owner's by more than ``within``."""
    holds = [point["lock"] for point in points if float(point["best_thief"]) < float(point["owner"]) - within]
    copies = [point["lock"] for point in points if float(point["best_copy"]) < float(point["owner"]) - within]
    if holds:
        return (
            f"against these thieves {', '.join(holds)} kept the best more than {100 * within:g} points below the owner."
        )
    against = f"; against copies without a question {', '.join(copies)} did" if copies else ""
    return f"none of these holds: none kept the best thief more than {100 * within:g} points below the owner{against}."


def _percent(text: str) -> str:
    return f"{100 * float(text):.1f}"


def _interval(line: Line, key: str) -> str:
    return f"{_percent(line[key])} [{_percent(line[f'{key}_low'])}, {_percent(line[f'{key}_high'])}]"
