"""The command line on a database of its own: what it prints, as JSON and for people, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from penstock.app import open_gateway
from penstock.cli.desk import ExitCode
from penstock.cli.main import program
from penstock.config_file import load
from penstock.db.migrate import HEAD
from tests.engines import SECRETS, only_on_sqlite, tell


class Terminal:
    """Runs commands as an operator would, on the test's database."""

    def __init__(self, store_url: str) -> None:
        self._database = ("--database-url", store_url)

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(program(), [*words, *self._database], env={"COLUMNS": "200"})

    def ask(self, *words: str) -> Any:
        ran = self.run(*words, "--json")
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout)


@pytest.fixture
def terminal(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    return Terminal(store_url)


def test_from_nothing_to_a_key_with_money(terminal: Terminal) -> None:
    user = terminal.ask("users", "create", "Ada")
    team = terminal.ask("accounts", "create", "Team", "--owner", user["id"])
    assert [each["id"] for each in terminal.ask("accounts", "list")["data"]] == [user["account"], team["id"]]
    made = terminal.ask(
        "keys", "create", "--kind", "team", "--name", "ci", "--account", team["id"], "--limit", "2.50",
        "--model", "penstock/demo", "--expires", "2099-01-01", "--requests-per-minute", "10",
    )  # fmt: skip
    assert made["key"].startswith("team.")
    assert (made["limit"], made["models"]) == ({"usd": "2.50", "nano": 2_500_000_000}, ["penstock/demo"])
    assert terminal.ask("keys", "child", made["id"], "--name", "job", "--limit", "1")["parent"] == made["id"]
    assert terminal.ask("grant", team["id"], "--usd", "5", "--reference", "trial")["reference"] == "trial"
    assert terminal.ask("grant", team["id"], "--contract", "DEMO_2027", "--tokens", "1000")["tokens"] == 1000
    balance = terminal.ask("balance", team["id"])
    assert balance["credits"]["available"]["usd"] == "5.00"
    assert [lot["available"] for lot in balance["contracts"]] == [1000]
    assert terminal.ask("keys", "revoke", made["id"])["state"] == "revoked"
    assert {each["state"] for each in terminal.ask("keys", "list", "--account", team["id"])["data"]} == {"revoked"}
    assert terminal.ask("usage", "list", "--account", team["id"]) == {"data": [], "next": None}
    assert terminal.ask("usage", "summary", "--since", "2026-01-01")["requests"] == 0
    assert terminal.ask("ledger", "verify") == {"ok": True, "differences": []}


def test_books_that_are_not_there_do_not_add_up_and_are_not_made(terminal: Terminal, tmp_path: Path) -> None:
    ran = CliRunner().invoke(program(), ["ledger", "verify", "--database-url", f"sqlite:///{tmp_path}/typo.db"])
    assert ran.exit_code == ExitCode.UNREACHABLE
    assert "There is no database at" in ran.output
    assert not (tmp_path / "typo.db").exists()


def test_people_get_tables_without_secrets(terminal: Terminal) -> None:
    user = terminal.ask("users", "create", "Ada")
    made = terminal.run("keys", "create", "--kind", "personal", "--name", "mine", "--user", user["id"])
    (key,) = [line for line in made.stdout.splitlines() if line.startswith("user.")]
    terminal.ask("grant", user["account"], "--usd", "12.5")
    terminal.ask("grant", user["account"], "--contract", "DEMO_2027", "--tokens", "1500")
    shown = {
        words: terminal.run(*words.split()).stdout
        for words in (
            "users list", "accounts list", "keys list", "models", "usage list", "usage summary", "ledger verify",
            f"balance {user['account']}",
        )
    }  # fmt: skip
    assert user["id"] in shown["users list"]
    assert user["account"] in shown["accounts list"]
    assert "personal" in shown["keys list"]
    assert "penstock/demo" in shown["models"]
    assert "add up" in shown["ledger verify"]
    assert "$12.50" in shown[f"balance {user['account']}"]
    assert "1,500" in shown[f"balance {user['account']}"]
    for text in shown.values():
        assert key not in text
        assert "\x1b" not in text


def test_members_come_and_go(terminal: Terminal) -> None:
    ada, bob = terminal.ask("users", "create", "Ada"), terminal.ask("users", "create", "Bob")
    team = terminal.ask("accounts", "create", "Team", "--owner", ada["id"])["id"]
    joined = terminal.ask("accounts", "add-member", team, bob["id"], "--role", "owner")
    assert [member["role"] for member in joined["members"]] == ["owner", "owner"]
    assert ada["id"] in terminal.run("accounts", "remove-member", team, bob["id"]).stdout
    assert terminal.run("accounts", "remove-member", team, ada["id"]).exit_code == 1


def test_a_session_token_is_all_that_is_printed(terminal: Terminal) -> None:
    user = terminal.ask("users", "create", "Ada")["id"]
    token = terminal.run("sessions", "token", user, "--seconds", "60").stdout.strip()
    assert token.count(".") == 2
    assert terminal.ask("sessions", "token", user)["user"] == user


def test_migrating_says_what_it_did(terminal: Terminal, new_store_url: str) -> None:
    terminal = Terminal(new_store_url)
    assert terminal.ask("migrate") == {"before": None, "revision": HEAD}
    assert terminal.ask("migrate") == {"before": HEAD, "revision": HEAD}


def test_a_refusal_ends_with_1_and_says_why_on_standard_error(terminal: Terminal) -> None:
    refused = terminal.run("balance", "acc_nobody")
    assert (refused.exit_code, refused.stdout, refused.stderr) == (1, "", "error: There is no such account.\n")
    as_json = terminal.run("grant", "acc_nobody", "--usd", "1e9", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stderr)["error"]["param"] == "usd"


@pytest.mark.parametrize(
    "words",
    [
        "keys create --kind golden --name x",
        "no-such-command",
        "balance",
        "grant a --tokens many",
        "usage list --lane x",
    ],
)
def test_wrong_usage_ends_with_2(terminal: Terminal, words: str) -> None:
    assert terminal.run(*words.split()).exit_code == 2


def test_a_gateway_elsewhere_and_a_database_here_cannot_both_be_meant(terminal: Terminal) -> None:
    assert terminal.run("users", "list", "--url", "http://127.0.0.1:1").exit_code == 2


def test_a_wrong_configuration_ends_with_3_and_names_each_mistake(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[server]\nport = 'x'\ncolour = 'red'\n")
    checked = terminal.run("check-config", "--config", str(file))
    assert checked.exit_code == 3
    assert "wrong.toml:2" in checked.stderr
    assert "wrong.toml:3" in checked.stderr
    as_json = terminal.run("check-config", "--config", str(file), "--json")
    assert (as_json.exit_code, json.loads(as_json.stderr)["error"]["type"]) == (3, "config_error")
    assert terminal.run("users", "list", "--config", str(tmp_path / "absent.toml")).exit_code == 3


def test_a_sound_configuration_is_summed_up(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text("[providers.demo]\nkind = 'demo'\n")
    assert terminal.ask("check-config") == {
        "config": "penstock.toml", "providers": 1, "models": 0, "contracts": 0, "warnings": [],
    }  # fmt: skip


@only_on_sqlite
def test_a_database_that_cannot_be_opened_ends_with_4(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "penstock.db").write_text("this is no database at all" * 100)
    broken = terminal.run("users", "list")
    assert broken.exit_code == 4
    assert "penstock.db" in broken.stderr


def test_a_server_that_is_not_there_ends_with_4(terminal: Terminal) -> None:
    absent = Terminal("postgresql://ada:hidden@127.0.0.1:9/books").run("users", "list")
    assert absent.exit_code == 4
    assert "books at 127.0.0.1" in absent.stderr
    assert "hidden" not in absent.stderr


def test_books_that_do_not_add_up_end_with_5(terminal: Terminal, store_url: str) -> None:
    account = terminal.ask("users", "create", "Ada")["account"]
    lot = terminal.ask("grant", account, "--usd", "1")["lot"]
    tell(store_url, "UPDATE lots SET remaining = 7")
    assert lot in terminal.run("ledger", "verify").stdout
    wrong = terminal.run("ledger", "verify", "--json")
    assert wrong.exit_code == 5
    assert json.loads(wrong.stdout)["differences"] == [{"what": f"remaining of {lot}", "written": 7, "computed": 10**9}]


def test_a_model_file_that_is_not_there_ends_the_demo_with_3(tmp_path: Path) -> None:
    ran = CliRunner().invoke(program(), ["demo", "--engine", "llamacpp", "--model-file", str(tmp_path / "none.gguf")])
    assert (ran.exit_code, "none.gguf is not there" in ran.stderr) == (ExitCode.CONFIG, True)


OTHER = {
    "PENSTOCK_KEY_PEPPER": "another-pepper-0123456789abcdef-0",
    "PENSTOCK_AUTH_SECRET": "another-secret-" + "0" * 32,
}


@pytest.mark.parametrize("name", list(OTHER))
def test_with_other_secrets_than_the_databases_nothing_is_done_until_they_are_accepted(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    terminal.ask("users", "create", "Ada")
    monkeypatch.setenv(name, OTHER[name])
    refused = terminal.run("users", "create", "Bob")
    assert refused.exit_code == ExitCode.CONFIG
    assert f"{name}: is not the one that this database was used with" in refused.stderr
    assert "penstock accept-secrets" in refused.stderr
    assert OTHER[name] not in refused.output
    accepted = terminal.ask("accept-secrets")
    assert accepted == {"changed": [name]}
    assert terminal.ask("accept-secrets") == {"changed": []}
    assert [each["name"] for each in terminal.ask("users", "list")["data"]] == ["Ada"]


def test_a_database_from_before_takes_the_secrets_of_the_gateway_and_not_those_of_a_command(
    terminal: Terminal, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = terminal.ask("users", "create", "Ada")["id"]
    terminal.ask("keys", "create", "--kind", "personal", "--name", "k", "--user", user)
    tell(store_url, "DELETE FROM fingerprints")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PENSTOCK_KEY_PEPPER", OTHER["PENSTOCK_KEY_PEPPER"])
        assert terminal.run("users", "list").exit_code == 0
    asyncio.run(_open_gateway(store_url))
    assert terminal.run("users", "list").exit_code == 0
    monkeypatch.setenv("PENSTOCK_KEY_PEPPER", OTHER["PENSTOCK_KEY_PEPPER"])
    assert terminal.run("users", "list").exit_code == ExitCode.CONFIG


async def _open_gateway(store_url: str) -> None:
    async with open_gateway(load(None, SECRETS | {"PENSTOCK_DATABASE_URL": store_url}), io.StringIO()):
        pass


@only_on_sqlite
def test_lost_secrets_are_not_made_anew_unless_somebody_asks_for_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name)
    here, kept = Terminal(f"sqlite:///{tmp_path}/new.db"), tmp_path / "penstock.secrets"
    here.ask("users", "create", "Ada")
    lost = kept.read_text()
    kept.unlink()
    for words in (("users", "list"), ("check-config",), ("serve", "--port", "0"), ("migrate",)):
        refused = here.run(*words)
        assert (refused.exit_code, kept.exists()) == (ExitCode.CONFIG, False), words
        assert "penstock.secrets: is not there" in refused.stderr
    assert here.ask("accept-secrets") == {"changed": ["PENSTOCK_KEY_PEPPER", "PENSTOCK_AUTH_SECRET"]}
    assert kept.read_text() != lost
    assert here.run("users", "list").exit_code == 0


@only_on_sqlite
def test_who_only_looks_leaves_nothing_behind(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name)
    here = Terminal(f"sqlite:///{tmp_path}/new.db")
    before = os.listdir(tmp_path)
    assert here.run("check-config").exit_code == 0
    assert here.run("ledger", "verify").exit_code == ExitCode.UNREACHABLE
    assert here.run("accept-secrets").exit_code == ExitCode.UNREACHABLE
    assert os.listdir(tmp_path) == before


def test_help_needs_none_of_the_heavy_libraries() -> None:
    heavy = ("sqlalchemy", "alembic", "asyncio", "rich", "pydantic", "fastapi", "uvicorn", "httpx2", "joserfc")
    script = (
        "import sys; from typer.main import get_command; from penstock.cli.main import program\n"
        "get_command(program())\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_module_is_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "penstock", "--help"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("Usage: penstock ")
    assert "Exit codes" in ran.stdout
