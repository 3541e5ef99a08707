"""Train the towers in several workers, which Ray Train places and starts again when one dies.

python docs/examples/ray/train.py --workers 2 fit --dataset movielens/1m --output /shared/towers

Whatever ``python -m trainer`` takes follows the options. Ray is started on this machine, or found
by RAY_ADDRESS; on a cluster, give folders that all its machines see.
"""

import argparse
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer


def train(config: dict[str, list[str]]) -> None:
    """Be one of the workers that ``TF_CONFIG`` names, which Ray Train has set."""
    from trainer.commands.app import app  # noqa: PLC0415 - not before TF_CONFIG is set

    if app(config["command"], standalone_mode=False):
        raise RuntimeError("the trainer says in this worker's log what is wrong")


def main() -> None:
    """Start the workers, and wait until all have done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--storage", type=Path, default=Path("artifacts/ray"), help="of Ray Train")
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="such as: fit --dataset sample")
    options = parser.parse_args()
    # Ray Train imports TensorFlow before the trainer can ask for the Keras that it is written for.
    ray.init(runtime_env={"env_vars": {"TF_USE_LEGACY_KERAS": "1"}})
    TensorflowTrainer(
        train,
        train_loop_config={"command": options.command},
        scaling_config=ScalingConfig(num_workers=options.workers),
        run_config=RunConfig(
            storage_path=str(options.storage.resolve()),
            failure_config=FailureConfig(max_failures=options.restarts),
        ),
    ).fit()


if __name__ == "__main__":
    main()
