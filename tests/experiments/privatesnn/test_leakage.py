"""What the README says of attacks follows from their tables."""

from __future__ import annotations

from pathlib import Path

from experiments.privatesnn.leakage import copies_part, locks_part, locks_verdict, more_part, verdict
from experiments.privatesnn.thefts import FIELDS, frontier_of, write_tables

TOLD = {"collected": "2026-11-29", "python": "3.11", "torch": "2.13"}


def line(network: str, owner: float, accuracy: float, recognised: float) -> dict[str, str]:
    about = {"setting": "mnist", "seeds": "0", "network": network, "attack": "scenario_1", "owner": str(owner)}
    for key, value in (("accuracy", accuracy), ("recognised", recognised)):
        about |= {key: str(value), f"{key}_low": str(value - 0.02), f"{key}_high": str(value + 0.02)}
    return about


def lines(copy: float, seen: float) -> list[dict[str, str]]:
    return [line("ann", 0.97, 0.97, 0.95), line("converted", 0.9, 0.97, 0.95), line("encrypted", 0.9, copy, seen)]


def by_place(some: list[dict[str, str]]) -> dict[tuple[str, str], dict[str, str]]:
    return {(each["attack"], each["network"]): each for each in some}


def test_a_copy_that_works_is_a_leak() -> None:
    assert "class leakage is not addressed" in verdict(by_place(lines(0.96, 0.94)))
    assert "class leakage is reduced" in verdict(by_place(lines(0.2, 0.94)))
    assert "class leakage is reduced" in verdict(by_place(lines(0.96, 0.3)))


def test_copies_are_counted_against_the_owners_network() -> None:
    assert "in 1 of 1 settings" in copies_part({"copies": lines(0.96, 0.9)}, TOLD)
    assert "in 0 of 1 settings" in copies_part({"copies": lines(0.5, 0.9)}, TOLD)


def test_a_lock_holds_if_the_best_thief_is_worse() -> None:
    point = {"lock": "penalty", "owner": "0.9", "best_copy": "0.3", "best_thief": "0.88"}
    assert "none of these holds" in locks_verdict([point])
    assert "against copies without a question penalty did" in locks_verdict([point])
    assert "penalty kept the best" in locks_verdict([{**point, "best_thief": "0.5"}])


def test_the_best_of_each_kind_of_thief_is_told_of() -> None:
    thieves = [("scenario_1", 0.7), ("fine_tuning_public", 0.95), ("logits_public", 0.9), ("labels_public", 0.85)]
    some = [{**line("penalty", 0.8, value, 0.5), "attack": name} for name, value in thieves]
    (point,) = frontier_of(some)
    assert (point["best_copy"], point["best_thief"], point["best_asked"]) == ("0.7", "0.95", "0.9")
    assert point["asked_by"] == "logits_public"
    (point,) = frontier_of(some[:2])
    assert "| penalty | 80.0 | 70.0 | scenario_1 | – |  | 95.0 | fine_tuning_public |" in locks_part([point], TOLD)


def test_whatever_a_setting_is_called_its_figure_is_a_file_of_the_folder(tmp_path: Path) -> None:
    some = [dict.fromkeys(FIELDS, "") | line(lock, 0.9, 0.8, 0.5) for lock in ("encrypted", "few", "more")]
    write_tables(tmp_path, [{**each, "setting": "mnist, 4/8 bits"} for each in some], [])
    figures = {file.name for file in tmp_path.glob("*frontier.*g")}
    assert figures == {"mnist-4_8_bits-frontier.png", "mnist-4_8_bits-frontier.svg"}


def test_the_best_of_more_attacks_is_told_of() -> None:
    some = [{**each, "judge_on_real": "1", "refused": ""} for each in lines(0.6, 0.9)]
    some += [{**some[-1], "attack": "logits_public", "accuracy": "0.7"}]
    assert "the best copy of these has 70.0 [58.0, 62.0] % (logits_public)" in more_part(some, TOLD)
