"""The laws of the crash and cut proof: each is broken here by hand, and says so. A proof that cannot fail is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from penstock.operations.usage import UsageView
from penstock.operations.values import amount
from torture.caller import HUNG, Heard
from torture.laws import (
    Case,
    of_a_cut_stream,
    of_a_killed_call,
    of_a_reported_call,
    of_every_call,
)
from torture.script import INPUT_NANO, OUTPUT_NANO, Script, Told
from torture.store import Charge
from torture.table import Row, exit_code, rendered

PROMPT, TOKENS = 20, 30
OWED = PROMPT * INPUT_NANO + TOKENS * OUTPUT_NANO


def told(**changes: Any) -> Told:
    """The upstream finished, reported, and counted all."""
    usual = Told("h/1", "main", 64, prompt=PROMPT, tokens=TOKENS, events=6, reported=True, ended="finished")
    return structs.replace(usual, **changes)


def heard(**changes: Any) -> Heard:
    """A whole answer."""
    return structs.replace(Heard("req_1", 200, TOKENS, 6, whole=True, finish="stop"), **changes)


def record(**changes: Any) -> UsageView:
    """A record that says what the upstream counted."""
    fields: dict[str, Any] = dict.fromkeys(UsageView.__dataclass_fields__, "")
    fields |= {"request": "req_1", "input_tokens": PROMPT, "output_tokens": TOKENS, "amount": OWED, "uncollected": 0}
    fields |= {"cost": amount(OWED), "ended": "answer", "state": "final", "estimated": False}
    return UsageView(**fields | changes)


def case(**changes: Any) -> Case:
    """A call of which everything is true."""
    whole = Case(
        script=Script("h/1", TOKENS, chunk=5),
        lane="credits",
        body_bytes=200,
        limit=64,
        first="main",
        heard=(heard(),),
        told=(told(),),
        records=(record(),),
        charges={"req_1": [Charge("lot:1", OWED)]},
    )
    return replace(whole, **changes)


def cut(**changes: Any) -> Case:
    """A stream that its caller left after 25 tokens, one chunk before what was written."""
    left = heard(tokens=25, events=5, whole=False, finish="", left=True)
    return case(heard=(left,), told=(told(ended="left"),), records=(record(ended="caller_gone"),), **changes)


def of_a_caller_gone(given: Case) -> list[str]:
    return of_a_cut_stream(given, ended=("caller_gone",), chunks=1)


def test_a_call_of_which_all_is_true_breaks_no_law() -> None:
    for law in (of_every_call, of_a_killed_call, of_a_reported_call):
        assert law(case()) == []
    assert of_every_call(cut()) == of_a_caller_gone(cut()) == []


TWICE = {"req_1": [Charge("lot:1", OWED - 1), Charge("lot:1", 1)]}
BROKEN: dict[str, tuple[Callable[[Case], list[str]], Case]] = {
    "a call is lost": (of_every_call, case(records=())),
    "a call has two records": (of_every_call, case(records=(record(), record(request="req_2", amount=0)))),
    "an answer has no record": (of_every_call, case(heard=(heard(request="req_9"),))),
    "a call never ends": (of_every_call, case(heard=(heard(error=HUNG),))),
    "the journal has less": (of_every_call, case(charges={})),
    "a lot is charged twice": (of_every_call, case(charges=TWICE)),
    "more than the hold is charged": (of_every_call, case(body_bytes=1, limit=TOKENS - 1)),
    "more than was counted is charged": (of_a_killed_call, case(told=(told(tokens=TOKENS - 1, ended="left"),))),
    "a whole answer is charged too little": (of_a_killed_call, case(records=(record(amount=OWED - 1),))),
    "a whole answer is recorded too low": (of_a_killed_call, case(records=(record(output_tokens=TOKENS - 1),))),
    "a whole answer ended as something else": (of_a_killed_call, case(records=(record(ended="caller_gone"),))),
    "a settlement is lost with its process": (
        of_a_killed_call,
        case(records=(record(state="review", ended="crash", amount=0),), charges={}),
    ),
    "one key is answered twice": (
        of_a_killed_call,
        case(once=True, heard=(heard(), heard(request="req_2")), records=(record(), record(request="req_2"))),
    ),
    "one key is answered anew": (
        of_a_killed_call,
        case(once=True, heard=(heard(), heard(request="req_2")), records=(record(), record(request="req_2", amount=0))),
    ),
    "a replay is of another answer": (of_a_killed_call, case(once=True, heard=(heard(replayed=True, tokens=1),))),
    "a key is never answered": (of_a_killed_call, case(once=True, heard=(heard(whole=False),))),
    "a count is not believed": (of_a_reported_call, case(records=(record(input_tokens=PROMPT - 1),))),
    "a cut ended as something else": (of_a_caller_gone, replace(cut(), records=(record(ended="timeout"),))),
    "what was heard is not charged": (
        of_a_caller_gone,
        replace(cut(), records=(record(ended="caller_gone", output_tokens=20, amount=OWED - 10 * OUTPUT_NANO),)),
    ),
    "a chunk too much is lost": (of_a_caller_gone, replace(cut(), told=(told(tokens=TOKENS + 6, ended="left"),))),
    "more than was written is charged": (of_a_caller_gone, replace(cut(), told=(told(tokens=26, ended="left"),))),
    "the amount is not the tokens'": (
        of_a_caller_gone,
        replace(cut(), records=(record(ended="caller_gone", amount=1),)),
    ),
    "who was never sent on pays": (of_a_caller_gone, replace(cut(), told=())),
}


@pytest.mark.parametrize(("law", "broken"), BROKEN.values(), ids=BROKEN)
def test_a_broken_law_is_found(law: Callable[[Case], list[str]], broken: Case) -> None:
    (words, *_) = law(broken)
    assert words.startswith("h/1: ")


def test_one_violation_in_any_row_ends_the_run_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Row("cut money", "sqlite", "a law", 7), Row("kill", "sqlite", "another", 7)
    assert exit_code([good, bad]) == 0
    bad.found(["broken"], seed=9)
    assert exit_code([good, bad]) == 1
    assert "python -m torture kill --engine sqlite --seed 9 --histories 1" in capsys.readouterr().err
    assert [line.count("|") for line in rendered([good, bad]).splitlines()] == [9] * 4
