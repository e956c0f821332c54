"""How each command line is called, and what the lines it prints mean. Data only, and the settings that change it.

What is written here was taken from the commands themselves, run against a scripted model: Claude Code 2.1.197, Codex
0.169.0, Gemini CLI 0.61.0, llm 0.36 (docs/cli-providers.md). Each is given as little power as its options allow: it is
asked for words, and must not touch files, run programs or keep a record of the conversation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from penstock.config import CommandOutput, ProviderSettings

Reads = Literal["text", "block", "whole", "usage", "end", "error", "remark"]
PROMPT = "{prompt}"  # stands in a command for the prompt, where that is an argument


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing to be read from a line of JSON: what stands at `path`, if the fields in `when` have these values.

    `text` is a piece of the answer; `block` begins a paragraph of its own; `whole` is all of the answer, for when no
    piece of it came; `usage` is counted by `Counts`; `end` is the end of a good answer, and the word for how it ended;
    `error` is the end of a bad one, in words; `remark` may explain a bad end that says nothing itself.
    """

    reads: Reads
    path: str = ""
    when: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """Where a `usage` line has its counts. Those of `input` and `output` are added up; the others are parts of them."""

    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    cached: str = ""
    cache_write: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """What a command prints. `text` is the answer itself; `jsonl` is a JSON object a line, read by `rules`.

    `ends` translates a command's word for how it ended; any other word is `stop`. `usage_words` finds `input` and
    `output` in what a command printed on stderr.
    """

    format: Literal["text", "jsonl"] = "text"
    rules: tuple[Rule, ...] = ()
    counts: Counts = Counts()
    ends: tuple[tuple[str, str], ...] = ()
    usage_words: str = ""

    @property
    def says_its_end(self) -> bool:
        """Whether an answer without an `end` is one that broke off."""
        return any(rule.reads == "end" for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Template:
    """A command line. The model's name follows `model_option`; without one it is not passed.

    With `prompt` as `argument` the prompt stands where `{prompt}` does, else at the end. Of the gateway's environment
    the command sees the usual names and `environment`; `constants` are set besides.
    """

    command: tuple[str, ...]
    output: Output = Output()
    model_option: str = ""
    prompt: Literal["stdin", "argument"] = "stdin"
    environment: tuple[str, ...] = ()
    constants: tuple[tuple[str, str], ...] = ()


_CLAUDE_DELTA = (
    ("type", "stream_event"),
    ("parent_tool_use_id", None),  # what helpers of the agent say among themselves is no part of the answer
    ("event.type", "content_block_delta"),
    ("event.delta.type", "text_delta"),
)
_CLAUDE_BLOCK = (
    ("type", "stream_event"),
    ("parent_tool_use_id", None),
    ("event.type", "content_block_start"),
    ("event.content_block.type", "text"),
)
_CLAUDE_GOOD = (("type", "result"), ("subtype", "success"), ("is_error", False))

CLAUDE_CODE = Template(
    command=(
        "claude",
        "--print",
        "--output-format=stream-json",
        "--verbose",  # without it there is no stream-json
        "--include-partial-messages",
        "--tools=",
        "--strict-mcp-config",
        "--setting-sources=",
        "--disable-slash-commands",
        "--no-session-persistence",
        "--system-prompt=Answer as the assistant of the conversation you are given.",
    ),
    output=Output(
        "jsonl",
        rules=(
            Rule("block", "event.content_block.type", _CLAUDE_BLOCK),
            Rule("text", "event.delta.text", _CLAUDE_DELTA),
            Rule("remark", "subtype", (("type", "result"),)),
            Rule("error", "result", (("type", "result"), ("is_error", True))),
            Rule("whole", "result", _CLAUDE_GOOD),
            Rule("usage", "usage", _CLAUDE_GOOD),
            Rule("end", "stop_reason", _CLAUDE_GOOD),
            Rule("end", "subtype", _CLAUDE_GOOD),
        ),
        counts=Counts(
            input=("usage.input_tokens", "usage.cache_creation_input_tokens", "usage.cache_read_input_tokens"),
            output=("usage.output_tokens",),
            cached="usage.cache_read_input_tokens",
            cache_write="usage.cache_creation_input_tokens",
        ),
        ends=(("max_tokens", "length"), ("model_context_window_exceeded", "length"), ("refusal", "content_filter")),
    ),
    model_option="--model",
    environment=("CLAUDE_CONFIG_DIR",),
    constants=(
        # Without this a prompt that says @/etc/passwd is sent that file, whatever tools and permissions say.
        ("CLAUDE_CODE_DISABLE_ATTACHMENTS", "1"),
        ("CLAUDE_CODE_DISABLE_CLAUDE_MDS", "1"),
        ("CLAUDE_CODE_DISABLE_AUTO_MEMORY", "1"),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ),
)

_CODEX_MESSAGE = (("type", "item.completed"), ("item.type", "agent_message"))
_CODEX_DONE = (("type", "turn.completed"),)

CODEX = Template(
    command=(
        "codex",
        "exec",
        "--json",
        "--skip-git-repo-check",
        "--ephemeral",
        "--sandbox=read-only",
        "--disable=shell_tool",
    ),
    output=Output(
        "jsonl",
        rules=(
            Rule("block", "item.type", _CODEX_MESSAGE),
            Rule("text", "item.text", _CODEX_MESSAGE),
            Rule("remark", "message", (("type", "error"),)),  # also of a connection that is then made again
            Rule("error", "error.message", (("type", "turn.failed"),)),
            Rule("usage", "usage", _CODEX_DONE),
            Rule("end", "type", _CODEX_DONE),
        ),
        counts=Counts(
            input=("usage.input_tokens",),
            output=("usage.output_tokens",),
            cached="usage.cached_input_tokens",
            cache_write="usage.cache_write_input_tokens",
            reasoning="usage.reasoning_output_tokens",
        ),
    ),
    model_option="--model",
    environment=("CODEX_HOME",),
)

_GEMINI_MESSAGE = (("type", "message"), ("role", "assistant"))
_GEMINI_DONE = (("type", "result"), ("status", "success"))

GEMINI = Template(
    command=("gemini", "--output-format=stream-json", "--skip-trust", "--extensions=none", "--approval-mode=default"),
    output=Output(
        "jsonl",
        rules=(
            Rule("text", "content", _GEMINI_MESSAGE),
            Rule("remark", "message", (("type", "error"),)),
            Rule("error", "error.message", (("type", "result"), ("status", "error"))),
            Rule("usage", "stats", _GEMINI_DONE),
            Rule("end", "status", _GEMINI_DONE),
        ),
        counts=Counts(input=("stats.input_tokens",), output=("stats.output_tokens",), cached="stats.cached"),
    ),
    model_option="--model",
    environment=("GEMINI_CLI_HOME",),
)

LLM = Template(
    command=("llm", "prompt", "--no-log", "--usage"),
    output=Output(usage_words=r"Token usage: (?P<input>[\d,]+) input, (?P<output>[\d,]+) output"),
    model_option="--model",
    environment=("LLM_USER_PATH",),
)

TEMPLATES: dict[str, Template] = {"claude_code": CLAUDE_CODE, "codex": CODEX, "gemini": GEMINI, "llm": LLM}


def template_of(settings: ProviderSettings) -> Template:
    """The settings' template, with what they say in other words."""
    template = TEMPLATES[settings.template] if settings.template else Template(settings.command)
    if settings.command:
        template = replace(template, command=settings.command)
    if settings.model_option is not None:
        template = replace(template, model_option=settings.model_option)
    if settings.prompt is not None:
        template = replace(template, prompt=settings.prompt)
    if settings.output is not None:
        template = replace(template, output=_output(settings.output))
    return template


def _output(settings: CommandOutput) -> Output:
    """What a line of a command of somebody's own means: each path is looked for in every line."""
    if settings.format == "text":
        return Output()
    rules = [Rule("text", settings.text)]
    if settings.error:
        rules.append(Rule("error", settings.error))
    if settings.end:
        rules.append(Rule("end", settings.end))
    for path in (settings.input_tokens, settings.output_tokens):
        if path:
            rules.append(Rule("usage", path))
    counts = Counts(
        input=(settings.input_tokens,) if settings.input_tokens else (),
        output=(settings.output_tokens,) if settings.output_tokens else (),
    )
    return Output("jsonl", tuple(rules), counts, ends=(("length", "length"), ("max_tokens", "length")))
