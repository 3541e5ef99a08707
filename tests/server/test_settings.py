"""One precedence: flags, environment, file, defaults."""

from pathlib import Path

import pytest

from server.settings import (
    Settings,
    SettingsError,
    load_settings,
    unknown_variables,
)
from trainer.toml import as_toml


def test_flags_beat_the_environment_which_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "server.toml"
    config.write_text("port = 1\nmax_batch_size = 2\nworkers = 3\n")
    monkeypatch.setenv("CANDIDATE_SEARCH_PORT", "10")
    monkeypatch.setenv("CANDIDATE_SEARCH_MAX_BATCH_SIZE", "20")
    settings = load_settings({"port": "100", "host": None}, config)
    assert (settings.port, settings.max_batch_size, settings.workers) == (100, 20, 3)
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "text", "message"),
    [
        ({"port": "x"}, "", "port: .* not 'x'"),
        ({"port": "70000"}, "", "port: .*65535, not '70000'"),
        ({}, "prot = 1", "prot: no such setting; did you mean port"),
        ({}, "port = ", "is not TOML"),
        ({}, 'host = "a\\u0000b"', "host: .*printable"),
        ({"host": "\udcff"}, "", "host: .*printable"),
        ({"page_token_key": ""}, "", "page_token_key: .*empty; leave the setting out$"),
        ({"page_token_key": "short"}, "", "page_token_key: .*at least 16 characters$"),
        ({}, "page_token_key = 12345", "page_token_key: Input should be a valid string$"),
        ({"max_connection_age_seconds": "2592000"}, "", "less than or equal to 2147483, not"),
        ({"drain_seconds": "inf"}, "", "drain_seconds: .*2147483, not 'inf'"),
        ({"max_candidate_count": "9999999999"}, "", "max_candidate_count: .*2147483647, not"),
    ],
)
def test_refuses_in_a_sentence(
    tmp_path: Path, flags: dict[str, str], text: str, message: str
) -> None:
    config = tmp_path / "server.toml"
    config.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(flags, config)


def test_an_empty_variable_is_not_set_and_an_empty_flag_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CANDIDATE_SEARCH_TOKEN_FILE", "")
    assert load_settings({}).token_file is None
    for name in ("token_file", "host"):
        with pytest.raises(SettingsError, match=f"{name}: .*empty; leave the setting out"):
            load_settings({name: ""})


def test_an_address_of_ipv6_may_stand_in_brackets() -> None:
    assert load_settings({"host": "[::1]"}).host == "::1"


def test_a_misspelt_variable_is_told_of() -> None:
    read = ("CONFIG", "TOKEN", "TOKEN_FILE", "CLIENT_KEY", "MILVUS_URI", "PORT")
    names = [f"CANDIDATE_SEARCH_{name}" for name in ("TOKN_FILE", *read)]
    assert unknown_variables([*names, "PATH"]) == ["CANDIDATE_SEARCH_TOKN_FILE"]


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no settings file"):
        load_settings({}, tmp_path / "none.toml")


def test_refuses_a_file_in_another_encoding(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_bytes(b'host = "\xff"')
    with pytest.raises(SettingsError, match="is not TOML"):
        load_settings({}, config)


def test_what_is_printed_can_be_read_and_shows_no_secret(tmp_path: Path) -> None:
    settings = load_settings({"port": "7", "reflection": True, "page_token_key": 4 * "hush"})
    config = tmp_path / "server.toml"
    config.write_text(as_toml(settings))
    assert "hush" not in config.read_text()
    expected = settings.model_dump() | {"page_token_key": None}
    assert expected == load_settings({}, config).model_dump()


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_documentation_shows_every_setting_and_its_default() -> None:
    documentation = Path(__file__).parents[2] / "docs" / "serving.md"
    assert as_toml(Settings()) in documentation.read_text()
