"""Several workers, each a process, that train one model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trainer.batches import training_batches
from trainer.bundle import TowerBundle
from trainer.commands.app import app
from trainer.distribution import Share
from trainer.model_config import TowersConfig

pytestmark = pytest.mark.usefixtures("uncovered", "many_processes")

FIT = ("fit", "--dataset", "sample", "--dim", "8", "--no-ranker")
QUICK_CONFIG = Path(__file__).with_name("quick.toml")
QUICK_FIT = ("fit", "--config", QUICK_CONFIG)
LONGEST = 150
"""Seconds after which a worker hangs; it takes far less."""

KEEP_WEIGHTS = """
import sys
import numpy as np
from trainer import training
from trainer.commands.app import app

def keep(model, *others, towers=training.Towers):
    np.savez(sys.argv[1], *[variable.numpy() for variable in model.variables])
    return towers(model, *others)

training.Towers = keep
app(sys.argv[2:])
"""
"""Runs the command that follows a file's name, with the weights of the last towers in that file."""


def free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


@contextmanager
def two_workers(directory: Path, *command: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a command of the trainer in two workers, the chief first, and see that they end."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    arguments = [str(one) for one in command]
    workers = []
    try:
        for index in range(2):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-c", KEEP_WEIGHTS, directory / f"{index}.npz", *arguments],
                    env={**os.environ, "TF_CONFIG": json.dumps(config), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_two_workers_end_with_the_same_weights_and_the_chief_publishes(
    tmp_path: Path, loss: str
) -> None:
    config = tmp_path / "quick.toml"
    config.write_text(QUICK_CONFIG.read_text() + f'loss = "{loss}"\n')
    output = ("--output", tmp_path / "towers", "--json")
    command = ("fit", "--config", config, "--split", "none", *output)
    with two_workers(tmp_path, *command) as (chief, other):
        chief_said, chief_log = chief.communicate(timeout=LONGEST)
        other_said, other_log = other.communicate(timeout=LONGEST)
    assert chief.returncode == 0, chief_log
    assert other.returncode == 0, other_log
    published = TowerBundle.open(tmp_path / "towers" / "current")
    assert json.loads(chief_said)["directory"] == str(published.directory)
    assert not other_said
    assert "the chief, the first of the workers, publishes" in other_log
    versions = {path.name for path in (tmp_path / "towers").iterdir() if not path.is_symlink()}
    assert versions == {published.directory.name}
    weights = [np.load(tmp_path / f"{index}.npz") for index in range(2)]
    assert weights[0].files == weights[1].files
    for name in weights[0].files:
        np.testing.assert_array_equal(weights[0][name], weights[1][name])


@pytest.mark.slow
def test_a_lost_worker_ends_the_training_which_goes_on_when_all_are_back(tmp_path: Path) -> None:
    command = (*FIT, "--split", "none", "--epochs", 100, "--output", tmp_path / "towers")
    with two_workers(tmp_path, *command) as (chief, other):
        deadline = time.monotonic() + LONGEST
        while not list(tmp_path.glob("towers/.checkpoints/*/checkpoint")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        other.send_signal(signal.SIGKILL)
        _, log = chief.communicate(timeout=LONGEST)
    assert chief.returncode == 1, log
    assert "Error: another worker is gone" in log
    assert "Traceback" not in log
    with two_workers(tmp_path, *command) as workers:
        logs = [worker.communicate(timeout=LONGEST)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], logs
    assert all("Going on from the checkpoint" in log for log in logs)
    published = TowerBundle.open(tmp_path / "towers" / "current")
    balance = f"The sequence head counts {published.manifest.config['sequence_weight']:g} beside"
    assert all(balance in " ".join(log.split()) for log in logs)


@pytest.mark.slow
def test_what_the_chief_refuses_to_publish_ends_all_workers_with_its_sentence(
    tmp_path: Path,
) -> None:
    command = (*FIT, "--output", tmp_path / "towers", "--epochs")
    subprocess.run(
        [sys.executable, "-m", "trainer", *map(str, command), "30"], check=True, timeout=LONGEST
    )
    with two_workers(tmp_path, *command, 1) as workers:
        logs = [worker.communicate(timeout=LONGEST)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [1, 1], logs
    refused, again = (log[log.index("Error: ") :] for log in logs)
    assert "Error: the new towers are worse than the current ones beyond chance" in refused
    assert refused == again


def test_the_workers_shares_of_a_batch_are_of_one_size_and_hold_all_of_its_users() -> None:
    config = TowersConfig(dim=8, epochs=1, batch_size=5)
    histories = [np.array([2 * user, 2 * user + 1], dtype=np.int32) for user in range(11)]

    def users(share: Share) -> list[set[int]]:
        batches = training_batches(histories, 22, config, seed=0, share=share)
        return [
            {int(row) // 2 for row in batch["sequence"]["history"].indices[:, 1]}
            for batch in batches
        ]

    whole, *shares = users(Share()), *(users(Share(index, 2)) for index in range(2))
    assert [5, 5, 1] == [len(batch) for batch in whole]
    for share in shares:
        assert [3, 3, 1] == [len(batch) for batch in share]
    assert whole == [first | second for first, second in zip(*shares, strict=True)]


def test_what_workers_hide_differs() -> None:
    config = TowersConfig(dim=8, epochs=1, batch_size=2)
    histories = [np.arange(100, dtype=np.int32)] * 2
    hidden = [
        set(batch["taste"]["targets"].indices[:, 1].numpy())
        for index in range(2)
        for batch in training_batches(histories, 100, config, seed=0, share=Share(index, 2))
    ]
    assert hidden[0] != hidden[1]


@pytest.mark.parametrize(
    "config",
    [
        "nonsense",
        "[]",
        '{"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"ps": ["127.0.0.1:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_a_description_of_workers_that_is_none_is_refused(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", config)
    refused = CliRunner().invoke(app, [*FIT, "--output", str(tmp_path)])
    assert refused.exit_code == 1
    assert "Error: TF_CONFIG should read like" in refused.stderr
    assert not list(tmp_path.iterdir())
