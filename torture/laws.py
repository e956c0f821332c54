"""What must be true of each call: what the caller heard, what the upstream kept and what the store says, held together.

Plain functions of values; each returns the sentences in which the law was broken, none when all is well. A case is one
key: every call has a key of its own, so the store's records are joined to calls without any help from the gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.operations.usage import UsageView
from torture.caller import HUNG, Heard
from torture.script import INPUT_NANO, OUTPUT_NANO, Script, Told
from torture.store import Charge

NOT_SERVED = frozenset({"timeout", "upstream_failed", "shutdown"})  # free when nothing came: not the caller's doing


@dataclass(frozen=True, slots=True)
class Case:
    """One key's calls. `heard` has an entry for each time the caller asked, `told` one for each attempt upstream.

    `first` is the provider that is always asked first: what it was told is the number of requests that got through.
    """

    script: Script
    lane: str
    body_bytes: int
    limit: int
    first: str
    heard: tuple[Heard, ...]
    told: Sequence[Told]
    records: Sequence[UsageView]
    charges: dict[str, list[Charge]] = field(repr=False)
    once: bool = False

    @property
    def requests(self) -> int:
        """How many requests of the gateway reached the upstream."""
        return sum(told.provider == self.first for told in self.told)

    @property
    def counted(self) -> int:
        """What the upstream counted, in units of the lane."""
        return sum(self.cost(told.prompt, told.tokens) for told in self.told)

    def cost(self, prompt: int, tokens: int) -> int:
        return prompt + tokens if self.lane == "contract" else prompt * INPUT_NANO + tokens * OUTPUT_NANO

    @property
    def bound(self) -> int:
        """The most that may be set aside for a call: every byte as a token, and the whole output limit."""
        return self.cost(self.body_bytes, self.limit)

    def say(self, words: str) -> str:
        """A violation, with all that is needed to look into it."""
        records = [(r.request, r.state, r.ended, r.input_tokens, r.output_tokens, r.amount) for r in self.records]
        told = [(t.provider, t.prompt, t.tokens, t.events, t.reported, t.ended) for t in self.told]
        return f"{self.script.marker}: {words}; heard {self.heard}; told {told}; records {records}; {self.script}"


def of_every_call(case: Case) -> list[str]:
    """One record each, one charge for each lot and request, nothing beyond the hold or the upstream's count."""
    found = _one_record_each(case) + _charged_once(case)
    if any(heard.error == HUNG for heard in case.heard):
        found.append("the call never ended")
    known = {record.request for record in case.records}
    for heard in case.heard:
        if heard.status == 200 and not heard.replayed and heard.request not in known:
            found.append(f"request {heard.request} was answered and has no record")
    for record in case.records:
        if record.amount > case.bound:
            found.append(f"charged {record.amount}, more than the hold of {case.bound}")
    return [case.say(words) for words in found]


def of_a_killed_call(case: Case) -> list[str]:
    """A whole answer is charged exactly and for good; anything else costs no more than the upstream counted."""
    found = _replayed(case) if case.once else []
    total = sum(record.amount for record in case.records)
    if total > case.counted:
        found.append(f"charged {total}, more than the {case.counted} that the upstream counted")
    for heard in case.heard:
        if heard.answered:
            found += _exact(case, heard)
    answers = sum(record.ended == "answer" and record.state == "final" for record in case.records)
    if answers > 1:
        found.append(f"answered and charged {answers} times")
    if case.once and not any(heard.whole for heard in case.heard):
        found.append("asked again and again, and never answered")
    return [case.say(words) for words in found]


def of_a_cut_stream(case: Case, *, ended: Sequence[str], chunks: int | None, full: bool = False) -> list[str]:
    """One record, ended as it was cut, charged what the upstream's truth is.

    What is charged lies between what the caller heard and what the upstream wrote, and at most `chunks` below the
    latter: as many as the script lets be under way at the cut; None where it does not bound them. `full`: where the
    upstream's count did not come, all that was held may be charged.
    """
    if not case.requests:  # the caller left before anything was sent on
        return [case.say("charged without a request") for record in case.records if record.amount]
    if len(case.records) != 1:
        return []  # `of_every_call` has said so
    (record,), heard = case.records, case.heard[-1]
    found = _ended(record, ended) + _cost(case, record, full=full)
    wrote = sum(told.tokens for told in case.told)
    if not heard.tokens <= record.output_tokens <= wrote:
        found.append(f"heard {heard.tokens}, charged {record.output_tokens}, written {wrote}")
    if chunks is not None and wrote - record.output_tokens > chunks * case.script.chunk:
        found.append(f"charged {record.output_tokens} of {wrote}, more than {chunks} of {case.script.chunk} below")
    if heard.whole and not record.estimated and not heard.left and record.output_tokens != heard.tokens:
        found.append(f"heard {heard.tokens} whole, charged {record.output_tokens}")
    return [case.say(words) for words in found]


def of_a_reported_call(case: Case) -> list[str]:
    """The upstream has finished and reported: the charge is its count. Nothing to say when it was never asked."""
    return [case.say(words) for told in case.told for record in case.records for words in _counted(case, record, told)]


def _one_record_each(case: Case) -> list[str]:
    count, requests, asked = len(case.records), case.requests, len(case.heard)
    if requests <= count <= (asked if case.once else 1):
        return []
    return [f"asked {asked} times, {requests} requests reached the upstream, {count} usage records"]


def _charged_once(case: Case) -> list[str]:
    """The journal agrees with each record, and took from no lot twice."""
    found = []
    for record in case.records:
        charges = case.charges.get(record.request, [])
        if sum(charge.amount for charge in charges) != record.amount:
            found.append(f"the journal has {charges} for a record of {record.amount}")
        if len({charge.lot for charge in charges}) != len(charges):
            found.append(f"the journal took twice from a lot: {charges}")
    return found


def _exact(case: Case, heard: Heard) -> list[str]:
    """The record of a whole answer is final and says what the upstream that served it counted."""
    if heard.replayed:  # of an earlier request, which has its own record
        known = [told.tokens for told in case.told if told.ended == "finished"]
        return [] if heard.tokens in known else [f"replayed {heard.tokens} tokens, served {known}"]
    record = next((record for record in case.records if record.request == heard.request), None)
    if record is None:
        return []  # `of_every_call` has said so
    if record.state != "final" or record.ended != "answer":
        return [f"answered whole, and the record is {record.state}, {record.ended}"]
    served = [told for told in case.told if told.ended == "finished" and told.tokens == record.output_tokens]
    if not served:
        return [f"nothing that the upstream finished has the {record.output_tokens} tokens of the record"]
    return _counted(case, record, served[-1])


def _replayed(case: Case) -> list[str]:
    """After an idempotency key's first whole answer, every other one is that answer again."""
    answered = [heard for heard in case.heard if heard.answered]
    fresh = [heard.request for heard in answered[1:] if not heard.replayed]
    return [f"answered anew as {fresh} after it had been answered"] if fresh else []


def _counted(case: Case, record: UsageView, told: Told) -> list[str]:
    if (record.input_tokens, record.output_tokens) != (told.prompt, told.tokens):
        return [f"recorded {record.input_tokens} + {record.output_tokens}, counted {told.prompt} + {told.tokens}"]
    owed = case.cost(told.prompt, told.tokens)
    if record.amount + record.uncollected != owed:
        return [f"charged {record.amount} and {record.uncollected} uncollected, counted {owed}"]
    return []


def _ended(record: UsageView, expected: Sequence[str]) -> list[str]:
    return [] if record.ended in expected else [f"ended as {record.ended}, and not as {' or '.join(expected)}"]


def _cost(case: Case, record: UsageView, *, full: bool) -> list[str]:
    """The amount follows from the tokens, and the prompt is the upstream's."""
    owed = case.cost(record.input_tokens, record.output_tokens)
    prompt = max(told.prompt for told in case.told)
    if record.ended in NOT_SERVED and not record.output_tokens:
        owed = prompt = 0
    found = [] if record.input_tokens == prompt else [f"recorded a prompt of {record.input_tokens}, counted {prompt}"]
    collected = record.amount + record.uncollected
    if full and record.estimated:
        return found + ([] if owed <= collected <= case.bound else [f"charged {collected} of a full call: {owed}"])
    return found + ([] if collected == owed else [f"charged {collected}, the tokens come to {owed}"])
