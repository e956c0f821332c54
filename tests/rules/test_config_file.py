"""What a configuration file may say, and the exact words and lines for what it may not."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import certifi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import (
    ContractSettings,
    ModelSettings,
    OfferSettings,
    PriceSettings,
    ProviderSettings,
    Settings,
)
from penstock.config_file import CREDENTIALS, TABLES, TOP_KEYS, load
from penstock.config_tables import written_keys
from penstock.config_value import CONNECTION_HEADERS
from penstock.errors import ConfigError
from penstock.providers import origin
from penstock.vendors import VENDORS

IN_MEMORY = {"PENSTOCK_DATABASE_URL": "sqlite://"}

PROVIDER = '[providers.p]\nbase_url = "http://127.0.0.1:9/v1"\n'
MODEL = '[[models]]\nid = "m"\noffers = [{ provider = "p" }]\nprice = { input = 1, output = 2 }\n'
CONTRACT = '[[contracts]]\nid = "C"\nname = "c"\nprice = 0.14\nminimum_tokens = 5\nexpires = 2027-12-31\n'


def read(folder: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    path = folder / "p.toml"
    path.write_text(text, encoding="utf-8", newline="")
    return load(path, IN_MEMORY | (environ or {}))


def mistakes(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, environ)
    return [line.replace(f"{folder}/", "") for line in caught.value.mistakes]


MISTAKES = {
    "not TOML": ("[server]\nport =\n", ["p.toml:2: not TOML: Invalid value"]),
    "a number beyond all bounds": ("x = 1e99999999999999999999\n", ["p.toml:1: not TOML: a number is too large"]),
    "misspelt setting": (
        "[server]\nprot = 1\n",
        ["p.toml:2: server.prot: is not a setting (did you mean 'port'?)"],
    ),
    "misspelt table": ("\n[sever]\nport = 1\n", ["p.toml:2: sever: is not a setting (did you mean 'server'?)"]),
    "a table that is none": ("server = 1\n", ["p.toml:1: server: must be a table, not a number"]),
    "a list that is none": ("[models]\nid = 1\n", ["p.toml:1: models: must be written as [[models]], once for each"]),
    "a number out of range": (
        "[server]\nport = 70000\n",
        ["p.toml:2: server.port: must be a whole number from 0 to 65535"],
    ),
    "a model that auto cannot choose": (
        PROVIDER + MODEL + '[auto]\nmodels = ["n"]\norder = ["gpu", "gpu"]\n',
        [
            "p.toml:8: auto.models: there is no model 'n' (there are: m)",
            "p.toml:9: auto.order: names a class twice",
        ],
    ),
    "an embedding model for auto": (
        PROVIDER + MODEL + 'kind = "embeddings"\n[auto]\nmodels = ["m"]\n',
        ["p.toml:9: auto.models: the model 'm' does not serve chat"],
    ),
    "text for a number": (
        '[server]\nport = "8420"\n',
        ["p.toml:2: server.port: must be a whole number from 0 to 65535, not text"],
    ),
    "true for a number": (
        "[limits]\nattempts = true\n",
        ["p.toml:2: limits.attempts: must be a whole number from 1 to 20, not true or false"],
    ),
    "infinity": ("[server]\ngrace_s = inf\n", ["p.toml:2: server.grace_s: must be a number from 0 to 3600"]),
    "no such choice": (
        '[store]\nsynchronous = "OFF"\n',
        ['p.toml:2: store.synchronous: must be "EXTRA", "FULL" or "NORMAL"'],
    ),
    "another database": (
        '[store]\nurl = "mysql://secret@h/d"\n',
        [
            "p.toml:2: store.url: must be sqlite:///penstock.db, or another path; sqlite:// alone; "
            "or a postgresql:// address"
        ],
    ),
    "an address with a password": (
        '[providers.p]\nbase_url = "https://u:secret@h/v1"\n',
        ["p.toml:2: providers.p.base_url: must be an address without credentials, query or fragment"],
    ),
    "an upstream without address": ("[providers.p]\n", ["p.toml:1: providers.p.base_url: is missing"]),
    "a port that is none": (
        '[providers.p]\nbase_url = "http://h:99999"\n',
        ["p.toml:2: providers.p.base_url: must be an address such as https://api.example.com/v1"],
    ),
    "an inline key": (
        PROVIDER + 'api_key = "sk-secret"\n',
        [
            "p.toml:3: providers.p.api_key: a key does not belong in a file that gets copied and committed; "
            'write api_key_env = "NAME" or api_key_file = "path"'
        ],
    ),
    "a misspelt key setting": (
        PROVIDER + 'api_key_evn = "X"\n',
        ["p.toml:3: providers.p.api_key_evn: is not a setting (did you mean 'api_key_env'?)"],
    ),
    "a key in a header": (
        PROVIDER + 'headers = { Authorization = "Bearer secret" }\n',
        ["p.toml:3: providers.p.headers: Authorization is a credential; give it as api_key_env or api_key_file"],
    ),
    "two sources of a key": (
        PROVIDER + 'api_key_env = "X"\napi_key_file = "x"\n',
        ["p.toml:4: providers.p.api_key_file: api_key_env is given as well; one of the two is enough"],
    ),
    "a key file that is not there": (
        PROVIDER + 'api_key_file = "x"\n',
        ["p.toml:3: providers.p.api_key_file: names a file that cannot be read (No such file or directory)"],
    ),
    "providers that are one in the environment": (
        '[providers.a-b]\nkind = "demo"\n[providers.a_b]\nkind = "demo"\n',
        [
            "p.toml:3: providers.a_b: cannot be told from 'a-b' in the environment: "
            "both are PENSTOCK_PROVIDER_A_B_BASE_URL"
        ],
    ),
    "a provider's name in capitals": (
        '[providers.Groq]\nkind = "demo"\n',
        ["p.toml:1: providers.Groq: must be a name of lower-case letters, digits, '-' and '_'"],
    ),
    "an offer of nobody": (
        PROVIDER + MODEL.replace('"p"', '"q"'),
        ["p.toml:5: models.offers.provider: there is no provider 'q' (there are: p)"],
    ),
    "an offer on a line of its own": (
        PROVIDER + MODEL.replace("[{", "[\n{").replace('"p"', '"pp"'),
        ["p.toml:6: models.offers.provider: there is no provider 'pp' (did you mean 'p'?)"],
    ),
    "no offers": (
        '[[models]]\nid = "m"\nprice = { free = true }\n',
        ["p.toml:1: models.offers: is missing: no provider serves this model (or say planned = true)"],
    ),
    "an unknown contract": (
        PROVIDER + MODEL + 'contract = "B"\n' + CONTRACT,
        ["p.toml:7: models.contract: there is no contract 'B' (there are: C)"],
    ),
    "a contract on no forward surface": (
        PROVIDER + MODEL + 'contract = "C"\nsurfaces = ["trust"]\n' + CONTRACT,
        ["p.toml:7: models.contract: pays on the surface 'forward' only, and the model is not on it"],
    ),
    "a contract that is called as money is": (
        CONTRACT.replace('"C"', '"usd"'),
        ["p.toml:2: contracts.id: 'USD' is what credits are counted in; its tokens could not be told from them"],
    ),
    "the same contract twice": (
        CONTRACT + CONTRACT.replace('"C"', '"c"'),
        ["p.toml:8: contracts.id: there is a contract 'c' already"],
    ),
    "the same model twice": (
        PROVIDER + MODEL + MODEL.replace('"m"', '"M"'),
        ["p.toml:8: models.id: there is a model 'M' already"],
    ),
    "an alias that is another's id": (
        PROVIDER + MODEL + MODEL.replace('"m"', '"n"') + 'aliases = ["M"]\n',
        ["p.toml:11: models.aliases: 'M' is a name of the model 'm' already"],
    ),
    "an alias that is another's alias": (
        PROVIDER + MODEL + 'aliases = ["x"]\n' + MODEL.replace('"m"', '"n"') + 'aliases = { router = ["X"] }\n',
        ["p.toml:12: models.aliases.router: 'X' is a name of the model 'm' already"],
    ),
    "an alias where the model is not": (
        PROVIDER + MODEL + 'surfaces = ["trust"]\naliases = { forward = ["x"] }\n',
        ["p.toml:8: models.aliases.forward: the model is not on the surface 'forward'"],
    ),
    "an alias on no surface": (
        PROVIDER + MODEL + 'aliases = { trsut = ["x"] }\n',
        ["p.toml:7: models.aliases: has a surface 'trsut' (did you mean 'trust'?)"],
    ),
    "no price": (
        PROVIDER + '[[models]]\nid = "m"\noffers = [{ provider = "p" }]\n',
        ["p.toml:3: models.price: is missing: give a price, a contract, or price = { free = true }"],
    ),
    "a price for one offer of two": (
        PROVIDER
        + '[[models]]\nid = "m"\noffers = [\n{ provider = "p", price = { free = true } },\n{ provider = "p" }]\n',
        ["p.toml:3: models.price: is missing: give a price, a contract, or price = { free = true }"],
    ),
    "a price for half of the tokens": (
        PROVIDER + MODEL.replace(", output = 2", ""),
        ["p.toml:6: models.price: needs both input and output"],
    ),
    "a price of nothing": (
        PROVIDER + MODEL.replace("input = 1, output = 2", "input = 0, output = 0"),
        ["p.toml:6: models.price: is nothing; say free = true if that is meant"],
    ),
    "a free price with amounts": (
        PROVIDER + MODEL.replace("output = 2", "output = 2, free = true"),
        ["p.toml:6: models.price: is free and has amounts; only one of the two can be meant"],
    ),
    "a price below our unit": (
        PROVIDER + MODEL.replace("output = 2", "output = 0.0000000001"),
        ["p.toml:6: models.price.output: has more than 9 decimals; the smallest amount is 0.000000001 dollars"],
    ),
    "a price below nothing": (
        PROVIDER + MODEL.replace("output = 2", "output = -2"),
        ["p.toml:6: models.price.output: must be an amount in dollars from 0 to 1000000"],
    ),
    "a default above the most": (
        PROVIDER + MODEL + "max_output_tokens = 5\ndefault_output_tokens = 6\n",
        ["p.toml:8: models.default_output_tokens: is more than max_output_tokens"],
    ),
    "what a contract needs": (
        '[[contracts]]\nid = "C"\nname = "c"\n',
        [
            "p.toml:1: contracts.price: is missing",
            "p.toml:1: contracts.minimum_tokens: is missing",
            "p.toml:1: contracts.expires: is missing",
        ],
    ),
    "no such day": (
        CONTRACT.replace("2027-12-31", '"2027-02-30"'),
        ["p.toml:6: contracts.expires: must be a date or an instant such as 2027-12-31 or 2027-12-31T12:00:00Z"],
    ),
    "a surface that is none": (
        "[surfaces.truts]\nenabled = false\n",
        ["p.toml:1: surfaces.truts: is not a setting (did you mean 'trust'?)"],
    ),
    "a command without an owner": (
        '[providers.c]\nkind = "cli"\ntemplate = "codex"\n',
        ["p.toml:1: providers.c.accounts: is missing: a command serves the accounts of its owner, and no others"],
    ),
    "a command that is none": (
        '[providers.c]\nkind = "cli"\naccounts = ["acc_1"]\n',
        ["p.toml:1: providers.c.command: is missing: give a command, or a template"],
    ),
    "a command in a dialect it does not speak": (
        '[providers.c]\nkind = "cli"\ntemplate = "llm"\naccounts = ["acc_1"]\ndialects = ["anthropic_messages"]\n',
        ["p.toml:5: providers.c.dialects: is of no use: a command is called in openai_chat"],
    ),
    "a path that is none": (
        '[providers.c]\nkind = "cli"\ncommand = ["c"]\naccounts = ["acc_1"]\noutput = { text = "a..b" }\n',
        ["p.toml:5: providers.c.output.text: must be names of fields with dots between them"],
    ),
    "prefixes that cannot be told apart": (
        '[prefixes]\nteam = "ak_x"\n',
        ["p.toml:2: prefixes.team: cannot be told from the prefix of 'account': one starts with the other"],
    ),
    "two written prefixes that cannot be told apart": (
        '[prefixes]\nteam = "tm_x"\npersonal = "tm_"\n',
        ["p.toml:2: prefixes.team: cannot be told from the prefix of 'personal': one starts with the other"],
    ),
    "a prefix whose keys look like session tokens": (
        '[prefixes]\nteam = "ey_"\npersonal = "eyJ.x."\n',
        ["p.toml:3: prefixes.personal: makes keys that would be taken for session tokens: ey… with two dots"],
    ),
    "a usual output above the largest": (
        "[limits]\nmax_output_tokens = 10\ndefault_output_tokens = 11\n",
        ["p.toml:3: limits.default_output_tokens: is more than max_output_tokens"],
    ),
    "headers of the connection": (
        PROVIDER + 'headers = { "Content-Length" = "5" }\n',
        ["p.toml:3: providers.p.headers: Content-Length belongs to the connection"],
    ),
    "a database whose address names no file": (
        '[store]\nurl = "sqlite://x.db"\n',
        [
            "p.toml:2: store.url: must be sqlite:///penstock.db, or another path; sqlite:// alone; "
            "or a postgresql:// address"
        ],
    ),
    "models at providers that are not called for such": (
        PROVIDER
        + 'dialects = ["openai_embeddings"]\n'
        + MODEL
        + '[providers.q]\nbase_url = "http://127.0.0.1:9"\ndialects = ["openai_chat"]\n'
        + MODEL.replace('"m"', '"n"').replace('"p"', '"q"')
        + 'kind = "embeddings"\n',
        [
            "p.toml:6: models.offers.provider: 'p' is called in no dialect for chat",
            "p.toml:13: models.offers.provider: 'q' is called in no dialect for embeddings",
        ],
    ),
    "all at once, in the order of their lines": (
        '[[models]]\nid = "a b"\n[server]\nport = -1\nhost = ""\n[jwt]\nissuer = 5\n',
        [
            "p.toml:2: models.id: must be a name of 1 to 200 printable ASCII characters without spaces",
            "p.toml:4: server.port: must be a whole number from 0 to 65535",
            "p.toml:5: server.host: must be text of 1 to 500 characters on one line",
            "p.toml:7: jwt.issuer: must be text of 1 to 500 characters on one line, not a number",
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert mistakes(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PENSTOCK_PORT", "http", "must be a whole number from 0 to 65535, not text"),
        ("PENSTOCK_PORT", "65536", "must be a whole number from 0 to 65535"),
        ("PENSTOCK_PUBLIC_URL", "gateway", "must be an address such as https://api.example.com/v1"),
        ("PENSTOCK_NOW", "yesterday", "must be a date or an instant such as 2027-12-31 or 2027-12-31T12:00:00Z"),
        ("PENSTOCK_KEY_PEPPER", "short", "must be at least 32 bytes long (try: openssl rand -hex 32)"),
        ("PENSTOCK_PROVIDER_P_BASE_URL", "p", "must be an address such as https://api.example.com/v1"),
        ("PENSTOCK_PROVIDER_P_API_KEY", "a\nb", "holds no key: one line of printable ASCII is needed"),
    ],
)
def test_a_mistake_in_the_environment_is_named_with_its_variable(
    tmp_path: Path, variable: str, value: str, expected: str
) -> None:
    assert mistakes(tmp_path, PROVIDER, {variable: value}) == [f"environment: {variable}: {expected}"]


def test_no_message_repeats_a_secret(tmp_path: Path) -> None:
    secret_texts = [text for text, _ in MISTAKES.values() if "secret" in text]
    assert len(secret_texts) == 4
    assert not any("secret" in line for text in secret_texts for line in mistakes(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\)"):
        load(tmp_path / "none.toml", IN_MEMORY)
    (tmp_path / "p.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load(tmp_path / "p.toml", IN_MEMORY)


def test_prices_and_days_are_read_exactly(tmp_path: Path) -> None:
    prices = 'price = { input = 0.055, output = "0.79", cached_input = 0.000000001, per_request = 1 }'
    settings = read(tmp_path, PROVIDER + MODEL.replace("price = { input = 1, output = 2 }", prices) + CONTRACT)
    price = settings.models[0].price
    assert price
    assert (price.input, price.output, price.cached_input) == (55_000_000, 790_000_000, 1)
    assert (price.reasoning, price.per_request) == (None, 1_000_000_000)
    assert settings.contracts[0].price_nano_per_mtok == 140_000_000
    assert settings.contracts[0].expires_ms == 1_830_211_200_000


def test_an_offer_without_a_name_carries_the_models_id(tmp_path: Path) -> None:
    assert read(tmp_path, PROVIDER + MODEL).models[0].offers[0].model == "m"


def test_one_name_may_mean_two_models_on_two_surfaces(tmp_path: Path) -> None:
    one = MODEL + 'aliases = { trust = ["x"] }\n'
    other = MODEL.replace('"m"', '"n"') + 'aliases = { router = ["x"] }\n'
    assert len(read(tmp_path, PROVIDER + one + other).models) == 2


def test_a_file_says_all_there_is(tmp_path: Path) -> None:
    settings = read(tmp_path, "", {"GROQ_API_KEY": "k"})
    assert (settings.providers, settings.models, settings.contracts) == ((), (), ())


def test_without_a_file_there_is_a_demo_model_with_a_contract() -> None:
    settings = load(None, IN_MEMORY)
    (model,), (contract,) = settings.models, settings.contracts
    assert (model.id, model.aliases, model.contract) == ("penstock/demo", (("*", ("demo",)),), contract.id)
    assert settings.providers[0].kind == "demo"


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    environ = {
        "PENSTOCK_HOST": "::1",
        "PENSTOCK_PORT": "0",
        "PENSTOCK_PUBLIC_URL": "https://gateway.example.com/",
        "PENSTOCK_NOW": "2026-07-01",
        "PENSTOCK_PROVIDER_P_BASE_URL": "http://127.0.0.1:1/v2",
        "PENSTOCK_PROVIDER_P_API_KEY": "override",
        "KEY": "named",
    }
    settings = read(tmp_path, "[server]\nport = 1\n" + PROVIDER + 'api_key_env = "KEY"\n', environ)
    server, provider = settings.server, settings.providers[0]
    assert (server.host, server.port, server.public_url) == ("::1", 0, "https://gateway.example.com")
    assert (provider.base_url, provider.api_key, settings.now) == ("http://127.0.0.1:1/v2", "override", "2026-07-01")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:penstock?mode=memory"])
def test_several_workers_cannot_share_a_database_in_memory(tmp_path: Path, url: str) -> None:
    environ = {"PENSTOCK_DATABASE_URL": url}
    mistake = "p.toml:2: server.workers: needs a database that processes can share, not one in memory"
    assert mistakes(tmp_path, "[server]\nworkers = 2\n", environ) == [mistake]
    assert read(tmp_path, "[server]\nworkers = 1\n", environ).server.workers == 1
    on_file = {"PENSTOCK_DATABASE_URL": f"sqlite:///{tmp_path}/penstock.db", "PENSTOCK_WORKERS": "4"}
    assert read(tmp_path, "", on_file).server.workers == 4
    assert mistakes(tmp_path, "", {"PENSTOCK_WORKERS": "many"}) == [
        "environment: PENSTOCK_WORKERS: must be a whole number from 1 to 256, not text"
    ]


def test_a_key_comes_from_the_named_variable_or_the_named_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    (tmp_path / "key").chmod(0o600)
    shutil.copy(certifi.where(), tmp_path / "ca.pem")
    text = (
        PROVIDER + 'api_key_file = "key"\n' + PROVIDER.replace("s.p", "s.q") + 'api_key_env = "Q"\nca_file = "ca.pem"\n'
    )
    settings = read(tmp_path, text, {"Q": "from-variable"})
    assert [provider.api_key for provider in settings.providers] == ["from-file", "from-variable"]
    assert settings.providers[1].ca_file == str(tmp_path / "ca.pem")
    assert settings.warnings == ()
    assert "from-" not in repr(settings)


def test_a_command_is_given_no_key_of_the_gateways(tmp_path: Path) -> None:
    command = '[providers.c]\nkind = "cli"\ntemplate = "llm"\naccounts = ["acc_1"]\nenvironment = ["%s"]\n'
    text = PROVIDER + 'api_key_env = "KEY"\n'
    environ = {"KEY": "sk-1", "SAME_KEY": "sk-1", "OTHER": "tok-1", "PENSTOCK_KEY_PEPPER": "x" * 32}
    assert read(tmp_path, text + command % "OTHER", environ).providers[1].environment == ("OTHER",)
    assert read(tmp_path, text + command % "NOT_SET", environ).providers[1].environment == ("NOT_SET",)
    for name in ("KEY", "SAME_KEY"):
        assert mistakes(tmp_path, text + command % name, environ) == [
            f"p.toml:8: providers.c.environment: {name} is the key of the provider 'p', which a command must not have"
        ]
    assert mistakes(tmp_path, command % "PENSTOCK_KEY_PEPPER", environ) == [
        "p.toml:5: providers.c.environment: PENSTOCK_KEY_PEPPER is the gateway's own"
    ]


def test_what_is_likely_not_meant_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    (tmp_path / "key").chmod(0o644)
    text = '[providers.p]\nbase_url = "http://10.0.0.1"\napi_key_file = "key"\n' + PROVIDER.replace("s.p", "s.q")
    settings = read(tmp_path, text + 'api_key_env = "Q"\n', {"PENSTOCK_PROVIDER_R_API_KEY": "k"})
    assert settings.warnings == (
        f"{tmp_path}/key can be read by every user of this machine; chmod o= {tmp_path}/key",
        "provider q is called without a key: Q is not set",
        "PENSTOCK_PROVIDER_R_API_KEY has no effect: there is no provider of that name",
        "provider p is sent its key without encryption; use https",
    )


# Lines that are TOML each by itself, with names of settings and values of every type, and now and then a broken one.
HEADERS = [
    *("[server]", "[store]", "[limits]", "[prefixes]", "[providers]", "[providers.p]", "[providers.P]", "["),
    *("[[models]]", "[models]", "[models.price]", "[[models.offers]]", "[models.aliases]"),
    *("[[contracts]]", "[contracts]", "[surfaces.trust]", "[surfaces]", "[[surfaces]]"),
]
KINDS = (*TABLES.values(), ProviderSettings, ModelSettings, OfferSettings, PriceSettings, ContractSettings)
KEYS = [*(key for kind in KINDS for key in written_keys(kind)), *CREDENTIALS, *TOP_KEYS, "a.b.'c'", '""']
VALUES = [
    *("1", "-0.5", "nan", "-inf", "1e400", "0e-999999999", "1e-30", "0x" + "f" * 5000, "true", "=", "[]", "{}"),
    *("'p'", "'demo'", "'1.5'", "'sqlite://'", '"\\u0000"', '"""a\nb"""', "[1, [2]]", "[\n'x', # y\n'X']"),
    *("2027-12-31", "07:32:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
    *("[{ provider = 'p' }]", "{ trust = ['x'], '*' = [''] }", "{ input = 0.1, output = 2 }", "{ free = true }"),
]
LINES = st.sampled_from(HEADERS) | st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES))


@given(st.text() | st.lists(LINES, max_size=12).map("\n".join), st.text(), st.text())
def test_no_file_and_no_environment_raises_anything_but_config_error(text: str, url: str, now: str) -> None:
    environ = {"PENSTOCK_NOW": now, "PENSTOCK_PORT": now, "PENSTOCK_PROVIDER_P_BASE_URL": url, "p": url}
    with TemporaryDirectory() as folder, suppress(ConfigError):
        read(Path(folder), text.encode("utf-8", "replace").decode(), environ)


def test_certificates_that_are_not_there_are_a_mistake(tmp_path: Path) -> None:
    assert mistakes(tmp_path, PROVIDER + 'ca_file = "none.pem"\n') == [
        "p.toml:3: providers.p.ca_file: names a file that is not there"
    ]


def test_nesting_without_end_is_a_mistake(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "x = " + "[" * 5000 + "]" * 5000) == ["p.toml:1: nested too deeply"]


def test_a_vendor_fills_in_what_is_left_out_and_no_more(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """
        [providers.fast]
        vendor = "groq"
        priced_fields = []
        [providers.claude]
        kind = "anthropic"
        [providers.here]
        vendor = "ollama"
        base_url = "http://10.0.0.5:11434/v1"
        dialects = ["openai_chat"]
        """,
    )
    fast, claude, here = settings.providers
    assert (fast.base_url, fast.priced_fields) == ("https://api.groq.com/openai/v1", ())
    assert "service_tier" in VENDORS["groq"]["priced_fields"]
    assert (claude.base_url, claude.speaks) == ("https://api.anthropic.com/v1", ("anthropic_messages",))
    assert (here.base_url, here.speaks, here.ranks_as) == ("http://10.0.0.5:11434/v1", ("openai_chat",), "gpu")


def test_a_vendor_nobody_knows_is_a_mistake_and_fills_nothing_in(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, '[providers.p]\nvendor = "mystery"\n')
    assert mistake.startswith('p.toml:2: providers.p.vendor: must be "anthropic", "cerebras"')


def test_a_file_of_certificates_that_holds_none_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    assert mistakes(tmp_path, PROVIDER + 'ca_file = "ca.pem"\n') == [
        "p.toml:3: providers.p.ca_file: names a file that cannot be read as PEM certificates"
    ]


def test_a_largest_output_below_the_usual_one_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, "[limits]\nmax_output_tokens = 10\n").limits.max_output_tokens == 10


def test_headers_that_the_client_refuses_are_mistakes_in_the_file() -> None:
    assert {name.decode() for name in origin._OURS} == CONNECTION_HEADERS


@pytest.mark.parametrize(
    ("host", "here"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True), ("127.evil.example", False)],
)
def test_a_key_that_leaves_this_machine_unencrypted_is_a_warning(tmp_path: Path, host: str, here: bool) -> None:
    text = PROVIDER.replace("127.0.0.1", host) + 'api_key_env = "K"\n' + MODEL
    assert ("without encryption" not in "".join(read(tmp_path, text, {"K": "sk-1"}).warnings)) is here
