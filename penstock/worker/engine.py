"""The engine of a worker: how it is reached, what it serves, and how it is kept running.

    http://127.0.0.1:8000            one that runs already (vLLM, llama.cpp, Ollama: anything that speaks OpenAI)
    vllm serve mine --port {port}    a command to run and to keep running, with a free port in the place of {port}
    model.gguf                       a model file, run by llama.cpp (extra [engine])

What it serves is asked of it, not configured: its list of models, with llama.cpp also the slots and the context of each
of them. No job passes through here but by `open`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from penstock.errors import ConfigError, UpstreamError, UpstreamFailed
from penstock.hub.messages import JOB_S, ModelOffer, Offer
from penstock.ports import Answer, Call, Timeouts
from penstock.providers.http1 import Client
from penstock.providers.llamacpp import LlamaCppEngine
from penstock.providers.origin import Origin

SLOTS = 4  # of an engine that does not say
BATCHING_SLOTS = 32  # of vLLM, which batches what comes: enough to keep a GPU busy, few enough to stay quick
LARGEST_LIST = 4 * 2**20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before a command that has ended is run again
STOP_S = 10.0  # for a command to end before it is killed
KEY_VARIABLE = "PENSTOCK_WORKER_KEY"

# A command dies with the worker, though that be killed: a GPU's memory would stay taken.
_WITH_US = "import ctypes,os,sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"

_logger = logging.getLogger("penstock.worker")


class Engine(Protocol):
    """Something that answers calls for models."""

    async def start(self) -> None:
        """Begin to run it, if it is ours to run."""
        ...

    async def look(self) -> Offer:
        """What it serves now. UpstreamError when it does not."""
        ...

    async def open(self, call: Call) -> Answer:
        """See `ports.Provider.open`; `call.path` is below `/v1`."""
        ...

    async def close(self) -> None: ...


def engine_of(spec: str, *, key: str | None, slots: int | None, context: int | None) -> Engine:
    """The engine that `--engine` means. ConfigError when it means none."""
    if spec.startswith(("http://", "https://")):
        return HttpEngine(spec, key=key, slots=slots)
    if spec.endswith(".gguf") and " " not in spec:
        return ModelFile(Path(spec), slots=slots or SLOTS, context=context or 4096)
    try:
        words = shlex.split(spec)
    except ValueError as error:
        raise ConfigError([f"engine: {error}"]) from None
    if not any("{port}" in word for word in words):
        raise ConfigError(["engine: is a URL, a .gguf file, or a command with {port} where its port goes"])
    return CommandEngine(words, key=key, slots=slots)


class HttpEngine:
    """An engine at a URL, with or without `/v1`."""

    def __init__(self, url: str, *, key: str | None = None, slots: int | None = None) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ConfigError([f"engine: {parts.scheme}://host:port is the address of an engine"])
        self._root = url.rstrip("/").removesuffix("/v1")
        self._slots = slots
        headers = [(b"content-type", b"application/json")]
        if key:
            headers.append((b"authorization", b"Bearer " + key.encode("latin-1", "replace")))
        limits = Timeouts(first_byte_s=JOB_S, idle_s=JOB_S, total_s=JOB_S)
        try:
            self._client = Client(Origin(self._root, limits, headers=tuple(headers)))
        except ValueError as error:
            raise ConfigError([f"engine: {error}"]) from None

    def __repr__(self) -> str:
        return f"HttpEngine({self._root}, {self._client!r})"

    async def start(self) -> None:
        """Somebody else runs it."""

    async def look(self) -> Offer:
        """Ask for its models, and how many calls it serves at once where it says so."""
        listed = await self._json("v1/models")
        if listed is None:
            raise UpstreamFailed("The engine does not list its models.", began=True)
        return offer_of(listed, await self._json("props"), slots=self._slots)

    async def open(self, call: Call) -> Answer:
        """Send it a call."""
        return await self._client.request(call.method, f"v1/{call.path}", call.headers, call.body, sent=call.sent)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _json(self, path: str) -> Any:
        """What it answers at a path; None when there is nothing."""
        answer = await self._client.request("GET", path, (), b"")
        try:
            if answer.status != 200:
                if answer.status >= 500:
                    raise UpstreamFailed(f"The engine answered with status {answer.status}.", began=True)
                return None
            return msgspec.json.decode(await answer.read(LARGEST_LIST))
        except (ValueError, RecursionError):
            return None
        finally:
            answer.close()


class CommandEngine:
    """A command that serves on a port it is told; started again when it ends."""

    def __init__(self, words: Sequence[str], *, key: str | None, slots: int | None) -> None:
        self._port = _free_port()
        self._words = [word.replace("{port}", str(self._port)) for word in words]
        self._http = HttpEngine(f"http://127.0.0.1:{self._port}", key=key, slots=slots)
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"CommandEngine({self._words[0]}, port {self._port})"

    async def start(self) -> None:
        """Run it from now on. ConfigError when there is no such command."""
        process = await self._spawn()
        self._running = asyncio.create_task(self._keep(process))

    async def look(self) -> Offer:
        """See `Engine.look`."""
        return await self._http.look()

    async def open(self, call: Call) -> Answer:
        """See `Engine.open`."""
        return await self._http.open(call)

    async def close(self) -> None:
        """End it: SIGTERM for all of its processes, then SIGKILL for those that are left."""
        await self._http.close()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _spawn(self) -> asyncio.subprocess.Process:
        """Run it once. ConfigError when it cannot be run."""
        if shutil.which(self._words[0]) is None:  # what stands in front of it on Linux can always be run
            raise ConfigError([f"engine: {self._words[0]}: there is no such command"])
        words = [sys.executable, "-c", _WITH_US, *self._words] if sys.platform == "linux" else self._words
        environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
        try:
            return await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, env=environment, process_group=0
            )
        except OSError as error:
            raise ConfigError([f"engine: {self._words[0]}: {error.strerror}"]) from None

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        pause_s = FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await _end(process)
                raise
            _tell(process, signal.SIGKILL)  # what it has left behind holds the port, or a GPU's memory
            pause_s = FIRST_PAUSE_S if loop.time() - began_s > LONGEST_PAUSE_S else min(2 * pause_s, LONGEST_PAUSE_S)
            _logger.error("the engine ended with %d; it is started again in %.0f s", code, pause_s)
            process = await self._again(pause_s)

    async def _again(self, pause_s: float) -> asyncio.subprocess.Process:
        """Run it after a pause, and after longer ones while it cannot be run, as during an upgrade of it."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                return await self._spawn()
            except ConfigError as error:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                _logger.error("%s; it is tried again in %.0f s", error, pause_s)


class ModelFile:
    """A GGUF file in llama.cpp's own server, a subprocess that dies with the worker."""

    def __init__(self, path: Path, *, slots: int, context: int) -> None:
        if not path.is_file():
            raise ConfigError([f"engine: {path} is not there"])
        self._engine = LlamaCppEngine(path, path.stem, slots=slots, context_tokens=context)
        self._offer = Offer(slots, (ModelOffer(path.stem, context, ("json_schema", "tools")),))

    def __repr__(self) -> str:
        return f"ModelFile({self._engine!r})"

    async def start(self) -> None:
        """Load it, which may take minutes. UpstreamUnavailable."""
        await self._engine.start()

    async def look(self) -> Offer:
        """What it was started with, as long as it answers."""
        await self._engine.check()
        return self._offer

    async def open(self, call: Call) -> Answer:
        """See `Engine.open`."""
        return await self._engine.open(call)

    async def close(self) -> None:
        """End it."""
        await self._engine.close()


def offer_of(listed: Any, props: Any, *, slots: int | None = None) -> Offer:
    """What an engine offers, from its list of models and llama.cpp's properties, as far as they say. UpstreamFailed.

    vLLM says `max_model_len` of each model; llama.cpp says `total_slots`, and `n_ctx` for each of them.
    """
    data = listed.get("data") if isinstance(listed, dict) else None
    entries = data if isinstance(data, list) else []
    models = tuple(
        _model(entry, props)
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and 0 < len(entry["id"]) <= 200
    )
    if not models:
        raise UpstreamFailed("The engine lists no models.", began=True)
    said: Any = props.get("total_slots") if isinstance(props, dict) else None
    batches = any(isinstance(entry, dict) and entry.get("owned_by") == "vllm" for entry in entries)
    usual = BATCHING_SLOTS if batches else SLOTS
    slots = slots or min(said if _is_count(said) else usual, 4096)
    return Offer(slots, models[:512])


def _model(entry: dict[str, Any], props: Any) -> ModelOffer:
    context, capabilities = entry.get("max_model_len") or entry.get("context_length"), ["json_schema", "tools"]
    if isinstance(props, dict):
        settings = props.get("default_generation_settings")
        context = settings.get("n_ctx", context) if isinstance(settings, dict) else context
        modalities = props.get("modalities")
        if isinstance(modalities, dict) and modalities.get("vision") is True:
            capabilities.append("images")
    return ModelOffer(entry["id"], context if _is_count(context) else None, tuple(capabilities))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096 * 2**20


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a command and what it has begun, which need not end with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _tell(process, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)


def _tell(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to all of a command's processes that there still are."""
    with suppress(ProcessLookupError, PermissionError):  # on macOS the latter when only zombies are left
        os.killpg(process.pid, number)


def _free_port() -> int:
    """A port that is free now. Whoever takes it before the command does makes that fail and be started again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def first_look(engine: Engine, every_s: float) -> Offer:
    """What it serves, once it does."""
    said = ""
    while True:
        try:
            return await engine.look()
        except UpstreamError as error:
            if error.message != said:
                _logger.info("the engine does not serve yet: %s", error.message)
            said = error.message
        await asyncio.sleep(every_s)
