"""Who is in the sums that an audit attacks, whom they tell apart, and who is in none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from markupsafe import Markup

from experiments.audit.found import Audit, InSum
from experiments.html import table
from snnfl.auditing.cohorts import listed
from snnfl.auditing.scorecard import csv_text
from snnfl.auditing.setting import Setting
from snnfl.auditing.victims import Scope, Victim

SHOWN = 10
"""Rounds that the terminal shows."""

HEAD = ("run", "round", "clients in the sum", "who", "absent", "attacked", "not told apart")

CAPTION = (
    "Of how many clients each sum is, who they are, and whose update was attacked. Not told apart: clients that are in "
    "the sum, and whom sums of several rounds don't tell from the others."
)


def in_sums(setting: Setting, folder: Path, scope: Scope, victims: Sequence[Victim]) -> list[InSum]:
    """Return who is in each sum of the rounds in scope; nothing where the server sees each update."""
    found = []
    for cohort in setting.cohorts(folder, scope.rounds):
        attacked = [tuple(victim.members) for victim in victims if victim.server_round == cohort.server_round]
        told = {client for clients in attacked for client in clients}
        asked = {*cohort.clients} & (scope.partitions or {*cohort.clients})
        untold = tuple(sorted(asked - told)) if setting.differences else ()
        found.append(
            InSum(cohort.server_round, clients=cohort.clients, absent=cohort.absent, attacked=attacked, untold=untold)
        )
    return found


def attendance_lines(audit: Audit) -> list[str]:
    """Say who is in each sum, a line per round, of the first :data:`SHOWN`; nothing where there are no sums."""
    lines = [_line(row, audit.setting) for row in audit.sums[:SHOWN]]
    if left := len(audit.sums) - len(lines):
        lines.append(f"... and {left} rounds more, which the report and sums.csv have")
    return lines


def attendance_table(audits: Sequence[Audit]) -> Markup:
    """Show the same of all rounds."""
    rows = _rows(audits)
    return table(list(HEAD), rows, caption=CAPTION) if rows else Markup("")


def attendance_as_csv(audits: Sequence[Audit]) -> str:
    """Write a row per run and round."""
    return csv_text([name.replace(" ", "_") for name in HEAD], _rows(audits))


def _rows(audits: Sequence[Audit]) -> list[list[object]]:
    return [
        [audit.path.name, row.server_round, len(row.clients), _numbers(row.clients), _numbers(row.absent),
         _attacked(row), _numbers(row.untold)]
        for audit in audits for row in audit.sums
    ]  # fmt: skip


def _line(row: InSum, setting: Setting) -> str:
    parts = [f"round {row.server_round}: the sum of {len(row.clients)}, {listed(row.clients)}"]
    if setting.differences:
        parts.append(f"told apart: {_attacked(row)}")
        parts += [f"not told apart: {_numbers(row.untold)}"] if row.untold else []
    elif row.attacked != [row.clients]:
        parts.append(f"attacked: {_attacked(row)}")
    parts += [f"absent: {_numbers(row.absent)}"] if row.absent else []
    return "; ".join(parts)


def _attacked(row: InSum) -> str:
    """Write whose updates were attacked, several together with a plus."""
    if row.attacked == [row.clients]:
        return "all together"
    return ", ".join("+".join(map(str, clients)) for clients in row.attacked) or "–"


def _numbers(clients: Iterable[int]) -> str:
    return listed(clients).partition(" ")[2] if clients else "–"
