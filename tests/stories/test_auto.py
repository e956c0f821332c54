"""`auto` and failover: three providers, and what goes wrong with them. Breakers and pauses are the real ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import anthropic
import pytest

from penstock.api.surfaces import ROUTER as ROUTER_PLACE
from penstock.config import AutoSettings, ProviderSettings
from penstock.dialects import Dialect, Wish, openai_chat
from penstock.errors import InvalidRequest, NoHealthyProvider
from penstock.operations.actor import LOCAL, Actor
from penstock.operations.models import list_models
from penstock.relay.ask import Ask, Said
from tests.stories.caller import calling, data, eventually
from tests.stories.gateway import HELLO, ROUTER, TRUST, events
from tests.stories.three import ALL, CLASSES, INPUT, OUTPUT, PRICE, QUICK, Scene, scene
from tests.upstream import Exchange, Plain, Raw, Refusal, ScriptedUpstream, Stream


@pytest.fixture
async def here(store_url: str) -> AsyncIterator[Scene]:
    async with scene(store_url) as here:
        yield here


# The order.


async def test_auto_goes_to_gpu_then_cli_then_cloud_and_says_who_served(here: Scene) -> None:
    for number, name in enumerate(CLASSES, 1):
        answer = await here.ask()
        assert (answer.status_code, answer.json()["model"]) == (200, f"{name}-model")
        assert answer.headers["x-penstock-route"].startswith(f"{name};attempts={1 if number == 1 else 2};class={name}")
        record = (await here.gateway.usage(here.ada))[0]
        assert (record.provider, record.model, record.ended) == (name, f"{name}-model", "answer")
        assert record.cost.nano == (INPUT + OUTPUT) * PRICE[name] // 1_000_000
        here.upstreams[name].usual = Refusal(401)  # from now on this class is out, at the first call that meets it
    assert await here.spent() == sum((INPUT + OUTPUT) * price // 1_000_000 for price in PRICE.values())
    assert here.upstreams["gpu"].requests[0].json["model"] == "gpu-upstream"


async def test_a_failure_before_the_first_token_is_passed_over_and_one_record_names_who_served(here: Scene) -> None:
    here.upstreams["gpu"].script(Stream(break_after=0))
    here.upstreams["cli"].script(Refusal(500))
    here.upstreams["cloud"].script(Stream(tokens=3))
    async with calling(here.gateway.url) as caller:
        await caller.ask(ROUTER, here.ada, model="auto", stream=True)
        head = await caller.head()
        came = await caller.events()
    trail = "cloud;attempts=3;class=cloud;why=class;after=gpu:failed,cli:failed"
    assert (head.status, head.headers["x-penstock-route"]) == (200, trail)
    assert {data(event)["model"] for event in came[:-1]} == {"cloud-model"}
    (record,) = await here.gateway.usage(here.ada)
    assert (record.provider, record.model, record.attempts, record.status) == ("cloud", "cloud-model", 3, 200)
    assert await here.spent() == (INPUT + 3) * 300
    metrics = (await here.gateway.http.get("/metrics")).text
    assert 'penstock_failovers_total{next="cli",provider="gpu"} 1.0' in metrics
    assert 'penstock_failovers_total{next="cloud",provider="cli"} 1.0' in metrics


async def test_a_failure_after_the_first_token_is_an_error_frame_and_what_came_is_charged(here: Scene) -> None:
    here.upstreams["gpu"].script(Stream(tokens=50, break_after=5))
    async with calling(here.gateway.url) as caller:
        await caller.ask(ROUTER, here.ada, model="auto", stream=True)
        assert (await caller.head()).status == 200
        *words, error, done = await caller.events()
    assert (len(words), data(error)["error"]["code"], done) == (5, "upstream_failed", b"data: [DONE]\n\n")
    (record,) = await here.gateway.usage(here.ada)
    assert (record.provider, record.attempts, record.ended, record.output_tokens) == ("gpu", 1, "upstream_failed", 5)
    assert here.asked() == {"gpu": 1, "cli": 0, "cloud": 0}
    assert await here.spent() == (record.input_tokens + 5) * 100


async def test_a_concrete_id_pins_the_model_and_walks_the_same_order_over_its_offers(here: Scene) -> None:
    pinned = await here.ask("cloud-model")
    assert (pinned.json()["model"], here.asked()) == ("cloud-model", {"gpu": 0, "cli": 0, "cloud": 1})
    assert pinned.headers["x-penstock-route"] == "cloud;attempts=1;class=cloud;why=only"
    here.upstreams["gpu"].script(Refusal(500))
    walked = await here.ask(ALL)
    assert walked.json()["model"] == ALL
    assert walked.headers["x-penstock-route"] == "cli;attempts=2;class=cli;why=class;after=gpu:failed"


async def test_what_is_held_covers_the_dearest_and_what_is_charged_is_who_served(here: Scene) -> None:
    here.upstreams["gpu"].script(held := Plain(hold=True))
    call = asyncio.create_task(here.ask(max_tokens=1000))
    await here.upstreams["gpu"].arrival(1)
    credits = (await here.gateway.balance(here.ada)).credits
    assert credits.held.nano >= 1000 * 300
    held.resume.set()
    assert (await call).status_code == 200
    assert await here.spent() == (INPUT + OUTPUT) * 100


async def test_a_poor_caller_is_refused_when_the_dearest_is_not_covered(here: Scene) -> None:
    poor = await here.gateway.person()
    assert (await here.gateway.chat(ROUTER, poor, model="auto")).status_code == 402
    assert here.asked() == {"gpu": 0, "cli": 0, "cloud": 0}


async def test_an_own_alias_called_auto_wins_and_a_gateway_may_do_without(store_url: str) -> None:
    async with scene(store_url, cloud={"aliases": (("router", ("auto",)),)}) as here:
        answer = await here.ask()
        assert (answer.json()["model"], here.asked()["cloud"]) == ("auto", 1)
        assert (await here.ask(base=TRUST)).json()["model"] == "gpu-model"
    async with scene(store_url, auto=AutoSettings(enabled=False)) as here:
        refused = await here.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


async def test_auto_is_listed_where_it_can_be_had(here: Scene) -> None:
    listed = (await here.gateway.get(f"{ROUTER}/models", here.ada)).json()["data"]
    assert [each["id"] for each in listed] == ["cloud-model", "cli-model", "gpu-model", ALL, "auto"]
    assert (listed[-1]["pricing"], listed[-1]["context_length"]) == (None, None)
    assert "auto" not in [each["id"] for each in (await here.gateway.get(f"{TRUST}/models", here.ada)).json()["data"]]


async def test_auto_is_listed_and_found_as_anthropic_lists_models(store_url: str) -> None:
    far = {"context_length": 200_000, "max_output_tokens": 8_000}
    async with scene(store_url, cli=far, cloud={"context_length": 100_000}) as here:
        async with here.gateway.anthropic(here.ada) as client:
            listed = [model async for model in client.models.list(limit=2)]
            found = await client.models.retrieve("auto")
        assert [each.id for each in listed] == ["cloud-model", "cli-model", "gpu-model", ALL, "auto"]
        assert listed[-1] == found
        assert (found.type, found.display_name, found.max_input_tokens, found.max_tokens) == (
            "model", "auto", 200_000, 8_000,
        )  # fmt: skip
        key = await here.gateway.key("personal", user=here.ada.user, models=(ALL,))
        async with here.gateway.anthropic(here.ada, api_key=key.key) as client:
            assert [model.id async for model in client.models.list()] == [ALL]
            with pytest.raises(anthropic.NotFoundError):
                await client.models.retrieve("auto")
        async with here.gateway.anthropic(here.ada, base=TRUST) as client:
            assert "auto" not in [model.id async for model in client.models.list()]


@pytest.mark.parametrize("stream", [False, True])
async def test_auto_serves_anthropics_messages_and_names_the_concrete_model(here: Scene, stream: bool) -> None:
    here.upstreams["gpu"].script(Refusal(500))
    body = {"model": "auto", "max_tokens": 50, "messages": HELLO, "stream": stream}
    answer = await here.gateway.http.post(
        "/api/anthropic/v1/messages", json=body, headers={"x-api-key": here.ada.personal_key.key}
    )
    assert answer.headers["x-penstock-route"] == "cli;attempts=2;class=cli;why=class;after=gpu:failed"
    message = events(answer.text)[0]["message"] if stream else answer.json()
    assert (message["type"], message["model"]) == ("message", "cli-model")
    (record,) = await here.gateway.usage(here.ada)
    assert (record.model, record.provider, record.cost.nano) == ("cli-model", "cli", (INPUT + OUTPUT) * 200)


# Who is well.


async def test_a_provider_that_keeps_failing_is_left_alone_and_is_taken_up_again(store_url: str) -> None:
    async with scene(store_url, health=QUICK) as here:
        gpu = here.upstreams["gpu"]
        gpu.script(*[Refusal(500)] * 3)
        for _ in range(3):
            assert (await here.ask()).json()["model"] == "cli-model"

        async def healed() -> bool:
            return bool((await here.ask()).json()["model"] == "gpu-model")

        await eventually(healed)
        assert len(gpu.requests) == 4, "one call was its trial"
        assert (await here.ask()).json()["model"] == "gpu-model"


async def test_a_long_trial_keeps_others_out_for_one_pause_and_no_longer(store_url: str) -> None:
    async with scene(store_url, health=QUICK) as here:
        gpu = here.upstreams["gpu"]
        gpu.script(*[Refusal(500)] * 3, held := Plain(hold=True))
        for _ in range(3):
            await here.ask("gpu-model")

        async def trying() -> bool:
            trial = asyncio.create_task(here.ask("gpu-model"))
            tried.append(trial)
            await asyncio.wait({trial}, timeout=0.05)
            return len(gpu.requests) == 4

        tried: list[asyncio.Task[Any]] = []
        await eventually(trying)

        async def served() -> bool:
            return (await here.ask("gpu-model")).status_code == 200

        await eventually(served)
        held.resume.set()
        assert (await tried[-1]).status_code == 200


async def test_while_it_is_left_alone_nobody_asks_it_and_a_pinned_call_is_refused_at_once(here: Scene) -> None:
    here.upstreams["gpu"].script(*[Refusal(500)] * 3)
    for _ in range(3):
        assert (await here.ask("gpu-model")).status_code == 502
    refused = await here.ask("gpu-model")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_healthy_provider")
    assert refused.headers["retry-after"] == "60"
    assert here.asked()["gpu"] == 3
    served = await here.ask()
    assert served.headers["x-penstock-route"] == "cli;attempts=1;class=cli;why=class"
    metrics = (await here.gateway.http.get("/metrics")).text
    assert 'penstock_provider_state{provider="gpu",state="open"} 1.0' in metrics
    assert 'penstock_provider_state{provider="cli",state="closed"} 1.0' in metrics
    assert 'penstock_provider_outstanding{provider="cli"} 0.0' in metrics


async def test_a_request_that_an_upstream_refuses_is_nobodys_failure(here: Scene) -> None:
    here.upstreams["gpu"].script(*[Refusal(400, "A bad tool schema.")] * 5)
    for _ in range(5):
        refused = await here.ask()
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "A bad tool schema.")
    assert (await here.ask()).json()["model"] == "gpu-model"


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refusal(404, "There is no item 'rs_1'.", param="input"), 404),
        (Refusal(403, "It requires moderation, and your input was flagged."), 400),
        (Refusal(404, "File not found: file_011", type="not_found_error"), 404),
        (Refusal(400, "Invalid value: 'incorrect api key'. Supported values are: 'user'.", param="messages[0]"), 400),
        (Refusal(400, "Unknown role: API key not valid. Please pass another."), 400),
    ],
)
async def test_one_callers_bad_prompt_takes_a_provider_out_for_nobody(
    here: Scene, refusal: Refusal, status: int
) -> None:
    here.upstreams["gpu"].script(*[refusal] * 4)
    for _ in range(4):
        refused = await here.ask()
        assert (refused.status_code, refused.json()["error"]["message"]) == (status, refusal.message)
    assert (await here.ask()).json()["model"] == "gpu-model"


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refusal(404, "No endpoints found that support image input"), 404),
        (Refusal(402, "This request requires more credits, or fewer max_tokens. You can only afford 5000."), 413),
        (Refusal(429, "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 45000."), 413),
    ],
)
async def test_a_request_that_is_too_much_for_one_goes_to_the_next_and_takes_nobody_out(
    here: Scene, refusal: Refusal, status: int
) -> None:
    here.upstreams["gpu"].script(*[refusal] * 5)
    for _ in range(4):
        refused = await here.ask("gpu-model")
        assert (refused.status_code, refused.json()["error"]["type"]) == (status, "invalid_request_error")
    assert (await here.ask()).json()["model"] == "cli-model"
    assert (await here.ask()).json()["model"] == "gpu-model"


async def test_a_refusal_that_repeats_a_long_request_is_a_refusal_all_the_same(here: Scene) -> None:
    mistake = {"loc": ["body", "messages"], "msg": "Input should be a valid list", "input": "y" * 70_000}
    here.upstreams["gpu"].script(*[Raw(json.dumps({"detail": [mistake]}).encode(), status=422)] * 4)
    for _ in range(4):
        refused = await here.ask()
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "invalid_request_error")
    assert (await here.ask()).json()["model"] == "gpu-model"


async def test_a_request_that_is_too_long_for_one_goes_to_the_next(here: Scene) -> None:
    here.upstreams["gpu"].script(Refusal(400, "Too long.", code="context_length_exceeded"))
    answer = await here.ask()
    assert answer.json()["model"] == "cli-model"
    assert answer.headers["x-penstock-route"].endswith("after=gpu:too_long")
    for upstream in here.upstreams.values():
        upstream.usual = Refusal(400, "Too long.", code="context_length_exceeded")
    assert (await here.ask()).status_code == 400
    assert await here.spent() == (INPUT + OUTPUT) * 200


@pytest.mark.parametrize("model", ["auto", ALL])
async def test_when_nobody_is_well_the_answer_is_503_and_comes_at_once(store_url: str, model: str) -> None:
    async with scene(store_url) as here:
        for upstream in here.upstreams.values():
            upstream.usual = Refusal(401)
        statuses = [(await here.ask(model)).status_code for _ in range(2)]
        assert statuses[1] == 503
        refused = await here.ask(model)
        assert refused.json()["error"]["code"] == "no_healthy_provider"
        assert refused.elapsed.total_seconds() < 2
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert here.asked() == {"gpu": 1, "cli": 1, "cloud": 1}
        assert await here.spent() == 0


async def test_auto_with_nobody_there_says_so_at_the_first_call(store_url: str) -> None:
    async with scene(store_url) as here:
        for upstream in here.upstreams.values():
            await upstream.__aexit__(None, None, None)
        refused = await here.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_healthy_provider")
        assert "retry-after" in refused.headers
        assert refused.elapsed.total_seconds() < 2
        (record,) = await here.gateway.usage(here.ada)
        assert (record.attempts, record.amount, record.ended) == (3, 0, "upstream_failed")


async def test_a_failed_check_takes_a_provider_out_and_a_good_one_takes_it_in_again(store_url: str) -> None:
    async with scene(store_url) as here:
        office = here.gateway.office
        checked = [replace(each, health_check_s=0.001) for each in office.settings.providers if each.name == "gpu"]
        here.upstreams["gpu"].script(Refusal(500), Raw(b'{"data": [{"id": "gpu-upstream"}]}'))
        await office.pulse.look_at_due(checked)
        assert (await here.ask()).json()["model"] == "cli-model"

        async def checked_well() -> bool:
            await office.pulse.look_at_due(checked)
            return not office.upstreams.health.out

        await eventually(checked_well)
        assert (await here.ask()).json()["model"] == "gpu-model"
        assert office.upstreams.health.of("gpu").models == ("gpu-upstream",)


# Retry-After.


def busy(**headers: str) -> Refusal:
    return Refusal(429, headers=[(name.replace("_", "-"), value) for name, value in headers.items()])


@dataclass(frozen=True)
class AllAtOnce:
    """Does nothing before so many requests have come, and then the same with each."""

    upstream: ScriptedUpstream
    number: int
    then: Refusal

    async def play(self, exchange: Exchange) -> None:
        await self.upstream.arrival(self.number)
        await self.then.play(exchange)


async def test_one_that_asks_for_a_pause_is_left_alone_for_just_that(here: Scene) -> None:
    here.upstreams["gpu"].script(busy(retry_after="30"))
    assert (await here.ask()).json()["model"] == "cli-model"
    refused = await here.ask("gpu-model")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
    assert here.asked()["gpu"] == 1


async def test_a_short_pause_is_waited_for_when_there_is_nobody_else(here: Scene) -> None:
    here.upstreams["gpu"].script(busy(retry_after_ms="20"))
    answer = await here.ask("gpu-model")
    assert answer.status_code == 200
    assert answer.headers["x-penstock-route"] == "gpu;attempts=2;class=gpu;why=again;after=gpu:unavailable"
    (record,) = await here.gateway.usage(here.ada)
    assert (record.attempts, record.cost.nano) == (2, (INPUT + OUTPUT) * 100)


async def test_each_of_many_that_are_put_off_at_once_gets_its_second_call(here: Scene) -> None:
    here.upstreams["gpu"].script(*[AllAtOnce(here.upstreams["gpu"], 10, busy(retry_after_ms="300"))] * 10)
    answers = await asyncio.gather(*(here.ask("gpu-model") for _ in range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10
    assert here.asked()["gpu"] == 20


async def test_a_long_answer_after_a_pause_keeps_nobody_else_waiting(here: Scene) -> None:
    here.upstreams["gpu"].script(busy(retry_after_ms="20"), held := Plain(hold=True))
    long = asyncio.create_task(here.ask("gpu-model"))
    await here.upstreams["gpu"].arrival(2)
    assert (await here.ask("gpu-model")).status_code == 200
    held.resume.set()
    assert (await long).status_code == 200


async def test_a_long_pause_is_the_callers_to_wait_for(here: Scene) -> None:
    here.upstreams["gpu"].script(busy(retry_after="17"))
    refused = await here.ask("gpu-model")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "17")
    assert refused.json()["error"]["code"] == "upstream_unavailable"
    assert refused.elapsed.total_seconds() < 2


# What a call needs.

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
NEEDS: dict[str, dict[str, Any]] = {
    "tools": {"tools": [TOOL]},
    "images": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "json_schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}},
}


@pytest.mark.parametrize("need", NEEDS)
async def test_a_call_goes_to_who_can_do_what_it_needs(store_url: str, need: str) -> None:
    less = tuple(each for each in NEEDS if each != need)
    async with scene(store_url, gpu={"capabilities": less}, cli={"capabilities": ()}) as here:
        assert (await here.ask(**NEEDS[need])).json()["model"] == "cloud-model"
        assert (await here.ask()).json()["model"] == "gpu-model"
        refused = await here.ask("gpu-model", **NEEDS[need])
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_not_capable")
        assert need in refused.json()["error"]["message"]


async def test_a_call_goes_where_it_fits(store_url: str) -> None:
    gpu, cli, cloud = ({"context_length": length} for length in (100, 2_000, 3_000))
    async with scene(store_url, gpu=gpu, cli=cli, cloud=cloud) as here:
        assert (await here.ask()).json()["model"] == "gpu-model"
        assert (await here.ask(max_tokens=500)).json()["model"] == "cli-model"
        long = [{"role": "user", "content": "words " * 1_500}]
        assert (await here.ask(messages=long)).json()["model"] == "cloud-model"
        refused = await here.ask(messages=long, max_tokens=2_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        pinned = await here.ask("gpu-model", messages=long)
        assert pinned.status_code == 200, "of one model its upstream has the last word"


async def test_a_model_of_another_account_is_not_chosen(store_url: str) -> None:
    async with scene(store_url) as here:
        theirs = [replace(each, accounts=("acc_theirs",)) if each.name == "gpu" else each for each in _providers(here)]
        await here.gateway.gateway.reload(replace(here.gateway.office.settings, providers=tuple(theirs)))
        assert (await here.ask()).json()["model"] == "cli-model"
        assert (await here.ask("gpu-model")).status_code == 404


async def test_what_serves_other_accounts_alone_is_listed_for_them_alone(store_url: str) -> None:
    async with scene(store_url) as here:
        theirs = [replace(each, accounts=("acc_theirs",)) if each.name == "gpu" else each for each in _providers(here)]
        await here.gateway.gateway.reload(replace(here.gateway.office.settings, providers=tuple(theirs)))
        bearer = {"authorization": f"Bearer {here.ada.personal_key.key}"}
        listed = (await here.gateway.http.get(f"{ROUTER}/models", headers=bearer)).json()["data"]
        assert [each["id"] for each in listed] == ["cloud-model", "cli-model", ALL, "auto"]
        reader = Actor(frozenset({"read"}), frozenset({here.ada.account}), frozenset())
        models = {each.id: each for each in (await list_models(here.gateway.office, reader)).data}
        assert models.keys() == {"cloud-model", "cli-model", ALL}
        assert [offer.provider for offer in models[ALL].offers] == ["cloud", "cli"]
        assert len((await list_models(here.gateway.office, LOCAL)).data) == 4


def _providers(here: Scene) -> tuple[ProviderSettings, ...]:
    return here.gateway.office.settings.providers


async def test_a_key_with_a_list_of_models_has_auto_choose_among_them(here: Scene) -> None:
    key = await here.gateway.key("personal", user=here.ada.user, models=["cloud-model", ALL])
    assert (await here.ask(key=key)).json()["model"] == "cloud-model"


# What cannot be carried to an upstream's dialect.


class Particular:
    """OpenAI's chat, but for requests to some models there, which cannot be carried: as a pair refuses a field."""

    NAME, PATH, FORWARDED = openai_chat.NAME, openai_chat.PATH, openai_chat.FORWARDED
    peek = staticmethod(openai_chat.peek)
    answer = staticmethod(openai_chat.answer)
    open_stream = staticmethod(openai_chat.open_stream)

    def __init__(self, *refused: str) -> None:
        self._refused = refused

    def request(self, wish: Wish, *, model: str, **how: Any) -> bytes:
        if model in self._refused:
            raise InvalidRequest("There is nothing like it.", param="thinking")
        return openai_chat.request(wish, model=model, **how)


class Kept:
    """A reply that is kept."""

    ready = True

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    def when_gone(self, departure: Callable[[], None]) -> None: ...
    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.headers = dict(headers)

    def send(self, data: bytes) -> None:
        self.body += data

    finish = send

    async def drained(self) -> None: ...
    async def give_up(self) -> None: ...


async def carried(here: Scene, dialect: Particular) -> Kept:
    """A call of `auto` in a dialect of this kind."""

    async def body() -> bytes:
        return json.dumps({"model": "auto", "messages": HELLO}).encode()

    reply = Kept()
    key = f"Bearer {here.ada.personal_key.key}"
    id = here.gateway.office.ids.new("req")
    ask = Ask(id, ROUTER_PLACE.surface, "chat", cast(Dialect, dialect), Said(key, None, None, None), body)
    await here.gateway.gateway.relay.call(ask, reply)
    return reply


async def test_an_offer_that_a_request_cannot_be_carried_to_is_passed_over(here: Scene) -> None:
    reply = await carried(here, Particular("gpu-upstream", "cli-upstream"))
    trail = b"cloud;attempts=1;class=cloud;why=class;after=gpu:not_carried,cli:not_carried"
    assert (reply.headers[b"x-penstock-route"], json.loads(reply.body)["model"]) == (trail, "cloud-model")
    assert here.asked() == {"gpu": 0, "cli": 0, "cloud": 1}
    assert await here.spent() == (INPUT + OUTPUT) * 300


async def test_when_it_can_be_carried_to_nobody_the_field_is_named_and_nothing_charged(here: Scene) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await carried(here, Particular("gpu-upstream", "cli-upstream", "cloud-upstream"))
    assert refused.value.param == "thinking"
    here.upstreams["cloud"].script(Refusal(500))
    with pytest.raises(NoHealthyProvider):  # somebody could have served it
        await carried(here, Particular("gpu-upstream", "cli-upstream"))
    assert await here.spent() == 0
