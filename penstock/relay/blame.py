"""Whose fault it is that an upstream answers with another status than 200: an error made of the status and its words.

A plain function of values. What an upstream says about the *request* (its 4xx) is the caller's to mend; what it says
about *us* (bad key, no credit, a model that it does not have) is ours, and never the caller's.

Upstreams quote their callers. Words put the blame on a provider, and may so take it out for everybody, only where they
are known sentences at the very beginning of what it says, about no field. Words that excuse it may stand anywhere: who
writes them into a request spoils his own call.
"""

from __future__ import annotations

import re

from penstock.dialects.refusals import Said
from penstock.errors import (
    BeyondAllowance,
    ModelAbsent,
    NotCarried,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnavailable,
)
from penstock.routing.health import retry_after_s

OUR_FAULT = frozenset({401, 402, 403, 407})  # credentials, credit: ours to mend
WORTH_ANOTHER = frozenset({408, 409, 425, 429})
OVERLOADED = frozenset({429, 503, 529})
TOO_LARGE = 413  # to a caller 402 is about a balance and 429 about the rate of calls, and this is neither
ABSENT = frozenset({"model_not_found", "model_not_available", "DeploymentNotFound"})  # codes of a 404

# What xAI, Gemini and Anthropic say under status 400, as if it were the request's fault.
_OURS = re.compile(
    "(?i)incorrect api key provided|api key not valid\\. please|api key expired\\. please|"
    "your credit balance is too low to access"
)
# What OpenRouter says under status 403 of a prompt that it does not pass on.
_MODERATED = re.compile("(?i)\\b(flagged|moderation)\\b")
# What OpenRouter says under status 402 of a request that our credit there is too small for.
_TOO_DEAR = re.compile("(?i)fewer max_tokens|can only afford|prompt tokens limit exceeded")
# What OpenAI says under status 429 of one that is larger than all that a minute allows.
_TOO_MUCH = re.compile("(?i)\\brequest too large\\b")
# A model that is not there: OpenAI and its like, Ollama, Gemini; Anthropic; OpenRouter; Together; Azure.
_NO_MODEL = re.compile(
    "(?i)(the |this )?models?\\b\\S{0,200} ?(['\"`]?[\\w./:@-]{1,200}['\"`]? )?((is|was|does|has been) )?"
    "(not (exist|found|available)|deprecated|decommissioned)|"
    "model: |no endpoints found for |unable to access model |the api deployment "
)
# Something else that a request names: a file of Anthropic's, an item of OpenAI's.
_NO_SUCH_THING = re.compile(
    "(?i)(no such |the |previous )?(file|item|response|conversation|container|vector store|skill|image|document|batch|"
    "assistant|thread|prompt|tool)s?\\b"
)
# What OpenRouter says of images, tools or providers that nobody who has the model there has as well.
_NO_WAY = re.compile("(?i)no endpoints found that |no endpoints found matching |no allowed providers ")


def blame(status: int, said: Said, wait_s: float | None) -> UpstreamError:
    """What an answer with this status comes to. `said` is redacted; `wait_s` is how long it asks to be left alone."""
    words = said.message or ""
    if status == 429 and _TOO_MUCH.search(words):
        return BeyondAllowance("The request is larger than what the provider lets us use.", refused_status=TOO_LARGE)
    if status in OVERLOADED:
        return _overloaded(status, wait_s)
    if said.param is None and _OURS.match(words):
        ours = f"The provider answered with status {status}, about our key or credit there."
        return UpstreamFailed(ours, upstream_status=401)  # which is what it should have been
    if status == 402 and _TOO_DEAR.search(words):
        short = "The request is larger than what our credit at the provider covers. Fewer max_tokens may do."
        return BeyondAllowance(short, refused_status=TOO_LARGE)
    if status == 404:
        return _not_found(said)
    if status == 403 and _MODERATED.search(words):
        status = 400  # to a caller 403 is about a key
    if 400 <= status < 500 and status not in OUR_FAULT and status not in WORTH_ANOTHER:
        return _refused(status, said)
    return _failed(status)


def _not_found(said: Said) -> UpstreamError:
    """Not found is the model, or something that the request names, or, for all that is known, the address."""
    words, named = said.message or "", said.param not in (None, "model")
    if not named and (said.param or said.code in ABSENT or _NO_MODEL.match(words)):
        return ModelAbsent("The provider answered with status 404.", upstream_status=404)
    if _NO_WAY.match(words):
        return NotCarried(words, refused_status=404, code=said.code, param=said.param)
    return _refused(404, said) if named or _NO_SUCH_THING.match(words) else _failed(404)


def _refused(status: int, said: Said) -> UpstreamRefused:
    words = said.message or "The provider refused the request."
    return UpstreamRefused(words, refused_status=status, code=said.code, param=said.param)


def _failed(status: int) -> UpstreamFailed:
    return UpstreamFailed(f"The provider answered with status {status}.", upstream_status=status)


def _overloaded(status: int, wait_s: float | None) -> UpstreamUnavailable:
    """An upstream that cannot take the call now, and for how long, if it says so."""
    told = None if wait_s is None else retry_after_s([wait_s])
    words = f"The provider answered with status {status}."
    return UpstreamUnavailable(words, began=True, upstream_status=status, wait_s=wait_s, retry_after_s=told)
