"""What every error of this package has in common that its user can mend."""

from __future__ import annotations


class TrainerError(Exception):
    """What is wrong and how to mend it, in words for whoever gave the command."""


class TrainingError(TrainerError):
    """Why a model could not be trained."""
