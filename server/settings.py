"""The server's settings: flags, then the environment, then a TOML file, then the defaults.

Each field is a flag (``--max-batch-size``), an environment variable
(``CANDIDATE_SEARCH_MAX_BATCH_SIZE``) and a key of the TOML file (``max_batch_size``) alike.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from trainer.toml import no_such

ENVIRONMENT_PREFIX = "CANDIDATE_SEARCH_"

# What the command line, its clients and Milvus read.
_OTHERS_VARIABLES = tuple(ENVIRONMENT_PREFIX + name for name in ("CONFIG", "TOKEN"))
_OTHERS_PREFIXES = tuple(ENVIRONMENT_PREFIX + name for name in ("CLIENT_", "MILVUS_"))

_MOST = 2**31 - 1  # that gRPC counts, and that the wire's numbers hold
_LONGEST_SECONDS = _MOST // 1000  # in milliseconds
_MOST_THREADS = 1024
_SHORTEST_KEY = 16  # characters, which nobody guesses if they are random


class SettingsError(Exception):
    """Settings that cannot be used; the message is meant for the user."""


class Settings(BaseSettings):
    """All that can be set; ``python -m server serve --print-config`` shows what is in force."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    index: Path = Field(
        default=Path("artifacts/indexes/current"),
        description="The index bundle to serve: a version's directory, or the link to one.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="The address to listen on. Anything but loopback is open to the network.",
    )
    port: int = Field(
        default=50051, ge=0, le=65535, description="The port; 0 picks a free one and prints it."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes that serve; a core each is what they can use.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="The server's certificate chain (PEM); with it the port speaks TLS only. Read "
        "anew when it is replaced.",
    )
    tls_key: Path | None = Field(
        default=None, description="The private key of the certificate (PEM)."
    )
    tls_client_authority: Path | None = Field(
        default=None,
        description="The authority (PEM) that must have signed the clients' certificates.",
    )
    index_public_key: Path | None = Field(
        default=None,
        description="The Ed25519 key (PEM) that must have signed an index version for it to be "
        "served.",
    )
    token_file: Path | None = Field(
        default=None,
        description="Lines of a role, read or admin, and a bearer token; calls need one then. Read "
        "anew when it is replaced.",
    )
    reflection: bool = Field(
        default=False, description="Whether clients may ask for the service's description."
    )
    admin: bool = Field(
        default=False,
        description="Whether AdminService is answered: which index versions there are, and which "
        "of them answers.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important message that is logged."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Where Prometheus reads what all workers count; none if it is not set.",
    )
    live_recall_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="The share of approximate searches that are made exactly as well, to measure "
        "recall; they take at most 0.5% of a core.",
    )
    trace_endpoint: str | None = Field(
        default=None,
        description="Where an OpenTelemetry collector takes OTLP by gRPC, such as "
        "http://localhost:4317; no traces if it is not set. Needs the extra trace.",
    )
    trace_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="The share of searches that are traced where the caller does not say.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Whether log lines are for people or for programs."
    )
    drain_seconds: float = Field(
        default=10.0,
        ge=0,
        le=_LONGEST_SECONDS,
        description="How long calls in flight may go on after SIGTERM.",
    )
    max_connection_age_seconds: int = Field(
        default=300,
        ge=1,
        le=_LONGEST_SECONDS,
        description="When a connection is closed for the client to make a new one, which may reach "
        "another worker. Calls in flight end first, if they do in time.",
    )
    connection_grace_seconds: int = Field(
        default=300,
        ge=1,
        le=_LONGEST_SECONDS,
        description="How long a call may go on after its connection has grown so old; one that "
        "stalls is cut off then.",
    )
    max_connection_idle_seconds: int = Field(
        default=600,
        ge=1,
        le=_LONGEST_SECONDS,
        description="When a connection without calls is closed.",
    )
    handshake_timeout_seconds: int = Field(
        default=10,
        ge=1,
        le=_LONGEST_SECONDS,
        description="When a connection is closed that does not come to speak HTTP/2.",
    )
    max_gathered_searches: int = Field(
        default=16,
        ge=1,
        le=_MOST,
        description="How many searches that come in at about the same time are answered in one "
        "go, at most; 1 answers each on its own.",
    )
    # Both are chosen, not measured: a few calls keep a core busy, and more only wait. A hundred
    # streams are the fewest that HTTP/2 (RFC 9113) recommends.
    max_calls_in_flight: int = Field(
        default=256,
        ge=1,
        le=_MOST,
        description="How many calls a worker answers at the same time; more are refused. Health "
        "and AdminService are not counted.",
    )
    max_waiting_calls: int = Field(
        default=1000,
        ge=1,
        le=_MOST // 2,
        description="How many calls may wait until a worker begins them; of more, gRPC refuses a "
        "growing share at once, and all beyond twice as many, with CANCELLED.",
    )
    max_calls_per_connection: int = Field(
        default=100,
        ge=1,
        le=_MOST,
        description="How many calls a connection may have open. Its client keeps back more; near "
        "it gRPC refuses some as UNAVAILABLE, to be made again.",
    )
    max_connections: int = Field(
        default=10_000,
        ge=1,
        le=_MOST,
        description="How many connections a worker has open; more are closed as they come. The "
        "system's limit of open files must be higher.",
    )
    max_metadata_bytes: int = Field(
        default=8192, ge=1024, le=_MOST, description="The most headers of a call that are read."
    )
    max_message_bytes: int = Field(
        default=4 << 20, ge=1024, le=_MOST, description="The largest request that is read."
    )
    max_candidate_count: int = Field(
        default=1000, ge=1, le=_MOST, description="The largest candidate_count of a request."
    )
    max_batch_size: int = Field(
        default=256, ge=1, le=_MOST, description="The most searches in a batch."
    )
    max_exclusion_count: int = Field(
        default=10_000, ge=0, le=_MOST, description="The most excluded_candidate_ids of a request."
    )
    max_history_count: int = Field(
        default=1000,
        ge=1,
        le=_MOST,
        description="The longest history, and the most examples of each kind.",
    )
    max_feature_count: int = Field(
        default=100, ge=0, le=_MOST, description="The most features of a user."
    )
    max_feature_characters: int = Field(
        default=4000,
        ge=0,
        le=_MOST,
        description="The most characters of a feature of a user, a description say: reading them "
        "takes time that is not bounded otherwise.",
    )
    max_filter_conditions: int = Field(
        default=100, ge=1, le=_MOST, description="The most conditions in a filter."
    )
    max_filter_depth: int = Field(
        default=10, ge=1, le=_MOST, description="How deep filters may be nested."
    )
    max_filter_values: int = Field(
        default=1000,
        ge=1,
        le=_MOST,
        description="The most values that a column is compared with at once.",
    )
    max_returned_fields: int = Field(
        default=50, ge=0, le=_MOST, description="The most metadata columns a response returns."
    )
    max_page_depth: int = Field(
        default=1000, ge=1, le=_MOST, description="The number of candidates after which pages end."
    )
    page_token_key: SecretStr | None = Field(
        default=None,
        description="The key that signs page tokens: a new one at each start if there is none. Set "
        "it where several servers answer one client.",
    )
    filter_cache_bytes: int = Field(
        default=64 << 20, ge=0, description="How much memory the masks of filters may take."
    )
    long_search_floats: int = Field(
        default=4_000_000,
        ge=1,
        description="How long a search may take to be made at once, in numbers that an exact scan "
        "reads meanwhile; longer ones are made beside the event loop.",
    )
    long_search_threads: int = Field(
        default=1,
        ge=1,
        le=_MOST_THREADS,
        description="How many long searches are made at the same time; each keeps a core busy.",
    )
    remote_search_threads: int = Field(
        default=16,
        ge=1,
        le=_MOST_THREADS,
        description="How many searches are made at the same time where an engine outside keeps "
        "the index: they mostly wait for it.",
    )
    long_search_queue: int = Field(
        default=64,
        ge=0,
        le=_MOST,
        description="How many searches may wait for such a thread; more are refused.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_there(cls, value: Any) -> Any:
        if value == "":  # a path would be the working directory
            raise ValueError("Value is empty; leave the setting out")
        return value

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, value: str) -> str:
        return value.removeprefix("[").removesuffix("]")  # as addresses of IPv6 stand before ports

    @field_validator("page_token_key")
    @classmethod
    def _is_no_guess(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value) < _SHORTEST_KEY:
            raise ValueError(f"Value must have at least {_SHORTEST_KEY} characters")
        return value

    @field_validator("host", "trace_endpoint")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("Value must be printable text")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the strongest first."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Return the settings in force.

    Args:
        flags: what the command line says, by field; None is not said.
        config: a TOML file.

    Raises:
        SettingsError: if the file cannot be read or a value is not allowed.
    """

    class WithFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    if config is not None and not config.is_file():
        raise SettingsError(f"there is no settings file {config}")
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return WithFile(**given)
    except ValidationError as error:
        raise SettingsError("\n".join(map(_sentence, error.errors()))) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} is not TOML: {error}") from error
    except OSError as error:
        raise SettingsError(f"cannot read {config}: {error.strerror}") from error


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Return the environment's variables that look like settings, and that nothing reads."""
    known = {ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields}
    return [
        name
        for name in sorted(names)
        if name.startswith(ENVIRONMENT_PREFIX)
        and name not in known
        and not name.startswith(_OTHERS_PREFIXES)
        and name not in _OTHERS_VARIABLES
    ]


def _sentence(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return no_such("setting", name, Settings.model_fields)
    if name == "page_token_key":  # nobody else should read it
        return f"{name}: {error['msg']}"
    return f"{name}: {error['msg']}, not {error['input']!r}"
