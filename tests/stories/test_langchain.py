"""LangChain's own suite for chat models, run against a gateway: each of its models over each dialect of an upstream.

The suite calls without an event loop, so the gateway is a process here, and what it stands before is in a thread. What
the suite would download is made here: nothing else of it is changed.
"""

from __future__ import annotations

import asyncio
import functools
import operator
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import httpx
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.stories.gateway import ANTHROPIC, ROUTER, running
from tests.stories.process import configuration, serving_process, settings_of, verified
from tests.talkative import CACHED, OUTPUT, PROMPT, THOUGHT, Talkative
from tests.upstream import ScriptedUpstream

pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),  # of what LangChain parsed itself
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
    pytest.mark.filterwarnings("ignore:OpenAI may require a filename:UserWarning"),
]
PROVIDER = """
[providers.{dialect}]
base_url = "{upstream}"
dialects = ["{dialect}"]
[[models]]
id = "over_{dialect}"
offers = [{{ provider = "{dialect}" }}]
price = {{ input = 0.1, output = 2 }}
"""
DIALECTS = ("openai_chat", "openai_responses", "anthropic_messages")


@dataclass(frozen=True)
class Door:
    """Where the gateway is, and a key for it."""

    url: str
    key: str


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Door]:
    """A gateway before upstreams that talk; in the end all that they counted has been charged, and nothing else."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(Talkative()))
        config = configuration(folder, upstream.base_url)
        more = (PROVIDER.format(dialect=each, upstream=upstream.base_url) for each in DIALECTS)
        config.write_text(config.read_text() + "".join(more))
        async with running(settings_of(config)) as gateway:
            ada = await gateway.person(usd="1")
        async with serving_process(config) as process:
            yield Door(process.url, ada.personal_key.key)
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        assert await verified(config)
        calls = sum(each.method == "POST" for each in upstream.requests)
        async with running(settings_of(config)) as gateway:
            records = await gateway.usage(ada)
            assert [sum(each.attempts for each in records), len(records)] == [calls, calls]
            assert sum(each.output_tokens for each in records) == upstream.tokens_produced == calls * OUTPUT
            assert await gateway.nano(ada) == 10**9 - calls * (PROMPT * 100 + OUTPUT * 2_000)


@contextmanager
def loop_aside() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, while this one is busy."""
    started: Future[asyncio.AbstractEventLoop] = Future()
    ended = asyncio.Event()

    async def turn() -> None:
        started.set_result(asyncio.get_running_loop())
        await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(turn(),))
    thread.start()
    loop = started.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with loop_aside() as loop:
        stack = opened(tmp_path_factory.mktemp("langchain"))
        yield asyncio.run_coroutine_threadsafe(stack.__aenter__(), loop).result()
        asyncio.run_coroutine_threadsafe(stack.__aexit__(None, None, None), loop).result()


class Suite(ChatModelIntegrationTests):
    """The suite with everything on that a gateway has to carry."""

    door: Door
    dialect: str  # what the upstream speaks
    details: tuple[str, ...] = ("cache_read_input", "reasoning_output")
    thinking: ClassVar[dict[str, Any]] = {}  # what a model is told when it is to think

    @pytest.fixture(autouse=True)
    def at_the_door(self, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        self.door = door
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "nobody is asked")
        monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, content=b"\x89PNG, or so"))

    @pytest.fixture
    def benchmark(self) -> None:
        """It belongs to a plugin that is off, and to a test that skips itself."""

    @pytest.fixture
    def vcr(self) -> None:
        """The same."""

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": list(self.details), "stream": list(self.details)}

    @property
    def model_override_value(self) -> str:
        return "metered"

    @property
    def common(self) -> dict[str, Any]:
        """What both packages take. They keep their clients beyond a test and its loop, so no connection may stay."""
        leave = {"connection": "close"}
        return {"model": f"over_{self.dialect}", "api_key": self.door.key, "max_retries": 0, "default_headers": leave}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return asked(self.chat_model_class(**self.chat_model_params), stream=stream)

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return asked(self.chat_model_class(**self.chat_model_params, **self.thinking), stream=stream)


def asked(model: BaseChatModel, *, stream: bool) -> AIMessage:
    """An answer, whole or put together; the counts of its details are those of the upstream."""
    if stream:
        chunks: list[Any] = list(model.stream("Hello"))
        answer: Any = functools.reduce(operator.add, chunks)
    else:
        answer = model.invoke("Hello")
    usage = answer.usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"]) == (PROMPT, OUTPUT)
    assert usage["input_token_details"]["cache_read"] == CACHED
    assert usage.get("output_token_details", {}).get("reasoning", 0) in (0, THOUGHT)
    return cast(AIMessage, answer)


class OverOpenAI(Suite):
    """What `ChatOpenAI` says."""

    thinking: ClassVar[dict[str, Any]] = {"reasoning_effort": "low"}
    more: ClassVar[dict[str, Any]] = {}

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.door.url + ROUTER, "stream_usage": True, **self.common, **self.more}

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return self.dialect != "anthropic_messages"  # which has no such mode: it is refused by name


class TestChatOverChat(OverOpenAI):
    dialect = "openai_chat"

    @property
    def supports_audio_inputs(self) -> bool:
        return True


class TestChatOverMessages(OverOpenAI):
    dialect = "anthropic_messages"


class Responses(OverOpenAI):
    thinking: ClassVar[dict[str, Any]] = {"reasoning": {"effort": "low", "summary": "auto"}}
    more: ClassVar[dict[str, Any]] = {"use_responses_api": True}


class TestResponsesOverResponses(Responses):
    dialect = "openai_responses"


class TestResponsesOverChat(Responses):
    dialect = "openai_chat"


class TestResponsesOverMessages(Responses):
    dialect = "anthropic_messages"


class OverAnthropic(Suite):
    """What `ChatAnthropic` says."""

    details = ("cache_read_input",)  # it does not tell how much was thought

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.door.url + ANTHROPIC, **self.common}

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True


class TestMessagesOverMessages(OverAnthropic):
    dialect = "anthropic_messages"


class TestMessagesOverChat(OverAnthropic):
    dialect = "openai_chat"
