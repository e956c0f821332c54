"""PostgreSQL as an engine: what several processes and hosts, and a server that comes and goes, add to the ledger.

The ledger's own suites run on it as well (`conftest.py`); here is the model-based one, and what only this engine has.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Insert, bindparam, update
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.schema import CreateIndex, CreateTable

import penstock.db
from penstock.config import Settings, StoreSettings
from penstock.db import migrate, postgres
from penstock.db.journal import grant, ping, verify
from penstock.db.ledger import CLOSE_HOLDS, KEEP_ANSWER, SAVE_LOT, WRITE_HOLD, Once
from penstock.db.postgres import PostgresStore
from penstock.db.postgres_text import BLOBS
from penstock.db.postgres_text import Text as Words
from penstock.db.program import Program, Statement, fetch, run
from penstock.db.records import KeptAnswer
from penstock.db.schema import credentials, holds, lots, metadata, prices, transfers, usage_records
from penstock.db.store import LONG_READ_S
from penstock.db.usage import UsageFilter, usage_page, usage_totals
from penstock.errors import ConfigError, OutcomeUnknown, StoreUnavailable
from penstock.money.books import Granted, Part, Settled
from tests.ledger import (
    ACCOUNT,
    KEY,
    OWNER,
    HandClock,
    admission,
    furnish,
    granted,
    key,
    lot,
    need,
    rows,
    settlement,
)
from tests.ports.test_ledger_state_machine import LIMITS, OWNERS, LedgerMachine
from tests.postgres import Server, ask
from tests.stories.gateway import HELLO, LLAMA, ROUTER_V1, TRUST, running, settings_for
from tests.upstream import Plain, ScriptedUpstream, Stream

BALANCE = Statement(
    update(lots).where(lots.c.id == bindparam("lot")).values(remaining=bindparam("left")), "left", "lot"
)
PARTIAL = {"lots_with_money": " WHERE remaining > 0"}  # which the schema says of SQLite alone
WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted"
CATALOGUE = (
    "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    " WHERE table_schema = 'public' ORDER BY table_name, ordinal_position",
    "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
)


@asynccontextmanager
async def on(url: str, clock: HandClock | None = None) -> AsyncIterator[Any]:
    """A store on the database; `Any`, for the words of `tests/ledger.py` speak of SQLite's."""
    store = PostgresStore(url, clock=clock or HandClock())
    yield store
    await store.close()


@pytest.fixture
async def pg(database: str, clock: HandClock) -> AsyncIterator[Any]:
    """A store with an account, a key and 1,000 units in it."""
    async with on(database, clock) as store:
        await store.write(furnish())
        await store.write(lot("lot_1", 1_000))
        yield store


# The schema.


def test_a_migrated_database_is_what_the_schema_says(server: Server) -> None:
    with server.database() as migrated, server.database(tables=False) as made:
        assert (migrate.current(migrated), migrate.is_current(migrated)) == (migrate.HEAD, True)
        assert (migrate.current(made), migrate.is_current(made)) == (None, False)
        words = dialect()  # type: ignore[no-untyped-call]
        for table in metadata.sorted_tables:
            server.tell(str(CreateTable(table).compile(dialect=words)), made)
            for index in table.indexes:
                server.tell(f"{CreateIndex(index).compile(dialect=words)}{PARTIAL.get(str(index.name), '')}", made)
        for question in CATALOGUE:
            found = [row for row in server.tell(question, migrated) if "alembic_version" not in str(row)]
            assert found == server.tell(question, made) != []


def test_processes_that_migrate_at_once_all_find_a_whole_database(server: Server) -> None:
    with server.database(tables=False) as url:
        script = f"from penstock.db import migrate; migrate.upgrade({url!r}); assert migrate.is_current({url!r})"
        started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
        assert [process.wait(timeout=30) for process in started] == [0, 0, 0]


def test_a_database_of_a_newer_version_is_left_alone(server: Server) -> None:
    with server.database() as url:
        server.tell("UPDATE alembic_version SET version_num = '9999'", url)
        with pytest.raises(ConfigError, match="newer"):
            migrate.upgrade(url)


def test_a_server_that_is_not_there_is_reported_without_the_password() -> None:
    with pytest.raises(StoreUnavailable, match=r"books at 127\.0\.0\.1") as caught:
        migrate.upgrade("postgresql://ada:hidden@127.0.0.1:9/books")
    assert "hidden" not in caught.value.message
    with pytest.raises(ConfigError, match="sslmode"):
        migrate.upgrade("postgresql://127.0.0.1/books?sslmode=perhaps")
    for broken in ("ada:hid#den@h/d", "ada:hid/den@h/d", "ada:hid[den@h/d", "127.0.0.1:99999/d"):
        with pytest.raises(ConfigError, match="%XX"):
            migrate.upgrade(f"postgresql://{broken}")


async def test_a_certificate_that_is_not_right_is_reported_as_such(tmp_path: Path) -> None:
    """The server's is for another name, and nobody has signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path, "elsewhere.example"))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # the request for TLS
        writer.write(b"S")
        with suppress(OSError):
            await writer.start_tls(context)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with server:
        url = f"postgresql://ada:hidden@127.0.0.1:{port}/books?sslmode=verify-full&sslrootcert={tmp_path}/other.pem"
        self_signed(tmp_path, "other")
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            await asyncio.to_thread(migrate.upgrade, url)


def self_signed(folder: Path, name: str) -> Path:
    """A certificate for a name and its key, in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    made = builder.not_valid_before(now).not_valid_after(now + timedelta(hours=1)).sign(key, hashes.SHA256())
    path = folder / f"{name.partition('.')[0]}.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    return path


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigError, match=r"penstock\[postgres\]"):
        migrate.upgrade("postgresql://127.0.0.1/books")


# Statements.


def statements() -> Iterator[tuple[str, Statement]]:
    """Every statement of the package that has a name."""
    for module in pkgutil.iter_modules(penstock.db.__path__, "penstock.db."):
        if not module.ispkg:
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, Statement):
                    yield f"{module.name}.{name}", value


async def test_the_server_takes_every_statement_for_one_row_and_for_many(database: str) -> None:
    connection = await asyncpg.connect(database)
    prepared = []
    for name, statement in statements():
        text = Words(statement)
        await connection.prepare(text.sql)
        if text.many and statement is not CLOSE_HOLDS:
            await connection.prepare(text.many)
            assert isinstance(statement.construct, Insert) == (" SELECT " in text.many)
        prepared.append(name)
    await connection.close()
    assert len(prepared) > 40


def test_many_rows_are_one_statement_unless_two_mean_the_same_row_or_they_are_too_large() -> None:
    assert len(Words(SAVE_LOT).rounds([(n, 0, f"lot_{n}") for n in range(500)])) == 1
    first, second = ("a", "lot_1", 0, 1, 1, "o", 0, 0, 0, ""), ("a", "lot_1", 1, 2, 2, "o", 0, 0, 0, "")
    other = ("b", "lot_1", 0, 3, 3, "o", 0, 0, 0, "")
    assert Words(WRITE_HOLD).rounds([first, second, other]) == [[first, other], [second]]
    answers = [("done", 200, "[]", b"x", f"r{n}") for n in range(BLOBS + 1)]
    assert [len(each) for each in Words(KEEP_ANSWER).rounds(answers)] == [BLOBS, 1]


async def test_values_of_every_type_come_back_as_they_went_in(pg: Any) -> None:
    once, kept = Once("k", "d"), KeptAnswer(200, '[["ü", "\\n"]]', bytes(range(256)))
    await pg.commit(admission("a", need(10), once=once))
    settled = settlement("a", need(0), 7, kept=kept, once=True)
    settled.record.model, settled.record.total_us = "'\"\\ü\n\x01\u2028😀", 2**63 - 1
    await pg.commit(settled)
    assert (await pg.commit(admission("b", need(10), once=once))).kept == kept
    (record,) = await rows(pg, usage_records)
    assert (record["model"], record["total_us"]) == (settled.record.model, settled.record.total_us)


async def test_usage_is_filtered_and_added_up(pg: Any) -> None:
    for n in range(3):
        await pg.commit(admission(f"r{n}", need(10)))
        pg.post(settlement(f"r{n}", need(0), 7))
    await pg.settled()
    wanted = UsageFilter(accounts=(ACCOUNT, "other"), key=KEY, model="m", since_ms=0, before="r2")
    assert [each.request_id for each in await pg.read(usage_page(wanted, 5))] == ["r1", "r0"]
    (total,) = await pg.read(usage_totals(UsageFilter(account=ACCOUNT, state="final")))
    assert (total.requests, total.amount, total.total_tokens, total.review) == (3, 21, 21, 0)


# A program or an operation that is at fault.


async def test_what_breaks_a_rule_of_the_schema_leaves_nothing_behind_and_harms_no_other(pg: Any) -> None:
    wrong: dict[str, Any] = {"lane": "credits", "asset": "USD", "expires_ms": None, "reference": "", "now_ms": 0}
    for amount in (0, -5):
        with pytest.raises(asyncpg.CheckViolationError):
            await pg.write(grant(lot_id="x", account=ACCOUNT, amount=amount, **wrong))
    with pytest.raises(asyncpg.UniqueViolationError):
        await pg.write(furnish())
    assert [len(await rows(pg, table)) for table in (lots, transfers, credentials)] == [1, 1, 1]
    assert await pg.write(lot("lot_2", 5))


async def test_an_operation_that_cannot_be_written_does_not_take_its_group_down(pg: Any) -> None:
    await asyncio.gather(*(pg.commit(admission(id, need(100))) for id in "ab"))
    bad = settlement("a", need(0), 10)
    bad.record.model = None  # type: ignore[assignment]
    group = [pg.commit(each) for each in (bad, settlement("b", need(0), 20), admission("c", need(100)))]
    poisoned, *others = await asyncio.gather(*group, return_exceptions=True)
    assert isinstance(poisoned, asyncpg.NotNullViolationError)
    assert others == [Settled((Part("lot_1", 20),), 20, 0), Granted((Part("lot_1", 100, 100),), 100)]
    assert await pg.read(verify()) == []


@pytest.mark.parametrize("impossible", [2**63, -(2**70), "text"])
async def test_a_value_that_no_column_can_hold_is_not_taken_for_an_outage(pg: Any, impossible: Any) -> None:
    with pytest.raises(asyncpg.DataError):
        await pg.write(run(BALANCE, impossible, "lot_1"))


# Several processes.


async def test_two_processes_use_one_balance_up_and_never_more(database: str) -> None:
    async with on(database) as store:
        await store.write(furnish())
        await store.write(lot("lot_1", 30_050))
        command = [sys.executable, "-m", "tests.postgres", database]
        processes = [
            await asyncio.create_subprocess_exec(*command, f"own_{n}x", "250", stdout=asyncio.subprocess.PIPE)
            for n in range(2)
        ]
        spent = [int((await process.communicate())[0]) for process in processes]
        assert (sum(spent), min(spent) > 0) == (30_050, True)
        (money,), (who,) = await rows(store, lots), await rows(store, credentials)
        assert (money["remaining"], money["held"], who["spent_nano"], who["held_nano"]) == (0, 0, 30_050, 0)
        assert sum(row["amount"] for row in await rows(store, usage_records)) == 30_050
        assert (await store.read(verify()), await rows(store, holds)) == ([], [])


async def test_one_idempotency_key_at_two_hosts_at_once_is_admitted_at_one(pg: Any, database: str) -> None:
    async with on(database) as other:
        for n in range(25):
            once = Once(f"k{n}", "d")
            asked = [(store, admission(f"{name}{n}", need(1), once=once)) for store, name in ((pg, "a"), (other, "b"))]
            outcomes = await asyncio.gather(*(store.commit(each) for store, each in asked))
            assert sum(isinstance(outcome, Granted) for outcome in outcomes) == 1
    assert sum(row["held"] for row in await rows(pg, lots)) == 25


async def test_keys_are_locked_before_lots_though_both_are_asked_for_at_once(pg: Any, database: str) -> None:
    """So no two groups wait for each other."""
    first, second = await asyncpg.connect(database), await asyncpg.connect(database)
    async with first.transaction(), second.transaction():
        await first.execute("SELECT FROM credentials FOR UPDATE")
        asked = asyncio.ensure_future(pg.commit(admission("a", need(1))))
        while not await ask(database, WAITING):
            pass
        assert await second.fetch("SELECT id FROM lots FOR UPDATE NOWAIT")
    await asyncio.gather(first.close(), second.close())
    assert granted(await asked) == 1


async def test_a_settlement_sees_the_hold_of_a_group_whose_outcome_was_not_waited_for(pg: Any, database: str) -> None:
    """The group is a transaction of its process, as ever; only nobody hears of it any more."""
    await pg.commit(admission("a", need(10)))
    unheard = await asyncpg.connect(database)
    async with unheard.transaction():
        await unheard.execute(f"SELECT {pg._group.gate}")
        await unheard.execute(
            "INSERT INTO holds SELECT 'b', lot_id, position, amount, 0, owner_id, 0, 0, 0, '' FROM holds"
        )
        await unheard.execute("UPDATE lots SET held = 20")
        settled = pg.post(settlement("b", need(0), 7))
        while not await ask(database, WAITING):
            pass
    await unheard.close()
    assert await settled == Settled((Part("lot_1", 7),), 7, 0)
    assert [row["request_id"] for row in await rows(pg, holds)] == ["a"]


def take_one() -> Program[None]:
    """Look, and then act on what was seen, without locking it."""
    for id, left in (yield from fetch(Statement(lots.select().with_only_columns(lots.c.id, lots.c.remaining)))):
        yield from run(BALANCE, left - 1, id)


async def test_a_program_is_alone_with_the_database_as_on_sqlite(pg: Any, database: str) -> None:
    async with on(database) as other:
        calls = [store.write(take_one()) for store in (pg, other) for _ in range(20)]
        await asyncio.gather(*calls, *(pg.commit(admission(f"r{n}", need(1))) for n in range(20)))
    (money,) = await rows(pg, lots)
    assert (money["remaining"], money["held"]) == (960, 20)


async def test_a_read_sees_one_moment(pg: Any, database: str) -> None:
    async with on(database) as other:
        await pg.write(lot("lot_2", 1_000))

        async def shift() -> None:
            for n in range(30):
                await other.commit(admission(f"r{n}", need(10)))
                await other.commit(settlement(f"r{n}", need(0), 10))

        shifting = asyncio.create_task(shift())
        while not shifting.done():
            assert await pg.read(verify()) == []
        await shifting


# A server that comes and goes.


async def test_a_server_that_is_stopped_and_started_again_loses_nothing_and_the_store_goes_on(
    server: Server, pg: Any, database: str
) -> None:
    """What was refused has left nothing behind, and what was answered is there, also if it was being committed."""
    if not server.wheel:
        pytest.skip("the server is not ours to stop")
    await pg.write(lot("lot_2", 100_000))
    served: set[str] = set()
    busy, back = asyncio.Event(), asyncio.Event()

    async def serve(worker: int) -> None:
        for n in range(100_000):
            with suppress(StoreUnavailable):
                await pg.commit(admission(f"{worker}_{n}", need(1)))
                pg.post(settlement(f"{worker}_{n}", need(0), 1))
                served.add(f"{worker}_{n}")
                if back.is_set():
                    return
            if len(served) > 20:
                busy.set()

    workers = [asyncio.create_task(serve(worker)) for worker in range(4)]
    await busy.wait()
    await asyncio.to_thread(server.stop)
    try:
        async with on(database) as other:
            for refused in (other.commit(admission("x", need(1))), other.write(lot("y", 1)), pg.read(verify())):
                with pytest.raises(StoreUnavailable):
                    await asyncio.wait_for(refused, 5)
    finally:
        await asyncio.to_thread(server.start)
    back.set()
    await asyncio.gather(*workers)
    await pg.settled()
    assert {row["request_id"] for row in await rows(pg, usage_records)} == served
    assert await rows(pg, holds) == []
    assert await pg.read(verify()) == []


async def test_connections_that_were_cut_while_idle_are_made_again(pg: Any, database: str, server: Server) -> None:
    await cut_all(server, database)
    outcomes = await asyncio.gather(pg.commit(admission("a", need(1))), return_exceptions=True)
    assert isinstance(outcomes[0], Granted | StoreUnavailable)
    assert granted(await pg.commit(admission("b", need(1)))) == 1


async def cut_all(server: Server, database: str) -> None:
    name = urlsplit(database).path[1:]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    await asyncio.to_thread(server.tell, cut)


async def test_look_ups_that_find_no_connection_free_are_refused_and_long_reads_take_none_of_theirs(
    pg: Any, database: str
) -> None:
    """Somebody keeps a table to himself, and reads of it wait."""
    prices_known = Statement(prices.select().with_only_columns(prices.c.version))
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("LOCK TABLE prices IN ACCESS EXCLUSIVE MODE")
        long = [asyncio.create_task(pg.read(fetch(prices_known), within_s=LONG_READ_S)) for _ in range(4)]
        await pg.read(ping())
        short = [asyncio.create_task(pg.read(fetch(prices_known))) for _ in range(postgres.READERS)]
        while len(await ask(database, WAITING)) < postgres.READERS + postgres.LONG_READERS:
            pass
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(pg.read(ping()), postgres.CONNECT_S + 2)
    await other.close()
    outcomes = await asyncio.gather(*long, *short, return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome == []] == [[]] * (postgres.READERS + postgres.LONG_READERS)
    await pg.read(ping())


async def test_a_server_that_only_reads_is_unavailable_until_it_writes_again(
    pg: Any, database: str, server: Server
) -> None:
    name = urlsplit(database).path[1:]
    await pg.commit(admission("a", need(100)))
    await asyncio.to_thread(server.tell, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await cut_all(server, database)
    pg.post(settlement("a", need(0), 70))
    for refused in (pg.commit(admission("b", need(1))), pg.write(lot("y", 1)), pg.commit(admission("c", need(1)))):
        with pytest.raises(StoreUnavailable):
            await refused
    await asyncio.to_thread(server.tell, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await cut_all(server, database)
    while not await rows_when_back(pg):
        pass
    assert await pg.read(verify()) == []


async def rows_when_back(store: Any) -> list[Any]:
    try:
        await store.settled()
        return await rows(store, usage_records)
    except StoreUnavailable:
        return []


async def test_a_transaction_undone_to_end_a_deadlock_is_carried_on_in_another(
    pg: Any, database: str, server: Server
) -> None:
    """Somebody from outside locks a lot and then wants a key, in the wrong order."""
    name = urlsplit(database).path[1:]
    await asyncio.to_thread(server.tell, f"ALTER DATABASE {name} SET deadlock_timeout = '50ms'")
    await cut_all(server, database)
    pg._group = replace(pg._group, bound_s=30.0, statement_s=30.0)  # on a busy machine the other one takes his time
    other = await asyncpg.connect(database, server_settings={"deadlock_timeout": "1min"})
    begun = other.transaction()
    await begun.start()
    await other.execute("SELECT 1 FROM lots FOR UPDATE")
    waiting = pg.commit(admission("a", need(100)))
    blocked = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock'"
    while not (await ask(database, blocked))[0][0]:
        pass
    await other.execute("SELECT 1 FROM credentials FOR UPDATE")
    await begun.rollback()
    await other.close()
    assert granted(await waiting) == 100


# A connection that breaks while a commit is under way.


class Wire:
    """A way to the database that breaks when the first COMMIT goes over it: before it has arrived, or (`deliver`) after
    the server has answered it, and once only. `instead` is done in place of delivering it."""

    def __init__(
        self, database: str, *, deliver: bool = False, instead: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._socket = f"{parse_qs(urlsplit(database).query)['host'][0]}/.s.PGSQL.5432"
        self._path = urlsplit(database).path
        self._deliver = deliver
        self._instead = instead
        self._whole = True
        self._cutting = False

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """The URL of the database by this way."""
        wire = await asyncio.start_server(self._carry, "127.0.0.1")
        host, port = wire.sockets[0].getsockname()
        async with wire:
            yield f"postgresql://postgres@{host}:{port}{self._path}?sslmode=disable"

    async def _carry(self, from_store: asyncio.StreamReader, to_store: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._socket)
        ways = [self._forth(from_store, to_server), self._back(from_server, to_store)]
        try:
            await asyncio.wait(map(asyncio.ensure_future, ways), return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.close()
            to_store.close()

    async def _forth(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            if self._whole and b"COMMIT\0" in data:
                self._whole, self._cutting = False, self._deliver
                if self._instead is not None:
                    await self._instead()
                if not self._deliver:
                    return
            target.write(data)

    async def _back(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            if self._cutting:
                self._cutting = False
                return
            target.write(data)


@pytest.mark.parametrize("deliver", [True, False], ids=["written", "not written"])
async def test_what_became_of_a_commit_is_asked_when_the_connection_breaks_during_it(
    pg: Any, database: str, server: Server, deliver: bool
) -> None:
    if not server.wheel:
        pytest.skip("the wire is made for a server on a Unix socket")
    async with Wire(database, deliver=deliver).laid() as url, on(url) as store:
        outcomes = await asyncio.gather(store.commit(admission("a", need(100))), return_exceptions=True)
        assert isinstance(outcomes[0], Granted if deliver else StoreUnavailable)
        assert [row["amount"] for row in await rows(store, holds)] == ([100] if deliver else [])


async def test_a_commit_is_not_taken_for_that_of_another_that_got_its_number_after_a_crash(
    database: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of the server is killed while a COMMIT is on its way. What the transaction has written is lost with the
    log in memory, and its number is given out again."""
    if not server.wheel:
        pytest.skip("the server is not ours to crash")
    victim = await asyncpg.connect(database)

    async def crash() -> None:
        os.kill(victim.get_server_pid(), signal.SIGKILL)
        served = 0
        async with on(database) as other, asyncio.timeout(30):
            while served < 5:
                with suppress(StoreUnavailable):
                    await other.commit(admission(f"other_{served}", need(1, keys=("key_2",)), owner="own_2"))
                    served += 1

    async with Wire(database, instead=crash).laid() as url, on(database) as before, on(url) as store:
        await before.write(furnish([key(), key("key_2")], [OWNER, "own_2"]))
        await before.write(lot("lot_1", 1_000))
        await before.commit(admission("settled", need(300)))
        posted = store.post(settlement("settled", need(0), 250))
        with pytest.raises(OutcomeUnknown):
            await store.commit(admission("a", need(100)))
        await posted
        await store.settled()
        (doubtful,) = re.findall(r"what became of transaction (\d+)", caplog.text)
        assert (doubtful,) in await ask(database, "SELECT xmin::text FROM holds")  # of another, by now
        assert {row["request_id"]: row["amount"] for row in await rows(store, usage_records)} == {"settled": 250}
        assert "a" not in {row["request_id"] for row in await rows(store, holds)}
        assert await store.read(verify()) == []


async def test_a_commit_waits_for_the_disk_whatever_the_server_is_set_to(
    pg: Any, database: str, server: Server
) -> None:
    name = urlsplit(database).path[1:]
    await asyncio.to_thread(server.tell, f"ALTER DATABASE {name} SET synchronous_commit = off")
    await cut_all(server, database)
    asked = Statement(lots.select().with_only_columns(postgres_setting()))
    async with on(database) as store:
        assert [tuple(row) for row in await store.write(fetch(asked))] == [("on",)]


def postgres_setting() -> Any:
    from sqlalchemy import func, literal_column

    return func.current_setting(literal_column("'synchronous_commit'"))


# The model, and a whole gateway.


def test_the_ledger_does_what_the_model_says(server: Server) -> None:
    class PostgresMachine(LedgerMachine):
        """The same events, on a database of its own for each example."""

        async def open(self) -> Any:
            self.database = server.database()
            store = PostgresStore(self.database.__enter__(), clock=self.clock)
            parents = {"child": "parent"}
            keys = [key(id, limit=limit, parent=parents.get(id)) for id, limit in LIMITS.items()]
            await store.write(furnish(keys, OWNERS))
            return store

        def teardown(self) -> None:
            super().teardown()
            self.database.__exit__(None, None, None)

    run_state_machine_as_test(PostgresMachine, settings=hypothesis_settings(max_examples=10, stateful_step_count=30))


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def settings(tmp_path: Any, server: Server, upstream: ScriptedUpstream) -> Iterator[Settings]:
    with server.database(tables=False) as url:
        yield replace(settings_for(tmp_path, upstream=upstream.base_url), store=StoreSettings(url))


async def test_a_gateway_on_postgresql_serves_calls_and_its_books_add_up(
    settings: Settings, upstream: ScriptedUpstream
) -> None:
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(Plain(tokens=5), Stream(tokens=5), Plain(tokens=5))
        async with gateway.sdk(ROUTER_V1, ada) as client:
            answer = await client.chat.completions.create(model=LLAMA, messages=HELLO)
            assert answer.usage is not None
            stream = await client.chat.completions.create(model=LLAMA, messages=HELLO, stream=True)
            assert [chunk async for chunk in stream]
        again = [await gateway.chat(TRUST, ada, headers={"Idempotency-Key": "k"}) for _ in range(2)]
        assert again[0].content == again[1].content
        assert len(await gateway.usage(ada)) == len(upstream.requests) == 3
        assert await gateway.nano(ada) < 1_000_000_000
    async with running(settings) as gateway:
        assert len(await gateway.usage(ada)) == 3
