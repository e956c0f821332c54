"""The settings: one TOML file and the environment, read once into frozen types.

This module says what each setting is called, of what type it is and how it is written; `config_file.py` reads, and
`docs/configuration.md` explains. It knows nothing about what the settings are for: prices stay whole numbers here and
become rules in `penstock/money`, names become look-ups in `penstock/catalogue.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from penstock.config_value import (
    by_surface,
    dollars,
    headers,
    instant,
    matching,
    model_name,
    number,
    web_address,
    whole,
)
from penstock.vendors import VendorName

SurfaceName = Literal["trust", "forward", "router"]
ProviderClass = Literal["gpu", "cli", "cloud"]
Capability = Literal["tools", "images", "json_schema"]
ALL_CAPABILITIES: tuple[Capability, ...] = ("tools", "images", "json_schema")
DialectName = Literal[
    "openai_chat", "openai_responses", "openai_completions", "openai_embeddings", "anthropic_messages"
]
SURFACE_NAMES: tuple[SurfaceName, ...] = ("trust", "forward", "router")
_RANKS: MappingProxyType[str, ProviderClass] = MappingProxyType({"llamacpp": "gpu", "worker": "gpu", "cli": "cli"})

CHECKED_EVERY_S = 15.0  # a machine of one's own is switched off now and then, and asking it costs nobody anything

Seconds = Annotated[float, number(0.001, 86_400)]
Tokens = Annotated[int, whole(1, 100_000_000)]
Dollars = Annotated[int, dollars]  # written in dollars, kept in nano-USD
WebAddress = Annotated[str, web_address]
Prefix = Annotated[str, matching(r"[A-Za-z0-9_.-]{2,20}", "2 to 20 letters, digits, '_', '.' or '-'")]
ModelName = Annotated[str, model_name]
ContractId = Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "a name of letters, digits, '_', '.' and '-'")]
ProviderName = Annotated[
    str, matching(r"[a-z0-9][a-z0-9_-]{0,62}", "a name of lower-case letters, digits, '-' and '_'")
]
ToolPattern = Annotated[
    str, matching(r"[A-Za-z0-9_*?-]{1,64}", "a name of a tool, in which * and ? stand for other characters")
]
FieldPath = Annotated[str, matching(r"[^.\x00-\x1f]+(\.[^.\x00-\x1f]+)*", "names of fields with dots between them")]
VariableName = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Aliases = Annotated[tuple[tuple[str, tuple[str, ...]], ...], by_surface((*SURFACE_NAMES, "*"))]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the gateway listens and what it accepts. At `peer_host` its processes ask each other for workers."""

    host: str = "127.0.0.1"
    port: Annotated[int, whole(0, 65_535)] = 8420
    environment: str = "live"
    public_url: WebAddress | None = None
    max_body_bytes: Annotated[int, whole(1_000, 1_000_000_000)] = 20_000_000
    grace_s: Annotated[float, number(0, 3_600)] = 20.0
    keepalive_comment_s: Seconds = 15.0
    max_connections: Annotated[int, whole(1, 1_000_000)] = 10_000
    workers: Annotated[int, whole(1, 256)] = 1
    peer_host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The database. `synchronous` is SQLite's, and about power cuts; in a mere crash nothing is lost.

    EXTRA loses nothing that was acknowledged. FULL loses no hold, but may lose the charges for answers of the last
    moments; their calls then come under review. NORMAL may lose those moments as a whole.
    """

    url: Annotated[
        str,
        matching(
            r"(sqlite:///|sqlite://$|postgresql://)[^\x00-\x1f\x7f]*",
            "sqlite:///penstock.db, or another path; sqlite:// alone; or a postgresql:// address",
        ),
    ] = field(default="sqlite:///penstock.db", repr=False)
    synchronous: Literal["EXTRA", "FULL", "NORMAL"] = "FULL"


@dataclass(frozen=True, slots=True)
class SecretSettings:
    """Server secrets of at least 32 bytes, each from the environment or a file, made with the database when absent."""

    key_pepper: bytes = field(repr=False)
    auth_secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """What a session token must say."""

    issuer: str = "penstock"
    audience: str = "penstock"


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Defaults for credentials that set none of their own, and bounds on what one call may do."""

    requests_per_minute: Annotated[int, whole(1, 1_000_000_000)] = 1000
    stream_slice_tokens: Tokens = 256
    default_output_tokens: Tokens = 4096
    max_output_tokens: Tokens = 1_000_000
    draining_calls: Annotated[int, whole(0, 100_000)] = 64
    drain_s: Seconds = 120.0
    hold_wait_s: Annotated[float, number(0, 60)] = 1.0
    attempts: Annotated[int, whole(1, 20)] = 3


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """What an account's models may do with the tools of its connected workers, unless the account has rules of its own.

    `allow` and `deny` are patterns of names (`*`, `github__*`), and a name in `deny` is denied. An account without a
    worker is offered nothing whatever stands here.
    """

    enabled: bool = True
    allow: tuple[ToolPattern, ...] = ("*",)
    deny: tuple[ToolPattern, ...] = ()
    rounds: Annotated[int, whole(1, 100)] = 10
    definitions: Annotated[int, whole(1, 128)] = 32
    timeout_s: Annotated[float, number(0.1, 300)] = 5.0
    result_bytes: Annotated[int, whole(100, 4_000_000)] = 60_000
    calls_per_minute: Annotated[int, whole(1, 1_000_000)] = 120


@dataclass(frozen=True, slots=True)
class AutoSettings:
    """The model `auto`: which models it chooses among (all priced chat models of a surface when none are named), and
    the order of classes, which holds for every model with several offers."""

    enabled: bool = True
    models: tuple[ModelName, ...] = ()
    order: tuple[ProviderClass, ...] = ("gpu", "cli", "cloud")


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """When a provider is left alone, and for how long; with no `failures` it never is. See
    `penstock/routing/health.py`."""

    failures: Annotated[int, whole(0, 1_000)] = 3
    pause_s: Seconds = 1.0
    longest_pause_s: Seconds = 60.0
    retry_wait_s: Annotated[float, number(0, 60)] = 1.5


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """What a command of somebody's own prints: the answer as text, or JSON objects, one a line. The others are paths
    into such an object (`delta.text`): to text to add, an error's words, the end, and how many tokens there were."""

    format: Literal["text", "jsonl"] = "jsonl"
    text: FieldPath = "text"
    error: FieldPath = ""
    end: FieldPath = ""
    input_tokens: FieldPath = ""
    output_tokens: FieldPath = ""


@dataclass(frozen=True, slots=True)
class ResponseSettings:
    """How long, and how much, is kept of responses for those who want to continue them."""

    keep_days: Annotated[int, whole(1, 3_650)] = 30
    largest_bytes: Annotated[int, whole(1_000, 1_000_000_000)] = 20_000_000
    account_bytes: Annotated[int, whole(1_000, 10**15)] = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One upstream. What differs from the common dialect is data: `output_limit_field`, `stream_usage`, `headers`.

    `model_path` (a GGUF file), `threads`, `slots`, `context_tokens` and `embeddings` are for `kind = "llamacpp"` alone;
    `template` to `queue_timeout_s` for `kind = "cli"`, where `output` is how its output is read, `jobs` are calls at
    once, `queue` how many more may wait and `environment` names of variables that the command sees. `dialects`
    are those it is called in, `provider_class` is its place in the order of `auto`; both have a default by kind. With
    `accounts` it serves these alone. `vendor` fills in what is left out (`penstock/vendors.py`): what goes to every
    upstream of that maker, and of the fields of a request those that it refuses (`dropped_fields` are taken out) and
    those that cost what no price here covers (`priced_fields` and, by the beginning of their type, `priced_tools` are
    refused; `dropped_betas` are taken out of `anthropic-beta`, by the beginning of their names). With `shared_files`
    callers may name what it keeps.
    """

    name: ProviderName
    kind: Literal["openai_compatible", "anthropic", "demo", "llamacpp", "cli", "worker"] = "openai_compatible"
    vendor: VendorName | None = None
    base_url: WebAddress = ""
    model_path: str | None = None
    threads: Annotated[int, whole(1, 1_024)] = 2
    slots: Annotated[int, whole(1, 256)] = 4
    context_tokens: Tokens = 4096
    embeddings: Literal["model", "mean", "cls", "last"] | None = None
    template: Literal["claude_code", "codex", "gemini", "llm"] | None = None
    command: tuple[str, ...] = ()
    prompt: Literal["stdin", "argument"] | None = None
    model_option: str | None = None
    output: CommandOutput | None = None
    environment: tuple[VariableName, ...] = ()
    jobs: Annotated[int, whole(1, 256)] = 1
    queue: Annotated[int, whole(0, 10_000)] = 8
    queue_timeout_s: Seconds = 60.0
    api_key: str | None = field(default=None, repr=False)
    on_cancel: Literal["stop", "drain", "full"] = "stop"
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 120.0
    idle_timeout_s: Seconds = 120.0
    total_timeout_s: Seconds = 900.0
    max_connections: Annotated[int, whole(1, 100_000)] = 512
    proxy_url: WebAddress | None = None
    ca_file: str | None = None
    headers: Annotated[tuple[tuple[str, str], ...], headers] = ()
    output_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    stream_usage: bool = True
    dialects: tuple[DialectName, ...] = ()
    provider_class: ProviderClass | None = None
    accounts: tuple[str, ...] = ()
    health_check_s: Annotated[float, number(0, 86_400)] | None = None
    thinking_in_total: bool = False
    dropped_fields: tuple[str, ...] = ()
    priced_fields: tuple[str, ...] = ()
    priced_tools: tuple[str, ...] = ()
    dropped_betas: tuple[str, ...] = ()
    shared_files: bool = False

    @property
    def checked_every_s(self) -> float:
        """How often it is checked, 0 for never: what is not reached over HTTP knows by itself how it is."""
        if self.health_check_s is not None:
            return self.health_check_s
        return CHECKED_EVERY_S if self.ranks_as == "gpu" and self.kind == "openai_compatible" else 0.0

    @property
    def speaks(self) -> tuple[str, ...]:
        """The dialects it is called in."""
        if self.kind == "cli":
            return ("openai_chat",)
        usual = ("anthropic_messages",) if self.kind == "anthropic" else ("openai_chat", "openai_embeddings")
        return self.dialects or usual

    @property
    def ranks_as(self) -> ProviderClass:
        """Its class: what runs here goes before what is far away."""
        return self.provider_class or _RANKS.get(self.kind, "cloud")


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """A price in nano-USD per million tokens ($0.59/M is 590_000_000), so every published price is a whole number.

    `cached_input` and `reasoning` fall back to `input` and `output`, `cache_write` to `input`, `cache_write_1h` to
    `cache_write`; `per_request` is nano-USD a call.
    """

    input: Dollars = 0
    output: Dollars = 0
    cached_input: Dollars | None = None
    reasoning: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None
    per_request: Dollars = 0
    free: bool = False


@dataclass(frozen=True, slots=True)
class OfferSettings:
    """A model at a provider: the name it has there and, where they differ, its price, context and capabilities there.

    In a file the name may be left out: then it is the model's id, which `load` fills in.
    """

    provider: str
    model: ModelName = ""
    price: PriceSettings | None = None
    context_length: Tokens | None = None
    capabilities: tuple[Capability, ...] | None = None


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A model: one canonical id, aliases per surface, offers in order of preference.

    `planned` models are listed on the trust surface and refused when called. `aliases` maps a surface name, or `*` for
    all, to names; a model is known by its id on every surface it is on. `kind` is `chat` or `embeddings`.
    """

    id: ModelName
    kind: Literal["chat", "embeddings"] = "chat"
    offers: tuple[OfferSettings, ...] = ()
    price: PriceSettings | None = None
    aliases: Aliases = ()
    surfaces: tuple[SurfaceName, ...] = SURFACE_NAMES
    owned_by: str = "penstock"
    created: Annotated[int, whole(0, 10_000_000_000)] = 0
    context_length: Tokens | None = None
    capabilities: tuple[Capability, ...] = ALL_CAPABILITIES
    default_output_tokens: Tokens | None = None
    max_output_tokens: Tokens | None = None
    input_bytes_per_token: Annotated[int, whole(1, 16)] = 1
    image_tokens: Annotated[int, whole(0, 1_000_000)] | None = None
    contract: str | None = None
    planned: bool = False


@dataclass(frozen=True, slots=True)
class ContractSettings:
    """A forward contract: tokens of its models at one locked price, until an instant (a day means its start, UTC)."""

    id: ContractId
    name: str
    price_nano_per_mtok: Dollars
    minimum_tokens: Annotated[int, whole(1, 10**15)]
    expires_ms: Annotated[int, instant]
    type: str = "forward"


@dataclass(frozen=True, slots=True)
class SurfaceSettings:
    """A surface's switches. Its paths and rules are the table in `penstock/api/surfaces.py`."""

    enabled: bool = True


@dataclass(frozen=True, slots=True)
class KeyPrefixes:
    """What the keys of each kind start with."""

    inference: Prefix = "pen_sk_"
    management: Prefix = "pen_live_"
    management_test: Prefix = "pen_test_"
    instance: Prefix = "pen_ik_"
    personal: Prefix = "user."
    team: Prefix = "team."
    account: Prefix = "ak_"
    worker: Prefix = "wrk_"
    tools_worker: Prefix = "tls_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, read once. `warnings` are for the operator: allowed, but likely not meant."""

    secrets: SecretSettings
    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    jwt: JwtSettings = JwtSettings()
    limits: LimitSettings = LimitSettings()
    tools: ToolSettings = ToolSettings()
    responses: ResponseSettings = ResponseSettings()
    prefixes: KeyPrefixes = KeyPrefixes()
    providers: tuple[ProviderSettings, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    contracts: tuple[ContractSettings, ...] = ()
    auto: AutoSettings = AutoSettings()
    health: HealthSettings = HealthSettings()
    surfaces: tuple[tuple[SurfaceName, SurfaceSettings], ...] = ()
    now: str | None = None
    well_known: bool = False
    warnings: tuple[str, ...] = ()
