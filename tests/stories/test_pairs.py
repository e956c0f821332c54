"""The official SDKs through every pair of dialects, and each dialect through itself: the same four talks in every cell.

A cell is what a client speaks and what the provider behind the gateway speaks. In each of them something is said,
tools are called side by side and answered, the model thinks, and an answer has the form of a schema: whole, and with
the SDK's helper for streams. What a client got, why it ended, what was counted and charged is the same in all of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict

from penstock.config import ModelSettings, OfferSettings, PriceSettings, ProviderSettings, Settings
from tests.engines import only_on_sqlite
from tests.stories.gateway import ROUTER, Person, Running, settings_for
from tests.talkative import CACHED, MUSING, OUTPUT, PROMPT, THOUGHT, Talkative
from tests.talkative import HELLO as ANSWER
from tests.upstream import ScriptedUpstream

pytestmark = only_on_sqlite  # what is said is the same whatever keeps the books

CHAT, RESPONSES, MESSAGES = "openai_chat", "openai_responses", "anthropic_messages"
PRICE = PriceSettings(input=2_000_000, cached_input=1_000_000, output=10_000_000, reasoning=30_000_000)
COST = (PROMPT - CACHED) * 2 + CACHED + OUTPUT * 10  # nano-USD a call
COST_OF_THOUGHT = THOUGHT * (30 - 10)  # and so much more when it thinks
QUESTION = "How is it in 'Bern' and in 'Rome'?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
LIMIT = 3_000  # tokens, of which thinking needs many


class Trip(BaseModel):
    """What an answer is to look like."""

    model_config = ConfigDict(extra="forbid")
    city: str


@dataclass(frozen=True)
class Got:
    """What a client has of an answer. `turn` is what it sends back to go on; calls are ids, names and arguments."""

    text: str
    stop: str | None
    counts: tuple[int, int, int]  # of the prompt, of that from a cache, of the answer
    turn: list[Any] = field(default_factory=list)
    calls: tuple[tuple[str, str, Any], ...] = ()
    thought: str = ""
    parsed: Any = None


@dataclass(frozen=True)
class Wanted:
    """What a client asks for: `said` are turns after the question, in its own dialect."""

    question: str = "Hello!"
    said: Sequence[Any] = ()
    tools: bool = False
    thinks: bool = False
    form: bool = False
    streamed: bool = False


class Chat:
    """Chat completions of the OpenAI SDK."""

    STOPS = ("stop", "tool_calls")

    def __init__(self, of_openai: AsyncOpenAI, of_anthropic: AsyncAnthropic) -> None:
        self._completions = of_openai.chat.completions

    async def ask(self, wanted: Wanted) -> Got:
        tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}
        wish: Any = {
            "model": "metered",
            "max_completion_tokens": LIMIT,
            "messages": [{"role": "user", "content": wanted.question}, *wanted.said],
            **({"tools": [tool]} if wanted.tools else {}),
            **({"reasoning_effort": "low"} if wanted.thinks else {}),
            **({"response_format": Trip} if wanted.form else {}),
        }
        if wanted.streamed:
            async with self._completions.stream(**wish, stream_options={"include_usage": True}) as stream:
                answer: Any = await stream.get_final_completion()
        else:
            answer = await (self._completions.parse if wanted.form else self._completions.create)(**wish)
        said, usage = answer.choices[0].message, answer.usage
        calls = said.tool_calls or ()
        return Got(
            text=said.content or "",
            stop=answer.choices[0].finish_reason,
            counts=(usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens),
            turn=[said.model_dump(exclude_none=True, exclude={"parsed"})],
            calls=tuple((each.id, each.function.name, json.loads(each.function.arguments)) for each in calls),
            thought=getattr(said, "reasoning_content", None) or "",
            parsed=getattr(said, "parsed", None),
        )

    @staticmethod
    def results(calls: Sequence[tuple[str, str]]) -> list[Any]:
        return [{"role": "tool", "tool_call_id": id, "content": result} for id, result in calls]


class Responses:
    """Responses of the OpenAI SDK."""

    STOPS = ("completed", "completed")

    def __init__(self, of_openai: AsyncOpenAI, of_anthropic: AsyncAnthropic) -> None:
        self._responses = of_openai.responses

    async def ask(self, wanted: Wanted) -> Got:
        tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
        wish: Any = {
            "model": "metered",
            "max_output_tokens": LIMIT,
            "input": [{"role": "user", "content": wanted.question}, *wanted.said],
            **({"tools": [tool]} if wanted.tools else {}),
            **({"reasoning": {"effort": "low", "summary": "auto"}} if wanted.thinks else {}),
            **({"text_format": Trip} if wanted.form else {}),
        }
        if wanted.streamed:
            async with self._responses.stream(**wish) as stream:
                answer: Any = await stream.get_final_response()
        else:
            answer = await (self._responses.parse if wanted.form else self._responses.create)(**wish)
        calls = [item for item in answer.output if item.type == "function_call"]
        thoughts = [part.text for item in answer.output if item.type == "reasoning" for part in item.summary]
        return Got(
            text=answer.output_text,
            stop=answer.status,
            counts=(
                answer.usage.input_tokens,
                answer.usage.input_tokens_details.cached_tokens,
                answer.usage.output_tokens,
            ),
            turn=[item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in answer.output],
            calls=tuple((each.call_id, each.name, json.loads(each.arguments)) for each in calls),
            thought="".join(thoughts),
            parsed=answer.output_parsed if wanted.form else None,
        )

    @staticmethod
    def results(calls: Sequence[tuple[str, str]]) -> list[Any]:
        return [{"type": "function_call_output", "call_id": id, "output": result} for id, result in calls]


class Messages:
    """Messages of Anthropic's SDK."""

    STOPS = ("end_turn", "tool_use")

    def __init__(self, of_openai: AsyncOpenAI, of_anthropic: AsyncAnthropic) -> None:
        self._messages = of_anthropic.messages

    async def ask(self, wanted: Wanted) -> Got:
        wish: Any = {
            "model": "metered",
            "max_tokens": LIMIT,
            "messages": [{"role": "user", "content": wanted.question}, *wanted.said],
            **({"tools": [{"name": "weather", "input_schema": SCHEMA}]} if wanted.tools else {}),
            **({"thinking": {"type": "enabled", "budget_tokens": 1_024}} if wanted.thinks else {}),
            **({"output_format": Trip} if wanted.form else {}),
        }
        if wanted.streamed:
            async with self._messages.stream(**wish) as stream:
                answer: Any = await stream.get_final_message()
        else:
            answer = await (self._messages.parse if wanted.form else self._messages.create)(**wish)
        usage = answer.usage
        return Got(
            text="".join(each.text for each in answer.content if each.type == "text"),
            stop=answer.stop_reason,
            counts=(
                usage.input_tokens + usage.cache_read_input_tokens,
                usage.cache_read_input_tokens,
                usage.output_tokens,
            ),
            turn=[{"role": "assistant", "content": answer.content}],
            calls=tuple((each.id, each.name, each.input) for each in answer.content if each.type == "tool_use"),
            thought="".join(each.thinking for each in answer.content if each.type == "thinking"),
            parsed=answer.parsed_output if wanted.form else None,
        )

    @staticmethod
    def results(calls: Sequence[tuple[str, str]]) -> list[Any]:
        blocks = [{"type": "tool_result", "tool_use_id": id, "content": result} for id, result in calls]
        return [{"role": "user", "content": blocks}]


class Completions:
    """Legacy completions of the OpenAI SDK, which can be asked for words alone."""

    STOPS = ("stop", "stop")

    def __init__(self, of_openai: AsyncOpenAI, of_anthropic: AsyncAnthropic) -> None:
        self._completions = of_openai.completions

    async def ask(self, wanted: Wanted) -> Got:
        wish: Any = {"model": "metered", "prompt": wanted.question, "max_tokens": LIMIT}
        if wanted.streamed:
            stream = await self._completions.create(**wish, stream=True, stream_options={"include_usage": True})
            pieces: list[Any] = [piece async for piece in stream]
        else:
            pieces = [await self._completions.create(**wish)]
        choices, usage = [choice for piece in pieces for choice in piece.choices], pieces[-1].usage
        return Got(
            text="".join(choice.text for choice in choices),
            stop=choices[-1].finish_reason,
            counts=(usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens),
        )

    @staticmethod
    def results(calls: Sequence[tuple[str, str]]) -> list[Any]:
        raise NotImplementedError


CELLS: list[tuple[Callable[[AsyncOpenAI, AsyncAnthropic], Any], str]] = [
    (Chat, CHAT),
    (Chat, MESSAGES),
    (Responses, RESPONSES),
    (Responses, CHAT),
    (Responses, MESSAGES),
    (Messages, MESSAGES),
    (Messages, CHAT),
]
NAMES = [f"{client.__name__}-{spoken}" for client, spoken in CELLS]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=NAMES, indirect=True)
every_cell_with_words = pytest.mark.parametrize(
    "cell", [*CELLS, (Completions, CHAT)], ids=[*NAMES, f"Completions-{CHAT}"], indirect=True
)


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def settings(store_url: str, upstream: ScriptedUpstream, cell: Any) -> Settings:
    """One provider, that speaks what the cell says and nothing else."""
    upstream.usual = Talkative()
    main = ProviderSettings("main", base_url=upstream.base_url, api_key="sk-upstream-0123456789", dialects=(cell[1],))
    model = ModelSettings("metered", offers=(OfferSettings("main", "far-away"),), price=PRICE)
    return replace(settings_for(store_url), providers=(main,), models=(model,), contracts=())


@pytest.fixture
async def ada(gateway: Running) -> Person:
    return await gateway.person(usd="1")


@pytest.fixture
async def client(gateway: Running, ada: Person, cell: Any) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        of_openai = await stack.enter_async_context(gateway.sdk(ROUTER, ada))
        yield cell[0](of_openai, await stack.enter_async_context(gateway.anthropic(ada)))


async def charged(gateway: Running, ada: Person) -> int:
    return 10**9 - await gateway.nano(ada)


@every_cell_with_words
async def test_words_come_whole_and_in_pieces(gateway: Running, ada: Person, client: Any) -> None:
    for calls, streamed in enumerate((False, True), 1):
        got = await client.ask(Wanted(streamed=streamed))
        assert (got.text, got.stop, got.thought, got.calls) == (ANSWER, client.STOPS[0], "", ())
        assert got.counts == (PROMPT, CACHED, OUTPUT)
        assert await charged(gateway, ada) == calls * COST


@every_cell
@pytest.mark.parametrize("thinks", [False, True])
async def test_tools_are_called_side_by_side_and_their_results_told(
    gateway: Running, ada: Person, client: Any, upstream: ScriptedUpstream, thinks: bool
) -> None:
    for streamed in (False, True):
        question = Wanted(QUESTION, tools=True, thinks=thinks, streamed=streamed)
        first = await client.ask(question)
        ids, names, arguments = zip(*first.calls, strict=True)
        assert (names, arguments) == (("weather", "weather"), ({"city": "Bern"}, {"city": "Rome"}))
        assert (first.text, first.stop, first.thought) == ("", client.STOPS[1], MUSING if thinks else "")
        results = client.results(list(zip(ids, ("sunny", "wet"), strict=True)))
        second = await client.ask(replace(question, said=[*first.turn, *results]))
        assert (second.text, second.stop, second.calls) == ("It is: sunny, wet.", client.STOPS[0], ())
        assert (MUSING in upstream.requests[-1].body.decode()) == thinks  # what was thought goes back with its calls
    cost = COST + (COST_OF_THOUGHT if thinks else 0)
    assert await charged(gateway, ada) == len(upstream.requests) * cost == 4 * cost


@every_cell
async def test_what_is_thought_is_seen_and_charged_as_thought(gateway: Running, ada: Person, client: Any) -> None:
    for calls, streamed in enumerate((False, True), 1):
        got = await client.ask(Wanted(thinks=True, streamed=streamed))
        assert (got.thought, got.text, got.stop) == (MUSING, ANSWER, client.STOPS[0])
        assert got.counts == (PROMPT, CACHED, OUTPUT)
        assert await charged(gateway, ada) == calls * (COST + COST_OF_THOUGHT)


@every_cell
async def test_an_answer_has_the_form_of_a_schema(gateway: Running, ada: Person, client: Any) -> None:
    for calls, streamed in enumerate((False, True), 1):
        got = await client.ask(Wanted(form=True, streamed=streamed))
        assert (got.parsed, json.loads(got.text), got.stop) == (
            Trip(city="a word"),
            {"city": "a word"},
            client.STOPS[0],
        )
        assert await charged(gateway, ada) == calls * COST


NO_WAY = [(Chat, RESPONSES), (Messages, RESPONSES), (Completions, MESSAGES), (Completions, RESPONSES)]


@pytest.mark.parametrize("cell", NO_WAY, ids=[f"{each.__name__}-{spoken}" for each, spoken in NO_WAY], indirect=True)
async def test_where_there_is_no_way_the_call_is_refused_in_words_and_free(
    gateway: Running, ada: Person, client: Any, cell: Any, upstream: ScriptedUpstream
) -> None:
    for streamed in (False, True):
        with pytest.raises((openai.BadRequestError, anthropic.BadRequestError), match=f"no way to {cell[1]}"):
            await client.ask(Wanted(streamed=streamed))
    assert upstream.requests == []
    assert await charged(gateway, ada) == 0
