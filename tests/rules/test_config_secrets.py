"""The two secrets: given by the environment, or made once and kept beside the database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penstock.config import SecretSettings
from penstock.config_file import load
from penstock.config_secrets import fingerprints, look_for_secrets, renewed_secrets
from penstock.errors import ConfigError

PEPPER, SECRET = "p" * 32, "s" * 32


def secrets(environ: dict[str, str]) -> SecretSettings:
    return load(None, environ).secrets


def database(folder: Path) -> dict[str, str]:
    return {"PENSTOCK_DATABASE_URL": f"sqlite:///{folder}/penstock.db"}


def mistakes(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(None, environ)
    return caught.value.mistakes


def test_absent_secrets_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    first = secrets(database(tmp_path))
    assert first == secrets(database(tmp_path))
    assert len(first.key_pepper) == len(first.auth_secret) == 32
    assert first.key_pepper != first.auth_secret
    assert [path.name for path in tmp_path.iterdir()] == ["penstock.secrets"]
    assert (tmp_path / "penstock.secrets").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("given", [{}, {"PENSTOCK_KEY_PEPPER": PEPPER}])
def test_beside_a_database_that_was_used_none_are_made(tmp_path: Path, given: dict[str, str]) -> None:
    (tmp_path / "penstock.db").write_text("keys")
    (mistake,) = mistakes(database(tmp_path) | given)
    assert mistake == (
        "penstock.secrets: is not there, and the database beside it is: restore it, or set "
        f"{'' if given else 'PENSTOCK_KEY_PEPPER and '}PENSTOCK_AUTH_SECRET as the gateway has them; when they are "
        "lost, `penstock accept-secrets` makes new ones, and no key that was made with the old ones works again"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["penstock.db"]


def test_a_file_that_holds_nothing_yet_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "penstock.db").touch()
    assert secrets(database(tmp_path)) == secrets(database(tmp_path))


def test_who_only_looks_makes_no_file(tmp_path: Path) -> None:
    looked = load(None, database(tmp_path), look_for_secrets).secrets
    assert len(looked.key_pepper) == len(looked.auth_secret) == 32
    assert list(tmp_path.iterdir()) == []
    made = secrets(database(tmp_path))
    assert load(None, database(tmp_path), look_for_secrets).secrets == made
    (tmp_path / "penstock.secrets").unlink()
    (tmp_path / "penstock.db").write_text("keys")
    with pytest.raises(ConfigError, match="is not there"):
        load(None, database(tmp_path), look_for_secrets)


def test_who_has_lost_them_may_have_new_ones_made(tmp_path: Path) -> None:
    (tmp_path / "penstock.db").write_text("keys")
    renewed = load(None, database(tmp_path), renewed_secrets).secrets
    assert renewed == secrets(database(tmp_path)) == load(None, database(tmp_path), renewed_secrets).secrets


def test_a_fingerprint_tells_secrets_apart_and_not_what_they_are() -> None:
    one, other = SecretSettings(b"p" * 32, b"s" * 32), SecretSettings(b"q" * 32, b"s" * 32)
    assert fingerprints(one) == fingerprints(SecretSettings(b"p" * 32, b"s" * 32))
    assert fingerprints(one)["key_pepper"] != fingerprints(other)["key_pepper"]
    assert fingerprints(one)["auth_secret"] == fingerprints(other)["auth_secret"]
    assert len(set(fingerprints(SecretSettings(b"p" * 32, b"p" * 32)).values())) == 2


def test_processes_that_start_together_agree_on_the_secrets(tmp_path: Path) -> None:
    program = (
        "import sys; from penstock.config_secrets import complete_secrets as complete;"
        "print(flush=True); sys.stdin.readline();"
        "print(complete({}, sys.argv[1], []).key_pepper.hex())"
    )
    command = [sys.executable, "-c", program, database(tmp_path)["PENSTOCK_DATABASE_URL"]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    for process in processes:
        process.stdout.readline()  # it has imported everything and waits
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=30)[0] for process in processes}
    assert len(answers) == 1
    assert len(answers.pop().strip()) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["penstock.secrets"]


def test_given_secrets_leave_no_file(tmp_path: Path) -> None:
    environ = database(tmp_path) | {"PENSTOCK_KEY_PEPPER": PEPPER, "PENSTOCK_AUTH_SECRET_FILE": str(tmp_path / "s")}
    (tmp_path / "s").write_text(SECRET + "\n")
    assert secrets(environ) == SecretSettings(key_pepper=PEPPER.encode(), auth_secret=SECRET.encode())
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_one_given_secret_is_taken_and_the_other_made(tmp_path: Path) -> None:
    environ = database(tmp_path) | {"PENSTOCK_KEY_PEPPER": PEPPER}
    first = secrets(environ)
    assert first.key_pepper == PEPPER.encode()
    assert first.auth_secret == secrets(environ).auth_secret == secrets(database(tmp_path)).auth_secret


def test_a_configuration_with_mistakes_makes_no_file(tmp_path: Path) -> None:
    mistakes(database(tmp_path) | {"PENSTOCK_PORT": "x"})
    assert list(tmp_path.iterdir()) == []


def test_a_database_in_memory_has_secrets_of_its_own() -> None:
    environ = {"PENSTOCK_DATABASE_URL": "sqlite://"}
    assert secrets(environ) != secrets(environ)


def test_a_shared_database_needs_both_secrets() -> None:
    environ = {"PENSTOCK_DATABASE_URL": "postgresql://h/d"}
    assert mistakes(environ) == [
        "environment: PENSTOCK_KEY_PEPPER: is not set; only beside a SQLite database is it made by itself",
        "environment: PENSTOCK_AUTH_SECRET: is not set; only beside a SQLite database is it made by itself",
    ]
    both = environ | {"PENSTOCK_KEY_PEPPER": PEPPER, "PENSTOCK_AUTH_SECRET": SECRET}
    assert secrets(both).key_pepper == PEPPER.encode()


def test_a_secret_given_twice_or_in_a_missing_file_is_a_mistake(tmp_path: Path) -> None:
    environ = database(tmp_path) | {
        "PENSTOCK_KEY_PEPPER": PEPPER,
        "PENSTOCK_KEY_PEPPER_FILE": "/dev/null",
        "PENSTOCK_AUTH_SECRET_FILE": str(tmp_path / "none"),
    }
    assert mistakes(environ) == [
        "environment: PENSTOCK_KEY_PEPPER_FILE: PENSTOCK_KEY_PEPPER is set as well; one of the two is enough",
        "environment: PENSTOCK_AUTH_SECRET_FILE: names a file that cannot be read (No such file or directory)",
    ]


@pytest.mark.parametrize("text", ["", "not toml", 'key_pepper = "zz"', 'key_pepper = "aa"\nauth_secret = "bb"'])
def test_a_damaged_secrets_file_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "penstock.secrets").write_text(text)
    assert "restore it, or no key works" in mistakes(database(tmp_path))[0]
    assert (tmp_path / "penstock.secrets").read_text() == text


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    assert mistakes(database(tmp_path / "none")) == [
        "penstock.secrets: cannot be made (No such file or directory); "
        "or set PENSTOCK_KEY_PEPPER and PENSTOCK_AUTH_SECRET"
    ]


def test_secrets_that_everyone_can_read_are_a_warning(tmp_path: Path) -> None:
    first = load(None, database(tmp_path))
    (tmp_path / "penstock.secrets").chmod(0o644)
    assert first.warnings == ()
    assert "can be read by every user" in load(None, database(tmp_path)).warnings[0]


def test_secrets_do_not_show_in_a_repr(tmp_path: Path) -> None:
    environ = database(tmp_path) | {"PENSTOCK_KEY_PEPPER": PEPPER, "PENSTOCK_AUTH_SECRET": SECRET}
    assert PEPPER not in repr(load(None, environ))
