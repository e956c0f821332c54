"""The clock of a machine jumps, by minutes or by days, forward or back, while calls are under way: what that changes.

What should not depend on the time of day does not: who is alive, what calls hold, what they are charged. What does
depend on it (the end of a lot, of a key, of a session, of a kept answer) is as the clock says, and is right again as
soon as the clock is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from penstock.clock import Clock
from penstock.config import Settings
from penstock.db.journal import GRACE_MS
from penstock.operations.actor import LOCAL
from penstock.operations.sessions import issue_session
from tests.stories.caller import calling
from tests.stories.gateway import FORWARD, ROUTER, TRUST, Person, Running, running
from tests.upstream import ScriptedUpstream, Stream

DONE = b"data: [DONE]\n\n"
GRANTED = 10**9
INPUT, OUTPUT = 590, 790  # nano-USD a token of LLAMA
SECOND_MS, HOUR_MS = 1_000, 3_600_000
DAY_MS = 24 * HOUR_MS


def jump(gateway: Running, by_ms: int) -> None:
    gateway.office.clock.offset_ms += by_ms


async def do_all_chores(gateway: Running) -> None:
    """Once each, now."""
    for chore in gateway.gateway.upkeep.chores:
        await chore.do()


@pytest.mark.parametrize("whose", ["one host", "both hosts"])
@pytest.mark.parametrize("by_ms", [-30 * DAY_MS, HOUR_MS, 30 * DAY_MS])
async def test_processes_take_nobody_for_dead_and_calls_go_on_and_are_charged_exactly(
    settings: Settings, upstream: ScriptedUpstream, by_ms: int, whose: str
) -> None:
    """A stream at one gateway, which needs more money after the jump, while another one looks after the store."""
    async with running(settings) as serving, running(settings) as other:
        ada = await serving.person(usd="1")
        held = Stream(tokens=1_000, hold_after=1)
        upstream.script(held)
        async with calling(serving.url) as caller:
            await caller.ask(ROUTER, ada, stream=True)
            assert (await caller.head()).status == 200
            await caller.event()
            for jumping in (other, serving) if whose == "both hosts" else (other,):
                jump(jumping, by_ms)
            for _ in range(2):
                for gateway in (other, serving):
                    await do_all_chores(gateway)
            held.resume.set()
            assert (await caller.events())[-1] == DONE
        (record,) = await serving.usage(ada)
        assert (record.ended, record.state, record.output_tokens) == ("answer", "final", 1_000)
        assert await serving.nano(ada) == GRANTED - 7 * INPUT - 1_000 * OUTPUT


@pytest.mark.parametrize("by_ms", [-30 * DAY_MS, -90 * SECOND_MS, -30 * SECOND_MS, 30 * SECOND_MS, HOUR_MS])
async def test_a_rate_is_not_frozen(gateway: Running, by_ms: int) -> None:
    """Whoever has used up his minute is served again within one, whatever the clock says."""
    ada = await gateway.person(usd="1")
    key = await gateway.key("personal", user=ada.user, requests_per_minute=3)
    statuses = [(await gateway.chat(ROUTER, ada, key=key)).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    jump(gateway, by_ms)
    answer = await gateway.chat(ROUTER, ada, key=key)
    if answer.status_code == 429:
        assert by_ms < 60 * SECOND_MS
        jump(gateway, int(answer.headers["retry-after"]) * SECOND_MS)
        answer = await gateway.chat(ROUTER, ada, key=key)
    assert answer.status_code == 200
    more = [(await gateway.chat(ROUTER, ada, key=key)).status_code for _ in range(4)]
    assert more[-1] == 429  # and it is still a rate


@pytest.fixture
async def ten_days(settings: Settings) -> AsyncIterator[tuple[Running, Person]]:
    """A gateway whose contracts end in ten days, and somebody with tokens of one."""
    ends_ms = Clock().now_ms() + 10 * DAY_MS
    contracts = tuple(replace(each, expires_ms=ends_ms) for each in settings.contracts)
    async with running(replace(settings, contracts=contracts)) as gateway:
        yield gateway, await gateway.person(tokens=10_000)


async def test_tokens_that_only_a_wrong_clock_says_have_ended_are_there_when_it_is_right_again(
    ten_days: tuple[Running, Person],
) -> None:
    gateway, ada = ten_days
    for by_ms in (10 * DAY_MS, 11 * DAY_MS - HOUR_MS):
        jump(gateway, by_ms)
        assert (await gateway.chat(FORWARD, ada)).status_code == 402
        await do_all_chores(gateway)
        jump(gateway, -by_ms)
        assert await gateway.tokens(ada) == 10_000
    assert (await gateway.chat(FORWARD, ada)).status_code == 200


async def test_tokens_that_have_ended_a_day_ago_by_the_clock_are_gone_and_the_journal_says_so(
    ten_days: tuple[Running, Person],
) -> None:
    gateway, ada = ten_days
    jump(gateway, 10 * DAY_MS + GRACE_MS)
    await do_all_chores(gateway)
    jump(gateway, -10 * DAY_MS - GRACE_MS)
    assert await gateway.tokens(ada) == 0
    assert (await gateway.chat(FORWARD, ada)).status_code == 402


@pytest.mark.parametrize(("by_ms", "calls"), [(-30 * DAY_MS, 1), (23 * HOUR_MS, 1), (25 * HOUR_MS, 2)])
async def test_an_answer_is_kept_for_a_day_by_the_clock(
    gateway: Running, upstream: ScriptedUpstream, by_ms: int, calls: int
) -> None:
    ada = await gateway.person(usd="1")
    once = {"Idempotency-Key": "order-4711"}
    first = await gateway.chat(ROUTER, ada, headers=once)
    jump(gateway, by_ms)
    await do_all_chores(gateway)
    again = await gateway.chat(ROUTER, ada, headers=once)
    assert (first.status_code, again.status_code) == (200, 200)
    assert len(upstream.requests) == len(await gateway.usage(ada)) == calls


@pytest.mark.parametrize("by_ms", [HOUR_MS, 30 * DAY_MS])
async def test_a_session_lasts_when_the_clock_is_set_back_to_before_it_began(gateway: Running, by_ms: int) -> None:
    ada = await gateway.person(usd="1")
    jump(gateway, by_ms)
    token = (await issue_session(gateway.office, LOCAL, user=ada.user)).token
    jump(gateway, -by_ms)
    session = replace(ada.account_key, key=token)
    assert (await gateway.chat(TRUST, ada, key=session)).status_code == 200


async def test_keys_and_sessions_end_by_the_clock_and_are_good_again_when_it_is_right(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    token = (await issue_session(gateway.office, LOCAL, user=ada.user)).token
    session = replace(ada.account_key, key=token)
    key = await gateway.key("personal", user=ada.user, expires=gateway.office.clock.after(hours=24))
    jump(gateway, 8 * DAY_MS)
    assert (await gateway.chat(TRUST, ada, key=session)).status_code == 401
    assert (await gateway.chat(ROUTER, ada, key=key)).status_code == 401
    jump(gateway, -8 * DAY_MS)
    assert (await gateway.chat(TRUST, ada, key=session)).status_code == 200
    assert (await gateway.chat(ROUTER, ada, key=key)).status_code == 200


async def test_the_log_says_that_the_clock_has_jumped(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    for by_ms in (HOUR_MS, -2 * HOUR_MS):
        jump(gateway, by_ms)
        await do_all_chores(gateway)
        await do_all_chores(gateway)
    said = [record.getMessage() for record in caplog.records if "has jumped" in record.getMessage()]
    assert [words.split()[-2].split(".")[0] for words in said] == ["+3600", "-7200"]
