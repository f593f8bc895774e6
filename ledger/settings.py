"""Settings of every process, from the environment (prefix `LEDGER_`) or a TOML file.

The environment wins over the file that `LEDGER_CONFIG` names. Nothing else reads the environment.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ledger.errors import ConfigurationError

CONFIG_VARIABLE = "LEDGER_CONFIG"
DEFAULT_PARTITIONS = 8

BUCKET_SCHEMES: Final = ("s3", "gs", "az")

Port = Annotated[int, Field(ge=1, le=65535)]


def _prefix(value: str) -> str:
    if not all(c.isascii() and (c.isalnum() or c in "._-") for c in value) or len(value) > 100:
        raise ValueError("only letters, digits, '.', '_' and '-' (at most 100)")
    return value


def _place(value: object) -> object:
    """Return a directory's path, or a bucket's URL as it is."""
    if not isinstance(value, str):
        return value
    if "://" not in value:
        return Path(value)
    url = urlsplit(value)
    path = url.path.removeprefix("/").rstrip("/")
    steps = [unquote(step) for step in path.split("/")]
    if url.scheme == "file" and not url.netloc and url.path.startswith("/") and any(steps):
        return Path("/", *steps)
    if url.scheme not in BUCKET_SCHEMES:
        raise ValueError(
            "only a directory, or a URL that begins with s3://, gs://, az:// or file:///"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]+", url.netloc) or url.query or url.fragment:
        raise ValueError(
            "only a bucket and a path; credentials, region and endpoint come from the environment"
        )
    if path and not all(re.fullmatch(r"[\w.=+-]+", s, re.A) for s in steps):
        raise ValueError("only letters, digits, '.', '_', '=', '+', '-' and single '/' in its path")
    if {".", ".."} & set(steps):
        raise ValueError("no '.' or '..' as a part of its path")
    return value.rstrip("/")


class Settings(BaseSettings):
    """What a process was told. Durations are in seconds, ports are TCP ports on loopback."""

    model_config = SettingsConfigDict(
        env_prefix="LEDGER_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    kafka: str | None = Field(None, description="Kafka bootstrap servers; default: the local stack")
    amqp: SecretStr | None = Field(None, description="RabbitMQ URL; default: the local stack")
    amqp_management: str | None = Field(None, description="URL of RabbitMQ's management page")
    topic_prefix: Annotated[str, AfterValidator(_prefix)] = ""
    partitions: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description=f"of the input topics when they are created (default {DEFAULT_PARTITIONS})",
    )
    replication: int = Field(1, ge=1, le=7, description="replication factor of created topics")
    state_dir: Path = Path(".ledger")
    snapshots: Annotated[Path | str | None, BeforeValidator(_place)] = Field(
        None,
        description="a directory (default: 'snapshots' in the state directory), or the URL of a "
        "bucket: s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH",
    )

    client_id: str = Field(
        "ledger-worker",
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
        description="what a worker calls itself in Kafka's logs and in its consumer group",
    )

    # The local stack: a port that is not set is chosen freely at the first start.
    kafka_port: Port | None = None
    amqp_port: Port | None = None
    management_port: Port | None = None

    flush_interval_s: float = Field(0.5, gt=0, le=60, description="how often tables are published")
    flush_records: int = Field(
        48_000, ge=1, description="publish earlier when a worker has so many records to publish"
    )
    snapshot_interval_s: float = Field(60.0, gt=0, description="how often snapshots are written")
    snapshots_kept: int = Field(
        8, ge=1, description="newest snapshots kept per partition; older ones are thinned out"
    )
    chunk_records: int = Field(
        6_000, ge=1, le=100_000, description="about how many records a worker takes at a time"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the file of `LEDGER_CONFIG`."""
        config = os.environ.get(CONFIG_VARIABLE)
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if config:
            sources += (TomlConfigSettingsSource(settings_cls, toml_file=config),)
        return sources

    @property
    def snapshot_dir(self) -> Path | str:
        """Where snapshots are kept: a directory, or the URL of a bucket."""
        return self.snapshots if self.snapshots is not None else self.state_dir / "snapshots"

    @property
    def worker_dir(self) -> Path:
        """Where workers that share the state directory have their places."""
        return self.state_dir / self.topic("worker")

    def topic(self, name: str) -> str:
        """Return the topic's name on the broker."""
        return self.topic_prefix + name


def load_settings() -> Settings:
    """Return the settings of this process.

    Raises:
        ConfigurationError: a variable or a line of the file cannot be used; it names it.
    """
    config = os.environ.get(CONFIG_VARIABLE)
    if config and not Path(config).is_file():
        raise ConfigurationError(f"{CONFIG_VARIABLE}={config}: no such file.")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "LEDGER_" + "_".join(str(part) for part in first["loc"]).upper()
        found = mask_url(f"{first['input']!r}")
        raise ConfigurationError(f"{name}: {first['msg']} (found {found}).") from error
    except ValueError as error:  # a TOML file that does not parse
        raise ConfigurationError(f"{CONFIG_VARIABLE}={config}: {error}.") from error


def mask_url(url: str) -> str:
    """Return the URL with `***` for its password, which may itself contain `@` or `/`."""
    return re.sub(r"(://[^:@/]*):.*@", r"\1:***@", url)
