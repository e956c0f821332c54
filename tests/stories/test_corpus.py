"""What the fuzzer found worth keeping (`tests/corpus`, see `fuzz`): every input, against the same properties."""

from __future__ import annotations

import pytest

from fuzz.corpus import KEPT, kept
from fuzz.targets import TARGETS, cut
from tests.ports.http1_property import upstream_says
from tests.stories.gateway import Running
from tests.stories.wire_property import wire_says

PLAIN = sorted(TARGETS.keys() - {"upstream", "wire"})


def test_every_target_has_a_corpus() -> None:
    assert {path.stem for path in KEPT.iterdir()} == TARGETS.keys()
    assert all(sum(1 for _ in kept(name)) > 10 for name in TARGETS)


@pytest.mark.parametrize("name", PLAIN)
def test_what_was_found_holds(name: str) -> None:
    check = TARGETS[name].open()
    for said in kept(name):
        check(said)


async def test_what_upstreams_were_found_to_say_is_understood_or_refused() -> None:
    for said in kept("upstream"):
        await upstream_says(cut(said))


async def test_what_callers_were_found_to_say_is_understood_or_refused(gateway: Running) -> None:
    for said in kept("wire"):
        await wire_says(gateway.port, cut(said))
