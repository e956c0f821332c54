"""`penstock demo`: the gateway and the official OpenAI SDK in one process, spending a balance to the last token.

Everything is real: the gateway listens on a socket, the SDK calls it over HTTP, money is held and settled in SQLite.
Only the model is not: it is the built-in demo engine, or with `--engine llamacpp` a llama.cpp server in a subprocess.
"""

from __future__ import annotations

import asyncio
import io
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from os.path import isfile
from pathlib import Path

import uvloop
from openai import APIStatusError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from penstock.api.server import serving
from penstock.app import Gateway, open_gateway
from penstock.cli.sample import Sample, open_sample
from penstock.config import ModelSettings, OfferSettings, ProviderSettings, Settings
from penstock.config_file import load
from penstock.db.journal import verify
from penstock.errors import ConfigError
from penstock.operations.actor import LOCAL
from penstock.operations.balances import BalanceView, show_balance
from penstock.operations.usage import UsageView, list_usage

LOT_TOKENS = 160
MOST_CALLS = 20
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a prepaid token?"}]

Say = Callable[[str], None]


def run(say: Say, *, engine: str, model_file: Path | None) -> int:
    """Run the demo; 0 when all went as told, 1 when not. ConfigError for a model file that is not there."""
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder:
        settings = _settings(Path(folder), engine, model_file)
        return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_run(say, settings))


async def _run(say: Say, settings: Settings) -> int:
    logging.getLogger("penstock").setLevel(logging.ERROR)
    async with open_gateway(settings, io.StringIO()) as gateway, serving(gateway.door, settings.server) as server:
        sample = await open_sample(gateway.office, contract_tokens=LOT_TOKENS)
        model = settings.models[0].id
        say(f"Gateway at {server.url}, model {model}\n")
        say(await _balance(gateway, sample))
        say("\n1. A plain call with the OpenAI SDK, paid in dollars")
        await asyncio.to_thread(_plain, say, f"{server.url}/api/openai", sample.router_key, model)
        say("\n2. A streamed call, token by token")
        await asyncio.to_thread(_streamed, say, f"{server.url}/api/openai", sample.router_key, model)
        say(f"\n3. A contract of {LOT_TOKENS} tokens, spent to the last one")
        refused = await asyncio.to_thread(
            _until_refused, say, f"{server.url}/api/v1/gateway/v1", sample.forward_key, model
        )
        say("\n" + await _balance(gateway, sample))
        say("\nUsage records, newest first")
        for record in (await list_usage(gateway.office, LOCAL, account=sample.account)).data:
            say(_line(record))
        differences = await gateway.office.store.read(verify())
        say(f"\nThe books {'do NOT ' if differences else ''}add up.")
        return 0 if refused and not differences else 1


def _plain(say: Say, base_url: str, key: str, model: str) -> None:
    with OpenAI(base_url=base_url, api_key=key) as client:
        answer = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, max_tokens=60)
        completion = answer.parse()
        say(f"   {(completion.choices[0].message.content or '').strip()[:200]}")
        used = completion.usage.total_tokens if completion.usage else 0
        say(f"   {used} tokens, ${answer.headers['x-penstock-cost']}")


def _streamed(say: Say, base_url: str, key: str, model: str) -> None:
    with OpenAI(base_url=base_url, api_key=key) as client:
        stream = client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
        text, events, used = "", 0, 0
        for chunk in stream:
            events += 1
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            used = chunk.usage.total_tokens if chunk.usage else used
        say(f"   {text.strip()[:200]}")
        say(f"   {events} events, {used} tokens")


def _until_refused(say: Say, base_url: str, key: str, model: str) -> bool:
    """Call until the lot is empty; whether that ended in a 402."""
    with OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        for _ in range(MOST_CALLS):
            try:
                answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=50)
            except APIStatusError as error:
                say(f"   {error.status_code} {error.code}: {error.body['message']}")  # type: ignore[index]
                return error.status_code == 402
            used = answer.usage
            say(f"   200, {used.total_tokens if used else 0} tokens, finish_reason {answer.choices[0].finish_reason}")
    return False


async def _balance(gateway: Gateway, sample: Sample) -> str:
    balance: BalanceView = await show_balance(gateway.office, LOCAL, account=sample.account)
    lots = ", ".join(f"{lot.remaining} tokens of {lot.contract}" for lot in balance.contracts)
    return f"Balance: ${balance.credits.total.usd} and {lots}"


def _line(record: UsageView) -> str:
    unit = "nano-USD" if record.lane == "credits" else "tokens"
    return (
        f"   {record.created}  {record.surface:8} {record.input_tokens:>4} in {record.output_tokens:>4} out"
        f"  {record.amount:>7} {unit:8} {record.ended}"
    )


def _settings(folder: Path, engine: str, model_file: Path | None) -> Settings:
    settings = load(None, {"PENSTOCK_DATABASE_URL": f"sqlite:///{folder / 'demo.db'}"})
    settings = replace(settings, server=replace(settings.server, port=0))
    if engine == "demo":
        return settings
    from penstock.providers.llamacpp import write_tiny_model

    if model_file is None:
        model_file = folder / "tiny.gguf"
        write_tiny_model(model_file)
    elif not isfile(model_file):
        raise ConfigError([f"model-file: {model_file} is not there"])
    contract = settings.contracts[0].id
    provider = ProviderSettings("llamacpp", kind="llamacpp", model_path=str(model_file), threads=1)
    model = ModelSettings(
        "local/llama",
        offers=(OfferSettings("llamacpp", model_file.stem),),
        price=settings.models[0].price,
        contract=contract,
    )
    return replace(settings, providers=(provider,), models=(model,))
