"""The model card: what is in a tower bundle, how good it is and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.bundle import LEARNING_CURVE, MODEL_CARD, TowerManifest

_RANKER_SENTENCE = {
    True: "A ranking model predicts how the user would rate each candidate, if it is asked.",
    False: "There is no ranking model.",
}
_STARTED_FROM = "Training began with the weights of {}, which have seen what that had seen."
_LEARNING_CURVE = f"\n![Loss and validation by epoch]({LEARNING_CURVE})\n"
_REFRESHED_FROM = (
    "The models are those of {}; the users' histories and embeddings are newer, and candidates may "
    "have come since."
)


def write_model_card(directory: Path, manifest: TowerManifest) -> None:
    """Write the model card of a bundle, whose learning curve is already drawn if it has one."""
    card = f"""# Two towers, trained on {manifest.trained_on.dataset}

- Retrieves candidates for a user from what the user has interacted with; the score is the inner
  product of query and candidate embeddings of {manifest.dim} dimensions, the last of them a bias.
- {manifest.n_candidates:,} candidates, {manifest.n_users:,} known users. The weights have seen
  {manifest.trained_on.n_interactions:,} interactions ({manifest.trained_on.rows}), with seed
  {manifest.seed}.
- The query tower reads {_read(manifest)}.
- {_RANKER_SENTENCE[manifest.has_ranker]}
{_lineage(manifest)}
## Quality

{_quality(manifest.evaluation)}
{_LEARNING_CURVE if (directory / LEARNING_CURVE).exists() else ""}
## Configuration

```json
{json.dumps(manifest.config, indent=2)}
```

## Limits

Recommendations follow past interactions and carry their biases: what was shown and popular is
recommended more. A candidate nobody has interacted with is placed by its
content alone; how well has not been measured.
"""
    (directory / MODEL_CARD).write_text(card)


def _read(manifest: TowerManifest) -> str:
    """Return what is read of a query, in words."""
    words = {
        "history": f"the newest {manifest.max_history_length} interactions of a user",
        "user_id": "who the user is",
        "demographics": "what is known of users",
        "time": "when they were last seen",
    }
    return ", ".join(words[name] for name in manifest.config.get("query", ["history"]))


def _lineage(manifest: TowerManifest) -> str:
    sentences = {_STARTED_FROM: manifest.started_from, _REFRESHED_FROM: manifest.refreshed_from}
    return "".join(f"- {one.format(version)}\n" for one, version in sentences.items() if version)


def _quality(evaluation: Mapping[str, Any]) -> str:
    """Tabulate the metrics by their cutoffs."""
    if not evaluation:
        return "Not measured."
    figures: dict[str, dict[int, float]] = {}
    for metric, value in evaluation["metrics"].items():
        name, _, k = metric.partition("@")
        figures.setdefault(name, {})[int(k)] = value
    cutoffs = sorted({k for values in figures.values() for k in values})
    lines = [["metric", *(f"@{k}" for k in cutoffs)], ["---"] * (1 + len(cutoffs))]
    for name, values in sorted(figures.items()):
        lines.append([name, *(f"{values[k]:.4f}" if k in values else "" for k in cutoffs)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""Measured on what the {evaluation["split"]} split held out, for
{evaluation["n_users"]:,} users, by towers trained in the same way on the rest.

{table}"""
