"""OpenAI embeddings: requests and answers. Never streamed, and nothing is produced: only the input costs.

Bytes pass through, as in `openai_chat`; read are the model and the input's type, replaced is the model's name.
"""

from __future__ import annotations

from msgspec import json

from penstock.dialects import Label, Plain, Stream, Wish, json_fields
from penstock.dialects.usage import read_usage
from penstock.errors import InvalidRequest

NAME = "openai_embeddings"
PATH = "embeddings"
FORWARDED: tuple[bytes, ...] = ()

_INPUT_SHAPE = "a string, or a list of strings, of token ids, or of lists of token ids, and not empty"
_MEANT = json_fields.Meant(("model", "input"))
_INPUT = json.Decoder(str | list[str | int | list[int]])


def peek(body: bytes, *, max_output_tokens: int) -> Wish:
    """Read a caller's body. `ModelMissing` before anything else about the fields, else `InvalidRequest`."""
    fields = json_fields.request_fields(body)
    model = json_fields.read_model(fields)
    json_fields.refuse_lookalikes(fields, _MEANT)
    input = json_fields.read(fields, "input", _INPUT, _INPUT_SHAPE)
    if input is None:
        raise InvalidRequest("The 'input' field is required.", param="input")
    if not input or len({type(item) for item in input}) > 1:
        raise InvalidRequest(f"'input' must be {_INPUT_SHAPE}.", param="input")
    return Wish(
        model=model,
        stream=False,
        output_limit=None,
        choices=1,
        include_usage=False,
        input_bytes=len(body),
        text_bytes=len(bytes(fields["input"])),
        images=0,
        fields=fields,
        token_ids=0 if isinstance(input, str) else sum(map(_ids, input)),
    )


def _ids(item: str | int | list[int]) -> int:
    """How many token ids an item of the input is."""
    if isinstance(item, list):
        return len(item)
    return 1 if isinstance(item, int) else 0


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body to send upstream with `model` named; there is no output to limit and no stream to ask usage of."""
    return json_fields.join({**wish.fields, "model": model})


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read an upstream's answer and name the model in it. `UpstreamFailed` when it is none."""
    fields = json_fields.answer_fields(body)
    if label.model is not None:
        body = json_fields.join({**fields, "model": label.model})
    return Plain(body, read_usage(fields.get("usage")), 0)


def open_stream(*, wish: Wish, label: Label) -> Stream:
    """`InvalidRequest`: embeddings come in one piece. `peek` never reports a wish to stream."""
    raise InvalidRequest("Embeddings are not streamed.", param="stream")
