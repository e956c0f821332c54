"""What is known of upstreams by their vendors' names: `vendor = "mistral"` fills in what a provider's settings leave
out.

A row is settings as they would stand in the file, and a setting that does stand there wins. What a setting means is
said in `config.py`; what vendors' answers look like is met in `dialects/`, for every vendor alike. Nothing is asked of
the world here. As of November 2026, from the vendors' own documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

VendorName = Literal[
    "anthropic",
    "cerebras",
    "deepinfra",
    "deepseek",
    "gemini",
    "groq",
    "llamacpp",
    "lmstudio",
    "mistral",
    "moonshot",
    "ollama",
    "openai",
    "openrouter",
    "perplexity",
    "together",
    "vllm",
    "xai",
]
Defaults = Mapping[str, Any]

CHAT, EMBEDDINGS, COMPLETIONS = "openai_chat", "openai_embeddings", "openai_completions"
RESPONSES, MESSAGES = "openai_responses", "anthropic_messages"
LOCAL = [CHAT, RESPONSES, MESSAGES, COMPLETIONS, EMBEDDINGS]  # what engines on one's own machine speak by now

# OpenAI's marks for its own books and caches. They say nothing about an answer, and strict servers refuse them.
_MARKS = [
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
]

# Tokens of an image, `(as a rule, at most)`. At most: Claude counts up to 4,784, GPT-5.4 up to 10,000 (`detail` is
# `original`), Gemini 4,128, and Qwen-VL 16,384, which is the most for engines on one's own machine as well.
IMAGE_TOKENS = (2_000, 16_384)
# Models that count more, by the beginning of their names: 2,833 and 5,667 for each of up to eight tiles.
DEAR_IMAGES: Mapping[str, tuple[int, int]] = MappingProxyType({"gpt-4o-mini": (25_501, 48_169)})


def image_tokens(model: str) -> tuple[int, int]:
    """Tokens of an image for a model, by its name at a provider, which may have a maker's before it and may be of a
    model that was tuned: `(as a rule, at most)`."""
    name = model.rpartition("/")[2].lower().removeprefix("ft:")
    return next((tokens for dear, tokens in DEAR_IMAGES.items() if name.startswith(dear)), IMAGE_TOKENS)


VENDORS: Mapping[str, Defaults] = MappingProxyType(
    {
        "anthropic": {
            "kind": "anthropic",
            "base_url": "https://api.anthropic.com/v1",
            "dialects": [MESSAGES],
            # Another speed and another region have prices of their own; so have a container's hours, and searches.
            # So does what other models answer, and what is read from elsewhere is in no bound of the prompt.
            "priced_fields": ["speed", "inference_geo", "container", "service_tier", "fallbacks", "mcp_servers"],
            "priced_tools": ["web_search", "web_fetch", "code_execution", "advisor", "mcp_toolset"],
            # A prompt of over 200,000 tokens costs twice as much with it, on the models that have it as a beta.
            "dropped_betas": ["context-1m"],
            "dropped_fields": ["fallbacks"],  # `default`, that is: lists are refused
        },
        "cerebras": {
            "base_url": "https://api.cerebras.ai/v1",
            "dialects": [CHAT],
            "priced_fields": ["service_tier"],
        },
        "deepinfra": {
            "base_url": "https://api.deepinfra.com/v1/openai",
            "dialects": [CHAT, COMPLETIONS, EMBEDDINGS],
            "priced_fields": ["service_tier"],
        },
        "deepseek": {
            "base_url": "https://api.deepseek.com/v1",
            "dialects": [CHAT],
        },
        "gemini": {
            "base_url": "https://generativelanguage.googleapis.com/v1beta/openai",
            "dialects": [CHAT, EMBEDDINGS],
            "dropped_fields": [*_MARKS, "user"],  # an unknown name is refused
            "thinking_in_total": True,
            "priced_fields": ["service_tier"],
        },
        "groq": {
            "base_url": "https://api.groq.com/openai/v1",
            "dialects": [CHAT, RESPONSES],
            "dropped_fields": _MARKS,
            "priced_fields": ["service_tier", "search_settings", "compound_custom"],
            "priced_tools": ["browser_search", "code_interpreter"],
        },
        "llamacpp": {
            "base_url": "http://127.0.0.1:8080/v1",
            "dialects": LOCAL,
            "provider_class": "gpu",
        },
        "lmstudio": {
            "base_url": "http://127.0.0.1:1234/v1",
            "dialects": LOCAL,
            "provider_class": "gpu",
        },
        "mistral": {
            "base_url": "https://api.mistral.ai/v1",
            "dialects": [CHAT, EMBEDDINGS],
            # It tells its usage without being asked, and refuses to be; as it does every field it does not know.
            "stream_usage": False,
            "dropped_fields": [*_MARKS, "stream_options", "user"],
            "priced_fields": ["service_tier"],
        },
        "moonshot": {
            "base_url": "https://api.moonshot.ai/v1",
            "dialects": [CHAT],
        },
        "ollama": {
            "base_url": "http://127.0.0.1:11434/v1",
            "dialects": LOCAL,
            "provider_class": "gpu",
        },
        "openai": {
            "base_url": "https://api.openai.com/v1",
            "dialects": [CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS],
            "output_limit_field": "max_completion_tokens",
            "priced_fields": ["service_tier", "web_search_options", "modalities"],  # sound has a price of its own
            "priced_tools": [
                *["web_search", "file_search", "code_interpreter", "image_generation", "mcp"],
                "shell/container",  # a caller's own has another environment, or none
            ],
        },
        "openrouter": {
            "base_url": "https://openrouter.ai/api/v1",
            "dialects": [CHAT, RESPONSES, MESSAGES, COMPLETIONS, EMBEDDINGS],
            # Plugins are billed by themselves; the others have another model or another, dearer host answer.
            "priced_fields": [
                *["plugins", "models", "fallbacks", "route", "provider", "preset"],
                *["web_search_options", "service_tier", "modalities"],
            ],
            "dropped_fields": ["fallbacks"],  # `default`, that is: lists are refused
            "priced_tools": ["openrouter:"],
            "dropped_betas": ["context-1m"],
        },
        "perplexity": {
            "base_url": "https://api.perplexity.ai",
            "dialects": [CHAT],
            "dropped_fields": _MARKS,
            "priced_fields": ["web_search_options", "search_type", "service_tier"],
        },
        "together": {
            "base_url": "https://api.together.xyz/v1",
            "dialects": [CHAT, COMPLETIONS, EMBEDDINGS],
            "priced_fields": ["service_tier"],
        },
        "vllm": {
            "base_url": "http://127.0.0.1:8000/v1",
            "dialects": LOCAL,
            "provider_class": "gpu",
        },
        "xai": {
            "base_url": "https://api.x.ai/v1",
            "dialects": [CHAT, RESPONSES],
            "priced_fields": ["search_parameters", "service_tier"],
            "priced_tools": ["web_search", "x_search", "code_interpreter", "code_execution", "collections_search"],
        },
    }
)
