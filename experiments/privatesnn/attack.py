"""``snnfl privatesnn attack``: publish what a study lacks, attack it, and write tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.privatesnn.attacking import (
    Bench,
    Result,
    attack_target,
    attacks_of,
    bench_of,
    data_free,
    picture_rows,
    targets_of,
)
from experiments.privatesnn.checking import check_attacks, check_images, check_networks
from experiments.privatesnn.folder import working_in
from experiments.privatesnn.network import Network, network_of
from experiments.privatesnn.setting import PrivateStudy, Setting, slug
from experiments.privatesnn.stages import convert_network, encrypt_network, synthesise_images
from experiments.privatesnn.study import read_private_study
from experiments.privatesnn.thefts import (
    ROWS,
    Line,
    data_lines,
    frontier_of,
    lines_of,
    picture,
    place_of,
    rich_tables,
    write_tables,
)
from experiments.progress import BarsOrLines
from snnfl.heap import keep_freed_memory
from snnfl.model_attacks import MODEL_ATTACKS
from strategies.figures import save_figure


def attacks_table() -> Table:
    """List the attacks on published networks."""
    table = Table("attack", "needs", "what it does", "source")
    for attack in MODEL_ATTACKS:
        table.add_row(attack.name, ", ".join(sorted(attack.needs)), attack.summary, attack.source)
    return table


def attack_published(
    path: Path, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = (), *, console: Console
) -> tuple[PrivateStudy, Sequence[Line]]:
    """Attack the networks of a study; what it lacks of them is made first, and what is there is kept.

    Returns:
        The study, and the lines of ``attacks.csv``.

    Args:
        path: YAML file of a study, or the folder of a finished run.
        overrides: ``key=value``, also of ``attack``.
        plugins: Beside those that the file lists.
        console: Shows progress, the tables and where they are.

    Raises:
        ConfigError: For a mistake, or where the owner has left no images for judge and attacker.
        FolderInUseError: If another process works there.
        RunFailedError: If training or encryption diverges.
        BrokenOffError: If the system doesn't let it go on.
    """
    study = read_private_study(path, overrides, plugins)
    keep_freed_memory()
    results, data, images, benches = list[Result](), list[Result](), 0, dict[str, Bench]()
    check_networks(study)
    check_images(study)
    check_attacks(study)
    for setting in study.settings:
        with working_in(setting):
            network = network_of(setting)
            source = repr(setting.config.data)
            bench = benches[source] if source in benches else benches.setdefault(source, bench_of(setting, network))
            _publish(setting, network, console)
            found = _attack(setting, bench, network, console)
            results, images = [*results, *found], len(bench.labels)
            data += data_free(setting, bench)
            rows = picture_rows(setting, bench, ROWS, found)
            for suffix in ("svg", "png"):
                name = f"class_images-{slug(place_of(found[0]))}-{setting.config.run.seed}.{suffix}"
                save_figure(picture(rows, bench.dataset.class_names), study.directory / name)
    lines = lines_of(results, images)
    _show(study, results, lines, data_lines(data), console)
    return study, lines


def _publish(setting: Setting, network: Network, console: Console) -> None:
    """Make what a setting and its locks lack."""
    ways = [setting, *map(setting.locked, setting.locks)]
    total = sum(way.private.encryption.images * way.private.encryption.epochs for way in ways)
    with _bar(console, "images of encryption") as progress:
        task = progress.add_task(f"{setting.name}: publishing", total=total)
        synthesise_images(setting, network, lambda done: None)
        for way in ways:
            convert_network(way, network)
            encrypt_network(way, network, lambda done: progress.advance(task, done))


def _attack(setting: Setting, bench: Bench, network: Network, console: Console) -> list[Result]:
    targets, found = list(targets_of(setting, network)), list[Result]()
    with _bar(console, "attacks") as progress:
        task = progress.add_task(f"{setting.name}: attacking", total=len(targets) * len(attacks_of(setting)))
        for target in targets:
            found += attack_target(setting, target, bench, network, lambda: progress.advance(task))
    return found


def _bar(console: Console, unit: str) -> BarsOrLines:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    return BarsOrLines(*columns, TimeElapsedColumn(), unit=unit, console=console)


def _show(
    study: PrivateStudy, results: Sequence[Result], lines: Sequence[Line], near: Sequence[Line], console: Console
) -> None:
    write_tables(study.directory, lines, near)
    for table in rich_tables(lines):
        console.print(table)
    for point in frontier_of(lines):
        owner, copy, thief = (100 * float(point[key]) for key in ("owner", "best_copy", "best_thief"))
        console.print(
            f"{point['setting']}, {point['lock']}: the owner's network has {owner:.1f} %, the best copy of its weights "
            f"{copy:.1f} % ({point['copy_by']}), the best thief {thief:.1f} % ({point['thief_by']})",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    for line in near:
        nearest, low, high = (100 * float(line[key]) for key in ("nearest", "nearest_low", "nearest_high"))
        console.print(
            f"{line['setting']}, {line['space']}: of {line['synthetic']} synthetic images {nearest:.1f} % [{low:.1f}, "
            f"{high:.1f}] are nearest to a training image; chance is 50 %",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    refused = dict.fromkeys((place_of(each), each["refused"]) for each in results if "refused" in each)
    for place, reason in refused:
        console.print(f"{place}: {reason}", highlight=False, soft_wrap=True)
    console.print(f"results: {study.directory}/ (attacks.csv, data_free.csv, frontier.csv, pictures)", highlight=False)
