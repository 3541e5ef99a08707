"""The trainings of one command: how many epochs, with progress, checkpoints and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trainer import checkpoints
from trainer.balance import (
    METRIC,
    Balance,
    Trend,
    can_be_found,
    find_balance,
    find_trend,
    rehearsal,
)
from trainer.bundle import TowerBundle, TrainedOn
from trainer.checkpoints import Curve
from trainer.config import Config
from trainer.console import epoch_progress, say, stderr
from trainer.datasets import Dataset
from trainer.distribution import averaged, heard_from_chief, is_chief, together
from trainer.errors import TrainerError, TrainingError
from trainer.evaluation import EvaluationError, ScoreUsers, check_measurable
from trainer.inputs import describe as describe_inputs
from trainer.inputs import describe_users, told
from trainer.keras import tf
from trainer.model_config import USUAL_SEQUENCE_WEIGHT, TowersConfig
from trainer.ranking import Ranker
from trainer.ranking import fit as fit_ranking_model
from trainer.ranking_data import NoRatingsError, describe, learnable_ratings
from trainer.splits import Split, SplitKind
from trainer.splits import split as split_dataset
from trainer.trained_towers import Towers
from trainer.training import fit
from trainer.trend import HALF_LIVES_DAYS, bias_shifts
from trainer.validation import MONITOR, Validation, best_epoch, validation_of
from trainer.warm_start import check_start, has_seen

Judgement = TypeVar("Judgement")


@dataclass(eq=False)
class Trainings:
    """Trains on parts of one dataset in one configuration.

    Attributes:
        dataset: users, candidates and interactions.
        config: how to train; ``settle`` fills in what it leaves to be found.
        checkpoints: a folder for the checkpoints of every training; None keeps none.
        tensorboard: a folder for TensorBoard's logs; None writes none.
        start_from: the bundle whose weights to begin with, where they have not seen what the
            training will be measured on.
        strategy: the ``tf.distribute.Strategy`` over the workers that train together.
        n_epochs: after how many epochs a training stops; ``settle`` may lower it.
        curve: of the training that was validated, or else of the latest.
        started_from: the version whose weights the latest training began with, if it did.
        seen_before: what those weights had seen.
    """

    dataset: Dataset
    config: Config
    checkpoints: Path | None = None
    tensorboard: Path | None = None
    start_from: TowerBundle | None = None
    strategy: Any = field(default_factory=tf.distribute.get_strategy)
    n_epochs: int = 0
    curve: Curve = field(default_factory=list)
    started_from: str | None = None
    seen_before: TrainedOn | None = None
    _saved_in: list[Path] = field(default_factory=list)
    _begins_anew: bool = False
    """Whether it was said that towers which are to be measured begin anew."""

    def __post_init__(self) -> None:
        self.n_epochs = self.config.towers.epochs

    def settle(self, parts: Split) -> None:
        """Find, on a part of the train rows, what the configuration leaves to be found.

        With patience that is the number of epochs; without a weight of the sequence head, that.

        Raises:
            EvaluationError: if the split leaves nobody to measure.
            TrainingError: if there is nothing to train or to measure on, or the training fails.
        """
        self.check(parts)
        validation = validation_of(self.dataset, parts)
        towers = self._find_epochs(validation) if self.config.patience else None
        self.find_balance(validation, towers)

    def check(self, parts: Split) -> None:
        """Refuse before anything is trained what cannot be measured, read or begun with.

        Raises:
            BundleError: if the towers cannot begin with the weights of ``start_from``.
            EvaluationError: if the split leaves nobody to measure.
            TrainingError: if a model cannot read what it should.
        """
        if parts.kind is not SplitKind.NONE:
            check_measurable(self.dataset, parts)
        if self.start_from is not None:
            check_start(self.start_from, self.config.towers)
        self.tell_what_is_read(parts)
        if self._ranks:
            describe(self.dataset)

    @property
    def _ranks(self) -> bool:
        """Whether a ranking model is trained."""
        return self.config.with_ranker and self.dataset.ratings is not None

    def tell_what_is_read(self, parts: Split) -> None:
        """Say which columns of the candidates the towers read, and if nothing reads the users'.

        Raises:
            TrainingError: if they cannot read what they should.
        """
        candidates, config = self.dataset.candidates, self.config.towers
        with stderr.status("Describing users and candidates"):
            users = describe_users(self.dataset, parts.train, config)
            features, _ = describe_inputs(candidates, users, config)
            sentence = told(candidates, features, config)
        if len(candidates.column_names) > 1:
            say(sentence)
        unread = set(self.dataset.users.column_names[1:]).difference(f.name for f in features.query)
        if self.config.data.users is not None and unread and not self._ranks:
            say(
                f"{self.config.data.users}: no model reads {', '.join(sorted(unread))}; the towers "
                "do with demographics in towers.query, a ranking model does where there are ratings"
            )

    def _find_epochs(self, validation: Split) -> Towers:
        """Train on a part of the train rows, and stop when the rest says that it is enough."""
        what = "Finding the number of epochs"
        try:
            towers = self._fit(self.config.towers, validation, what, "validation", watched=True)
        except (EvaluationError, TrainingError) as error:
            raise TrainingError(
                f"the number of epochs cannot be found, which --patience 0 leaves out: {error}"
            ) from error
        self.n_epochs = best_epoch(self.curve)
        say(
            f"Validation was best after epoch {self.n_epochs} of {len(self.curve)}, with an "
            f"{MONITOR.removeprefix('val_')} of {self.curve[self.n_epochs - 1][MONITOR]:.4f}"
        )
        return towers

    def find_balance(self, validation: Split, towers: Towers | None = None) -> None:
        """Find how much the sequence head should count, if the configuration does not say it.

        And with it how fast popularity changes, if that is open as well.

        Where too few users could tell, or what would tell cannot be trained, it stays open.

        Args:
            validation: a part of the train rows, cut from the rest.
            towers: trained on the rest; if there are none, some are trained for this.
        """
        if self.config.towers.sequence_weight is not None:
            return
        if not can_be_found(self.dataset, validation):
            return
        try:
            towers = towers or self._rehearse(validation)
            found = self._balance(validation, towers)
            trend = self._trend(validation, towers, found.sequence_weight)
        except (EvaluationError, TrainingError) as error:
            say(f"The sequence head counts {USUAL_SEQUENCE_WEIGHT:g}, as usual: {error}")
            return
        settled = self.config.towers.model_copy(
            update={
                "sequence_weight": found.sequence_weight,
                "trend_half_life_days": trend.half_life_days,
            }
        )
        self.config = self.config.model_copy(update={"towers": settled})
        say(
            f"The sequence head counts {found.sequence_weight:g} beside the taste head's 1: "
            f"{METRIC} of {found.quality:.4f} on validation, of {found.usual_quality:.4f} with "
            f"the usual {USUAL_SEQUENCE_WEIGHT:g}"
        )
        if trend.quality > trend.plain_quality:
            say(
                f"Popularity is that of the end, by a half-life of {trend.half_life_days:g} days: "
                f"{METRIC} of {trend.quality:.4f}, of {trend.plain_quality:.4f} without"
            )

    def _rehearse(self, validation: Split) -> Towers:
        n_users = len(np.unique(self.dataset.user_rows[validation.train]))
        brief = rehearsal(self.config.towers, n_users)
        return self._fit(brief, validation, "Finding the balance of the heads", "balance")

    def _balance(self, validation: Split, towers: Towers) -> Balance:
        measured = Validation(self.dataset, validation, towers.histories, towers.context)
        with together(self.strategy):
            found = find_balance(towers.model, measured)
            # One for all workers, whose arithmetic may differ in the last bits.
            return Balance(**averaged(found._asdict()))

    def _trend(self, validation: Split, towers: Towers, sequence_weight: float) -> Trend:
        """Find how fast popularity changes, if the configuration does not say it."""
        given = self.config.towers.trend_half_life_days
        shifts = {
            half_life: shift
            for half_life in HALF_LIVES_DAYS
            if (shift := bias_shifts(self.dataset, validation.train, half_life)) is not None
        }
        if given is not None or not shifts or not self.config.towers.candidate_ids:
            return Trend(given or 0.0, 0.0, 0.0)
        measured = Validation(self.dataset, validation, towers.histories, towers.context)
        with together(self.strategy):
            found = find_trend(towers.model, measured, sequence_weight, shifts)
            return Trend(**averaged(found._asdict()))

    def fit_towers(self, parts: Split) -> Towers:
        """Train towers on the train rows of a split."""
        config = self.config.towers
        if parts.kind is SplitKind.NONE:
            return self._fit(config, parts, "Training on everything", "all")
        return self._fit(config, parts, f"Training on the {parts.kind} train part", "train")

    def fit_all(
        self, parts: Split, judge: Callable[[Towers | None], Judgement]
    ) -> tuple[Towers, Split, Judgement | None]:
        """Train towers to be measured and towers to be published, in the order all workers keep.

        Args:
            parts: the split to measure on.
            judge: what the chief does, of the workers the only one, with the towers that have not
                seen what the split holds out, or with None where it holds nothing out.

        Returns:
            The towers to be published, the split whose train rows they have seen, and what the
            chief's ``judge`` returned.

        Raises:
            TrainerError: what ``judge`` raised, in all workers.
        """
        self.settle(parts)
        towers = None if parts.kind is SplitKind.NONE else self.fit_towers(parts)
        with self.chief_decides():
            judgement = judge(towers) if is_chief(self.strategy) else None
        if self.config.refit or towers is None:
            parts = split_dataset(self.dataset, SplitKind.NONE)
            towers = self.fit_towers(parts)
        return towers, parts, judgement

    @contextmanager
    def chief_decides(self) -> Iterator[None]:
        """Let all workers, which must come here at the same time, end if the chief does.

        Raises:
            TrainerError: what the chief's block raised.
        """
        refusal = None
        try:
            yield
        except TrainerError as error:
            refusal = error
        with together(self.strategy):
            heard = heard_from_chief(str(refusal or ""))
        if heard:
            raise refusal or TrainerError(heard)

    def fit_ranker(self, parts: Split) -> Ranker | None:
        """Train a ranking model; None if none is wanted, or if there are no ratings."""
        config = self.config.ranker
        if not self.config.with_ranker:
            return None
        try:
            learnable_ratings(self.dataset, parts.train)
        except NoRatingsError as error:
            say(str(error))
            return None
        with epoch_progress("Training the ranking model", config.epochs) as on_epoch:
            return fit_ranking_model(self.dataset, parts.train, config, self.config.seed, on_epoch)

    def forget_checkpoints(self) -> None:
        """Remove the checkpoints, when what they led to is in safety."""
        checkpoints.remove(self._saved_in)

    def _fit(
        self, config: TowersConfig, parts: Split, what: str, name: str, *, watched: bool = False
    ) -> Towers:
        curve: Curve = []
        n_epochs = min(config.epochs, self.n_epochs)
        start_from = self._honest_start(parts)
        self.started_from = None if start_from is None else start_from.manifest.version
        self.seen_before = None if start_from is None else start_from.manifest.trained_on
        with together(self.strategy), epoch_progress(what, n_epochs) as show:

            def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
                curve.append(metrics)
                show(epoch, metrics)

            towers = fit(
                self.dataset,
                parts.train,
                config,
                self.config.seed,
                on_epoch,
                n_epochs=n_epochs,
                validation=parts if watched else None,
                patience=self.config.patience,
                checkpoints=self._checkpoints_of(config, parts, name),
                tensorboard=self.tensorboard and self.tensorboard / name,
                start_from=start_from,
            )
        if not any(MONITOR in metrics for metrics in self.curve):
            self.curve = curve
        return towers

    def _honest_start(self, parts: Split) -> TowerBundle | None:
        """Return the bundle to begin with; None if its towers know what they are to be asked."""
        if self.start_from is None or not has_seen(self.start_from, self.dataset, parts.test):
            return self.start_from
        if not self._begins_anew:
            self._begins_anew = True
            say(
                f"The towers of {self.start_from.directory} may have seen what is held out: "
                "those that are measured begin anew"
            )
        return None

    def _checkpoints_of(self, config: TowersConfig, parts: Split, name: str) -> Path | None:
        """Return the folder for the checkpoints of one training, and say if there are any."""
        if self.checkpoints is None:
            return None
        what = f"{name} {self.started_from} {self.n_epochs} {self.config.patience}"
        directory = checkpoints.directory_of(
            *(self.checkpoints, self.dataset, parts.train),
            *(config, self.config.seed, what),
        )
        if last := checkpoints.latest(directory):
            say(f"Going on from the checkpoint in {Path(last).parent}")
        self._saved_in.append(directory)
        return directory


def scorer(
    towers: Towers,
    histories: Sequence[np.ndarray] | None = None,
    corpus: dict[str, np.ndarray] | None = None,
) -> ScoreUsers:
    """Return what scores candidates for users, (n_users, n_candidates) float32.

    Args:
        towers: that score.
        histories: candidate rows of each user, oldest first; those the towers were trained on if
            none.
        corpus: the candidates, encoded; the towers' catalogue if none.
    """
    candidates = towers.embed_candidates(corpus).T
    return lambda rows: towers.embed_users(rows, histories) @ candidates
