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
    monkeypatch.delitem(sys.modules, "trainer.vocabulary", raising=False)
    with pytest.raises(SystemExit, match=r"_vocabulary\.cpp is not compiled"), needed("serve"):
        import trainer.vocabulary  # noqa: F401, PLC0415


def test_a_fault_of_ours_is_none_of_an_installation() -> None:
    with pytest.raises(ModuleNotFoundError), needed("serve"):
        import trainer.no_such_module  # noqa: F401, PLC0415


@pytest.mark.parametrize(
    "fault", [ImportError("cannot import name"), ModuleNotFoundError("_lzma", name="_lzma")]
)
def test_what_no_extra_mends_is_not_said_to_be_missing(fault: ImportError) -> None:
    with pytest.raises(type(fault), match=str(fault)), needed("serve"):
        raise fault


@pytest.mark.parametrize("program", ["trainer", "indexer", "benchmarks"])
def test_a_command_needs_its_extra(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main = __import__(f"{program}.__main__", fromlist=["main"]).main
    monkeypatch.setattr("signal.signal", lambda *_: None)  # pytest has its own
    monkeypatch.setitem(sys.modules, "typer", None)
    for module in (f"{program}.commands", f"{program}.commands.app"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit, match="typer is not installed"):
        main()
