"""Whose fault an upstream's refusal is: its status and words, and what they come to."""

from __future__ import annotations

import pytest

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
from penstock.relay.blame import blame


def blamed(status: int, said: Said) -> tuple[type[UpstreamError], int | None]:
    """What it comes to, with the status that counts: the caller's, or the provider's for its health."""
    error = blame(status, said, None)
    return type(error), error.refused_status if isinstance(error, UpstreamRefused) else error.upstream_status


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "Incorrect API key provided: xa***. You can obtain an API key from https://console.x.ai."),
        (400, "API key not valid. Please pass a valid API key."),
        (400, "API key expired. Please renew the API key."),
        (400, "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."),
        (403, "Incorrect API key provided: sk-***"),
    ],
)
def test_our_key_and_our_credit_are_known_under_odd_statuses(status: int, words: str) -> None:
    assert blamed(status, Said(words, "invalid_request_error")) == (UpstreamFailed, 401)


@pytest.mark.parametrize(
    "said",
    [
        Said("Invalid value: 'incorrect api key'. Supported values are: 'user'.", "invalid_value", "messages[0].role"),
        Said("Unknown role: Incorrect API key provided: x"),
        Said("Incorrect API key provided: Extra inputs are not permitted", param="Incorrect API key provided"),
        Said("'Your credit balance is too low to access' is not one of ['user']"),
    ],
)
def test_words_that_a_caller_has_written_do_not_blame_the_provider(said: Said) -> None:
    assert blamed(400, said) == (UpstreamRefused, 400)


@pytest.mark.parametrize(
    "said",
    [
        Said("The model `x/Y-3.1` does not exist or you do not have access to it.", "model_not_found"),
        Said("The model `x/Y-3.1` does not exist.", "NotFoundError"),
        Said("Model x does not exist or your team t does not have access to it."),
        Said("model 'x:8b' not found"),
        Said('model "x:8b" not found, try pulling it first'),
        Said("models/x-1.5 is not found for API version v1main", "NOT_FOUND"),
        Said("Model not found, inaccessible, and/or not deployed", "NOT_FOUND"),
        Said("The model `x` has been deprecated"),
        Said("model: claude-x", "not_found_error"),
        Said("No endpoints found for x/y:free."),
        Said("The API deployment for this resource does not exist.", "DeploymentNotFound"),
        Said("It is not here.", param="model"),
    ],
)
def test_a_model_that_is_not_there_is_known_by_code_and_words(said: Said) -> None:
    assert blamed(404, said) == (ModelAbsent, 404)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Said("File not found: model 'x' not found", "not_found_error"), UpstreamRefused),
        (Said("Item with id 'rs_1' not found."), UpstreamRefused),
        (Said("No such File object: file-1"), UpstreamRefused),
        (Said("Nothing like it.", param="tools[0].server"), UpstreamRefused),
        (Said("No endpoints found that support image input"), NotCarried),
        (Said("No endpoints found that support the provided 'tool_choice' value."), NotCarried),
        (Said("No allowed providers are available for the selected model."), NotCarried),
        (Said("Not Found"), UpstreamFailed),
        (Said(), UpstreamFailed),
    ],
)
def test_what_else_is_not_found_says_nothing_about_the_model(said: Said, expected: type[UpstreamError]) -> None:
    assert blamed(404, said) == (expected, 404)


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (402, "Insufficient credits", (UpstreamFailed, 402)),
        (402, "This request requires more credits, or fewer max_tokens.", (BeyondAllowance, 413)),
        (402, "Prompt tokens limit exceeded: 5000 > 3000.", (BeyondAllowance, 413)),
        (429, "Rate limit reached for requests", (UpstreamUnavailable, 429)),
        (429, "Request too large for x in organization org-1 on tokens per min (TPM)", (BeyondAllowance, 413)),
        (403, "Your input was flagged.", (UpstreamRefused, 400)),
        (403, "Forbidden", (UpstreamFailed, 403)),
        (409, "Conflict", (UpstreamFailed, 409)),
        (422, None, (UpstreamRefused, 422)),
        (500, "Oops", (UpstreamFailed, 500)),
        (302, None, (UpstreamFailed, 302)),
    ],
)
def test_a_status_and_its_words_say_whose_fault_it_is(
    status: int, words: str | None, expected: tuple[type[UpstreamError], int]
) -> None:
    assert blamed(status, Said(words)) == expected


def test_what_we_may_use_at_a_provider_is_told_to_nobody() -> None:
    for status, words in ((402, "can only afford 5000"), (429, "Request too large in organization org-1")):
        message = blame(status, Said(words), None).message
        assert "5000" not in message
        assert "org-1" not in message
