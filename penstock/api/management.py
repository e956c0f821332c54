"""The management door: every operation at its address below `/api/v1`, with documentation at `/docs` and
`/openapi.json`.

A rendering of `operations/index.py`: what an address takes and answers is read off the operation's function. A serving
process imports this module when somebody first asks for the management API (`lazy.py`): the framework is slow to load.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, create_model
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse
from starlette.routing import Match

from penstock import __version__
from penstock.access import Access, Surface
from penstock.api.asgi import MOST_BODY_BYTES
from penstock.api.docs_page import POLICY, render
from penstock.api.errors import render_openai
from penstock.errors import Internal, InvalidRequest, MethodNotAllowed, NotFound, PenstockError, TooLarge
from penstock.operations.actor import actor_of
from penstock.operations.index import HEADERS, OPERATIONS, Operation, perform
from penstock.operations.office import Office

ROOT = "/api/v1"
SURFACE = Surface("management", frozenset({"management", "session"}), account_rule="own", lane="credits")

_logger = logging.getLogger("penstock.management")


class RefusalFields(BaseModel):
    """Why an operation was refused. `param` names the parameter that is to blame, if one is."""

    message: str
    type: str
    code: str | None
    param: str | None


class Refusal(BaseModel):
    """The envelope of every error."""

    error: RefusalFields


def build(office: Office, access: Access) -> FastAPI:
    """The management door as an ASGI application."""
    shown_in_docs = Depends(HTTPBearer(auto_error=False, description="A management key or a session token."))
    app = FastAPI(
        title="Penstock management API",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would send callers to whatever host they, or somebody between, had named
    )

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            if request.url.path.startswith(f"{ROOT}/"):
                caller = await access.enter(request.headers.get("authorization"), None, SURFACE)
                request.state.actor = await actor_of(office, caller)
            response = await call_next(request)
            if response.status_code == 413:  # the framework answers this one by itself, in plain text
                raise TooLarge()
        except PenstockError as error:
            response = _refusal(error)
        except Exception:
            _logger.exception("request %s failed", request.state.id)
            response = _refusal(Internal())
        return response

    for operation in OPERATIONS:
        if operation.method is not None:
            _add(app, office, operation, [shown_in_docs])
    _render_errors(app)
    app.add_route("/docs", _docs)
    return app


async def _docs(request: Request) -> Response:
    return HTMLResponse(render(request.app.openapi()), headers={"content-security-policy": POLICY})


def _add(app: FastAPI, office: Office, operation: Operation, dependencies: list[Any]) -> None:
    title, _, text = inspect.cleandoc(operation.function.__doc__ or "").partition("\n")
    app.add_api_route(
        ROOT + operation.path,
        _endpoint(office, operation),
        methods=[operation.method or ""],
        status_code=201 if operation.method == "POST" else 200,
        response_model=get_type_hints(operation.function)["return"],
        operation_id=operation.name,
        tags=[operation.name.partition(".")[0]],
        summary=title,
        description=f"{text.strip()}\n\nScope: `{operation.scope}`.".strip(),
        dependencies=dependencies,
        responses={"4XX": {"model": Refusal, "description": "A refusal."}},
        max_body_size=MOST_BODY_BYTES,
    )


def _endpoint(office: Office, operation: Operation) -> Callable[..., Awaitable[Any]]:
    """A function whose signature is what FastAPI is to validate: the path's parameters, those in headers, and all
    others in one model."""
    in_path = re.findall(r"{(\w+)}", operation.path)
    in_headers = [name for name in inspect.signature(operation.function).parameters if name in HEADERS]
    wanted = _model(operation, [*in_path, *in_headers])

    async def endpoint(request: Request, given: BaseModel | None = None, **named: str | None) -> Any:
        arguments = given.model_dump(exclude_unset=True) if given is not None else {}
        arguments |= {name: value for name, value in named.items() if value is not None}
        return await perform(office, request.state.actor, operation, arguments)

    annotations: dict[str, Any] = {"request": Request, **dict.fromkeys(in_path, str)}
    annotations["given"] = wanted if operation.method == "POST" else Annotated[wanted, Query()]
    annotations |= {name: Annotated[str | None, Header(alias=HEADERS[name])] for name in in_headers}
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=None if name in in_headers else inspect.Parameter.empty,
        )
        for name, annotation in annotations.items()
    ]
    endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what FastAPI reads
    return endpoint


def _model(operation: Operation, elsewhere: list[str]) -> type[BaseModel]:
    """The function's keyword parameters that are not in path or headers. JSON says of what type a value is; a query
    cannot."""
    hints = get_type_hints(operation.function)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(operation.function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in elsewhere
    }
    name = "".join(part.title() for part in re.split(r"[._]", operation.name))
    config = ConfigDict(extra="forbid", strict=operation.method == "POST")
    model: type[BaseModel] = create_model(f"{name}Arguments", __config__=config, **fields)
    return model


def _render_errors(app: FastAPI) -> None:
    """Every refusal in Penstock's words, those of the framework too."""
    framework: dict[int, type[PenstockError]] = {404: NotFound, 405: MethodNotAllowed, 413: TooLarge}

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refusal(_mistake(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        headers = {"allow": _allowed(app, request)} if error.status_code == 405 else dict(error.headers or {})
        return _refusal(framework.get(error.status_code, InvalidRequest)(), headers)

    @app.exception_handler(PenstockError)
    async def declined(request: Request, error: PenstockError) -> Response:
        return _refusal(error)


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of every operation at the request's address; the framework names those of the first it finds."""
    here = [each for each in app.routes if each.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for each in here for method in getattr(each, "methods", None) or ()}))


def _mistake(found: dict[str, Any]) -> InvalidRequest:
    """The first of pydantic's complaints: `('body', 'tokens')` and a sentence."""
    place = [str(part) for part in found["loc"][1:]]
    if found["type"] == "json_invalid" or not place:
        return InvalidRequest(
            "The body must be a JSON object with the operation's parameters, sent as application/json."
        )
    param = place[0] if place[0].isprintable() else None
    if found["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown parameter '{place[0][:100]}'.", param=param)
    return InvalidRequest(f"'{'.'.join(place)}': {found['msg']}.", param=param)


def _refusal(error: PenstockError, headers: dict[str, str] | None = None) -> Response:
    status, body = render_openai(error, {})
    response = Response(body, status, headers, "application/json")
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response
