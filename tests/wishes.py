"""What a dialect is told besides bytes when there is no gateway around it: a wish, and what the answer is called."""

from __future__ import annotations

from penstock.dialects import Label, Wish


def asking(*, usage: bool) -> Wish:
    """A wish for a stream, with the usage event or without."""
    return Wish(
        model="m",
        stream=True,
        output_limit=None,
        choices=1,
        include_usage=usage,
        input_bytes=0,
        text_bytes=0,
        images=0,
        fields={},
    )


WISH = asking(usage=False)


def labelled(model: str | None, id_prefix: str | None) -> Label:
    """A label for the answer to request `req_1`."""
    return Label(model, id_prefix, "req_1", 1_700_000_000)
