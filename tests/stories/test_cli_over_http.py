"""The management door over real HTTP, and the command line that goes through it: the same answers and refusals."""

from __future__ import annotations

import asyncio
import errno
import importlib
import io
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner, Result

from penstock.api.server import serving
from penstock.app import open_gateway
from penstock.cli.main import program
from penstock.config import ServerSettings, Settings
from penstock.operations.actor import LOCAL
from penstock.operations.index import OPERATIONS, operation_named, perform
from penstock.operations.office import Office


class Gateway:
    """A management door on a free port, with an account, its management key and an operator's key."""

    def __init__(self, office: Office, url: str) -> None:
        self.office = office
        self.url = url
        self.account = self.key = self.operator_key = ""

    async def furnish(self) -> None:
        self.account = (await self.do("accounts.create", name="Team")).id
        for scopes, name in ((["management"], "key"), (["operator"], "operator_key")):
            made = await self.do("keys.create", kind="management", name=name, account=self.account, scopes=scopes)
            setattr(self, name, made.key)

    async def do(self, operation: str, /, **arguments: Any) -> Any:
        return await perform(self.office, LOCAL, operation_named(operation), arguments)

    async def send(
        self, method: str, path: str, key: str | None = None, *, more: Mapping[str, Any] | None = None, **rest: Any
    ) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.operator_key if key is None else key}"} if key != "" else {}
        headers |= {"content-type": "application/json"} | dict(more or {})
        async with httpx2.AsyncClient() as client:
            return await client.request(method, self.url + path, headers=headers, **rest)

    async def run(self, *words: str, key: str | None = None) -> Result:
        environment = {"PENSTOCK_URL": self.url, "PENSTOCK_MANAGEMENT_KEY": key or self.operator_key}
        return await asyncio.to_thread(CliRunner().invoke, program(), list(words), env=environment)

    async def ask(self, *words: str) -> Any:
        ran = await self.run(*words, "--json")
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout)


@pytest.fixture
async def gateway(plain_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    monkeypatch.chdir(tmp_path)
    async with (
        open_gateway(plain_settings, io.StringIO()) as gateway,
        serving(gateway.door, ServerSettings(port=0)) as server,
    ):
        made = Gateway(gateway.office, server.url)
        await made.furnish()
        yield made


async def test_every_command_goes_to_the_gateway_when_it_is_named(gateway: Gateway, tmp_path: Path) -> None:
    user = await gateway.ask("users", "create", "Ada")
    team = (await gateway.ask("accounts", "create", "Other", "--owner", user["id"]))["id"]
    bob = (await gateway.ask("users", "create", "Bob"))["id"]
    assert len((await gateway.ask("accounts", "add-member", team, bob))["members"]) == 2
    assert len((await gateway.ask("accounts", "remove-member", team, bob))["members"]) == 1
    made = await gateway.ask("keys", "create", "--kind", "inference", "--name", "k", "--account", team)
    child = await gateway.ask("keys", "child", made["id"], "--name", "c", "--limit", "1")
    assert child["limit"]["usd"] == "1.00"
    await gateway.ask("grant", team, "--usd", "3.25")
    await gateway.ask("grant", team, "--contract", "DEMO_2027", "--tokens", "1000")
    assert (await gateway.ask("balance", team))["credits"]["total"] == {"usd": "3.25", "nano": 3_250_000_000}
    assert (await gateway.ask("usage", "list", "--limit", "5", "--lane", "credits"))["data"] == []
    assert (await gateway.ask("usage", "summary"))["requests"] == 0
    assert (await gateway.ask("keys", "revoke", made["id"]))["state"] == "revoked"
    assert [each["id"] for each in (await gateway.ask("models"))["data"]] == ["penstock/demo"]
    assert (await gateway.ask("ledger", "verify"))["ok"] is True
    assert len((await gateway.ask("users", "list"))["data"]) == 2
    assert os.listdir(tmp_path) == []


async def test_both_doors_answer_the_same(gateway: Gateway) -> None:
    await gateway.do("balances.grant", account=gateway.account, usd="1")
    for words, operation, arguments in (
        (("balance", gateway.account), "balances.show", {"account": gateway.account}),
        (("keys", "list"), "keys.list", {}),
        (("models",), "models.list", {}),
    ):
        here = json.loads(json.dumps(await gateway.do(operation, **arguments), default=_fields))
        there = await gateway.ask(*words)
        for key in (*here.get("data", ()), *there.get("data", ())):
            key.pop("last_used", None)  # asking is using
        assert there == here


async def test_an_import_that_fails_once_is_tried_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = importlib.import_module, [OSError(errno.EMFILE, "Too many open files")]

    def once(name: str, package: str | None = None) -> Any:
        if name == "penstock.api.management" and failures:
            raise failures.pop()
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", once)
    statuses = [(await gateway.send("GET", "/api/v1/keys")).status_code for _ in range(2)]
    assert (statuses, failures) == ([500, 200], [])


async def test_all_keys_are_listed_however_many_pages_they_are(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.cli.keys.PAGE", 2)
    for number in range(4):
        await gateway.do("keys.create", kind="inference", name=str(number), account=gateway.account)
    everything = await gateway.do("keys.list")
    assert len(everything.data) > 4
    listed = await gateway.ask("keys", "list")
    assert [each["id"] for each in listed["data"]] == [each.id for each in everything.data]
    assert listed["next"] is None
    other = (await gateway.do("accounts.create", name="Without keys")).id
    assert await gateway.ask("keys", "list", "--account", other) == {"data": [], "next": None}


@pytest.mark.parametrize("noun", ["users", "accounts"])
async def test_all_people_are_listed_however_many_pages_they_are(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, noun: str
) -> None:
    monkeypatch.setattr("penstock.cli.people.PAGE", 2)
    for number in range(4):
        await gateway.do("users.create", name=str(number))
    everything = await gateway.do(f"{noun}.list")
    listed = await gateway.ask(noun, "list")
    assert [each["id"] for each in listed["data"]] == [each.id for each in everything.data]
    assert (len(everything.data) >= 4, listed["next"]) == (True, None)


async def test_refusals_and_unreachable_gateways_end_as_they_do_here(gateway: Gateway) -> None:
    refused = await gateway.run("balance", "acc_nobody")
    assert (refused.exit_code, refused.stderr) == (1, "error: There is no such account.\n")
    there = await gateway.send("GET", "/api/v1/accounts/acc_nobody/balance")
    assert json.loads((await gateway.run("balance", "acc_nobody", "--json")).stderr) == there.json()
    assert (await gateway.run("users", "list", key=gateway.key)).exit_code == 1
    assert (await gateway.run("users", "list", key="pen_live_wrong")).exit_code == 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gateway.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    nobody = await gateway.run("users", "list", "--json")
    assert nobody.exit_code == 4
    assert gateway.url in json.loads(nobody.stderr)["error"]["message"]


@pytest.mark.parametrize(("key", "code"), [("{key}\r\n", 0), ("{key}\rx", 3), ("{key}é", 3), (" ", 1)])
async def test_a_key_is_stripped_and_one_that_is_none_is_not_repeated(gateway: Gateway, key: str, code: int) -> None:
    for environment in (True, False):
        given = key.format(key=gateway.operator_key)
        words = ("users", "list", *(() if environment else ("--key", given)))
        ran = await gateway.run(*words, key=given if environment else None)
        assert ran.exit_code == code, ran.output
        assert gateway.operator_key not in ran.output


@pytest.mark.parametrize(
    "url", ["http://ada:hid/den@127.0.0.1:9", "ada:hid/den@127.0.0.1:9", "http://ada:hid@den@127.0.0.1:9/x"]
)
async def test_a_password_in_the_address_of_a_gateway_is_not_repeated(gateway: Gateway, url: str) -> None:
    ran = await gateway.run("users", "list", "--url", url)
    assert ran.exit_code == 4
    assert "127.0.0.1:9" in ran.stderr
    assert not [word for word in ("ada", "hid", "den") if word in ran.output]


BALANCE = ("balance", "acc_x")
KEYS = ("keys", "list")


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("words", "body"),
    [
        *((words, body) for words in (BALANCE, KEYS, ("pulse",)) for body in (b"[]", b"{}", b"null")),
        (KEYS, b'{"data":[1],"next":null}'),
        (KEYS, b'{"data":"\\ud800"}'),
        (KEYS, b"[" * 100_000),
        (KEYS, b"1" * 5_000),
        (KEYS, b"\xff\xfe"),
    ],
)
async def test_an_answer_that_is_no_gateways_ends_with_4(
    tmp_path: Path, words: tuple[str, ...], body: bytes, as_json: bool
) -> None:
    ran = await told(200, body, *words, *(("--json",) if as_json else ()))
    assert ran.exit_code == 4, ran.output
    assert "No gateway answers at" in ran.stderr


@pytest.mark.parametrize("code", [b'"x"', b'["y"]', b'{"a":1}', b"null"])
async def test_what_a_server_says_gives_a_terminal_no_orders(code: bytes) -> None:
    said = "\x1b[31mred\x9b2J \u202e\ud800 é\nend"
    body = b'{"error":{"message":%s,"code":%s}}' % (json.dumps(said).encode(), code)
    for words in (KEYS, (*KEYS, "--json")):
        ran = await told(400, body, *words)
        assert ran.exit_code == 1, ran.output
        assert ran.stderr.replace("\n", "").isprintable()
        assert "é" in ran.stderr
    assert json.loads(ran.stderr)["error"]["message"] == said
    page = {
        "data": [{"id": "usr_1", "name": said, "account": "acc_1", "created": "2026-01-01", "disabled": None}],
        "next": None,
    }
    for words in (("users", "list"), ("users", "list", "--json")):
        ran = await told(200, json.dumps(page).encode(), *words)
        assert ran.exit_code == 0, ran.output
        assert ran.stdout.replace("\n", "").isprintable()
    assert json.loads(ran.stdout) == page


async def test_an_argument_that_cannot_be_printed_is_refused_there_as_here(gateway: Gateway) -> None:
    for words in (("balance", "\udcff"), ("users", "create", "\udcff"), ("keys", "list", "--account", "\udcff")):
        there = await gateway.run(*words)
        here = await gateway.run(*words, "--database-url", "sqlite://")
        assert (there.exit_code, there.stderr) == (here.exit_code, here.stderr), words
        assert there.exit_code == 1


async def told(status: int, body: bytes, *words: str) -> Result:
    """What a command comes to at a server that answers with this body, whatever it is asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        environment = {
            "PENSTOCK_URL": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            "PENSTOCK_MANAGEMENT_KEY": "pen_live_x",
        }
        return await asyncio.to_thread(CliRunner().invoke, program(), list(words), env=environment)


async def test_a_database_named_on_the_command_line_goes_before_a_gateway_in_the_environment(
    gateway: Gateway, tmp_path: Path
) -> None:
    users = await gateway.ask("users", "list", "--database-url", f"sqlite:///{tmp_path}/other.db")
    assert users["data"] == []
    assert (tmp_path / "other.db").exists()


async def test_without_a_good_credential_nothing_is_told(gateway: Gateway) -> None:
    inference = (await gateway.do("keys.create", kind="inference", name="k", account=gateway.account)).key
    for key in ("", "x", inference, gateway.key[:-1] + ("A" if gateway.key[-1] != "A" else "B")):
        for path in ("/api/v1/keys", "/api/v1/no/such/address"):
            answer = await gateway.send("GET", path, key)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_one_account_cannot_look_into_another(gateway: Gateway) -> None:
    other = (await gateway.do("accounts.create", name="Other")).id
    theirs = (await gateway.do("keys.create", kind="inference", name="k", account=other)).id
    for method, path, body in (
        ("GET", f"/accounts/{other}/balance", None),
        ("GET", f"/usage?account={other}", None),
        ("GET", f"/keys?account={other}", None),
        ("DELETE", f"/keys/{theirs}", None),
        ("POST", f"/keys/{theirs}/children", {"name": "c"}),
        ("POST", "/keys", {"kind": "inference", "name": "k", "account": other}),
    ):
        answer = await gateway.send(method, f"/api/v1{path}", gateway.key, json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found"), path
    granted = await gateway.send("POST", f"/api/v1/accounts/{gateway.account}/grants", gateway.key, json={"usd": "1"})
    assert granted.status_code == 403
    listed = await gateway.send("GET", "/api/v1/keys", gateway.key)
    assert {key["account"] for key in listed.json()["data"]} == {gateway.account}


async def test_a_session_token_opens_the_door_too(gateway: Gateway) -> None:
    user = await gateway.do("users.create", name="Ada")
    token = (await gateway.do("sessions.issue", user=user.id)).token
    answer = await gateway.send("GET", "/api/v1/accounts", token)
    assert [account["id"] for account in answer.json()["data"]] == [user.account]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"name": "x", "colour": "red"}', "colour"),
        (b'{"name": 5}', "name"),
        (b"{}", "name"),
        (b'{"name": "x", "owner": 1}', "owner"),
        (b"[]", None),
        (b"{", None),
        (b"", None),
        (b'{"name": "\\ud800"}', "name"),
    ],
)
async def test_a_body_that_is_not_what_the_operation_takes_is_refused(
    gateway: Gateway, body: bytes, param: str | None
) -> None:
    answer = await gateway.send("POST", "/api/v1/accounts", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].keys() == {"message", "type", "code", "param"}
    assert answer.json()["error"]["param"] == param


async def test_every_refusal_has_the_envelope_and_every_answer_an_id(gateway: Gateway) -> None:
    answers = [
        (200, await gateway.send("GET", "/api/v1/models")),
        (400, await gateway.send("GET", "/api/v1/usage?limit=many")),
        (400, await gateway.send("GET", "/api/v1/usage?colour=red")),
        (404, await gateway.send("GET", "/api/v1/nowhere")),
        (405, await gateway.send("PUT", "/api/v1/models")),
        (409, await gateway.send("DELETE", f"/api/v1/accounts/{await _personal(gateway)}/members/usr_x")),
        (413, await gateway.send("POST", "/api/v1/accounts", json={"name": "x" * 100_000})),
    ]
    for status, answer in answers:
        assert answer.status_code == status
        assert answer.headers["x-request-id"].startswith("req_")
        assert status == 200 or set(answer.json()["error"]) == {"message", "type", "code", "param"}


async def test_a_grant_asked_for_again_over_http_is_made_once(gateway: Gateway) -> None:
    path, once = f"/api/v1/accounts/{gateway.account}/grants", {"Idempotency-Key": "invoice 7"}
    first, again = [await gateway.send("POST", path, json={"usd": "2"}, more=once) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    other = await gateway.send("POST", path, json={"usd": "3"}, more=once)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_mismatch")
    for key in ("", "x" * 256, "\u00e9".encode("latin-1")):
        absurd = await gateway.send("POST", path, json={"usd": "3"}, more={"Idempotency-Key": key})
        assert (absurd.status_code, absurd.json()["error"]["param"]) == (400, "idempotency_key")
    assert (await gateway.send("POST", path, json={"usd": "3", "idempotency_key": "k"})).status_code == 400
    words = ("grant", gateway.account, "--usd", "1", "--idempotency-key", "invoice 8")
    assert await gateway.ask(*words) == await gateway.ask(*words)
    refused = await gateway.run(*words[:-1], "\u20ac")
    assert (refused.exit_code, "1 to 255 printable ASCII" in refused.stderr) == (1, True)
    assert (await gateway.ask("balance", gateway.account))["credits"]["total"]["usd"] == "3.00"
    described = (await gateway.send("GET", "/openapi.json", "")).json()["paths"]
    granting = described["/api/v1/accounts/{account}/grants"]["post"]
    assert {each["name"]: each["in"] for each in granting["parameters"]} == {
        "account": "path", "Idempotency-Key": "header",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/users", "GET, POST"),
        ("/routes", "DELETE, GET, POST"),
        ("/accounts/acc_x/tools", "DELETE, GET, POST"),
        ("/accounts/acc_x/grants", "POST"),
        ("/models/discovery", "GET"),
    ],
)
async def test_a_wrong_method_is_told_all_that_the_address_takes(gateway: Gateway, path: str, allowed: str) -> None:
    answer = await gateway.send("PATCH", f"/api/v1{path}")
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_numbers_are_numbers_and_amounts_are_text(gateway: Gateway) -> None:
    path = f"/api/v1/accounts/{gateway.account}/grants"
    for body in (
        {"contract": "DEMO_2027", "tokens": True},
        {"contract": "DEMO_2027", "tokens": "5"},
        {"contract": "DEMO_2027", "tokens": 1.5},
        {"usd": 5},
    ):
        assert (await gateway.send("POST", path, json=body)).status_code == 400
    assert (await gateway.send("POST", path, json={"usd": "5"})).status_code == 201


async def test_the_documentation_names_every_operation_and_no_status_we_do_not_use(gateway: Gateway) -> None:
    described = (await gateway.send("GET", "/openapi.json", "")).json()
    found = {
        call["operationId"]: (method.upper(), path, sorted(call["responses"]))
        for path, calls in described["paths"].items()
        for method, call in calls.items()
    }
    assert found == {
        each.name: (each.method, f"/api/v1{each.path}", ["201" if each.method == "POST" else "200", "4XX"])
        for each in OPERATIONS
        if each.method
    }
    assert (await gateway.send("GET", "/docs", "")).status_code == 200


async def _personal(gateway: Gateway) -> str:
    return str((await gateway.do("users.create", name="Ada")).account)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
