"""How each vendor's endpoint answers: a plain answer, a stream and a refusal in the shape it writes them, and what each
comes to. Made after the vendors' documentation and their answers in public bug reports; no test is here.

Every answer says "Hi you." and is counted as its vendor counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
PROMPT, OUTPUT = 12, 5
COUNTS: Json = {"prompt_tokens": PROMPT, "completion_tokens": OUTPUT, "total_tokens": PROMPT + OUTPUT}
WORDS = ("Hi", " you.")


@dataclass(frozen=True)
class Double:
    """One vendor's answers. `usage` is the plain answer's report and `last` what a stream ends with; `counted` is
    `(input, cached, output, reasoning)` as charged for both; `estimated` says that nobody counted.

    `refused` is `(status, body, words that the caller reads)`, `models` what it lists at GET models (none: 404).
    """

    vendor: str
    refused: tuple[int, str, str]
    usage: Json | None = field(default_factory=lambda: dict(COUNTS))
    last: tuple[str, ...] = ()
    counted: tuple[int, int, int, int] = (PROMPT, 0, OUTPUT, 0)
    estimated: bool = False
    message: Json = field(default_factory=dict)
    extra: Json = field(default_factory=dict)
    first: tuple[str, ...] = ()
    each: Json = field(default_factory=dict)
    finish: Json = field(default_factory=dict)
    models: str | None = '{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"x"}]}'

    def plain(self) -> bytes:
        message = {"role": "assistant", "content": "".join(WORDS), **self.message}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        document = {**envelope("chat.completion"), "choices": [choice], **self.extra}
        return json.dumps(document | ({"usage": self.usage} if self.usage is not None else {})).encode()

    def stream(self) -> bytes:
        deltas: list[Json] = [{"role": "assistant", "content": ""}, *({"content": word} for word in WORDS)]
        chunks = [chunk(delta, **self.each) for delta in deltas]
        done = [chunk({}, "stop", **self.finish), *self.last, "data: [DONE]"]
        return "".join(f"{event}\n\n" for event in (*self.first, *chunks, *done)).encode()


def envelope(object: str) -> Json:
    return {"id": "chatcmpl-x1", "object": object, "created": 1_795_000_000, "model": "upstream-name"}


def chunk(delta: Json, finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({**envelope('chat.completion.chunk'), 'choices': [choice], **more})}"


def counted(usage: Json, **more: Any) -> str:
    """The chunk that tells the usage and nothing else."""
    return f"data: {json.dumps({**envelope('chat.completion.chunk'), 'choices': [], 'usage': usage, **more})}"


def counts(**more: Any) -> Json:
    return {**COUNTS, **more}


def openai_error(message: str, **more: Any) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, **more}})


DETAILS = counts(
    prompt_tokens_details={"cached_tokens": 4, "audio_tokens": 0},
    completion_tokens_details={"reasoning_tokens": 2, "accepted_prediction_tokens": 0},
)
DEEPSEEK = counts(
    prompt_cache_hit_tokens=8,
    prompt_cache_miss_tokens=4,
    completion_tokens_details={"reasoning_tokens": 3},
)
XAI = {
    "prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 17, "num_sources_used": 0,
    "prompt_tokens_details": {"cached_tokens": 3, "text_tokens": 12},
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0},
}  # fmt: skip
OPENROUTER = counts(
    cost=0.000012,
    is_byok=False,
    prompt_tokens_details={"cached_tokens": 2, "cache_write_tokens": 6},
    cost_details={"upstream_inference_cost": None},
)
PERPLEXITY = counts(search_context_size="low", cost={"total_cost": 0.006, "request_cost": 0.005})
GEMINI = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 17}
GROQ = counts(queue_time=0.01, prompt_time=0.002, completion_time=0.01, total_time=0.012)
LLAMACPP = {"prompt_n": 12, "prompt_ms": 30.1, "predicted_n": 5, "predicted_ms": 80.2, "cache_n": 0}

DOUBLES = (
    Double(
        "openai",
        (400, openai_error("too long", code="context_length_exceeded", param="messages"), "too long"),
        usage=DETAILS,
        last=(counted(DETAILS, obfuscation="x9"),),
        counted=(12, 4, 5, 2),
        extra={"service_tier": "default", "system_fingerprint": "fp_1"},
        each={"service_tier": "default", "usage": None, "obfuscation": "aB3"},
    ),
    Double(
        "deepseek",
        (422, '{"error":{"message":"Failed to deserialize: temperature","type":"t","code":"c"}}', "temperature"),
        usage=DEEPSEEK,
        last=(),
        finish={"usage": DEEPSEEK},
        counted=(12, 8, 5, 3),
        message={"reasoning_content": "Hm."},
        first=(": keep-alive",),
        each={"usage": None},
    ),
    Double(
        "deepinfra",
        (400, '{"detail":{"error":"Model is not available"}}', "Model is not available"),
        usage=counts(estimated_cost=0.0001),
        last=(counted(counts(estimated_cost=0.0001)),),
    ),
    Double(
        "openrouter",
        (
            400,
            '{"error":{"message":"Provider returned error","code":400,"metadata":{"raw":"{\\"error\\":{\\"message\\":'
            '\\"bad tool\\"}}","provider_name":"Together"}},"user_id":"u"}',
            "Provider returned error: bad tool",
        ),
        usage=OPENROUTER,
        last=(counted(OPENROUTER),),
        counted=(12, 2, 5, 0),
        extra={"provider": "Together"},
        first=(": OPENROUTER PROCESSING", ": OPENROUTER PROCESSING"),
        each={"provider": "Together"},
        models='{"data":[{"id":"m","name":"M","context_length":8192,"pricing":{"prompt":"0.000001"}}]}',
    ),
    Double(
        "together",
        (400, openai_error("bad stop", code="invalid_parameter"), "bad stop"),
        finish={"usage": counts()},
        extra={"prompt": []},
        models='[{"id":"m","object":"model","created":1,"type":"chat","pricing":{"input":0.2}}]',
    ),
    Double(
        "groq",
        (400, openai_error("'n' must be 1", code="invalid_value", param="n"), "'n' must be 1"),
        usage=GROQ,
        finish={"x_groq": {"id": "req_1", "usage": GROQ}},
        last=(counted(GROQ, x_groq={"id": "req_1", "usage": GROQ}),),
        extra={"x_groq": {"id": "req_1"}, "usage_breakdown": None},
    ),
    Double(
        "mistral",
        (
            422,
            '{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","seed"],'
            '"msg":"Extra inputs are not permitted","input":1}]},"type":"invalid_request_error","param":null}',
            "seed: Extra inputs are not permitted",
        ),
        finish={"usage": counts()},
    ),
    Double(
        "xai",
        (400, '{"code":"Client specified an invalid argument","error":"Argument not supported: stop"}', "stop"),
        usage=XAI,
        last=(counted(XAI),),
        counted=(12, 3, 5, 3),
        message={"reasoning_content": "Hm.", "refusal": None},
    ),
    Double(
        "perplexity",
        (400, '{"error":{"message":"Invalid model","type":"invalid_model","code":400}}', "Invalid model"),
        usage=PERPLEXITY,
        extra={"citations": ["https://x.test"], "search_results": []},
        each={"usage": counts(completion_tokens=1, total_tokens=13), "citations": ["https://x.test"]},
        finish={"usage": PERPLEXITY},
        models=None,
    ),
    Double(
        "gemini",
        (
            400,
            '[{"error":{"code":400,"message":"Invalid JSON payload received. Unknown name \\"x\\"",'
            '"status":"INVALID_ARGUMENT"}}]',
            "Unknown name",
        ),
        usage=GEMINI,
        finish={"usage": GEMINI},
        each={"usage": {**GEMINI, "completion_tokens": 1, "total_tokens": 14}},
        counted=(12, 0, 5, 3),
        models='{"object":"list","data":[{"id":"models/m","object":"model","owned_by":"google"}]}',
    ),
    Double(
        "ollama",
        (400, openai_error("does not support tools", code=None), "does not support tools"),
        usage=None,
        counted=(6, 0, 2, 0),
        estimated=True,
        extra={"system_fingerprint": "fp_ollama"},
        models='{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"library"}]}',
    ),
    Double(
        "vllm",
        (400, '{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}', "too long"),
        usage=counts(prompt_tokens_details=None),
        each={"usage": counts(completion_tokens=1, total_tokens=13)},  # continuous_usage_stats
        finish={"usage": counts(), "stop_reason": None},
        last=(counted(counts()),),
        message={"reasoning": None, "tool_calls": []},
        extra={"kv_transfer_params": None, "prompt_logprobs": None},
    ),
    Double(
        "llamacpp",
        (
            400,
            '{"error":{"code":400,"message":"the request exceeds the available context size","type":'
            '"exceed_context_size_error","n_prompt_tokens":9000,"n_ctx":4096}}',
            "exceeds the available context size",
        ),
        finish={"timings": LLAMACPP},
        last=(counted(counts(), timings=LLAMACPP),),
        extra={"timings": LLAMACPP},
        models='{"models":[{"name":"m"}],"object":"list","data":[{"id":"m","object":"model","meta":{"n_ctx_train":1}}]}',
    ),
    Double(
        "lmstudio",
        (400, '{"error":"The number of tokens to keep is greater than the context length"}', "context length"),
        last=(counted(counts()),),
        extra={"stats": {}, "system_fingerprint": "m"},
    ),
)
