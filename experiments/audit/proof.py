"""What is proven of a run beside the attack that finds most in it: what its server sees, and the two epsilons."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from rich.table import Table

from experiments.audit.found import Audit
from experiments.audit.summary import leading_of_run
from experiments.html import table
from snnfl.auditing.measures import MEASURES
from snnfl.auditing.scorecard import csv_text

HEAD = (
    "run",
    "server sees",
    "noise",
    "proven epsilon",
    "refuted epsilon",
    "best attack",
    "finds",
    "best guess",
    "verdict",
)

CAPTION = (
    "Proof and attack: what each server sees, of whole clients or samples the proven epsilon and the largest one that "
    "canaries refute, and the attack that leaks most."
)


def protected(audits: Sequence[Audit]) -> bool:
    """Tell whether anything is proven of a run."""
    configs = [audit.config for audit in audits if audit.config is not None]
    return any(each.strategy.secure_aggregation or each.privacy.mechanism != "none" for each in configs)


def proof_table(audits: Sequence[Audit]) -> Markup:
    """Show proof and attack side by side; nothing where nothing is proven."""
    return table(list(HEAD), _rows(audits), caption=CAPTION) if protected(audits) else Markup("")


def proof_in_terminal(audits: Sequence[Audit]) -> Table | None:
    """Show the same in the terminal; ``None`` where nothing is proven."""
    if not protected(audits):
        return None
    shown = Table(title="proof and attack")
    for name in HEAD:
        shown.add_column(name)
    for row in _rows(audits):
        shown.add_row(*row)
    return shown


def proof_as_csv(audits: Sequence[Audit]) -> str:
    """Write a row per run, whatever is proven of it."""
    return csv_text([name.replace(" ", "_") for name in HEAD], _rows(audits))


def _rows(audits: Sequence[Audit]) -> list[list[str]]:
    return [[audit.path.name, _seen(audit), *_proven(audit), *_found(audit)] for audit in audits]


def _seen(audit: Audit) -> str:
    if not audit.setting.sums or not audit.entries:
        return "a sum" if audit.setting.sums else "each update"
    known = audit.entries[0]["threat_model"]
    if known["clients"] is None:
        return "a sum of unknown size"
    seen = f"a sum of {known['clients']}" if known["clients"] > 1 else "one client, out of a sum"
    if known["rounds"] > 1:
        return f"sums of {known['rounds']} rounds"
    return f"{seen}; {known['colluding']} colluding" if known["colluding"] else seen


def _proven(audit: Audit) -> list[str]:
    mechanism = "none" if audit.config is None else audit.config.privacy.mechanism
    last = audit.metrics[-1] if audit.metrics else {}
    numbers = [last.get("epsilon"), last.get("epsilon_empirical")]
    noise = "none: clipped alone" if mechanism != "none" and last and numbers[0] is None else mechanism
    return [noise, *("–" if number is None else f"{number:.2f}" for number in numbers)]


def _found(audit: Audit) -> list[str]:
    found = leading_of_run(audit)
    if found is None:
        return ["–"] * 4
    first = MEASURES[found["kind"]].metrics[0]
    values = [f"{number:{first.form}}" for number in (found["value"], found["floor"][first.name])]
    return [found["attack"], f"{first.title} {values[0]}", values[1], found["verdict"]]
