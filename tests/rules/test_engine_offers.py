"""What engines say of themselves, in the shapes they say it in, and what a worker offers because of it."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.errors import ConfigError, UpstreamFailed
from penstock.hub.messages import ModelOffer, Offer
from penstock.worker.engine import BATCHING_SLOTS, SLOTS, CommandEngine, HttpEngine, engine_of, offer_of

USUAL = ("json_schema", "tools")
LLAMACPP = {"object": "list", "data": [{"id": "tiny.gguf", "owned_by": "llamacpp", "meta": {"n_ctx_train": 4096}}]}
VLLM = {"object": "list", "data": [{"id": "meta/llama", "owned_by": "vllm", "max_model_len": 8192, "root": "x"}]}
OLLAMA = {"object": "list", "data": [{"id": "gemma:2b", "owned_by": "library"}, {"id": "phi3", "owned_by": "library"}]}
PROPS = {"default_generation_settings": {"n_ctx": 2048, "params": {}}, "total_slots": 3, "modalities": {"vision": True}}

SHAPES: dict[str, tuple[Any, Any, Offer]] = {
    "llama.cpp": (LLAMACPP, PROPS, Offer(3, (ModelOffer("tiny.gguf", 2048, (*USUAL, "images")),))),
    "llama.cpp that hides its properties": (LLAMACPP, None, Offer(SLOTS, (ModelOffer("tiny.gguf", None, USUAL),))),
    "vLLM": (VLLM, None, Offer(BATCHING_SLOTS, (ModelOffer("meta/llama", 8192, USUAL),))),
    "Ollama": (OLLAMA, None, Offer(SLOTS, (ModelOffer("gemma:2b", None, USUAL), ModelOffer("phi3", None, USUAL)))),
    "odd properties": (OLLAMA, {"total_slots": "many", "default_generation_settings": 7, "modalities": []},
                       Offer(SLOTS, (ModelOffer("gemma:2b", None, USUAL), ModelOffer("phi3", None, USUAL)))),
    "entries that are none": ({"data": [None, 5, {"id": ""}, {"id": 7}, {"id": "one"}]}, [],
                              Offer(SLOTS, (ModelOffer("one", None, USUAL),))),
}  # fmt: skip


@pytest.mark.parametrize(("listed", "props", "expected"), SHAPES.values(), ids=SHAPES)
def test_an_offer_is_what_the_engine_says(listed: Any, props: Any, expected: Offer) -> None:
    assert offer_of(listed, props) == expected
    assert offer_of(listed, props, slots=7).slots == 7


@pytest.mark.parametrize("listed", [None, [], {}, {"data": []}, {"data": "x"}, {"data": 7}, {"data": [{}]}])
def test_an_engine_without_models_offers_nothing(listed: Any) -> None:
    with pytest.raises(UpstreamFailed):
        offer_of(listed, PROPS)


async def test_an_engine_is_an_address_or_a_command_with_a_port_or_a_file() -> None:
    assert isinstance(engine_of("http://127.0.0.1:8000/v1", key="k", slots=1, context=None), HttpEngine)
    assert isinstance(engine_of("vllm serve mine --port {port}", key=None, slots=1, context=None), CommandEngine)
    for nonsense in ("vllm serve mine", "http://", "http://u:p@host", "'", "absent.gguf", ""):
        with pytest.raises(ConfigError, match="engine"):
            engine_of(nonsense, key=None, slots=None, context=None)
