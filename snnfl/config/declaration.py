"""How an option is declared: its default, its documentation, its range."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import operator
import typing
from collections.abc import Sequence
from dataclasses import field
from typing import Any, Literal, TypeAlias, TypeVar

FlatValue: TypeAlias = bool | int | float | str
"""What Flower's ``run_config`` can carry."""


Section = TypeVar("Section")


class ConfigError(ValueError):
    """A mistake in a configuration, in one line: the key, the value, what was expected, the nearest name."""


def option(
    default: Any, *, doc: str, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """Declare a field with its documentation and its range.

    Args:
        default: Default value.
        doc: One line, with the unit or the source.
        low: Smallest value allowed.
        high: Largest value allowed.
        above: The value must be strictly larger than this.

    Returns:
        A dataclass field. :func:`check_option` enforces the range.
    """
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "above": above})


def answers_nearest(section: type[Section]) -> type[Section]:
    """Let a section that is built in Python refuse an unknown option as a configuration does, with the nearest name.

    >>> from snnfl.config import ConversionConfig
    >>> ConversionConfig(treshold="layer_max")
    Traceback (most recent call last):
    snnfl.config.declaration.ConfigError: ConversionConfig: unknown option 'treshold'; did you mean 'thresholds'?
    """
    build = section.__init__
    known = [item.name for item in dataclasses.fields(section)]  # type: ignore[arg-type]

    @functools.wraps(build)
    def build_checked(self: Section, *arguments: Any, **options: Any) -> None:
        unknown = next((name for name in options if name not in known), None)
        if unknown is not None:
            raise ConfigError(f"{section.__name__}: unknown option {unknown!r}" + nearest(unknown, known))
        build(self, *arguments, **options)

    section.__init__ = build_checked  # type: ignore[method-assign, assignment]
    return section


def check_option(key: str, value: Any, item: dataclasses.Field[Any], kind: Any) -> None:
    """Check an option's type, choices and range, as :func:`option` and its annotation declare them.

    Args:
        key: How an error names it.
        value: To be checked.
        item: Its field.
        kind: Its annotation, resolved.

    Raises:
        ConfigError: Naming the key, the value and what was expected.
    """
    if not _has_type(value, kind):
        if isinstance(value, str) and typing.get_origin(kind) is not Literal:
            value = repr(value)  # '8' is no number, and must not look like one
        raise ConfigError(unlike(key, value, item, kind))
    if value == "":
        alternative = " or null" if item.default is None else ""
        raise ConfigError(f"{key}='': expected text that isn't empty{alternative} ({item.metadata['doc']})")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: expected a finite number")
    for bound, holds, words in (
        (item.metadata["low"], operator.ge, "at least"),
        (item.metadata["high"], operator.le, "at most"),
        (item.metadata["above"], operator.gt, "more than"),
    ):
        if bound is not None and value is not None and not holds(value, bound):
            raise ConfigError(f"{key}={value}: expected {words} {bound} ({item.metadata['doc']})")


def check_options(section: Any) -> None:
    """Check every option of a section, named without it.

    Raises:
        ConfigError: As :func:`check_option`.
    """
    kind: Any = type(section)
    hints = _annotations(kind)
    for item in dataclasses.fields(section):
        check_option(item.name, getattr(section, item.name), item, hints[item.name])


@functools.cache
def _annotations(section: Any) -> dict[str, Any]:
    return typing.get_type_hints(section)


def unlike(key: str, value: Any, item: dataclasses.Field[Any], kind: Any) -> str:
    """Say in one line what was expected instead of a value of a wrong type or choice."""
    names = [*map(str, choices(kind)), *(["null"] if type(None) in typing.get_args(kind) else [])]
    if not choices(kind):
        return f"{key}={show(value)}: expected {_type_name(kind)} ({item.metadata['doc']})"
    hint = nearest(str(value), names, listing=False)
    return f"{key}={show(value)}: expected one of {', '.join(names)}{hint}"


def show(value: Any) -> str:
    """Write a value in one line of moderate length."""
    line = " ".join(str(value).split())
    return line if len(line) <= 80 else f"{line[:77]}..."


@functools.cache
def choices(kind: Any) -> tuple[Any, ...]:
    """Return the choices of an annotation, null aside; empty for what is no choice."""
    literals = [part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is Literal]
    return typing.get_args(literals[0]) if literals else ()


def _has_type(value: Any, kind: Any) -> bool:
    """Tell whether a value is of an annotation; other than numbers, choices and lists pass, which OmegaConf checks."""
    if value is None and type(None) in typing.get_args(kind):
        return True
    if choices(kind):
        return value in choices(kind)
    if typing.get_origin(kind) is tuple and Ellipsis in (inner := typing.get_args(kind)):
        if not isinstance(value, list | tuple):
            return False
        return all(isinstance(each, str) if inner[0] is str else _has_type(each, inner[0]) for each in value)
    number = next((wanted for wanted in (int, float) if kind in (wanted, wanted | None)), None)
    if number is None:
        return True
    return isinstance(value, numbers.Integral if number is int else numbers.Real) and not isinstance(value, bool)


def _type_name(kind: Any) -> str:
    names = {
        int: "a whole number",
        int | None: "a whole number or null",
        float: "a number",
        float | None: "a number or null",
        bool: "true or false",
        bool | None: "true, false or null",
        str: "text",
        str | None: "text or null",
        tuple[str, ...]: "a list of names",
        tuple[float, ...]: "a list of numbers",
    }
    return names.get(kind, "a list of whole numbers")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number of things in words.

    >>> counted(1, "round"), counted(2, "round"), counted(0, "reply", "replies")
    ('1 round', '2 rounds', '0 replies')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


MEANT = {"non-iid": "dirichlet", "non_iid": "dirichlet", "noniid": "dirichlet"}
"""What is similar to the opposite of what is meant."""


def nearest(name: str, known: Sequence[str], *, listing: bool = True) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar known name, else the list of all known names.

    >>> nearest("MNIST", ["mnist", "nmnist"]), nearest("q", ["mnist"]), nearest("q", ["mnist"], listing=False)
    ("; did you mean 'mnist'?", '; known: mnist', '')
    """
    small = {each.lower(): each for each in known}
    meant = MEANT.get(name.lower(), name.lower())
    close = difflib.get_close_matches(meant, small, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {small[close[0]]!r}?"
    return f"; known: {', '.join(sorted(known))}" if listing else ""
