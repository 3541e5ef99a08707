"""Whether a new bundle may take the place of the current one: not if it is worse beyond chance.

Both were measured by towers that had not seen what was held out for them. A paired bootstrap over
the users that both were measured on tells a difference from noise.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trainer.bundle import TowerBundle
from trainer.datasets import Dataset
from trainer.errors import TrainerError
from trainer.evaluation import Evaluation, Rankings, user_metrics
from trainer.metrics import PerUser, paired_bootstrap
from trainer.publish import CURRENT, BundleError

METRIC = "ndcg@10"
_SAME = ("dataset", "min_rating", "split", "train_fraction")
"""What must have been the same, for two measurements to be compared."""
_FEWEST_USERS = 30
"""Of fewer, resampling says little of what others would be served."""
_HELD_OUT = "held_out"
_MOST_CHANGE = 0.1
"""Of what is asked: how much is held out of a user, and among how many candidates it is looked for.
Chosen: NDCG changes with both, whatever the towers do."""


class WorseError(TrainerError):
    """Why a bundle is not published, for the user."""


def quality_by_user(dataset: Dataset, rankings: Rankings) -> pa.Table:
    """Tabulate what decides over a bundle.

    Returns:
        ``user_id`` of each scored user, the metric, and how many interactions were held out.
    """
    return pa.table(
        {
            "user_id": dataset.users["user_id"].take(rankings.user_rows),
            METRIC: user_metrics(rankings)[METRIC],
            _HELD_OUT: rankings.heldout_counts,
        }
    )


def compare_with_current(
    root: Path,
    evaluation: Evaluation | None,
    quality: pa.Table | None,
    *,
    began_anew: bool = False,
    force: bool = False,
) -> str | None:
    """Compare new towers with the current bundle.

    Args:
        root: the folder that holds the versions.
        evaluation: how good the new towers are; None if that was not measured.
        quality: the same by user.
        began_anew: whether what was measured began anew, and what is to be published does not.
        force: whether worse towers are welcome.

    Returns:
        How they compare or why they cannot be compared, for the user; None without a current
        bundle.

    Raises:
        WorseError: if the new towers are worse beyond chance, without ``force``.
    """
    if not (root / CURRENT).exists():
        return None
    if began_anew:
        return (
            "Not compared with the current bundle: the towers that were measured began anew, those "
            "to be published do not"
        )
    try:
        current = TowerBundle.open(root / CURRENT, verify=False)
        ours, theirs = _paired(evaluation, quality, current)
    except (BundleError, _IncomparableError) as error:
        return f"Not compared with the current bundle: {error}"
    lead = paired_bootstrap(ours, theirs)
    shown = (
        f"{METRIC} {lead.mean:+.4f} ({lead.low:+.4f} to {lead.high:+.4f}) against "
        f"{current.manifest.version}, over {len(ours):,} users"
    )
    if len(ours) < _FEWEST_USERS:
        return f"{shown}: too few to tell from chance"
    if lead.high < 0 and not force:
        raise WorseError(
            f"the new towers are worse than the current ones beyond chance: {shown}. "
            "Nothing was published; --force publishes them all the same"
        )
    return shown


class _IncomparableError(Exception):
    """Why two bundles cannot be compared."""


def _paired(
    evaluation: Evaluation | None, quality: pa.Table | None, current: TowerBundle
) -> tuple[PerUser, PerUser]:
    """Return what new and current towers reach for the users (n,) that both were measured on."""
    if evaluation is None or quality is None:
        raise _IncomparableError("the new towers were not measured")
    if current.user_quality is None:
        raise _IncomparableError("it holds no quality by user")
    before, now = current.manifest.evaluation, evaluation.model_dump(mode="json")
    for name in _SAME:
        if name in before and before[name] != now[name]:  # older bundles do not tell of all
            what = name.replace("_", " ")
            raise _IncomparableError(
                f"it was measured on another {what}, {before[name]} instead of {now[name]}"
            )
    both = quality.join(current.user_quality, "user_id", join_type="inner", right_suffix=" before")
    if not len(both):
        raise _IncomparableError("no user was measured in both")
    _check_alike("candidates", before.get("n_candidates"), now["n_candidates"])
    if _HELD_OUT in current.user_quality.column_names:
        held_out = (pc.mean(both[name]).as_py() for name in (f"{_HELD_OUT} before", _HELD_OUT))
        _check_alike("interactions held out of each user", *held_out)
    both = both.sort_by("user_id")
    return both[METRIC].to_numpy(), both[f"{METRIC} before"].to_numpy()


def _check_alike(what: str, before: float | None, now: float | None) -> None:
    """Refuse to compare where more was asked than before, or less; older bundles do not tell."""
    if before and now and not 1 - _MOST_CHANGE <= now / before <= 1 + _MOST_CHANGE:
        before, now = round(before, 1), round(now, 1)
        raise _IncomparableError(f"it was measured on {before:,} {what}, now there are {now:,}")
