"""Local command lines as upstreams: what they get, what comes of what they print, and that nothing of them is left.

Each call runs `tests/scripted_cli.py`, a real process, the way its template would run the real command.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.config import CommandOutput, ModelSettings, OfferSettings, PriceSettings, ProviderSettings, Settings
from penstock.errors import NotCarried, UpstreamFailed, UpstreamTimeout, UpstreamUnavailable
from penstock.ports import Answer, Call
from penstock.providers.cli.provider import CliProvider
from tests.scripted_cli import Step, claude, claude_delta, claude_result, codex, gemini, gone, lines, seen, write_script
from tests.stories.caller import calling, eventually, the_record
from tests.stories.gateway import HELLO, ROUTER, TRUST, Person, Running, events, running, settings_for
from tests.upstream import Plain, ScriptedUpstream

WORDS = ("Paid", " for", " ahead", " of", " time.")  # five tokens, as the scripted Claude Code counts them
ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.json"


def provider(script: Path, *steps: Step, **settings: Any) -> CliProvider:
    """A provider whose command does these steps."""
    settings = {"template": "claude_code", "environment": ()} | settings
    return CliProvider(ProviderSettings("cli", kind="cli", command=write_script(script, *steps), **settings))


def call(content: str = "Hello!", **fields: Any) -> Call:
    body = {"model": "sonnet", "messages": [{"role": "user", "content": content}]} | fields
    return Call("chat/completions", json.dumps(body).encode(), stream=bool(fields.get("stream")))


async def whole(cli: CliProvider, call: Call) -> Any:
    answer = await cli.open(call)
    try:
        return json.loads(await answer.read(1_000_000))
    finally:
        answer.close()


def said(document: Any) -> str:
    return str(document["choices"][0]["message"]["content"])


async def pieces(answer: Answer) -> list[Any]:
    try:
        return events(b"".join([piece async for piece in answer]))
    finally:
        answer.close()


# What a command gets.


async def test_the_prompt_goes_to_stdin_and_the_model_after_its_option(script: Path) -> None:
    cli = provider(script, *claude(WORDS))
    document = await whole(cli, call("Grüezi!"))
    await cli.close()
    given = seen(script)
    assert (given["argv"], given["stdin"]) == (["--model", "sonnet"], "Grüezi!")
    assert said(document) == "Paid for ahead of time."
    assert (document["object"], document["model"]) == ("chat.completion", "sonnet")
    assert document["usage"]["completion_tokens"] == 5
    assert document["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


async def test_the_prompt_may_be_an_argument_in_its_place(script: Path) -> None:
    command = (*write_script(script, {"out": "Yes."}), "--ask", "{prompt}", "--quiet")
    cli = CliProvider(ProviderSettings("own", kind="cli", command=command, prompt="argument", model_option="-m"))
    assert said(await whole(cli, call("Do you?"))) == "Yes."
    assert seen(script)["argv"] == ["--ask", "-m", "sonnet", "Do you?", "--quiet"]
    assert seen(script)["stdin"] == ""
    with pytest.raises(NotCarried) as refused:
        await cli.open(call("x" * 140_000))
    assert (refused.value.refused_status, refused.value.param) == (400, "messages")
    await cli.close()


async def test_it_works_in_an_empty_place_of_its_own_that_is_gone_afterwards(script: Path) -> None:
    cli = provider(script, {"litter": True}, *claude(WORDS))
    await whole(cli, call())
    await cli.close()
    given = seen(script)
    assert given["files"] == []
    assert not os.access(given["cwd"], os.F_OK)


async def test_it_sees_the_usual_names_those_it_was_given_and_no_key(script: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/ada",
        "LANG": "C.UTF-8",
        "MY_TOKEN": "tok-1",
        "XDG_DATA_HOME": "/x",
        "OPENAI_API_KEY": "sk-1",
        "PENSTOCK_KEY_PEPPER": "p",
        "CODEX_HOME": "/codex",
        "CLAUDE_CONFIG_DIR": "/claude",
    }
    command = write_script(script, *claude(WORDS))
    settings = ProviderSettings("cli", kind="cli", template="claude_code", command=command, environment=("MY_TOKEN",))
    cli = CliProvider(settings, environ)
    await whole(cli, call())
    await cli.close()
    names = seen(script)["environ"].keys() - {"LC_CTYPE"}  # which the interpreter of our own script adds
    assert names == {
        *{"PATH", "HOME", "LANG", "MY_TOKEN", "XDG_DATA_HOME", "CLAUDE_CONFIG_DIR"},
        *{"CLAUDE_CODE_DISABLE_ATTACHMENTS", "CLAUDE_CODE_DISABLE_CLAUDE_MDS"},
        *{"CLAUDE_CODE_DISABLE_AUTO_MEMORY", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"},
    }


async def test_a_prompt_that_nobody_reads_is_no_trouble(script: Path) -> None:
    command = ("/bin/sh", "-c", "exec 0<&-; echo Enough.")
    cli = CliProvider(ProviderSettings("own", kind="cli", command=command))
    assert said(await whole(cli, call("x" * 2_000_000))) == "Enough."
    await cli.close()


# What comes of what it prints.


async def test_a_stream_has_an_event_for_each_piece_and_usage_for_who_asked(script: Path) -> None:
    cli = provider(script, *claude(WORDS))
    chunks = await pieces(await cli.open(call(stream=True, stream_options={"include_usage": True})))
    await cli.close()
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:5]] == list(WORDS)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[5]["choices"][0]["finish_reason"] == "stop"
    assert chunks[6]["usage"]["prompt_tokens"] == 16
    assert chunks[7] == "[DONE]"


async def test_words_are_passed_on_while_the_command_still_works(script: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cli = provider(script, *lines(claude_delta("Wait")), {"wait": str(pipe)}, *claude([" no more."]))
    answer = await cli.open(call(stream=True))
    first = await anext(aiter(answer))
    assert b'"content":"Wait"' in first
    await asyncio.to_thread(pipe.write_text, "go on")
    rest = await pieces(answer)
    assert rest[0]["choices"][0]["delta"] == {"content": "\n\n no more."}
    await cli.close()


@pytest.mark.parametrize(
    ("template", "steps", "words", "tokens"),
    [
        ("codex", codex("Hello.", "Bye."), "Hello.\n\nBye.", (20, 6)),
        ("gemini", gemini(["Hello", "."]), "Hello.", (9, 4)),
        ("llm", [{"out": "Hello."}, {"err": "Token usage: 1,007 input, 3 output"}], "Hello.", (1007, 3)),
        ("llm", [{"out": "Hello."}], "Hello.", None),
    ],
)
async def test_each_template_reads_what_its_command_prints(
    script: Path, template: str, steps: list[Step], words: str, tokens: tuple[int, int] | None
) -> None:
    cli = provider(script, *steps, template=template)
    document = await whole(cli, call())
    await cli.close()
    assert said(document) == words
    usage = document.get("usage")
    assert (usage and (usage["prompt_tokens"], usage["completion_tokens"])) == tokens


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([*claude(WORDS)[:4], {"exit": 0}], "ended before its answer did"),
        ([*claude(WORDS), {"exit": 3}], "code 3"),
        ([{"exit": 0}], "ended before its answer did"),
        ([*lines({"type": "result", "subtype": "error_max_turns", "is_error": False}), {"exit": 0}], "error_max_turns"),
        (lines(claude_result("API Error: 529", is_error=True)), "API Error: 529"),
        ([{"out": '{"type":'}], "not JSON"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_good_end_is_a_failure(script: Path, steps: list[Step], words: str, stream: bool) -> None:
    cli = provider(script, *steps)
    with pytest.raises(UpstreamFailed, match=words):
        await pieces(await cli.open(call(stream=stream)))
    await cli.close()


async def test_bytes_that_are_no_text_do_not_spoil_the_rest(script: Path) -> None:
    line = json.dumps(claude_delta("a?b")).encode().replace(b"?", b"\xff") + b"\n"
    cli = provider(script, {"hex": line.hex()}, *lines(claude_result("a?b")))
    assert said(await whole(cli, call())) == "a\ufffdb"
    await cli.close()


async def test_output_without_end_is_cut_off(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.providers.cli.run.MOST_OUTPUT_BYTES", 1_000_000)
    cli = provider(script, {"flood": f"{{{' ' * 1000}}}"})
    with pytest.raises(UpstreamFailed, match="too much"):
        await whole(cli, call())
    await gone(seen(script)["pid"])
    await cli.close()


async def test_the_limit_ends_the_command_and_nobody_pretends_to_have_counted(script: Path) -> None:
    cli = provider(script, *claude(WORDS)[:6], {"hang": True})
    chunks = await pieces(await cli.open(call(stream=True, max_tokens=2, stream_options={"include_usage": True})))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == "Paid for"
    assert (chunks[-2]["choices"][0]["finish_reason"], chunks[-1]) == ("length", "[DONE]")
    await gone(seen(script)["pid"])
    stopped = await whole(cli, call(stop=[" for"]))
    assert (said(stopped), stopped["choices"][0]["finish_reason"]) == ("Paid", "stop")
    assert "usage" not in stopped
    await cli.close()


async def test_a_command_that_lingers_after_its_end_is_not_waited_for(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.providers.cli.run.LINGER_S", 0.05)
    cli = provider(script, *claude(WORDS), {"hang": True})
    assert said(await whole(cli, call())) == "Paid for ahead of time."
    await gone(seen(script)["pid"])
    await cli.close()


@pytest.mark.parametrize("limit", ["first_byte_timeout_s", "idle_timeout_s", "total_timeout_s"])
async def test_a_command_that_takes_too_long_is_ended(script: Path, limit: str) -> None:
    begun = lines(claude_delta("Wait")) if limit == "idle_timeout_s" else []
    cli = provider(script, *begun, {"hang": True}, **{limit: 0.4})
    with pytest.raises(UpstreamTimeout) as late:
        await whole(cli, call())
    assert late.value.began == bool(begun)
    await cli.close()  # which waits for its end


async def test_its_last_words_are_logged_without_secrets(script: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    command = write_script(script, {"err": "noise " * 2000}, {"err": "the token tok-of-ada-77 is bad"}, {"exit": 1})
    settings = ProviderSettings("cli", kind="cli", template="codex", command=command, environment=("MY_TOKEN",))
    cli = CliProvider(settings, {"PATH": os.environ["PATH"], "MY_TOKEN": "tok-of-ada-77"})
    with pytest.raises(UpstreamFailed, match="code 1"):
        await whole(cli, call())
    await cli.close()
    (logged,) = [record.getMessage() for record in caplog.records]
    assert logged.endswith("the token [redacted] is bad")
    assert len(logged) < 5_000


# That nothing of it is left.


@pytest.mark.parametrize("state", ["obedient", "deaf"])
async def test_closing_ends_the_command_and_all_it_started(script: Path, tmp_path: Path, state: str) -> None:
    deaf: list[Step] = [{"deaf": True}] if state == "deaf" else []
    family: list[Step] = [{kind: str(tmp_path / kind)} for kind in ("child", "orphan")]
    cli = provider(script, *deaf, *family, *lines(claude_delta("Hi")), {"hang": True})
    answer = await cli.open(call(stream=True))
    await anext(aiter(answer))
    answer.close()
    await gone(seen(script)["pid"])
    for kind in ("child", "orphan"):
        await gone(int((tmp_path / kind).read_text()))
    await cli.close()


async def test_a_child_left_behind_by_a_command_that_ends_is_ended(script: Path, tmp_path: Path) -> None:
    cli = provider(script, {"child": str(tmp_path / "child")}, {"orphan": str(tmp_path / "orphan")}, *claude(WORDS))
    assert said(await whole(cli, call())) == "Paid for ahead of time."
    for kind in ("child", "orphan"):
        await gone(int((tmp_path / kind).read_text()))
    await cli.close()


OWNER = """
import asyncio, json, sys
from penstock.config import ProviderSettings
from penstock.ports import Call
from penstock.providers.cli.provider import CliProvider

async def main():
    cli = CliProvider(ProviderSettings("cli", kind="cli", template="claude_code", command=tuple(sys.argv[1:])))
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    answer = await cli.open(Call("chat/completions", json.dumps(body).encode(), stream=True))
    await anext(aiter(answer))
    print("running", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_command_and_its_children_die_with_a_gateway_that_is_killed(script: Path, tmp_path: Path) -> None:
    steps = [{"child": str(tmp_path / "child")}, *lines(claude_delta("Hi")), {"hang": True}]
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, *write_script(script, *steps)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"running\n"
    owner.kill()
    await owner.wait()
    await gone(seen(script)["pid"])
    await gone(int((tmp_path / "child").read_text()))


# Turns and health.


async def test_one_runs_at_a_time_some_wait_and_the_rest_are_told_at_once(script: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cli = provider(
        script, {"asked": "slow", "do": [{"wait": str(pipe)}, *claude(["slow"])]}, *claude(["quick"]), queue=1
    )
    assert cli.ready("sonnet", "acc_1")
    slow = await cli.open(call("slow", stream=True))
    assert cli.ready("sonnet", "acc_1")
    waiting = asyncio.create_task(whole(cli, call("quick")))
    await asyncio.sleep(0)  # it has begun to wait
    assert cli.waiting == 1
    assert not cli.ready("sonnet", "acc_1")
    with pytest.raises(UpstreamUnavailable, match="enough calls wait"):
        await cli.open(call("one too many"))
    await asyncio.to_thread(pipe.write_text, "go on")
    assert (await pieces(slow))[0]["choices"][0]["delta"]["content"] == "slow"
    assert said(await waiting) == "quick"
    await cli.close()
    assert not cli.ready("sonnet", "acc_1")
    with pytest.raises(UpstreamUnavailable, match="closed"):
        await cli.open(call())


async def test_nobody_waits_for_a_turn_for_ever(script: Path) -> None:
    cli = provider(script, {"hang": True}, queue_timeout_s=0.05)
    busy = await cli.open(call(stream=True))
    with pytest.raises(UpstreamUnavailable, match="busy"):
        await cli.open(call())
    busy.close()
    await cli.close()


async def test_a_command_that_is_not_there_is_unavailable(script: Path) -> None:
    cli = CliProvider(ProviderSettings("cli", kind="cli", template="codex"), {"PATH": "/nowhere", "HOME": "/"})
    for asking in (cli.open(call()), cli.check()):
        with pytest.raises(UpstreamUnavailable, match="not there: codex"):
            await asking
    assert cli.ready("m", "acc_1")
    await cli.close()


async def test_a_command_is_well_when_it_tells_its_version(script: Path, tmp_path: Path) -> None:
    well = provider(script)
    assert await well.check() == ()
    await well.close()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such option >&2\nexit 2\n")
    broken.chmod(0o700)
    unwell = CliProvider(ProviderSettings("cli", kind="cli", command=(str(broken),)))
    with pytest.raises(UpstreamUnavailable, match="version"):
        await unwell.check()
    await unwell.close()


# Behind the gateway.


class TestBehindTheGateway:
    """A command that costs $1 and $2 a million tokens, and answers for its owner alone."""

    INPUT, OUTPUT = 1_000, 2_000  # nano-USD a token
    PRICE = PriceSettings(INPUT * 10**6, OUTPUT * 10**6)

    def settings(self, base: Settings, command: tuple[str, ...], *accounts: str, **more: Any) -> Settings:
        """The command before `main`, for a model of its own and one that both serve."""
        cli = ProviderSettings("cli", kind="cli", template="claude_code", command=command, accounts=accounts, **more)
        alone = ModelSettings("sonnet", offers=(OfferSettings("cli", "sonnet"),), price=self.PRICE)
        both = ModelSettings(
            "either", offers=(OfferSettings("cli", "sonnet"), OfferSettings("main", "cloud")), price=self.PRICE
        )
        return replace(base, providers=(cli, *base.providers), models=(alone, both))

    @pytest.fixture
    async def gateway(self, store_url: str, upstream: ScriptedUpstream, script: Path) -> AsyncIterator[Running]:
        base = settings_for(store_url, upstream=upstream.base_url)
        async with running(self.settings(base, write_script(script, *claude(WORDS)), "acc_nobody")) as gateway:
            yield gateway

    async def owner(self, gateway: Running, command: tuple[str, ...], **more: Any) -> Person:
        """Somebody with a dollar, whom the command serves from now on."""
        ada = await gateway.person(usd="1")
        base = replace(gateway.office.settings, providers=gateway.office.settings.providers[1:])
        await gateway.gateway.reload(self.settings(base, command, ada.account, **more))
        return ada

    async def test_what_the_command_counts_is_what_is_charged_plain_and_streamed(
        self, gateway: Running, script: Path
    ) -> None:
        ada = await self.owner(gateway, write_script(script, *claude(WORDS)))
        async with gateway.sdk(ROUTER, ada) as client:
            plain = await client.chat.completions.create(model="sonnet", messages=HELLO)
            chunks = await client.chat.completions.create(model="sonnet", messages=HELLO, stream=True)
            streamed = [chunk async for chunk in chunks]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        assert plain.choices[0].message.content == text == "Paid for ahead of time."
        records = await gateway.usage(ada)
        assert {(each.provider, each.attempts, each.input_tokens, each.output_tokens) for each in records} == {
            ("cli", 1, 16, 5)
        }
        assert not any(each.estimated for each in records)
        assert await gateway.nano(ada) == 10**9 - 2 * (16 * self.INPUT + 5 * self.OUTPUT)

    async def test_a_call_behind_another_waits_for_its_turn(
        self, gateway: Running, script: Path, tmp_path: Path
    ) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        slow: Step = {"asked": "slow", "do": [{"wait": str(pipe)}, *claude(WORDS)]}
        ada = await self.owner(gateway, write_script(script, slow, *claude(WORDS)))
        asking: Any = {"model": "sonnet", "messages": [{"role": "user", "content": "slow"}]}
        first = asyncio.create_task(gateway.chat(ROUTER, ada, **asking))
        opened = await asyncio.to_thread(pipe.open, "w")  # it runs
        second = asyncio.create_task(gateway.chat(ROUTER, ada, model="sonnet"))
        provider = gateway.office.upstreams.providers["cli"]

        async def waits() -> bool:
            return second.done() or (isinstance(provider, CliProvider) and provider.waiting == 1)

        await eventually(waits)
        opened.write("go on")
        opened.close()
        assert [(await each).status_code for each in (first, second)] == [200, 200]

    async def test_where_the_command_does_not_count_the_gateway_estimates(self, gateway: Running, script: Path) -> None:
        ada = await self.owner(gateway, write_script(script, {"out": "Hello."}), output=CommandOutput("text"))
        answer = await gateway.chat(TRUST, ada, model="sonnet")
        assert answer.json()["choices"][0]["message"]["content"] == "Hello."
        (record,) = await gateway.usage(ada)
        assert record.estimated
        assert record.amount == record.input_tokens * self.INPUT + record.output_tokens * self.OUTPUT > 0
        assert await gateway.nano(ada) == 10**9 - record.amount

    async def test_what_a_command_cannot_carry_is_a_400_naming_the_field(self, gateway: Running, script: Path) -> None:
        ada = await self.owner(gateway, write_script(script, *claude(WORDS)))
        answer = await gateway.chat(TRUST, ada, model="sonnet", n=2)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        assert await gateway.nano(ada) == 10**9

    async def test_what_a_command_cannot_carry_another_takes(
        self, gateway: Running, script: Path, upstream: ScriptedUpstream
    ) -> None:
        ada = await self.owner(gateway, write_script(script, *claude(WORDS)))
        upstream.script(Plain(tokens=3))
        answer = await gateway.chat(TRUST, ada, model="either", response_format={"type": "json_object"})
        assert answer.headers["x-penstock-route"].endswith("after=cli:not_carried")
        assert (await gateway.usage(ada))[0].provider == "main"
        assert not script.with_suffix(".seen").exists()

    async def test_when_the_command_fails_before_its_first_word_another_serves(
        self, gateway: Running, script: Path, upstream: ScriptedUpstream
    ) -> None:
        ada = await self.owner(gateway, write_script(script, {"err": "not logged in"}, {"exit": 1}))
        upstream.script(Plain(tokens=3))
        answer = await gateway.chat(TRUST, ada, model="either")
        assert answer.headers["x-penstock-route"].startswith("main;attempts=2")
        (record,) = await gateway.usage(ada)
        assert (record.provider, record.attempts) == ("main", 2)
        assert await gateway.nano(ada) == 10**9 - 7 * self.INPUT - 3 * self.OUTPUT

    async def test_when_it_fails_after_its_first_word_the_caller_is_told_and_pays_for_that(
        self, gateway: Running, script: Path, upstream: ScriptedUpstream
    ) -> None:
        ada = await self.owner(gateway, write_script(script, *lines(claude_delta("Hi")), {"exit": 1}))
        answer = await gateway.chat(TRUST, ada, model="either", stream=True)
        *_, error, done = events(answer.text)
        assert (error["error"]["type"], done) == ("upstream_error", "[DONE]")
        assert upstream.requests == []
        (record,) = await gateway.usage(ada)
        assert (record.provider, record.attempts, record.output_tokens) == ("cli", 1, 1)

    async def test_a_caller_who_leaves_ends_the_command(self, gateway: Running, script: Path) -> None:
        ada = await self.owner(gateway, write_script(script, *lines(claude_delta("Hi")), {"hang": True}))
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, model="sonnet", stream=True)
            await caller.head()
            await caller.event()
            caller.hang_up()
            record = await the_record(gateway, ada)
        assert (record.ended, record.output_tokens) == ("caller_gone", 1)
        await gone(seen(script)["pid"])

    async def test_it_serves_its_owner_and_nobody_else(
        self, gateway: Running, script: Path, upstream: ScriptedUpstream
    ) -> None:
        await self.owner(gateway, write_script(script, *claude(WORDS)))
        bob = await gateway.person(usd="1")
        refused = await gateway.chat(ROUTER, bob, model="sonnet")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert not script.with_suffix(".seen").exists()
        answer = await gateway.chat(ROUTER, bob, model="either")
        assert answer.headers["x-penstock-route"].startswith("main;")
        assert not script.with_suffix(".seen").exists()

    async def test_a_gateway_that_stops_leaves_no_command(self, store_url: str, script: Path) -> None:
        command = write_script(script, *lines(claude_delta("Hi")), {"hang": True})
        async with running(self.settings(settings_for(store_url), command, "acc_nobody")) as gateway:
            ada = await self.owner(gateway, command)
            async with calling(gateway.url) as caller:
                await caller.ask(ROUTER, ada, model="sonnet", stream=True)
                await caller.head()
                await caller.event()
        await gone(seen(script)["pid"])


def test_a_keeper_that_is_killed_takes_the_command_with_it(script: Path, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the kernel's part of this is Linux's")
    import subprocess

    from penstock.providers.cli.command import KEEPER

    theirs, ours = os.pipe()
    command = write_script(script, {"out": "running"}, {"hang": True})
    with subprocess.Popen(
        [sys.executable, "-I", "-S", KEEPER, str(theirs), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=(theirs,),
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"running\n"
        os.kill(keeper.pid, signal.SIGKILL)
    asyncio.run(gone(seen(script)["pid"]))
    for descriptor in (theirs, ours):
        os.close(descriptor)
