"""Files are written as a whole, or stay as they were."""

import errno
import os
from pathlib import Path

import pytest

from trainer.files import UnwritableError, whole_file


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in ("one", "two"):
        with whole_file(path) as partial:
            partial.write_text(content)
        assert content == path.read_text()
    assert [path] == list(path.parent.iterdir())


def test_a_disk_that_is_full_is_a_sentence_and_leaves_what_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    message = f"{path} cannot be written: {os.strerror(errno.ENOSPC)}$"
    with pytest.raises(UnwritableError, match=message), whole_file(path) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert ["before"] == [one.read_text() for one in tmp_path.iterdir()]


def test_a_file_where_the_folder_should_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UnwritableError, match="cannot be written: "),
        whole_file(tmp_path / "file" / "inner") as partial,
    ):
        partial.write_text("x")
