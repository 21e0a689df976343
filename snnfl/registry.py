"""Things of one kind by name: how data sets, models, attacks, detectors and trackers are found, and others added."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from traceback import walk_tb
from typing import Any, Generic, TypeVar

from snnfl.config.declaration import ConfigError, nearest

T = TypeVar("T")
R = TypeVar("R")

OURS = ("snnfl", "strategies", "clients", "experiments")
"""Packages whose errors are no user's: they keep their traceback."""

_registries: list[Registry[Any]] = []


def registries() -> tuple[Registry[Any], ...]:
    """Return all registries of this process."""
    return tuple(_registries)


def registered() -> frozenset[tuple[str, str, str]]:
    """Return kind, name and home of all that the registries hold."""
    return frozenset((registry.kind, name, home) for registry in _registries for name, home in registry.homes.items())


def forget(things: Iterable[tuple[str, str, str]]) -> None:
    """Take back what a module has registered whose import has failed: it may be tried again."""
    for kind, name, _ in things:
        for registry in _registries:
            if registry.kind == kind and registry.homes.pop(name, None) is not None:
                registry.items.pop(name, None)


def summary_of(thing: Callable[..., Any]) -> str:
    """Return the first line of a function's docstring as plain text; empty without one."""
    line = next(iter((thing.__doc__ or "").strip().splitlines()), "")
    return re.sub(r":\w+:`~?([\w.]+)`", r"\1", line).replace("``", "")


@dataclass(frozen=True, eq=False)
class Registry(Generic[T]):
    """Things of one kind, each under a name of its own.

    Attributes:
        kind: What they are, in errors: ``"model"``.
        option: The option that names one: ``"model.name"``; ``None`` if several do.
        items: By name, in order of registration.
        homes: The module that registered each.
        closed: Whether plug-ins cannot add to them.

    >>> colours = Registry[int]("colour", "paint.colour")
    >>> colours.add("red", 0xFF0000, home="tests")
    16711680
    >>> "red" in colours, colours.names()
    (True, ('red',))
    >>> colours.find("rad")
    Traceback (most recent call last):
    snnfl.config.declaration.ConfigError: paint.colour=rad: unknown colour; did you mean 'red'? (one of your own needs \
its plug-in: --plugin FILE, or plugins: [FILE])
    """

    kind: str
    option: str | None = None
    items: dict[str, T] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    closed: bool = False

    def __post_init__(self) -> None:
        """Let :func:`forget` find it."""
        _registries.append(self)

    def add(self, name: str, item: T, *, home: str) -> T:
        """Register and return a thing.

        Args:
            name: Not taken yet.
            item: The thing.
            home: The module that does it, for the error of the next one.

        Raises:
            ValueError: If the name is taken.
        """
        if name in self.items:
            raise ValueError(f"{self.kind} {name!r} is already registered by {self.homes[name]}; choose another name")
        self.items[name], self.homes[name] = item, home
        return item

    def decorator(self, name: str) -> Callable[[T], T]:
        """Return what registers a function under a name, and leaves it as it is.

        Raises:
            ValueError: When it is applied, if the name is taken.
        """
        return lambda thing: self.add(name, thing, home=thing.__module__)

    def made(self, name: str, make: Callable[[], R], *kinds: type, through: tuple[type[Exception], ...] = ()) -> R:
        """Return what code of a registered thing makes; if that is somebody else's, its mistakes are the user's.

        Args:
            name: Of the thing.
            make: Calls the code.
            kinds: What it must return; empty for anything.
            through: Errors that say what is wrong by themselves, beside ``ConfigError``.

        Raises:
            ConfigError: In one line, for an error of the code with its line, and for what is of another kind.
        """
        self.find(name)
        home, what = self.homes.get(name, OURS[0]), f"{self.option or self.kind}={name}"
        try:
            found = make()
        except Exception as error:
            if isinstance(error, (ConfigError, *through)) or home.partition(".")[0] in OURS:
                raise
            places = [
                f" ({Path(frame.f_code.co_filename).name}, line {line})"
                for frame, line in walk_tb(error.__traceback__)
                if frame.f_globals.get("__name__") == home
            ]
            where = places[-1] if places else ""
            text = " ".join(str(error).split())
            raise ConfigError(f"{what}: {type(error).__name__}{f': {text}' if text else ''}{where}") from error
        if kinds and not isinstance(found, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{what}: it returned {type(found).__name__}, expected {expected}")
        return found

    def find(self, name: str, *, said: str | None = None) -> T:
        """Return a thing by its name.

        Args:
            name: Of the thing.
            said: How the user has named it, for the error, where that isn't by the registry's option.

        Raises:
            ConfigError: If nothing has it, with the nearest known name and how a plug-in's comes to be known.
        """
        if name not in self.items:
            what = f"{self.kind} {name!r} is unknown"
            if said is not None or self.option is not None:
                what = f"{said or f'{self.option}={name}'}: unknown {self.kind}"
            own = "" if self.closed else " (one of your own needs its plug-in: --plugin FILE, or plugins: [FILE])"
            raise ConfigError(what + nearest(name, self.names()) + own)
        return self.items[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted(self.items))

    def __contains__(self, name: object) -> bool:
        return name in self.items

    def __iter__(self) -> Iterator[T]:
        return iter(self.items.values())
