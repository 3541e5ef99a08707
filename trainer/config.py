"""The configuration of the commands: defaults, then a TOML file, then flags.

    seed = 7

    [data]
    interactions = "interactions.parquet"

    [towers]
    epochs = 80

``python -m trainer config`` prints every option with what it does; the sections of the models stand
beside the models.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.datasets import Dataset, load_dataset, load_files
from trainer.errors import TrainerError
from trainer.files import whole_file
from trainer.model_config import RankerConfig, TowersConfig
from trainer.splits import SplitKind
from trainer.toml import as_toml, no_such

_USUAL_DATASET = "movielens/100k"
_SOURCES = ("dataset", "interactions", "candidates", "users")


class ConfigError(TrainerError):
    """Why a configuration cannot be used, for the user."""


class DataConfig(BaseModel):
    """Where the interactions and candidates come from."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    dataset: str | None = None
    """A dataset by its name: movielens/100k, 1m, 20m, 25m or latest-small, or sample. Where none is
    named it is movielens/100k, or the sample if that cannot be had, and it is said so."""
    interactions: Path | None = None
    """Your own interactions, CSV or Parquet, instead of a dataset: user_id, candidate_id, and
    optionally rating and timestamp."""
    candidates: Path | None = None
    """Your own candidates, CSV or Parquet: candidate_id, optionally title, and any metadata."""
    users: Path | None = None
    """Your own users, CSV or Parquet: user_id, and any columns for ``demographics`` and the ranking
    model to read."""
    min_rating: float | None = None
    """Take only interactions rated at least this high."""
    name: str | None = Field(None, min_length=1)
    """What your own files are called in manifests; bundles of one name are compared. By default the
    name of the file of interactions, without its ending."""

    def load(self) -> Dataset:
        """Load the data.

        Raises:
            ConfigError: if candidates or users are given without interactions.
            DatasetError: if the data cannot be had or read.
        """
        if self.interactions is not None:
            return load_files(
                self.interactions,
                self.candidates,
                self.users,
                min_rating=self.min_rating,
                name=self.name,
            )
        for flag, file in (("candidates", self.candidates), ("users", self.users)):
            if file is not None:
                raise ConfigError(f"{file}: --{flag} needs --interactions as well")
        # What somebody names is what is meant: a training on something else could be published.
        return load_dataset(
            _USUAL_DATASET if self.dataset is None else self.dataset,
            min_rating=self.min_rating,
            fallback_to_sample=self.dataset is None,
        )

    @property
    def is_given(self) -> bool:
        """Whether anything says where the data come from."""
        return any(getattr(self, name) is not None for name in _SOURCES)


class Config(BaseModel):
    """All that can be set of a training; ``[towers]`` and ``[ranker]`` are the models'."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    seed: int = Field(42, ge=0, lt=2**32)
    """Of the training; the same seed gives one result."""
    split: SplitKind = SplitKind.LEAVE_LAST_OUT
    """What is held out to measure quality: random, temporal, leave-last-out, or none."""
    train_fraction: float = Field(0.8, gt=0, lt=1)
    """Share of the interactions that a random split trains on, or a temporal one up to its date."""
    refit: bool = True
    """Whether what is exported was trained again on everything, or has seen the train part of the
    split only."""
    patience: int = Field(0, ge=0)
    """Early stopping: after this many epochs without a better ndcg@10 on a validation part of the
    train rows the best number of epochs is known, and trained anew. 0: all epochs are trained."""
    with_histories: bool = True
    """Whether the users' histories travel with the towers."""
    with_ranker: bool = True
    """Whether a ranking model is trained as well, if there are ratings."""
    data: DataConfig = DataConfig()
    """Where the interactions and candidates come from."""
    towers: TowersConfig = TowersConfig()
    """How the towers are built and trained."""
    ranker: RankerConfig = RankerConfig()
    """How the ranking model is built and trained."""

    @model_validator(mode="after")
    def _leaves_users_out(self) -> Self:
        if not self.with_histories and "user_id" in self.towers.query:
            raise ValueError(
                "towers that read user_id hold their users: take it out of towers.query, or let "
                "histories travel with them"
            )
        return self


def load_config(file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Return the configuration in force.

    Args:
        file: a TOML file, if there is one.
        flags: what the command line says, in the structure of ``Config``; None is not said. Where
            it names a source of data, it replaces all that the file says of sources.

    Raises:
        ConfigError: if the file cannot be read, or a key or value is not allowed.
    """
    content = {} if file is None else _read(file)
    in_file = _validated(content, f"{file}: ").model_dump(exclude_unset=True)
    given = _given(flags)
    if not given.get("data", {}).keys().isdisjoint(_SOURCES):
        for name in _SOURCES:
            in_file.get("data", {}).pop(name, None)
    return _validated(_merged(in_file, given), "")


def write_config(config: BaseModel, path: Path) -> None:
    """Write a configuration as a TOML file, in one step.

    Raises:
        UnwritableError: if it cannot be written there.
    """
    with whole_file(path) as partial:
        partial.write_text(as_toml(config), encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _validated(content: Mapping[str, Any], place: str) -> Config:
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        sentences = (place + _sentence(one) for one in error.errors())
        raise ConfigError("\n".join(sentences)) from error


def _sentence(error: Any) -> str:
    if error["type"] == "value_error":  # of a validator of ours, over several options
        return str(error["ctx"]["error"])
    *sections, name = map(str, error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{'.'.join([*sections, name])}: {error['msg']}, not {error['input']!r}"
    schema: Any = Config
    for section in sections:
        schema = schema.model_fields[section].annotation
    place = f"[{'.'.join(sections)}]" if sections else "the top level"
    return no_such("option", name, schema.model_fields, place)


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said, without what is not."""
    nested = {k: _given(v) if isinstance(v, Mapping) else v for k, v in flags.items()}
    return {name: value for name, value in nested.items() if value not in (None, {})}


def _merged(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(weak)
    for name, value in strong.items():
        is_section = isinstance(value, Mapping)
        both[name] = _merged(weak.get(name, {}), value) if is_section else value
    return both
