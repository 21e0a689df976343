from __future__ import annotations

from collections.abc import Iterator

import pytest

from snnfl.attacks import exact


@pytest.fixture(autouse=True, scope="session")
def _it_is_asked_sooner_whether_sets_are_enough() -> Iterator[None]:
    """Of four samples one set of eight is right: 16,384 before the first question take most of such an attack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "TRIES", 2**11)
        yield
