import sys

import pytest

from trainer.extras import needed


def test_what_is_not_installed_is_a_sentence() -> None:
    with (
        pytest.raises(SystemExit, match=r"no_such_package is not .*install '\.\[serve\]'"),
        needed("serve"),
    ):
        import no_such_package.inside  # noqa: F401, PLC0415


def test_what_is_not_compiled_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trainer._vocabulary", None)
    monkeypatch.delitem(sys.modules, "trainer.vocabulary")
    with pytest.raises(SystemExit, match=r"_vocabulary\.cpp is not compiled"), needed("serve"):
        import trainer.vocabulary  # noqa: F401, PLC0415


def test_a_fault_of_ours_is_none_of_an_installation() -> None:
    with pytest.raises(ModuleNotFoundError), needed("serve"):
        import trainer.no_such_module  # noqa: F401, PLC0415


@pytest.mark.parametrize("program", ["trainer", "indexer", "benchmarks"])
def test_a_command_needs_its_extra(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main = __import__(f"{program}.__main__", fromlist=["main"]).main
    monkeypatch.setattr("signal.signal", lambda *_: None)  # pytest has its own
    monkeypatch.setitem(sys.modules, f"{program}.commands", None)
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, f"{program}.commands")
    with pytest.raises(SystemExit, match="typer is not installed"):
        main()
