"""How the models are built and trained: their options, for which no model is needed."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_FULL = 20_000
"""Candidates up to which a step over all of them is cheap."""

USUAL_SEQUENCE_WEIGHT = 0.25
"""What the sequence head counts where nothing tells: a compromise between what it may be asked."""


class TowersConfig(BaseModel):
    """How the towers are built and trained."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    dim: int = Field(128, ge=2)
    """Dimension of the embeddings, the bias dimension included."""
    width: int = Field(128, ge=1)
    """Dimension of a head in training, before both are compressed into ``dim``."""
    query: tuple[Literal["history", "user_id", "demographics", "time"], ...] = Field(
        ("history",), min_length=1
    )
    """What is read of a query: ``history``, what the user did; ``user_id``, who they are;
    ``demographics``, the users' columns, each by its type; ``time``, when they were last seen."""
    context_dropout: float = Field(0.5, ge=0, lt=1)
    """Share of the queries in training that each feature beside the history is hidden from, so that
    those of which it is not known are served; where no history is read, nothing is hidden."""
    max_history_length: int = Field(512, ge=1)
    """Interactions of a user that the query tower reads; the newest stay."""
    candidate_ids: bool = True
    """Whether every candidate has a part of its own beside its content."""
    content: tuple[Literal["category", "list", "number", "text"], ...] = (
        "category",
        "list",
        "number",
    )
    """Kinds of metadata columns that are read beside the candidates' ids; none: ids alone."""
    temperature: float = Field(0.2, gt=0)
    """Queries have length 1 / temperature, candidates length 1: lower is more peaked."""
    history_dropout: float = Field(0.4, gt=0, lt=1)
    """Share of a history that is hidden for the taste head to find, afresh in every epoch."""
    sequence_weight: float | None = Field(None, ge=0, le=1e6)
    """What the sequence head counts in the score; the taste head counts 1. If it is not given, what
    finds most on a validation part of the train rows, cut in the manner of the split: the more one
    asks what comes next, rather than what else there was, the more it should count."""
    trend_half_life_days: float | None = Field(None, ge=0)
    """Popularity is that of the end of the train rows, where an interaction counts half after so
    long; 0: that of all of them. If it is not given, what finds most on the validation part on
    which ``sequence_weight`` is found, beyond chance; 0 if that is given."""
    recency: float = Field(1.0, ge=0)
    """The n-th newest interaction weighs n to the power of minus this in the sequence head."""
    target_decay: float = Field(1.0, ge=0)
    """The n-th next interaction counts n to the power of minus this for the sequence head."""
    user_weight: float = Field(0.7, ge=0, le=1)
    """A user counts in the loss as the weight of their targets to this power."""
    learning_rate: float = Field(0.002, gt=0)
    """At the start; it falls linearly to 0."""
    loss: Literal["auto", "full", "sampled"] = "auto"
    """Which candidates compete with the targets: ``full`` takes all; ``sampled`` some of a batch's
    own and some drawn from the catalogue; ``auto`` is full up to 20,000 candidates."""
    negatives: int = Field(2048, ge=2, le=1 << 20)
    """Candidates that are drawn for a step where the loss is sampled."""
    hard_negatives: int = Field(0, ge=0)
    """Of the candidates that compete, only so many count for a query, those that score highest;
    0: all."""
    mixed_precision: bool = False
    """Whether histories and scores are multiplied in bfloat16, faster where the processor is made
    for it; weights and the softmax stay float32. Where only some candidates compete, their scores
    alone."""
    batch_size: int = Field(128, ge=2)
    """Users in a training step, of either head."""
    epochs: int = Field(100, ge=1)
    """Passes over the users."""

    @model_validator(mode="after")
    def _reads_candidates(self) -> Self:
        if not (self.candidate_ids or self.content):
            raise ValueError("candidate_ids and content cannot both be off")
        return self

    @property
    def settled_sequence_weight(self) -> float:
        """``sequence_weight``, or the usual one if it is not given."""
        return USUAL_SEQUENCE_WEIGHT if self.sequence_weight is None else self.sequence_weight

    @property
    def settled_trend_half_life_days(self) -> float:
        """``trend_half_life_days``, or 0 if it is not given."""
        return 0.0 if self.trend_half_life_days is None else self.trend_half_life_days

    def is_sampled(self, n_candidates: int) -> bool:
        """Whether only some of so many candidates compete in a step."""
        return self.loss == "sampled" or (self.loss == "auto" and n_candidates > MAX_FULL)


class RankerConfig(BaseModel):
    """How the ranking model is built and trained."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    dim: int = Field(8, ge=1)
    """Factors of each member."""
    members: int = Field(4, ge=1)
    """Models whose predictions are averaged."""
    max_history_length: int = Field(512, ge=1)
    """Interactions of a user that are read; the newest stay."""
    id_regularization: float = Field(0.2, ge=0)
    """How strongly the factors of users and candidates are held near zero."""
    regularization: float = Field(0.05, ge=0)
    """The same of the history's and the features' factors."""
    bias_regularization: float = Field(0.03, ge=0)
    """The same of all biases."""
    learning_rate: float = Field(0.01, gt=0)
    """At the start; it falls linearly to 0."""
    batch_size: int = Field(32, ge=1)
    """Users in a training step, each with all of their ratings."""
    epochs: int = Field(20, ge=1)
    """Passes over the users."""
