"""A model on this machine: llama.cpp's own server in one subprocess, called like any other OpenAI-compatible upstream.

The subprocess is this module run as a program, and only there is `xllamacpp` (extra `[engine]`) touched: a crash or
exhausted memory costs the engine, never the gateway. It listens on loopback, asks for a key made at each start, and
dies with its owner whatever happens. This module does not fetch models and does not decide where they run.

`write_tiny_model` makes a model of random weights in about 20 ms, so that tests and trials have a real engine.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import logging
import os
import secrets
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

import penstock
from penstock.config import ProviderSettings
from penstock.errors import ConfigError, UpstreamUnavailable
from penstock.ports import Answer, Call, OnCancel
from penstock.providers.openai_compatible import OpenAICompatible

# More calls than the engine has slots wait in its own queue. Each kept connection holds one of its threads.
_CONNECTIONS = 64
_STOP_GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1
_FIRST_WORDS = b'{"messages":[{"role":"user","content":"Say a word."}],"max_tokens":1}'
_FIRST_INPUT = b'{"input":"A word."}'

# The engine needs to find its libraries and devices; the keys in the gateway's environment are none of its business.
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_", "LD_LIBRARY_PATH", "CUDA_", "HIP_", "ROCR_", "GGML_", "VK_")

_POOLING = {
    "model": "LLAMA_POOLING_TYPE_UNSPECIFIED",
    "mean": "LLAMA_POOLING_TYPE_MEAN",
    "cls": "LLAMA_POOLING_TYPE_CLS",
    "last": "LLAMA_POOLING_TYPE_LAST",
}

# The tiny model: as small as still has every part. 3 control tokens, 256 bytes and these letters are its 310 tokens.
_WIDTH, _LAYERS = 64, 2
_LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX"
_FIRST_LETTER = 3 + 256

_log = logging.getLogger(__name__)


class _EngineSettings(msgspec.Struct):
    """What the subprocess is told, as one line of JSON on its stdin: the key is then in no argument list."""

    model_path: str
    name: str
    api_key: str
    context_tokens: int
    slots: int
    threads: int
    embeddings: str | None


@dataclass(frozen=True, slots=True)
class _Replica:
    """A running engine: its process, the way to it, and the task that copies its complaints to our log."""

    process: asyncio.subprocess.Process
    base_url: str
    upstream: OpenAICompatible
    complaints: asyncio.Task[None]

    @property
    def alive(self) -> bool:
        return self.process.returncode is None


class LlamaCppEngine:
    """One GGUF model behind one subprocess, started by `start` or by the first call, and again after a crash.

    `context_tokens` is for each of `slots` calls served at once. `threads` compute; -1 is one a core, which is slow
    when the cores are busy with something else: the threads wait for each other at every layer. `embeddings` says how
    the vectors of a text's tokens become one (`mean`, `cls`, `last`, or as the `model` says of itself); without it the
    engine has none, with it an input is at most `context_tokens` long. The engine belongs to the thread whose event
    loop started it: on Linux it is killed when that thread ends. `ConfigError` when the extra is not installed.
    """

    on_cancel: OnCancel = "stop"

    def __init__(
        self,
        model_path: Path | str,
        name: str = "llamacpp",
        *,
        context_tokens: int = 4096,
        slots: int = 4,
        threads: int = -1,
        embeddings: Literal["model", "mean", "cls", "last"] | None = None,
        start_timeout_s: float = 600.0,
    ) -> None:
        _require("xllamacpp")
        self.name = name
        self.start_timeout_s = start_timeout_s
        self._settings = _EngineSettings(
            model_path=str(model_path),
            name=name,
            api_key="",
            context_tokens=context_tokens,
            slots=slots,
            threads=threads,
            embeddings=embeddings,
        )
        self._start: asyncio.Task[_Replica] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"LlamaCppEngine({self.name!r}, {self._settings.model_path!r}, pid={self.pid})"

    @property
    def pid(self) -> int | None:
        """The subprocess, once it is ready and while it lives."""
        replica = self._replica()
        return replica.process.pid if replica is not None else None

    @property
    def base_url(self) -> str | None:
        """Where the subprocess serves, once it is ready and while it lives. Only this provider has the key."""
        replica = self._replica()
        return replica.base_url if replica is not None else None

    async def start(self) -> None:
        """Return when the engine has answered a token; at once when it already runs. `UpstreamUnavailable` if not.

        A caller that gives up does not stop the start: loading may take minutes and others wait for it too.
        """
        await self._running()

    async def open(self, call: Call) -> Answer:
        """Send the call to the engine, starting it first when it does not run."""
        replica = self._replica() or await self._running()
        return await replica.upstream.open(call)

    def ready(self, model: str, account: str) -> bool:
        """It serves one model, whatever it is called; a start that is under way is worth waiting for."""
        return not self._closed

    async def check(self) -> tuple[str, ...]:
        """Ask the engine, starting it when it does not run."""
        replica = self._replica() or await self._running()
        return await replica.upstream.check()

    async def close(self) -> None:
        """Stop the engine: SIGTERM, and SIGKILL after 5 s. The provider is not used afterwards."""
        self._closed = True
        if self._start is None:
            return
        self._start.cancel()
        await asyncio.wait([self._start])
        if not self._start.cancelled() and self._start.exception() is None:
            await _stop(self._start.result())

    def _replica(self) -> _Replica | None:
        """The engine, when one is ready and alive."""
        start = self._start
        if start is None or not start.done() or start.cancelled() or start.exception() is not None:
            return None
        return start.result() if start.result().alive else None

    async def _running(self) -> _Replica:
        if self._closed:
            raise UpstreamUnavailable(f"The engine {self.name!r} is closed.")
        if self._start is None or (self._start.done() and self._replica() is None):
            self._start = asyncio.create_task(self._boot(), name=f"start engine {self.name}")
        start = self._start
        await asyncio.wait([start])  # a caller that gives up leaves the start alone
        if start.cancelled():
            raise UpstreamUnavailable(f"The engine {self.name!r} was closed while it started.")
        return start.result()

    async def _boot(self) -> _Replica:
        settings = msgspec.structs.replace(self._settings, api_key=secrets.token_urlsafe(32))
        process = await _spawn(settings)
        complaints = asyncio.create_task(_copy_complaints(process, self.name), name=f"log of engine {self.name}")
        try:
            async with asyncio.timeout(self.start_timeout_s):
                base_url = await _base_url(process, self.name)
                upstream = OpenAICompatible(_provider_settings(settings, base_url))
                await _first_answer(upstream, settings)
                return _Replica(process, base_url, upstream, complaints)
        except BaseException as failure:
            await _end(process)
            if isinstance(failure, TimeoutError):
                raise UpstreamUnavailable(f"The engine {self.name!r} was not ready in time.") from None
            raise


async def _spawn(settings: _EngineSettings) -> asyncio.subprocess.Process:
    environment = {key: value for key, value in os.environ.items() if key.startswith(_ENVIRONMENT)}
    paths = [str(Path(penstock.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the working directory is nobody's package
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(settings) + b"\n")
    return process


async def _base_url(process: asyncio.subprocess.Process, name: str) -> str:
    """Where it serves. It prints its address when its model is loaded: it bound a free port itself, none is guessed."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise UpstreamUnavailable(f"The engine {name!r} did not start; its log says why.")
    return line.decode().strip() + "/v1"


def _provider_settings(settings: _EngineSettings, base_url: str) -> ProviderSettings:
    return ProviderSettings(
        name=settings.name, base_url=base_url, api_key=settings.api_key, max_connections=_CONNECTIONS
    )


async def _first_answer(upstream: OpenAICompatible, settings: _EngineSettings) -> None:
    """Ready means that a token was answered, or a vector, not that a port is open."""
    path, body = ("embeddings", _FIRST_INPUT) if settings.embeddings else ("chat/completions", _FIRST_WORDS)
    answer = await upstream.open(Call(path, body, stream=False))
    try:
        await answer.read(1_000_000)
    finally:
        answer.close()
    if answer.status != 200:
        name = settings.name
        raise UpstreamUnavailable(f"The engine {name!r} started but answered its first call with {answer.status}.")


async def _copy_complaints(process: asyncio.subprocess.Process, name: str) -> None:
    """Keep the engine's stderr empty, in pieces of any length: a full pipe would stop it."""
    assert process.stderr is not None
    while piece := await process.stderr.read(8192):
        for line in piece.decode(errors="replace").splitlines():
            _log.warning("engine %s: %s", name, line)


async def _stop(replica: _Replica) -> None:
    await replica.upstream.close()
    await _end(replica.process)
    await replica.complaints


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_GRACE_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _require(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError([f"The local engine needs the package {module!r}: pip install 'penstock[engine]'."])


# A model for trials.


def write_tiny_model(path: Path | str) -> None:
    """Write a Llama of two layers and random weights (always the same) as GGUF: 0.5 MB, 310 tokens, a chat template.

    It answers any prompt with letters and never ends by itself, so an answer is as long as its limit. `ConfigError`
    when the extra is not installed.
    """
    _require("gguf")
    import gguf  # noqa: PLC0415 (an extra)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(2 * _WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(_WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_vocabulary(writer)
    _add_weights(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any) -> None:
    """Three control tokens, one for each byte so that any text can be read, and 51 letters."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_LETTERS]
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * _FIRST_LETTER + [-float(place) for place in range(len(_LETTERS))])
    # The kinds are GGUF's: 2 unknown, 3 control, 6 byte, 1 normal.
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(_LETTERS))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")


def _add_weights(writer: Any) -> None:
    import numpy as np  # noqa: PLC0415 (comes with gguf)

    random = np.random.default_rng(1)

    def add(name: str, rows: int, columns: int) -> None:
        weights = random.standard_normal((rows, columns)) / np.sqrt(columns)
        writer.add_tensor(f"{name}.weight", weights.astype(np.float32))

    words = _FIRST_LETTER + len(_LETTERS)
    add("token_embd", words, _WIDTH)
    for layer in range(_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", _WIDTH, _WIDTH)
        add(f"blk.{layer}.ffn_gate", 2 * _WIDTH, _WIDTH)
        add(f"blk.{layer}.ffn_up", 2 * _WIDTH, _WIDTH)
        add(f"blk.{layer}.ffn_down", _WIDTH, 2 * _WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(_WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, np.float32))
    # Rows of zero make bytes and the end token as good as impossible beside letters whose scores reach 20.
    output = np.zeros((words, _WIDTH), np.float32)
    output[_FIRST_LETTER:] = random.standard_normal((len(_LETTERS), _WIDTH))
    writer.add_tensor("output.weight", output)


# The subprocess.


def main() -> None:
    """Read the settings from the first line of stdin, print the address, and serve until stdin ends.

    Loading holds the interpreter lock, so only the kernel can end an engine whose owner dies meanwhile (Linux). Once
    it serves, the end of stdin does it, on every system: the owner's side of that pipe closes with the owner.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    # From here on stdout is stderr, so that nothing the engine prints is taken for its address.
    address = os.dup(1)
    os.dup2(2, 1)
    server = _serve(msgspec.json.decode(line, type=_EngineSettings))
    os.write(address, f"{server.listening_address}\n".encode())
    sys.stdin.buffer.read()
    os._exit(0)  # the server's threads would keep the process alive


def _serve(settings: _EngineSettings) -> Any:
    """Load the model and serve it on a free loopback port; never without a key, and to no web page."""
    import xllamacpp  # noqa: PLC0415 (an extra, and only ever in the subprocess)

    params = xllamacpp.CommonParams()
    params.model.path = settings.model_path
    params.model_alias = {settings.name}
    params.api_keys = [settings.api_key]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.cors_origins = ""
    params.ui = False
    params.endpoint_slots = False
    params.offline = True
    params.n_ctx = settings.context_tokens * settings.slots
    params.n_parallel = settings.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.n_threads_http = _CONNECTIONS + 2
    params.verbosity = 1  # errors only
    if settings.embeddings:
        params.embedding = True
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, _POOLING[settings.embeddings])
        params.n_batch = params.n_ubatch = settings.context_tokens  # an input is computed in one piece or not at all
        params.kv_unified = True  # else two inputs at once are cut to one length, and the longer one's vector is wrong
    try:
        return xllamacpp.Server(params)
    except RuntimeError as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
