"""Breakers and what is known of providers: what happens at which second, on a clock that is set by hand."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.catalogue import Offer
from penstock.clock import Clock
from penstock.config import HealthSettings
from penstock.errors import (
    ModelAbsent,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from penstock.routing.health import Attempt, Health, retry_after_s
from tests.rules.offers import offer

SETTINGS = HealthSettings(failures=3, pause_s=1.0, longest_pause_s=8.0)
A, B = offer("one", model="a"), offer("one", model="b")  # two models at one provider
OTHER = offer("two", model="a")
ABSENT = ModelAbsent("The provider answered with status 404.", upstream_status=404)
DOWN = UpstreamUnavailable("Nobody is there; the key was sk-secret.")


class Hand(Clock):
    """A clock that stands still until it is moved."""

    __slots__ = ("now_s",)

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def now_ms(self) -> int:
        return int(self.now_s * 1000)


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def health(clock: Hand) -> Health:
    return Health(SETTINGS, clock, lambda words: words.replace("sk-secret", "***"))


def began(health: Health, where: Offer = A) -> Attempt:
    attempt = health.attempt(where)
    assert attempt is not None
    return attempt


def fail(health: Health, error: UpstreamError = DOWN, where: Offer = A) -> None:
    attempt = began(health, where)
    attempt.failed(error)
    attempt.over()


def serve(health: Health, where: Offer = A) -> None:
    attempt = began(health, where)
    attempt.answered()
    attempt.finished()
    attempt.over()


def status(status: int, **more: Any) -> UpstreamFailed:
    return UpstreamFailed(f"The provider answered with status {status}.", upstream_status=status, **more)


def states(health: Health) -> tuple[str, str, str]:
    return health.state(A), health.state(B), health.state(OTHER)


CLOSED, ALL_OF_ONE = ("closed", "closed", "closed"), ("open", "open", "closed")
ONLY_A = ("open", "closed", "closed")


@pytest.mark.parametrize(
    ("failures", "after"),
    [
        pytest.param([DOWN] * 2, CLOSED, id="two in a row are not three"),
        pytest.param([DOWN] * 3, ALL_OF_ONE, id="three in a row"),
        pytest.param([DOWN, None, DOWN, DOWN], CLOSED, id="an answer between begins a new row"),
        pytest.param([UpstreamTimeout(), status(500), DOWN], ALL_OF_ONE, id="whatever they are"),
        pytest.param([status(401)], ALL_OF_ONE, id="our key is bad there"),
        pytest.param([status(402)], ALL_OF_ONE, id="we have no credit there"),
        pytest.param([status(403)] * 2, CLOSED, id="not let in, which one caller's words may be the reason for"),
        pytest.param([status(403)] * 3, ALL_OF_ONE, id="not let in, again and again"),
        pytest.param([ABSENT], ONLY_A, id="it does not have that model"),
        pytest.param([status(404)] * 2, CLOSED, id="something was not found, nobody knows what"),
        pytest.param([status(404)] * 3, ONLY_A, id="it is not found again and again"),
        pytest.param([status(429)] * 2, CLOSED, id="too many calls, twice"),
        pytest.param([status(429)] * 3, ONLY_A, id="too many calls of one model"),
        pytest.param([status(429, wait_s=2.0)], ONLY_A, id="it says for how long"),
        pytest.param([status(503, wait_s=2.0)], ALL_OF_ONE, id="it is overloaded as a whole"),
        pytest.param([UpstreamRefused("Too long.", refused_status=400)] * 5, CLOSED, id="the request was bad"),
    ],
)
def test_failures_open_what_they_are_about(
    health: Health, failures: list[UpstreamError | None], after: tuple[str, str, str]
) -> None:
    for failure in failures:
        serve(health) if failure is None else fail(health, failure)
    assert states(health) == after
    assert bool(health.out) == (after != CLOSED)


def test_a_pause_grows_with_each_trial_that_fails_up_to_the_longest(health: Health, clock: Hand) -> None:
    for _ in range(3):
        fail(health)
    pauses = []
    for _ in range(5):
        pauses.append(health.wait_s(A))
        assert health.attempt(A) is None
        clock.now_s += health.wait_s(A)
        assert health.state(A) == "half_open"
        fail(health)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_one_trial_at_a_time_and_its_answer_closes(health: Health, clock: Hand) -> None:
    for _ in range(3):
        fail(health)
    clock.now_s += 1
    trial = began(health)
    assert health.attempt(A) is None
    assert health.state(A) == "open"
    trial.answered()
    assert states(health) == CLOSED
    serve(health)
    trial.finished()
    trial.over()
    assert (health.out, health.of("one").outstanding) == (set(), 0)
    for _ in range(2):  # the row of failures and the growing pause are forgotten
        fail(health)
    assert health.state(A) == "closed"


def test_one_that_is_merely_busy_is_as_well_as_before(health: Health, clock: Hand) -> None:
    for _ in range(10):
        fail(health, UpstreamBusy())
    assert health.state(A) == "closed"
    for _ in range(3):
        fail(health)
    clock.now_s += 1.0
    fail(health, UpstreamBusy())
    assert health.state(A) == "half_open"
    serve(health)
    assert health.state(A) == "closed"


def test_a_trial_whose_caller_left_is_made_by_the_next(health: Health, clock: Hand) -> None:
    for _ in range(3):
        fail(health)
    clock.now_s += 1
    began(health).over()
    assert health.state(A) == "half_open"
    serve(health)
    assert health.state(A) == "closed"


def test_calls_that_began_before_it_opened_do_not_make_the_pause_longer(health: Health) -> None:
    crowd = [began(health) for _ in range(20)]
    assert health.of("one").outstanding == 20
    for attempt in crowd:
        attempt.failed(DOWN)
        attempt.over()
    assert (health.wait_s(A), health.of("one").outstanding) == (1.0, 0)


def test_an_answer_to_a_call_that_began_before_it_opened_closes_it(health: Health) -> None:
    early = began(health)
    for _ in range(3):
        fail(health)
    early.answered()
    assert health.state(A) == "closed"


def slow_calls(health: Health, clock: Hand, *, meanwhile: Offer) -> None:
    """Five calls of A take too long, while one of another offer is answered."""
    slow = [began(health) for _ in range(5)]
    clock.now_s += 60
    serve(health, meanwhile)
    clock.now_s += 60
    for attempt in slow:
        attempt.failed(UpstreamTimeout())
        attempt.over()
    assert len(health.of("one").errors) == 5  # which the pulse shows


def test_slow_calls_say_nothing_of_a_model_that_answers_others_meanwhile(health: Health, clock: Hand) -> None:
    slow_calls(health, clock, meanwhile=A)
    assert states(health) == CLOSED


def test_a_model_that_hangs_is_out_alone_where_others_answer(health: Health, clock: Hand) -> None:
    slow_calls(health, clock, meanwhile=B)
    assert (health.state(A), health.state(B)) == ("open", "closed")
    for _ in range(4):  # nor do its trials say anything of the others, of which none is called meanwhile
        clock.now_s += 600
        trial = began(health)
        clock.now_s += 120
        trial.failed(UpstreamTimeout())
        trial.over()
        assert (health.state(A), health.state(B)) == ("open", "closed")


def test_a_refusal_does_not_say_that_a_model_answers(health: Health, clock: Hand) -> None:
    slow = [began(health) for _ in range(3)]
    clock.now_s += 60
    refused = began(health)
    refused.answered(refused=True)
    refused.over()
    clock.now_s += 60
    for attempt in slow:
        attempt.failed(UpstreamTimeout())
        attempt.over()
    assert health.state(A) == "open"


def test_calls_that_all_take_too_long_at_once_are_failures_where_nothing_is_answered(
    health: Health, clock: Hand
) -> None:
    serve(health)
    clock.now_s += 1
    slow = [began(health) for _ in range(3)]
    clock.now_s += 120
    for attempt in slow:
        attempt.failed(UpstreamTimeout())
        attempt.over()
    assert health.state(A) == "open"


def test_streams_that_all_begin_and_all_break_are_failures_in_a_row(health: Health) -> None:
    for _ in range(3):
        attempt = began(health)
        attempt.answered()
        attempt.failed(UpstreamFailed("It broke off.", began=True))
        attempt.over()
    assert health.state(A) == "open"


@pytest.mark.parametrize(("asked_s", "left_alone_s"), [(0.0, 0.0), (0.25, 0.25), (7.0, 7.0), (10**9, 3600.0)])
def test_who_asks_for_a_pause_gets_just_that_and_no_more_than_an_hour(
    health: Health, clock: Hand, asked_s: float, left_alone_s: float
) -> None:
    fail(health, status(429, wait_s=asked_s))
    assert health.wait_s(A) == left_alone_s
    clock.now_s += left_alone_s
    assert states(health) == CLOSED
    serve(health)
    assert (states(health), health.out) == (CLOSED, set())


def test_after_a_pause_that_was_asked_for_everybody_may_call_at_once(health: Health, clock: Hand) -> None:
    fail(health, status(429, wait_s=0.5))
    clock.now_s += 0.5
    crowd = [began(health) for _ in range(10)]
    assert states(health) == CLOSED
    for attempt in crowd[:2]:
        attempt.failed(status(429))
        attempt.over()
    assert states(health) == CLOSED, "the pause was no failure"
    crowd[2].failed(status(429))
    assert (states(health), health.wait_s(A)) == (ONLY_A, 1.0)


def test_a_trial_that_asks_for_a_pause_is_followed_by_another_trial(health: Health, clock: Hand) -> None:
    for _ in range(3):
        fail(health)
    clock.now_s += 1
    fail(health, status(503, wait_s=5.0))
    assert (health.wait_s(A), health.state(A)) == (5.0, "open")
    clock.now_s += 5
    began(health)
    assert health.attempt(A) is None, "it has failed before"


@pytest.mark.parametrize(
    ("first", "trial", "after"),
    [
        pytest.param([DOWN] * 3, status(429, wait_s=1.0), "open", id="the provider's, and the model asks for a pause"),
        pytest.param([DOWN] * 3, ABSENT, "open", id="the provider's, and the model is not there"),
        pytest.param([status(429)] * 3, status(500), "half_open", id="the model's, and the provider fails"),
        pytest.param([ABSENT], DOWN, "half_open", id="the model's, and the provider is not reached"),
    ],
)
def test_a_trial_that_fails_for_another_reason_keeps_nobody_out_for_ever(
    health: Health, clock: Hand, first: list[UpstreamError], trial: UpstreamError, after: str
) -> None:
    for failure in first:
        fail(health, failure)
    clock.now_s += 1
    fail(health, trial)
    assert health.state(A) == after
    clock.now_s += 60
    serve(health)
    assert (states(health), health.out) == (CLOSED, set())


def test_a_trial_that_takes_longer_than_the_pause_holds_up_nobody(health: Health, clock: Hand) -> None:
    for _ in range(3):
        fail(health)
    clock.now_s += 1
    long = began(health)
    assert health.attempt(A) is None
    clock.now_s += 1
    serve(health)
    assert states(health) == CLOSED
    long.answered()
    long.over()
    assert states(health) == CLOSED


def test_of_one_that_hangs_a_call_in_each_pause_finds_out(health: Health, clock: Hand) -> None:
    for _ in range(3):
        fail(health)
    hanging = []
    for _ in range(5):
        clock.now_s += 1
        hanging.append(began(health))
        assert health.attempt(A) is None
    for attempt in hanging:
        attempt.failed(UpstreamTimeout())
        attempt.over()
    assert health.wait_s(A) == 8.0


def test_an_offer_that_is_no_more_is_forgotten(health: Health) -> None:
    fail(health, ABSENT)
    health.keep({("one", "a")})
    assert states(health) == ONLY_A
    health.keep({("one", "b")})
    assert (states(health), health.out) == (CLOSED, set())


def test_with_no_failures_to_count_nobody_is_ever_left_alone(clock: Hand) -> None:
    health = Health(HealthSettings(failures=0), clock, str)
    for failure in (DOWN, status(401), ABSENT, status(429, wait_s=9.0), status(503, wait_s=9.0)) * 3:
        fail(health, failure)
    assert states(health) == CLOSED


def test_no_such_model_as_a_trials_outcome_lets_the_next_model_try_the_provider(health: Health, clock: Hand) -> None:
    for _ in range(3):
        fail(health)
    clock.now_s += 1
    fail(health, ABSENT)
    assert (health.state(A), health.state(B)) == ("open", "half_open")
    serve(health, B)
    assert states(health) == ONLY_A


def test_a_failed_check_opens_and_a_good_one_closes_what_checks_have_opened(health: Health) -> None:
    health.check_failed("one", DOWN)
    assert states(health) == ALL_OF_ONE
    health.checked("one", ("a", "b"))
    assert states(health) == CLOSED
    for _ in range(3):
        fail(health)
    health.checked("one", ("a", "b"))
    assert states(health) == ALL_OF_ONE, "that it lists its models does not prove that it serves them"


def test_a_check_that_found_no_way_through_our_own_calls_says_nothing(health: Health, clock: Hand) -> None:
    health.check_failed("one", UpstreamBusy())
    assert (states(health), health.of("one").checked_s) == (CLOSED, clock.now_s)


def test_a_provider_that_is_configured_anew_starts_well(health: Health) -> None:
    for failure in (status(401), ABSENT):
        fail(health, failure, A if failure.upstream_status == 401 else OTHER)
    assert states(health) == ("open", "open", "open")
    health.forget("one")
    assert states(health) == ("closed", "closed", "open")
    health.forget("two")
    assert (states(health), health.out) == (CLOSED, set())


def test_the_last_failures_are_remembered_without_secrets(health: Health, clock: Hand) -> None:
    for number in range(7):
        clock.now_s = 100.0 + number
        health.note(A, UpstreamFailed(f"{number}: sk-secret"))
    assert [each.message for each in health.of("one").errors] == [f"{number}: ***" for number in range(2, 7)]
    assert [each.at_ms for each in health.of("one").errors] == [102_000, 103_000, 104_000, 105_000, 106_000]
    assert {(each.kind, each.model) for each in health.of("one").errors} == {("upstream_failed", "a")}


def test_latency_is_a_running_mean_and_the_last_success_is_known(health: Health, clock: Hand) -> None:
    for took_s in (1.0, 2.0):
        attempt = began(health)
        clock.now_s += took_s
        attempt.answered()
        attempt.finished()
        attempt.over()
    condition = health.of("one")
    assert condition.latency_s == pytest.approx(1.2)
    assert condition.succeeded_ms == 103_000


@pytest.mark.parametrize(("waits_s", "told"), [([], 1), ([0.0], 1), ([0.2, 9.0], 1), ([1.2], 2), ([900.0], 60)])
def test_a_caller_is_told_whole_seconds(waits_s: list[float], told: int) -> None:
    assert retry_after_s(waits_s) == told
