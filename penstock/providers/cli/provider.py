"""A command line as `ports.Provider`: takes its turn, runs, and answers in OpenAI's chat format.

A run is one call: nothing of a conversation stays with the command. How many run at once is limited, usually to one,
because a subscription is a person's; a few more wait for their turn, and the rest are told at once, so that another
provider can take them. The command sees a short list of the gateway's environment and never a provider's key.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping

from penstock.config import ProviderSettings
from penstock.errors import InvalidRequest, NotCarried, UpstreamBusy, UpstreamTimeout, UpstreamUnavailable
from penstock.ids import IdMaker
from penstock.log import Redactor
from penstock.ports import Answer, Call, OnCancel, Timeouts
from penstock.providers.cli import completion
from penstock.providers.cli.command import Command, start
from penstock.providers.cli.completion import Completion
from penstock.providers.cli.prompt import Asked, read
from penstock.providers.cli.run import Document, Run
from penstock.providers.cli.templates import PROMPT, Template, template_of

LONGEST_ARGUMENT_BYTES = 128 * 1024 - 1  # Linux takes no longer one
VERSION_S = 20.0  # for `--version`: some commands are slow to begin

# Names any program needs to find its files, its language and the way out. No key is among them.
ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE"),
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)

_log = logging.getLogger(__name__)


class CliProvider:
    """Implements `ports.Provider` with the command that the settings name."""

    def __init__(self, settings: ProviderSettings, environ: Mapping[str, str] | None = None) -> None:
        self.name = settings.name
        self.on_cancel: OnCancel = settings.on_cancel
        self._settings = settings
        self._template = template_of(settings)
        environ = os.environ if environ is None else environ
        self._environment = _environment(self._template, settings, environ)
        self._redact = Redactor(environ[name] for name in settings.environment if name in environ)
        self._timeouts = Timeouts(
            settings.connect_timeout_s,
            settings.first_byte_timeout_s,
            settings.idle_timeout_s,
            settings.total_timeout_s,
        )
        self._turns = asyncio.Semaphore(settings.jobs)
        self._commands: set[Command] = set()
        self._waiting = 0
        self._closed = False
        self._ids = IdMaker()

    def __repr__(self) -> str:
        return f"CliProvider({self.name!r}, {self._template.command[0]!r}, {len(self._commands)} running)"

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return self._waiting

    def ready(self, model: str, account: str) -> bool:
        """Whether a call would have its turn, now or after a wait."""
        return not self._closed and not self._full()

    async def open(self, call: Call) -> Answer:
        """Run the command for `chat/completions`; 404 for other paths, NotCarried for what it cannot take.

        A stream's answer is here when the command is started, a plain one when it has ended.
        """
        if (call.method, call.path) == ("GET", "models"):
            return Document(200, completion.models((self.name,)))
        if (call.method, call.path) != ("POST", "chat/completions"):
            words = f"The command does not serve {call.method} {call.path}."
            return Document(404, completion.refusal(words, type="not_found", code=None, param=None))
        try:
            asked = read(call.body)
            argv, prompt = self._argv(asked)
        except InvalidRequest as bad:
            raise NotCarried(bad.message, refused_status=400, code=bad.code, param=bad.param) from None
        run = await self._run(asked, argv, prompt, call.sent)
        if asked.stream:
            return run
        try:
            return Document(200, await run.whole())
        finally:
            run.close()

    async def check(self) -> tuple[str, ...]:
        """Whether the command is there and tells its version. It keeps no list of models."""
        command = await self._start([self._template.command[0], "--version"], None)
        try:
            async with asyncio.timeout(VERSION_S):
                while await command.read():
                    pass
                code = await asyncio.shield(command.ended)
        except TimeoutError:
            raise UpstreamTimeout(f"The command of {self.name} does not tell its version.") from None
        finally:
            command.stop()
        if code != 0:
            self._report(code, command)
            raise UpstreamUnavailable(f"The command of {self.name} does not tell its version.")
        return ()

    async def close(self) -> None:
        """Stop what runs, and wait for its end. The provider is not used afterwards."""
        self._closed = True
        for command in self._commands:
            command.stop()
        if self._commands:
            await asyncio.wait([command.ended for command in self._commands])

    def _argv(self, asked: Asked) -> tuple[list[str], bytes | None]:
        """The command line and what goes to its stdin. `InvalidRequest` when the prompt fits neither."""
        template = self._template
        argv = list(template.command)
        if template.model_option:
            at = argv.index(PROMPT) if PROMPT in argv else len(argv)
            argv[at:at] = [template.model_option, asked.model]
        prompt = asked.prompt.encode("utf-8", "replace")
        if template.prompt == "stdin":
            return argv, prompt
        if len(prompt) > LONGEST_ARGUMENT_BYTES or b"\0" in prompt:
            raise InvalidRequest("The conversation is too long for an argument of a command.", param="messages")
        if PROMPT not in argv:
            argv.append(PROMPT)
        return [prompt.decode() if each == PROMPT else each for each in argv], None

    async def _run(self, asked: Asked, argv: list[str], prompt: bytes | None, sent: Callable[[], None] | None) -> Run:
        await self._take_turn()
        try:
            command = await self._start(argv, prompt)
        except BaseException:
            self._turns.release()
            raise
        command.ended.add_done_callback(lambda _: self._turns.release())
        if sent is not None:
            sent()
        written = Completion(asked, id=f"chatcmpl-{self._ids.new('run')[4:]}", created_s=int(time.time()))
        return Run(command, asked, written, self._template.output, self._timeouts, self._redact, self._report)

    def _full(self) -> bool:
        return self._turns.locked() and self._waiting >= self._settings.queue

    async def _take_turn(self) -> None:
        if self._full():
            raise UpstreamBusy(f"{self.name} is busy, and enough calls wait for it.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._settings.queue_timeout_s):
                await self._turns.acquire()
        except TimeoutError:
            raise UpstreamBusy(f"{self.name} is busy.") from None
        finally:
            self._waiting -= 1

    async def _start(self, argv: list[str], prompt: bytes | None) -> Command:
        if self._closed:
            raise UpstreamUnavailable(f"{self.name} is closed.")
        if shutil.which(argv[0], path=self._environment.get("PATH")) is None:
            raise UpstreamUnavailable(f"The command of {self.name} is not there: {argv[0]}.")
        command = await start(argv, self._environment, prompt)
        self._commands.add(command)
        command.ended.add_done_callback(lambda _: self._commands.discard(command))
        return command

    def _report(self, code: int, command: Command) -> None:
        """Say in the log how a command failed; its last words may be anything, and have no secret in them."""
        _log.warning("%s ended with code %s: %s", self.name, code, self._redact(command.last_words()))


def _environment(template: Template, settings: ProviderSettings, environ: Mapping[str, str]) -> dict[str, str]:
    names = (*ENVIRONMENT, *template.environment, *settings.environment)
    return {name: environ[name] for name in names if name in environ} | dict(template.constants)
