"""The configuration: defaults, a TOML file, flags; and every option documented."""

import json
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from trainer.config import Config, ConfigError, load_config
from trainer.datasets import DatasetError
from trainer.toml import as_toml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trainer.toml"
    path.write_text(
        'seed = 7\nsplit = "random"\n[data]\ninteractions = "i.csv"\ncandidates = "c.csv"\n'
        "[towers]\ndim = 32\nepochs = 3\n"
    )
    return path


def test_flags_override_the_file_which_overrides_the_defaults(file: Path) -> None:
    config = load_config(file, {"seed": None, "split": None, "towers": {"epochs": 9, "dim": None}})
    towers = config.towers
    assert (7, "random", 32, 9) == (config.seed, config.split, towers.dim, towers.epochs)
    assert Config().towers.width == config.towers.width


def test_a_source_of_data_on_the_command_line_replaces_the_files(file: Path) -> None:
    data = load_config(file, {"data": {"dataset": "sample", "interactions": None}}).data
    assert ("sample", None, None) == (data.dataset, data.interactions, data.candidates)
    kept = load_config(file, {"data": {"dataset": None, "min_rating": 4.0}}).data
    assert (Path("i.csv"), 4.0) == (kept.interactions, kept.min_rating)


def test_a_dataset_without_a_name_is_not_the_usual_one() -> None:
    with pytest.raises(DatasetError, match="there is no dataset ''"):
        load_config(None, {"data": {"dataset": ""}}).data.load()


def test_what_is_printed_is_read_back_as_it_was(file: Path, tmp_path: Path) -> None:
    beyond_json = Path('🎬 "quoted" \\ \x7f.csv')
    config = load_config(file, {"data": {"min_rating": 3.5, "interactions": beyond_json}})
    printed = tmp_path / "printed.toml"
    printed.write_text(as_toml(config), encoding="utf-8")
    assert config == load_config(printed, {})


def options(config: BaseModel) -> list[tuple[str, str | None]]:
    found = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        found += options(value) if isinstance(value, BaseModel) else [(name, field.description)]
    return found


def test_every_option_is_printed_under_what_it_does() -> None:
    printed = as_toml(Config())
    assert [] == [name for name, description in options(Config()) if not description]
    lines = printed.splitlines()
    for name, _ in options(Config()):
        places = [
            i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{name} =")
        ]
        assert places, name
        assert all(lines[i - 1].startswith("# ") for i in places)
    assert json.loads(Config().model_dump_json(exclude_none=True)) == tomllib.loads(printed)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("sede = 1", "sede: no such option; did you mean seed"),
        ("[towers]\nnonsense = 8", r"nonsense: no such option; \[towers\] has dim, width"),
        ("[towers]\ndim = 1", "towers.dim: Input should be greater than or equal to 2, not 1"),
        ("towers = 3", "towers: .* not 3"),
        ("[towers]\nlearning_rate = inf", "learning_rate: Input should be a finite number"),
        ("seed = 4294967296", "seed: Input should be less than 4294967296"),
        ("[towers]\ncandidate_ids = false\ncontent = []", "candidate_ids and content cannot both"),
        (
            'with_histories = false\ntowers.query = ["user_id"]',
            "that read user_id hold their users",
        ),
        ("[towers]\nquery = []", "towers.query: Tuple should have at least 1 item"),
        ('split = "last"', "split: .* not 'last'"),
        ("seed = ", "trainer.toml is not TOML"),
        (b"\xff", "trainer.toml is not TOML"),
    ],
)
def test_a_bad_file_is_refused(content: str | bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "trainer.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=f"trainer.toml.*{sentence}|{sentence}"):
        load_config(path, {"towers": {"epochs": 3}})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        load_config(tmp_path / "none.toml", {})


def test_a_flag_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^seed: .* not -1"):
        load_config(None, {"seed": -1})
