"""The tables of an audit's report: verdicts, best attacks, other numbers, and what each attacker knew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from markupsafe import Markup

from experiments.audit.found import Audit
from experiments.html import table
from snnfl.auditing.measures import BY_RUN, MEASURES, Metric
from snnfl.auditing.scorecard import Entry
from snnfl.auditing.selection import Compared
from snnfl.auditing.setting import PLAIN_TWIN
from snnfl.auditing.verdicts import judged_metrics

GUESS = "best guess"
"""Row of what needs no update."""


def verdicts(audits: Sequence[Audit]) -> Markup:
    """Show a table per run and round: the best guess, the attacks, and those on the clients' plain twins."""
    parts = [
        _verdict_table(audit.path.name, server_round, list(group))
        for audit in audits
        for server_round, group in groupby(sorted(carried_out([audit]), key=_round), key=_round)
    ]
    return Markup("").join([*parts, _not_attacked(audits)])


def carried_out(audits: Sequence[Audit]) -> list[Entry]:
    """Return the attacks that weren't refused and didn't fail."""
    return [entry for audit in audits for entry in audit.entries if entry["refusal"] is None]


def named(entry: Entry) -> str:
    """Name an attack, and say what it attacked where that isn't the run's own update."""
    twin = f" ({PLAIN_TWIN})" if entry["updates"] == PLAIN_TWIN else ""
    return f"{entry['attack']}{twin}{', diagnostic' if entry['setting'] == 'diagnostic' else ''}"


def with_interval(value: float, interval: Sequence[float] | None, form: str) -> str:
    """Write a number with the ends of its interval, which a line doesn't tear apart."""
    return format(value, form) + (
        f" ({interval[0]:{form}}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{interval[1]:{form}})" if interval else ""
    )


def guess(entry: Entry, metric: Metric) -> str:
    """Write what the best guess without an update reaches; of shares a hundredth of a percent counts."""
    return format(entry["floor"][metric.name], ".2%" if metric.form == ".0%" else metric.form)


def _round(entry: Entry) -> int:
    return int(entry["round"])


def _verdict_table(run: str, server_round: int, entries: Sequence[Entry]) -> Markup:
    metrics, over = judged_metrics(entries[0]["kind"]), any(entry["control"] for entry in entries)
    head = ["attack", "clients", "verdict", *(metric.title for metric in metrics), "labels"]
    guesses = {
        (entry["victims"], tuple(guess(entry, metric) for metric in metrics)): None
        for entry in entries if entry["value"] is not None
    }  # fmt: skip
    rows: list[list[object]] = [[GUESS, victims, "–", *floors, "–", "–"] for victims, floors in guesses]
    rows += [[*_verdict_row(metrics, entry), _over_twin(entry)] for entry in entries]
    if over:
        head.append(f"over {PLAIN_TWIN}{' in dB' if 'dB' in metrics[0].title else ''}")
    else:
        rows = [row[:-1] for row in rows]
    caption = f"{run}, round {server_round}: what each attack found, with 95 % intervals in brackets."
    return table(head, rows, caption=caption)


def _verdict_row(metrics: Iterable[Metric], entry: Entry) -> list[object]:
    if entry["value"] is None:
        return [named(entry), entry["victims"], entry["verdict"], *["–" for _ in metrics], "–"]
    found = [entry["metrics"][metric.name] | {"form": metric.form} for metric in metrics]
    because = f"{entry['verdict']}: {entry['reason']}" if entry["verdict"] != "nothing seen" else entry["verdict"]
    return [
        named(entry), entry["victims"], because,
        *(with_interval(each["value"], each["interval"], each["form"]) for each in found),
        f"{entry['metrics']['label_accuracy']['value']:.0%}, {entry['label_verdict']}",
    ]  # fmt: skip


def _over_twin(entry: Entry) -> str:
    first, control = MEASURES[entry["kind"]].metrics[0], entry["control"]
    return with_interval(control["value"], control["interval"], f"+{first.form}") if control else "–"


def _not_attacked(audits: Sequence[Audit]) -> Markup:
    """Show what was refused or failed, and which clients were passed over, each reason once per attack."""
    reasons: dict[tuple[str, str, str, str], list[str]] = {}
    for entry in (entry for audit in audits for entry in audit.entries):
        if entry["refusal"] is not None:
            key = (entry["run"], entry["attack"], entry["verdict"], _reason(entry, entry["refusal"]))
            reasons.setdefault(key, []).append(f"round {entry['round']}")
            continue
        for passed in entry["passed_over"]:
            key = (entry["run"], entry["attack"], "passed over", _reason(entry, passed["reason"]))
            reasons.setdefault(key, []).append(f"round {entry['round']}, client {passed['partition']}")
    rows = [[run, attack, what, why, "; ".join(where)] for (run, attack, what, why), where in reasons.items()]
    rows += [
        [audit.path.name, name, "refused", why, "–"]
        for audit in audits
        for name, why in {**audit.left, **audit.unasked}.items()
    ]
    rows += [[audit.path.name, "every attack", "passed over", line, "–"] for audit in audits for line in audit.unread]
    if not rows:
        return Markup("")
    return table(["run", "attack", "", "why", "where"], rows, caption="What could not be attacked.")


def _reason(entry: Entry, text: str) -> str:
    return text.removeprefix(f"{entry['attack']}: ")


def best(audits: Sequence[Audit]) -> Markup:
    """Compare the best attack of each round with the best guess and the best attack on plain twins."""
    rows = []
    for run, found in ((audit.path.name, best) for audit in audits for best in audit.best):
        chosen, form, twins = found.over_floor.best, f"+{found.metric.form}", found.over_control
        rows.append(
            [run, found.server_round, f"{chosen.attack} (of {chosen.candidates})", f"{found.value:{found.metric.form}}",
             *_compared(found.over_floor, form), *(_compared(twins, form) if twins else ["–", "–"])]
        )  # fmt: skip
    if not rows:
        return Markup("")
    titles = " or ".join(dict.fromkeys(best.metric.title for audit in audits for best in audit.best))
    head = ["run", "round", "best attack", titles, GUESS, "over it", f"best on {PLAIN_TWIN}s", "over it"]
    several = any(best.over_floor.best.candidates > 1 for audit in audits for best in audit.best)
    how = ": chosen, for each client, on the other clients" if several else ""
    caption = f"The best attack of each round{how}, with 95 % intervals."
    return table(head, rows, caption=caption)


def _compared(found: Compared, form: str) -> list[object]:
    return [f"{found.other.attack} (of {found.other.candidates})", with_interval(found.value, found.interval, form)]


def other_numbers(audits: Sequence[Audit]) -> Markup:
    """Show what no verdict looks at: all other metrics, the rate of successes, and the run's own identification."""
    parts = []
    entries = [entry for entry in carried_out(audits) if entry["value"] is not None]
    for kind in dict.fromkeys(entry["kind"] for entry in entries):
        measures, of_kind = MEASURES[kind], [entry for entry in entries if entry["kind"] == kind]
        rated = [metric for metric in measures.metrics if metric.success is not None]
        others = [metric for metric in measures.metrics if not metric.judged]
        head = ["run", "round", "attack", *(f"{_short(m)} ≥ {m.success:g}" for m in rated)]
        head += [*(metric.title for metric in others), "IIP by the run's network"]
        rows = []
        for entry in of_kind:
            rates, metrics = entry["rates"], entry["metrics"]
            cells = [with_interval(rates[m.name]["value"], rates[m.name]["interval"], ".0%") for m in rated]
            cells += [f"{metrics[metric.name]['value']:{metric.form}}" for metric in others]
            own = metrics.get(BY_RUN)
            rows.append([entry["run"], entry["round"], entry["attack"], *cells, f"{own['value']:.0%}" if own else "–"])
        parts.append(table(head, rows, caption="What no verdict looks at. All numbers: scorecard.csv."))
    return Markup("").join(parts)


def _short(metric: Metric) -> str:
    return metric.title.removesuffix(" in dB")


def threat_models(audits: Sequence[Audit]) -> Markup:
    """Show what attackers knew, the attacks with the same knowledge in one row, and where each attack is from."""
    known: dict[tuple[str, str, str], dict[str, None]] = {}
    sources: dict[str, str] = {}
    chosen: dict[str, Counter[str]] = {}
    for entry in (entry for audit in audits for entry in audit.entries):
        model = entry["threat_model"]
        known.setdefault((entry["run"], model["who"], ", ".join(model["facts"])), {})[entry["attack"]] = None
        sources[entry["attack"]] = entry["source"]
        chosen.setdefault(entry["attack"], Counter()).update(entry["choices"])
    rows = [[run, who, facts, ", ".join(attacks)] for (run, who, facts), attacks in known.items()]
    shown = table(["run", "attacker", "knows", "attacks"], rows, caption="What the attacker was said to know.")
    cells = [[name, source, _choices(chosen[name])] for name, source in sources.items()]
    return shown + table(["attack", "source", "chose (updates)"], cells, caption="Where attacks are from.")


def _choices(chosen: Mapping[str, int]) -> str:
    """Say what an attack chose itself, such as a prior, and for how many updates."""
    return "; ".join(f"{what} ({count})" for what, count in chosen.items()) or "–"
