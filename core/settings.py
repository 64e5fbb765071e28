"""The settings, read once from `GRAFTWORK_*` variables (nested by `__`) or a `.env` file.

`docs/settings.md` explains each, and the variables that are read elsewhere and not from `.env`.
"""

import os
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.addresses import begins_with

MEBIBYTE = 1024 * 1024


class ComputeSettings(BaseModel, frozen=True):
    """How a torch process behaves beside the others on the same cores."""

    threads: int = Field(default=0, ge=0, description="Torch threads at most; 0 means every core.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Which GPU of several, CUDA_VISIBLE_DEVICES says."
    )


class ServingSettings(ComputeSettings, frozen=True):
    """The same of the engine; a job says itself what it computes in."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class WorkerSettings(BaseModel, frozen=True):
    """How a worker takes jobs and when it gives them up for lost."""

    jobs: int = Field(default=1, ge=1, description="Trainers that one worker runs at once.")
    gang: int = Field(default=8, ge=1, description="Small jobs that one trainer trains at once.")
    lease_seconds: float = Field(default=30.0, gt=0)
    poll_seconds: float = Field(default=1.0, gt=0)
    stall_seconds: float = Field(default=900.0, gt=0, description="No progress: a fault.")
    resume_seconds: float = Field(default=60.0, ge=0, description="Between resume checkpoints.")
    max_attempts: int = Field(default=5, ge=1, description="Tries after infrastructure faults.")
    stop_seconds: float = Field(default=20.0, gt=0, description="Grace to save before SIGKILL.")
    compute: ComputeSettings = ComputeSettings()


class EngineSettings(BaseModel, frozen=True):
    """How the inference process spends its memory."""

    rows: int = Field(default=32, ge=1, description="Sequences decoded in one step.")
    context: int = Field(default=2048, ge=16, description="Tokens a sequence may hold.")
    prefill_tokens: int = Field(default=512, ge=1, description="Prompt tokens computed a step.")
    adapter_bytes: int = Field(
        default=1024 * MEBIBYTE, ge=1, description="LRU budget, C++ copies included."
    )
    prompt_bytes: int = Field(
        default=256 * MEBIBYTE, ge=0, description="Prompts kept for who begins alike; LRU."
    )
    waiting: int = Field(default=1024, ge=1, description="Choices in line before a 503.")
    drafts: bool = Field(
        default=True, description="Likely tokens are computed along in steps with few rows."
    )
    quantization: Literal["none", "int8"] = Field(
        default="none", description="int8 holds the frozen linear weights in 8 bits, on a CPU."
    )
    compute: ServingSettings = ServingSettings()


class LimitSettings(BaseModel, frozen=True):
    """Upper bounds, checked before anything is allocated."""

    file_bytes: int = Field(default=512 * MEBIBYTE, ge=1)
    adapter_bytes: int = Field(
        default=4096 * MEBIBYTE, ge=1, description="Of an imported adapter, unpacked."
    )
    request_bytes: int = Field(default=8 * MEBIBYTE, ge=1)
    choices: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=4096, ge=1)


class Settings(BaseSettings):
    """The whole configuration of one installation."""

    model_config = SettingsConfigDict(
        env_prefix="GRAFTWORK_",
        env_nested_delimiter="__",
        env_file=".env",
        extra="ignore",
        frozen=True,
    )

    data_dir: Path = Path(".graftwork")
    cache_dir: Path = Path("~/.cache/graftwork")
    database_url: Annotated[
        str | None, begins_with("postgresql://", "postgresql+", "sqlite://", "sqlite+")
    ] = None
    broker_url: str | None = None
    store_url: Annotated[str | None, begins_with("s3://", "gs://", "az://", "file://")] = None
    engine_url: Annotated[str | None, begins_with("http://", "https://", "unix:")] = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    base: str = "smollm2-135m-instruct"
    bootstrap_key: str | None = None
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)
    ] = "INFO"
    worker: WorkerSettings = WorkerSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()

    @property
    def data_folder(self) -> Path:
        """The data directory as an absolute path."""
        return self.data_dir.expanduser().absolute()

    @property
    def cache_folder(self) -> Path:
        """Downloads that every data directory of this user shares."""
        return self.cache_dir.expanduser().absolute()

    @property
    def base_folder(self) -> Path:
        """Where the base model of this installation lies."""
        return self.folder_of(self.base)

    def folder_of(self, base: str) -> Path:
        """Return where a base model lies, if it is here."""
        return self.data_folder / "bases" / base

    @property
    def socket_folder(self) -> Path:
        """A short path for Unix sockets, whose names the kernel cuts at 107 bytes."""
        if len(os.fsencode(self.data_folder)) < 80:
            return self.data_folder / "run"
        digest = sha256(os.fsencode(self.data_folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"graftwork-{os.getuid()}-{digest}"

    @property
    def uploads_folder(self) -> Path:
        """Where files lie on their way in or out; see `core.leftovers`."""
        return self.data_folder / "uploads"

    @property
    def work_folder(self) -> Path:
        """Where a worker's claims have folders of their own; the collector removes what is left."""
        return self.data_folder / "work"

    @property
    def cores_folder(self) -> Path:
        """Where programs that share the cores of a machine tell each other that they compute."""
        return self.data_folder / "cores"

    @property
    def database(self) -> str:
        """The database URL in force."""
        return self.database_url or f"sqlite:///{quote(str(self.data_folder / 'graftwork.db'))}"

    @property
    def store(self) -> str:
        """The URL of the byte store in force."""
        return self.store_url or (self.data_folder / "store").as_uri()

    @property
    def engine_address(self) -> str:
        """The engine's address: `http://host:port` or `unix:/path`."""
        return self.engine_url or f"unix:{self.socket_folder / 'engine.sock'}"


@cache
def get_settings() -> Settings:
    """Read the settings once per process."""
    return Settings()
