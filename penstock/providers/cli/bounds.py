"""An output limit and stop sequences, kept on the way out: no command line takes them. Text in, text out, no I/O.

Tokens are estimated as the gateway estimates them, piece by piece, so that both count alike. Text that may be the
beginning of a stop sequence is held back until it is known.
"""

from __future__ import annotations

from penstock.dialects.usage import BYTES_PER_TOKEN, estimate_delta_tokens


class Bounds:
    """Lets an answer pass up to its bounds. `reached` is the finish reason once there is one."""

    def __init__(self, limit: int | None, stops: tuple[str, ...]) -> None:
        self.reached: str | None = None
        self._limit = limit
        self._stops = stops
        self._hold_back = max(map(len, stops), default=1) - 1
        self._held = ""
        self._produced = 0

    def __repr__(self) -> str:
        return f"Bounds({self._produced} of {self._limit} tokens, reached={self.reached})"

    def let_pass(self, text: str) -> str:
        """As much of `text`, and of what was held back before, as may be said now."""
        text = self._held + text
        met = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if met:
            self.reached, self._held = "stop", ""
            _, at = min(met)  # what is complete first counts, however the text was cut
            return self._within_limit(text[:at])
        safe = len(text) - self._beginning_of_stop(text)
        self._held = text[safe:]
        return self._within_limit(text[:safe])

    def rest(self) -> str:
        """What was held back, when nothing comes after it."""
        held, self._held = self._held, ""
        return self._within_limit(held)

    def _beginning_of_stop(self, text: str) -> int:
        """How many characters at the end of `text` could become a stop sequence."""
        for size in range(min(self._hold_back, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0

    def _within_limit(self, text: str) -> str:
        if not text or self._limit is None:
            return text
        encoded = text.encode()
        left = self._limit - self._produced
        tokens = estimate_delta_tokens(len(encoded))
        if tokens > left:
            self.reached, self._held = "length", ""
            tokens, text = left, encoded[: left * BYTES_PER_TOKEN].decode("utf-8", "ignore")
        self._produced += tokens
        return text
