"""The books: who is granted how much of which lot, who is refused and why, and what settling collects."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from penstock.money.books import Books, Granted, Key, Lot, Need, Part, Refusal, Refused, Settled
from penstock.money.prices import value
from penstock.money.units import MEGA, USD

NOW_MS = 1_800_000_000_000
FREE = 10**9  # requests a minute


def key(id: str = "k", *, limit: int | None = None, spent: int = 0, held: int = 0, per_minute: int = FREE) -> Key:
    return Key(id, revoked=False, expires_ms=None, per_minute=per_minute, limit_nano=limit, spent_nano=spent,
               held_nano=held, tat_us=0)  # fmt: skip


def lot(id: str, remaining: int, *, held: int = 0, expires_ms: int | None = None, asset: str = USD) -> Lot:
    return Lot(id, "acc", "credits", asset, remaining, held, expires_ms)


def books(*rows: Key | Lot) -> Books:
    made = Books(NOW_MS)
    for row in rows:
        if isinstance(row, Key):
            made.keys[row.id] = row
        else:
            made.add(row)
    return made


def later(made: Books, pass_ms: int) -> Books:
    """The same rows, in the books of a transaction so much later."""
    after = Books(made.now_ms + pass_ms, made.keys)
    for row in made.lots.values():
        after.add(row)
    return after


def need(want: int, least: int | None = None, *, keys: tuple[str, ...] = ("k",), rate: int = MEGA) -> Need:
    return Need("acc", keys, "credits", USD, rate, want, want if least is None else least)


def grant(made: Books, wants: Need) -> Granted:
    outcome = made.ask(wants)
    assert isinstance(outcome, Granted), outcome
    return outcome


def refusal(outcome: object) -> Refusal:
    assert isinstance(outcome, Refused), outcome
    return outcome.why


# Asking.


def test_a_need_is_granted_in_full_when_the_money_is_there() -> None:
    made = books(key(), lot("a", 100))
    assert made.ask(need(60)) == Granted((Part("a", 60, 60),), 60)
    assert (made.lots["a"].held, made.lots["a"].remaining, made.keys["k"].held_nano) == (60, 100, 60)


def test_a_need_is_cut_down_to_what_is_there_but_not_below_its_least() -> None:
    assert grant(books(key(), lot("a", 50)), need(60, 50)).amount == 50
    assert refusal(books(key(), lot("a", 49)).ask(need(60, 50))) is Refusal.NO_FUNDS


def test_what_others_hold_is_not_available() -> None:
    assert grant(books(key(), lot("a", 100, held=70)), need(60, 1)).amount == 30


def test_a_need_is_met_from_several_lots_in_burn_order() -> None:
    made = books(
        key(), lot("soon", 10, expires_ms=NOW_MS + 1), lot("later", 10, expires_ms=NOW_MS + 2), lot("never", 10)
    )
    assert grant(made, need(25)).parts == (Part("soon", 10, 25), Part("later", 10), Part("never", 5))


def test_an_expired_lot_is_no_money() -> None:
    made = books(key(), lot("past", 100, expires_ms=NOW_MS), lot("never", 10))
    assert grant(made, need(50, 1)).parts == (Part("never", 10, 10),)


@pytest.mark.parametrize("other", [{"account": "else"}, {"lane": "contract"}, {"asset": "TOK"}])
def test_money_of_another_account_lane_or_asset_is_no_money(other: dict[str, str]) -> None:
    fields = {"account": "acc", "lane": "credits", "asset": USD} | other
    made = books(key(), Lot("a", fields["account"], fields["lane"], fields["asset"], 100, 0, None))
    assert refusal(made.ask(need(1))) is Refusal.NO_FUNDS


def test_a_call_that_costs_nothing_needs_no_money() -> None:
    assert books(key(limit=0)).ask(need(0)) == Granted((), 0)


@pytest.mark.parametrize(
    "dead",
    [
        pytest.param({"revoked": True}, id="revoked"),
        pytest.param({"expires_ms": NOW_MS}, id="expired"),
        pytest.param({"id": "other"}, id="unknown"),
    ],
)
@pytest.mark.parametrize("family", ["child", "parent"])
def test_a_key_is_good_only_while_it_and_its_parents_are(dead: dict[str, bool | int | str], family: str) -> None:
    keys = {each: key(each) for each in ("child", "parent")}
    keys[family] = replace(keys[family], **dead)  # type: ignore[arg-type]
    made = books(*keys.values(), lot("a", 100))
    assert refusal(made.ask(need(1, keys=("child", "parent")))) is Refusal.KEY_INVALID
    assert made.lots["a"].held == 0


def test_a_key_is_good_until_the_millisecond_it_expires() -> None:
    made = books(replace(key(), expires_ms=NOW_MS + 1), lot("a", 1))
    assert grant(made, need(1)).amount == 1


# The rate limit.


def test_each_key_of_a_family_counts_a_request_and_a_refused_one_counts_for_none() -> None:
    made = books(key("child", per_minute=2), key("parent", per_minute=1), lot("a", 100))
    both = ("child", "parent")
    grant(made, need(1, keys=both))
    before = made.keys["child"].tat_us
    outcome = made.ask(need(1, keys=both))
    assert isinstance(outcome, Refused)
    assert (outcome.why, outcome.wait_us) == (Refusal.RATE_LIMITED, 60_000_000)
    assert made.keys["child"].tat_us == before


def test_a_request_without_funds_counts_against_the_rate_limit() -> None:
    made = books(key(per_minute=1))
    assert [refusal(made.ask(need(1))) for _ in range(2)] == [Refusal.NO_FUNDS, Refusal.RATE_LIMITED]


def test_asking_again_is_still_the_same_request() -> None:
    made = books(key(per_minute=1), lot("a", 10, held=10))
    assert refusal(made.ask(structs.replace(need(5), patient=True))) is Refusal.HELD
    made.lots["a"].held = 0
    assert grant(made, structs.replace(need(5), patient=True, again=True)).amount == 5


# Why the money is not there.


@pytest.mark.parametrize(
    ("remaining", "held", "limit", "spent", "key_held", "why"),
    [
        pytest.param(0, 0, None, 0, 0, Refusal.NO_FUNDS, id="nothing there"),
        pytest.param(9, 0, None, 0, 0, Refusal.NO_FUNDS, id="too little there"),
        pytest.param(9, 9, None, 0, 0, Refusal.NO_FUNDS, id="too little, were it free"),
        pytest.param(10, 1, None, 0, 0, Refusal.HELD, id="enough, were it free"),
        pytest.param(99, 0, 9, 0, 0, Refusal.KEY_LIMIT, id="limit below the need"),
        pytest.param(99, 0, 20, 11, 0, Refusal.KEY_LIMIT, id="limit used up"),
        pytest.param(99, 0, 20, 30, 0, Refusal.KEY_LIMIT, id="limit lowered below what was spent"),
        pytest.param(99, 0, 20, 0, 11, Refusal.HELD, id="limit held by other calls"),
        pytest.param(99, 0, 20, 11, 5, Refusal.KEY_LIMIT, id="limit used up, were nothing held"),
        pytest.param(0, 0, 9, 0, 0, Refusal.KEY_LIMIT, id="both"),
        pytest.param(9, 0, 20, 0, 15, Refusal.NO_FUNDS, id="no money, whatever the limit"),
    ],
)
def test_a_refusal_says_what_stands_in_the_way(
    remaining: int, held: int, limit: int | None, spent: int, key_held: int, why: Refusal
) -> None:
    made = books(key(limit=limit, spent=spent, held=key_held), lot("a", remaining, held=held))
    assert refusal(made.ask(need(10))) is why
    assert (made.lots["a"].held, made.keys["k"].held_nano) == (held, key_held)


def test_a_patient_need_waits_for_money_that_others_hold_and_an_impatient_one_takes_what_is_there() -> None:
    made = books(key(), lot("a", 100, held=70))
    assert refusal(made.ask(structs.replace(need(60, 1), patient=True))) is Refusal.HELD
    assert grant(made, need(60, 1)).amount == 30


def test_a_patient_need_waits_for_room_in_a_limit_that_others_hold() -> None:
    made = books(key(limit=100, held=70), lot("a", 1_000))
    assert refusal(made.ask(structs.replace(need(60, 1), patient=True))) is Refusal.HELD
    assert grant(made, need(60, 1)).amount == 30


def test_a_patient_need_that_could_never_be_met_in_full_is_cut_down_at_once() -> None:
    assert grant(books(key(), lot("a", 100, held=70)), structs.replace(need(101, 1), patient=True)).amount == 30
    assert (
        grant(books(key(limit=100, held=70), lot("a", 999)), structs.replace(need(101, 1), patient=True)).amount == 30
    )


# Spending limits.


@pytest.mark.parametrize("limited", ["child", "parent"])
def test_the_tightest_limit_of_a_family_decides(limited: str) -> None:
    keys = [key(each, limit=40 if each == limited else 1_000) for each in ("child", "parent")]
    made = books(*keys, lot("a", 500))
    assert grant(made, need(60, 1, keys=("child", "parent"))).amount == 40
    assert [each.held_nano for each in keys] == [40, 40]


def test_what_siblings_spend_counts_for_their_parent() -> None:
    made = books(key("a"), key("b"), key("parent", limit=100), lot("l", 500))
    first = grant(made, need(70, keys=("a", "parent")))
    made.settle(need(0, keys=("a", "parent")), first.parts, 70)
    assert grant(made, need(70, 1, keys=("b", "parent"))).amount == 30


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_limit_on_tokens_is_never_exceeded_in_money(limit: int, rate: int, want: int) -> None:
    made = books(key(limit=limit), lot("a", 10**12))
    outcome = made.ask(need(want, 1, rate=rate))
    if isinstance(outcome, Granted):
        settled = made.settle(need(0, rate=rate), outcome.parts, outcome.amount)
        assert settled.value == value(outcome.amount, rate) == made.keys["k"].spent_nano <= limit
    else:
        assert value(1, rate) > limit
    assert made.keys["k"].held_nano == 0


# Extending.


def test_a_revoked_key_does_not_cut_off_a_call_under_way_but_a_limit_does() -> None:
    made = books(replace(key(limit=10), revoked=True), lot("a", 100))
    assert isinstance(made.more(need(10)), Granted)
    assert isinstance(made.more(need(1)), Refused)


def test_an_extension_does_not_count_against_the_rate_limit() -> None:
    made = books(key(per_minute=1), lot("a", 100))
    grant(made, need(1))
    assert isinstance(made.more(need(1)), Granted)


# Settling.


@pytest.mark.parametrize(
    ("owed", "remaining", "uncollected"),
    [
        pytest.param(0, 100, 0, id="nothing owed"),
        pytest.param(30, 70, 0, id="less than held"),
        pytest.param(60, 40, 0, id="what was held"),
        pytest.param(75, 25, 0, id="more than held"),
        pytest.param(100, 0, 0, id="all there is"),
        pytest.param(130, 0, 30, id="more than there is"),
    ],
)
def test_settling_collects_what_is_owed_and_frees_the_rest(owed: int, remaining: int, uncollected: int) -> None:
    made = books(key(), lot("a", 100))
    settled = made.settle(need(0), grant(made, need(60)).parts, owed)
    charges = (Part("a", owed - uncollected),) if owed else ()
    assert settled == Settled(charges, owed - uncollected, uncollected)
    assert (made.lots["a"].remaining, made.lots["a"].held) == (remaining, 0)
    assert (made.keys["k"].spent_nano, made.keys["k"].held_nano) == (owed - uncollected, 0)


def test_settling_above_the_hold_never_takes_what_others_hold() -> None:
    made = books(key(), lot("a", 100, held=30))
    settled = made.settle(need(0), grant(made, need(60)).parts, 90)
    assert (settled.value, settled.uncollected) == (70, 20)
    assert (made.lots["a"].remaining, made.lots["a"].held) == (30, 30)


def test_settling_above_the_hold_stays_within_the_keys_limit() -> None:
    made = books(key(limit=65), lot("a", 100))
    settled = made.settle(need(0), grant(made, need(60)).parts, 90)
    assert (settled.value, settled.uncollected, made.keys["k"].spent_nano) == (65, 25, 65)


def test_settling_burns_the_parts_of_a_hold_in_the_order_in_which_they_were_drawn() -> None:
    made = books(key(), lot("soon", 10, expires_ms=NOW_MS + 1), lot("never", 50))
    settled = made.settle(need(0), grant(made, need(40)).parts, 15)
    assert settled.charges == (Part("soon", 10), Part("never", 5))
    assert (made.lots["never"].remaining, made.lots["never"].held) == (45, 0)


def test_what_was_held_before_a_lot_expired_is_collected_from_it_and_no_more() -> None:
    made = books(key(), lot("soon", 100, expires_ms=NOW_MS + 1))
    parts = grant(made, need(60)).parts
    made = later(made, 1)
    settled = made.settle(need(0), parts, 80)
    assert (settled.value, settled.uncollected) == (60, 20)
    assert (made.lots["soon"].remaining, made.lots["soon"].held) == (40, 0)


def test_the_last_call_on_a_contract_is_served_and_what_is_missing_is_uncollected() -> None:
    made = books(key(), lot("a", 1))
    settled = made.settle(need(0), grant(made, need(500, 1)).parts, 300)
    assert (settled.value, settled.uncollected, made.lots["a"].remaining) == (1, 299, 0)
    assert refusal(made.ask(need(500, 1))) is Refusal.NO_FUNDS


def test_a_free_call_settles_to_nothing() -> None:
    made = books(key())
    assert made.settle(need(0), (Part("", 0),), 0) == Settled((), 0, 0)


def test_a_call_thought_free_that_owes_is_collected_from_what_is_free() -> None:
    made = books(key(), lot("a", 10))
    assert made.settle(need(0), (Part("", 0),), 4) == Settled((Part("a", 4),), 4, 0)


# Whatever happens.

needs = st.builds(need, st.integers(1, 80), st.integers(1, 20), rate=st.sampled_from([1, 333_333, MEGA, 7_000_001]))


@given(
    st.lists(st.tuples(st.integers(1, 100), st.none() | st.integers(-2, 5)), max_size=5),
    st.none() | st.integers(0, 500),
    st.lists(st.tuples(needs, st.integers(0, 150), st.integers(0, 3)), max_size=12),
)
def test_money_is_neither_made_nor_lost_and_never_negative(
    purse: list[tuple[int, int | None]], limit: int | None, calls: list[tuple[Need, int, int]]
) -> None:
    in_burn_order = sorted(enumerate(purse), key=lambda each: (each[1][1] is None, each[1][1] or 0, each[0]))
    made = books(
        key(limit=limit),
        *(lot(f"{n}", size, expires_ms=None if e is None else NOW_MS + e) for n, (size, e) in in_burn_order),
    )
    owned, charged, open_calls = sum(size for size, _ in purse), 0, []
    for wants, owed, pass_ms in calls:
        outcome = made.ask(wants)
        if isinstance(outcome, Granted):
            assert min(wants.least, wants.want) <= outcome.amount <= wants.want
            assert outcome.amount == sum(part.amount for part in outcome.parts)
            open_calls.append((wants, outcome.parts, owed))
        if pass_ms:
            made = later(made, pass_ms)
            charged += sum(sum(p.amount for p in made.settle(*call).charges) for call in open_calls[::2])
            open_calls = open_calls[1::2]
        assert all(0 <= each.held <= each.remaining for each in made.lots.values())
        assert sum(each.remaining for each in made.lots.values()) == owned - charged
        assert sum(each.held for each in made.lots.values()) == sum(
            p.amount for _, parts, _ in open_calls for p in parts
        )
        assert made.keys["k"].held_nano == sum(p.value for _, parts, _ in open_calls for p in parts)
        assert limit is None or made.keys["k"].spent_nano + made.keys["k"].held_nano <= limit
