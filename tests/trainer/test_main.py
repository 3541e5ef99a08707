import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.uncovered import measuring_no_coverage
from trainer.bundle import TowerBundle
from trainer.commands.app import app

QUICK = ("--config", Path(__file__).with_name("quick.toml"))


def trainer(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def small_with_ranker(tmp_path: Path) -> tuple[object, ...]:
    """The arguments of a small fit with a ranking model that is trained for one epoch too."""
    config = tmp_path / "ranker.toml"
    config.write_text(QUICK[1].read_text() + "\n[ranker]\nepochs = 1\n")
    return ("--config", config, "--ranker")


@pytest.fixture(scope="module")
def train_part(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """What a fit to the train part said, and the folder of its towers, not to be written to."""
    root = tmp_path_factory.mktemp("train") / "towers"
    return trainer("fit", *QUICK, "--split", "temporal", "--no-refit", "--output", root), root


def test_fit_evaluates_refits_on_everything_and_publishes(
    tmp_path: Path, small_with_ranker: tuple[object, ...]
) -> None:
    done = trainer("fit", *small_with_ranker, "--output", tmp_path / "towers", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    bundle = TowerBundle.open(tmp_path / "towers" / "current")
    assert said["directory"] == str(bundle.directory)
    assert said["evaluation"] == bundle.manifest.evaluation
    assert bundle.manifest.evaluation["split"] == "leave-last-out"
    assert bundle.manifest.trained_on.rows == "all"
    assert bundle.manifest.dim == 8
    assert bundle.manifest.has_ranker


def test_fit_finds_the_number_of_epochs_and_draws_the_learning_curve(tmp_path: Path) -> None:
    config = tmp_path / "trainer.toml"
    config.write_text("[towers]\nlearning_rate = 0.1\nwidth = 8\n")
    command = ("fit", "--dataset", "sample", "--split", "none", "--no-ranker", "--config", config)
    done = trainer(
        *(*command, "--epochs", 30, "--patience", 2, "--dim", 8),
        *("--output", tmp_path / "towers", "--tensorboard", tmp_path / "logs"),
    )
    assert done.exit_code == 0, done.stderr
    found = re.search(r"best after epoch (\d+) of (\d+), with an ndcg@10 of 0", done.stderr)
    assert found
    best, trained = map(int, found.groups())
    assert best + 2 == trained < 30
    assert f"{best}/{best} epochs" in done.stderr
    card = (tmp_path / "towers" / "current" / "model_card.md").read_text()
    assert "![Loss and validation by epoch](learning_curve.png)" in card
    assert (tmp_path / "towers" / "current" / "learning_curve.png").stat().st_size > 10_000
    assert {"validation", "all"} == {path.name for path in (tmp_path / "logs").iterdir()}
    assert not (tmp_path / "towers" / ".checkpoints").exists()


def test_a_fit_that_was_killed_goes_on_to_the_same_towers(tmp_path: Path) -> None:
    config = tmp_path / "trainer.toml"
    config.write_text(
        'split = "none"\nwith_ranker = false\n[data]\ndataset = "sample"\n'
        "[towers]\nepochs = 10\nwidth = 8\ndim = 8\nsequence_weight = 0.3\n"
    )
    command = ("fit", "--config", str(config), "--output")
    killed, untouched = tmp_path / "killed", tmp_path / "untouched"
    with measuring_no_coverage():
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", *command, killed], stderr=subprocess.DEVNULL
        )
    while not list(killed.glob(".checkpoints/*/checkpoint")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "current").exists()
    again = trainer(*command, killed)
    assert "Going on from the checkpoint in" in again.stderr
    assert trainer(*command, untouched).exit_code == 0
    expected, actual = (
        TowerBundle.open(root / "current").query.query_embeddings for root in (untouched, killed)
    )
    np.testing.assert_array_equal(expected, actual)
    assert not (killed / ".checkpoints").exists()


def test_a_refresh_wants_to_be_told_whose_histories(train_part: tuple[Result, Path]) -> None:
    refused = trainer("refresh", train_part[1] / "current")
    assert refused.exit_code == 1
    assert "give --interactions FILE, or --dataset NAME" in " ".join(refused.stderr.split())


def test_what_is_published_as_it_was_measured_is_compared_though_a_warm_start_was_asked_for(
    train_part: tuple[Result, Path], tmp_path: Path
) -> None:
    shutil.copytree(train_part[1], tmp_path / "towers", symlinks=True)
    current = tmp_path / "towers" / "current"
    options = ("--no-refit", "--warm-start", current, "--output", tmp_path / "towers", "--force")
    again = trainer("fit", *QUICK, *options)
    assert again.exit_code == 0, again.stderr
    # By what both were measured on, which in this case are two splits.
    assert "it was measured on another split" in " ".join(again.stderr.split())


def test_a_bundle_gives_its_weights_to_the_next_and_can_be_refreshed(
    train_part: tuple[Result, Path], tmp_path: Path
) -> None:
    output = ("--output", tmp_path / "towers")
    shutil.copytree(train_part[1], tmp_path / "towers", symlinks=True)
    first = TowerBundle.open(tmp_path / "towers" / "current").manifest
    warm = trainer("fit", *QUICK, "--warm-start", tmp_path / "towers" / "current", *output)
    assert warm.exit_code == 0, warm.stderr
    assert "may have seen what is held out: those that are measured begin anew" in warm.stderr
    assert "began anew, those to be published do not" in " ".join(warm.stderr.split())
    second = TowerBundle.open(tmp_path / "towers" / "current")
    assert second.manifest.started_from == first.version
    card = (second.directory / "model_card.md").read_text()
    assert f"began with the weights of {first.version}" in card
    new_user = tmp_path / "interactions.csv"
    known = second.candidate_ids.token(3)
    new_user.write_text(f"user_id,candidate_id\nzoe,{known}\nzoe,never seen\n")
    done = trainer("refresh", tmp_path / "towers" / "current", "--interactions", new_user, "--json")
    assert done.exit_code == 0, done.stderr
    assert "1 of 2 interactions are with candidates that the towers do not know" in done.stderr
    said = json.loads(done.stdout)
    assert (1, 1) == (said["n_users"], said["n_left_out"])
    third = TowerBundle.open(tmp_path / "towers" / "current")
    assert said["directory"] == str(third.directory)
    assert [3] == third.query.history(0).tolist()


def test_worse_towers_are_published_by_force_only(tmp_path: Path) -> None:
    config = tmp_path / "trainer.toml"
    config.write_text(
        'with_ranker = false\n[data]\ndataset = "sample"\n[towers]\nwidth = 8\ndim = 8\n'
        "sequence_weight = 0.3\n"
    )
    command = ("fit", "--config", config, "--no-refit", "--output", tmp_path / "towers")
    good = trainer(*command, "--epochs", 20)
    assert good.exit_code == 0, good.stderr
    assert "compared" not in good.stderr
    first = TowerBundle.open(tmp_path / "towers" / "current")
    assert first.user_quality is not None
    assert first.manifest.evaluation["n_users"] == len(first.user_quality)
    config.write_text(config.read_text() + "temperature = 50\ncontent = []\n")
    worse = (*command, "--epochs", 1)
    refused = trainer(*worse)
    assert refused.exit_code == 1
    assert f"against {first.manifest.version}, over 500 users. Nothing was" in refused.stderr
    assert first.directory == TowerBundle.open(tmp_path / "towers" / "current").directory
    forced = trainer(*worse, "--force")
    assert forced.exit_code == 0, forced.stderr
    assert first.directory != TowerBundle.open(tmp_path / "towers" / "current").directory


def test_tune_writes_a_config_that_evaluate_takes(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.toml"
    command = ("tune", *QUICK, "--split", "random", "--epochs", 2)
    done = trainer(*command, "--trials", 2, "--output", tuned, "--json")
    assert done.exit_code == 0, done.stderr
    assert "Trial 2 of 2" in done.stderr
    said = json.loads(done.stdout)
    assert (str(tuned), "ndcg@10", 2) == (said["config"], said["metric"], len(said["trials"]))
    best = said["best"]
    assert max(trial["value"] for trial in said["trials"]) == best["value"] > 0
    towers = tomllib.loads(tuned.read_text())["towers"]
    assert {"epochs": 2, "dim": 8, **best["options"]}.items() <= towers.items()
    assert trainer("config", "--config", tuned).stdout == tuned.read_text()
    table = trainer(*command, "--trials", 1, "--output", tuned)
    assert "1 of 1 trials were trained to their end; the best is trial 1" in table.stdout


def test_fit_can_export_what_has_seen_the_train_part_only(
    train_part: tuple[Result, Path],
) -> None:
    done, root = train_part
    assert done.exit_code == 0, done.stderr
    assert "heldout_recall" in done.stdout
    assert TowerBundle.open(root / "current").manifest.trained_on.rows == "temporal train"


def test_fit_without_a_split_measures_nothing(tmp_path: Path) -> None:
    done = trainer("fit", *QUICK, "--split", "none", "--output", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert TowerBundle.open(tmp_path / "current").manifest.evaluation == {}


def test_evaluate_prints_a_table_or_json(small_with_ranker: tuple[object, ...]) -> None:
    table = trainer("evaluate", *small_with_ranker, "--split", "random")
    assert table.exit_code == 0, table.stderr
    assert "heldout_recall" in table.stdout
    assert "ratings have an RMSE of" in table.stdout
    assert "leave it out with --no-ranker" in table.stdout  # after the one epoch that it had
    assert "the best of 100 retrieved have an ndcg@10 of" in table.stdout
    command = ("evaluate", *QUICK, "--split", "random", "--json")
    as_json = json.loads(trainer(*command).stdout)
    assert as_json["rmse"] is None
    assert as_json["split"] == "random"
    assert 0 < as_json["metrics"]["heldout_recall@100"] < 1


def test_evaluate_refuses_a_split_that_holds_nothing_out() -> None:
    done = trainer("evaluate", *QUICK, "--split", "none")
    assert done.exit_code == 2
    assert "holds nothing out" in done.stderr


def test_own_files_go_the_same_way(tmp_path: Path) -> None:
    interactions = tmp_path / "interactions.csv"
    lines = [f"u{u},c{(u + i) % 7},{i}" for u in range(6) for i in range(4)]
    interactions.write_text("user_id,candidate_id,timestamp\n" + "\n".join(lines) + "\n")
    candidates = tmp_path / "candidates.csv"
    candidates.write_text(
        "candidate_id,title,tags\n" + "".join(f"c{i},Title {i},a|b\n" for i in range(7))
    )
    users = tmp_path / "users.csv"
    users.write_text("user_id,age\nu1,31\n")
    files = ("--interactions", interactions, "--candidates", candidates)
    options = ("--epochs", 1, "--dim", 4, "--name", "shop", "--output", tmp_path / "towers")
    done = trainer("fit", *files, "--users", users, *options)
    assert done.exit_code == 0, done.stderr
    assert "users.csv: no model reads age; the towers do with" in " ".join(done.stderr.split())
    assert "shop has no ratings, so there is no ranking model" in done.stderr
    bundle = TowerBundle.open(tmp_path / "towers" / "current")
    assert "shop" == bundle.manifest.trained_on.dataset
    assert not bundle.manifest.has_ranker
    assert bundle.candidates.column_names == ["candidate_id", "title", "tags"]
    with candidates.open("a") as file:
        file.write("c7,Title 7,b\n")
    with interactions.open("a") as file:
        file.write("u0,c7,9\n")
    current = tmp_path / "towers" / "current"
    left_out = trainer("refresh", current, "--interactions", interactions)
    assert "1 of 25 interactions are with candidates that the towers do not" in left_out.stderr
    told = trainer("refresh", current, *files, "--json")
    assert "have come since the training: 1. They are found by" in " ".join(told.stderr.split())
    assert 1 == json.loads(told.stdout)["n_new_candidates"]
    assert "c7" == TowerBundle.open(current).candidate_ids.token(7)


def test_a_bad_row_is_a_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    interactions = tmp_path / "interactions.csv"
    interactions.write_text("user_id,candidate_id\nu1,c1\nu2,\n")
    done = trainer("fit", "--interactions", interactions, "--output", tmp_path / "towers")
    assert done.exit_code == 1
    assert "interactions.csv" in done.stderr
    assert "line 3" in done.stderr
    assert "candidate_id" in done.stderr
    assert not (tmp_path / "towers").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--dataset", "netflix"), "there is no dataset 'netflix'"),
        (("--dataset", "sample", "--min-rating", "9"), "rated at least 9"),
    ],
)
def test_a_mistake_is_a_sentence(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = trainer("fit", *arguments, "--output", tmp_path / "towers")
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.output


def test_a_config_file_is_taken_and_flags_override_it(tmp_path: Path) -> None:
    config = tmp_path / "trainer.toml"
    config.write_text(
        'split = "none"\nwith_ranker = false\n[data]\ndataset = "sample"\n'
        "[towers]\nepochs = 1\ndim = 8\nsequence_weight = 0.3\n"
    )
    done = trainer("fit", "--config", config, "--dim", 6, "--output", tmp_path / "towers")
    assert done.exit_code == 0, done.stderr
    manifest = TowerBundle.open(tmp_path / "towers" / "current").manifest
    assert (6, 1, {}) == (manifest.dim, manifest.config["epochs"], manifest.evaluation)


def test_the_config_is_printed_as_toml(tmp_path: Path) -> None:
    config = tmp_path / "trainer.toml"
    config.write_text("seed = 5\n")
    printed = trainer("config", "--config", config).stdout
    assert tomllib.loads(printed)["seed"] == 5
    assert "# Dimension of the embeddings, the bias dimension included.\ndim = 128\n" in printed


def test_an_unknown_key_is_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "trainer.toml"
    config.write_text("[towers]\ndims = 5\n")
    done = trainer("fit", "--config", config, "--output", tmp_path / "towers")
    assert done.exit_code == 1
    assert "dims: no such option; did you mean dim?" in done.stderr


def test_an_output_that_is_no_folder_is_told_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "towers").write_text("no folder")
    done = trainer("fit", *QUICK, "--output", tmp_path / "towers")
    assert done.exit_code == 1
    assert "must be a folder that can be written to" in done.stderr
    assert "epochs" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tune", "--output", "{}"), "is a folder; name a file in it"),
        (("tune", "--output", "{}/file/tuned.toml"), "cannot be made: File exists"),
        (("evaluate", "--compare", "--plot", "{}"), "is a folder; name a file in it"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_training(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    done = trainer(*(one.format(tmp_path) for one in arguments), "--dataset", "sample")
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.replace("│", " ").split())


def test_candidates_alone_are_not_enough(tmp_path: Path) -> None:
    done = trainer("fit", "--candidates", tmp_path / "candidates.csv")
    assert done.exit_code == 1
    assert "--interactions" in done.stderr
