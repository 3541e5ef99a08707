"""The model card: what is in a tower bundle, how good it is and what it is not for."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.bundle import LEARNING_CURVE, MODEL_CARD, TowerManifest

_RANKER_SENTENCE = {
    True: "A ranking model predicts how the user would rate each candidate, if it is asked.",
    False: "There is no ranking model.",
}
_STARTED_FROM = "Training began with the weights of {}, which have seen what that had seen."
_REFRESHED_FROM = "The models are those of {}; the users' histories and embeddings are newer."


def write_model_card(directory: Path, manifest: TowerManifest) -> None:
    """Write the model card of a bundle, whose learning curve is already drawn if it has one."""
    curve = ""
    if (directory / LEARNING_CURVE).exists():
        curve = f"\n![Loss and validation by epoch]({LEARNING_CURVE})\n"
    lineage = "".join(
        f"- {sentence.format(version)}\n"
        for sentence, version in (
            (_STARTED_FROM, manifest.started_from),
            (_REFRESHED_FROM, manifest.refreshed_from),
        )
        if version
    )
    evaluation = (
        json.dumps(manifest.evaluation, indent=2) if manifest.evaluation else "not measured"
    )
    card = f"""# Two towers, trained on {manifest.trained_on.dataset}

- Retrieves candidates for a user from what the user has interacted with; the score is the inner
  product of query and candidate embeddings of {manifest.dim} dimensions, the last of them a bias.
- {manifest.n_candidates:,} candidates, {manifest.n_users:,} known users. The weights have seen
  {manifest.trained_on.n_interactions:,} interactions ({manifest.trained_on.rows}), with seed
  {manifest.seed}.
- The query tower reads the newest {manifest.max_history_length} interactions of a user.
- {_RANKER_SENTENCE[manifest.has_ranker]}
{lineage}
## Quality

Measured on held-out interactions by towers trained in the same way on the rest.

```json
{evaluation}
```
{curve}
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
