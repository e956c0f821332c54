"""Every way a request can fail, as one tree.

    PenstockError
    ├── AuthMissing, AuthInvalid                401
    ├── TrustMissing                            400
    ├── Forbidden                               403
    ├── InvalidRequest                          400
    │   ├── ModelMissing                        400
    │   └── ModelUnknown                        400 or 404, the surface decides
    ├── PaymentRequired                         402
    ├── NotFound                                404
    ├── MethodNotAllowed                        405
    ├── WrongState                              409
    ├── TooLarge                                413
    ├── RateLimited                             429
    ├── Internal                                500
    ├── NotImplementedHere                      501
    ├── StoreUnavailable, ShuttingDown, Crowded 503
    │   └── OutcomeUnknown                      503, of StoreUnavailable
    ├── ConfigError                             before the gateway serves at all
    └── UpstreamError
        ├── UpstreamFailed                      502
        │   └── ModelAbsent                     502
        ├── UpstreamUnavailable                 503
        │   └── UpstreamBusy                    503, and it says nothing about the next call
        ├── NoHealthyProvider                   503
        ├── UpstreamTimeout                     504
        └── UpstreamRefused                     the upstream's own 4xx about the request
            └── NotCarried, BeyondAllowance     another may take it

A class has a kind (what renderers key on), a status and a docstring that is its default message. The domain
raises; doors render (`penstock/api/errors.py`). No class here knows about HTTP frameworks or dialects.
"""

from __future__ import annotations

from typing import ClassVar


class PenstockError(Exception):
    """Something went wrong inside Penstock."""

    kind: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip().split("\n")[0]
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        super().__init__(self.message)


class AuthMissing(PenstockError):
    """No credential was sent. Send 'Authorization: Bearer <key>'."""

    kind, status = "auth_missing", 401


class AuthInvalid(PenstockError):
    """The credential is missing, malformed, expired or revoked, or is not of a kind this surface accepts."""

    kind, status = "auth_invalid", 401


class TrustMissing(PenstockError):
    """The X-Trust header is required: it names the account this call is for."""

    kind, status = "trust_missing", 400


class Forbidden(PenstockError):
    """This credential may not act for that account."""

    kind, status = "forbidden", 403


class InvalidRequest(PenstockError):
    """The request is malformed."""

    kind, status = "invalid_request", 400


class ModelMissing(InvalidRequest):
    """The 'model' field is required."""

    kind = "model_missing"


class ModelUnknown(InvalidRequest):
    """That model does not exist or is not available to this credential."""

    kind = "model_unknown"


class PaymentRequired(PenstockError):
    """The balance does not cover this request."""

    kind, status = "payment_required", 402


class NotFound(PenstockError):
    """There is nothing at this address."""

    kind, status = "not_found", 404


class MethodNotAllowed(PenstockError):
    """This address does not take that method."""

    kind, status = "method_not_allowed", 405


class WrongState(PenstockError):
    """The request conflicts with the state of the thing it is about."""

    kind, status = "wrong_state", 409


class TooLarge(PenstockError):
    """The request body is too large."""

    kind, status = "too_large", 413


class RateLimited(PenstockError):
    """Too many requests with this key. Wait for the time in Retry-After."""

    kind, status = "rate_limited", 429


class Internal(PenstockError):
    """Something went wrong inside Penstock. The request id names the log line."""


class NotImplementedHere(PenstockError):
    """This endpoint is not served by this deployment."""

    kind, status = "not_implemented", 501


class UpstreamError(PenstockError):
    """A provider did not do its part. `began` says whether any byte of its answer had arrived.

    `upstream_status` is the status it answered with, where that is what went wrong, and `wait_s` how long it asked to
    be left alone for.
    """

    kind, status = "upstream_failed", 502

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        began: bool = False,
        retry_after_s: int | None = None,
        upstream_status: int | None = None,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.began = began
        self.upstream_status = upstream_status
        self.wait_s = wait_s


class UpstreamFailed(UpstreamError):
    """The provider answered with an error or with something that is not an answer."""


class ModelAbsent(UpstreamFailed):
    """The provider does not have this model, whatever the request."""


class UpstreamUnavailable(UpstreamError):
    """The provider could not be reached."""

    kind, status = "upstream_unavailable", 503


class UpstreamBusy(UpstreamUnavailable):
    """The provider has nobody free for this call at the moment."""


class NoHealthyProvider(UpstreamError):
    """No healthy provider serves this model at the moment."""

    kind, status = "no_healthy_provider", 503


class UpstreamTimeout(UpstreamError):
    """The provider did not answer in time."""

    kind, status = "upstream_timeout", 504


class UpstreamRefused(UpstreamError):
    """The provider refused the request itself; its own status and words reach the caller, redacted."""

    kind = "upstream_refused"
    elsewhere = False  # whether another offer may well take the request

    def __init__(self, message: str, *, refused_status: int, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code=code, began=True)
        self.refused_status = refused_status
        self.param = param


class NotCarried(UpstreamRefused):
    """The provider has no way to take what the request asks for. Another may have one."""

    elsewhere = True


class BeyondAllowance(UpstreamRefused):
    """The request is larger than what the provider lets us use at once, or than our credit there."""

    elsewhere = True


class StoreUnavailable(PenstockError):
    """The ledger cannot be reached at the moment; nothing was charged."""

    kind, status = "store_unavailable", 503

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, retry_after_s=1)  # it is tried all the time, and taken up again at once


class OutcomeUnknown(StoreUnavailable):
    """The ledger went away while it was writing; it is not known whether it has written."""


class ShuttingDown(PenstockError):
    """The gateway is shutting down. What was produced has been charged; ask again."""

    kind, status = "shutting_down", 503


class Crowded(PenstockError):
    """Too many connections are open here. Ask again in a moment."""

    kind, status = "crowded", 503


class ConfigError(PenstockError):
    """The configuration has mistakes. `mistakes` lists each with its place (`file:line: key: what is wrong`)."""

    kind = "config"

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
