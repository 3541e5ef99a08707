"""Generate the committed Python stubs of the public API from its ``.proto`` files.

python protos/generate.py           write the stubs
python protos/generate.py --check   exit 1 if the committed ones differ from what would be written
python protos/generate.py --release promise what the files say now: a test refuses to take it back
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent
RELEASED = "released.binpb"
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def main() -> int:
    """Write the stubs, or compare them with the committed ones; return the exit status."""
    parser = argparse.ArgumentParser(description="Generate the Python stubs of the public API.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on drift")
    parser.add_argument("--release", action="store_true", help="write what is promised from now on")
    asked = parser.parse_args()
    if asked.release:
        _run_protoc(f"--descriptor_set_out={ROOT / RELEASED}")
        return 0
    if not asked.check:
        _generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        _generate(Path(fresh))
        drifted = _differences(Path(fresh), ROOT)
    for name in drifted:
        sys.stderr.write(f"protos/{name} is not what the .proto files say; run `make protos`\n")
    return 1 if drifted else 0


def _generate(target: Path) -> None:
    """Write the stubs of every ``.proto`` file below ``target``."""
    scripts = Path(sys.executable).parent
    _run_protoc(
        # Named by path: the environment may be in use without being activated.
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        f"--grpc_python_out={target}",
    )


def _run_protoc(*outputs: str) -> None:
    """Have every ``.proto`` file compiled."""
    protos = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={_site_directory('google.rpc')}",
            f"--proto_path={_site_directory('grpc_tools') / 'grpc_tools' / '_proto'}",
            *outputs,
            *protos,
        ]
    )
    if status:
        raise SystemExit("protoc failed; its message is above")


def _site_directory(package: str) -> Path:
    """Return the directory from which ``package`` is imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; `make setup` installs what this needs")
    return Path(spec.submodule_search_locations[0]).parents[package.count(".")]


def _differences(fresh: Path, committed: Path) -> list[str]:
    """Return the names of the stubs that differ between two directories."""
    stubs = {
        path.relative_to(directory).as_posix()
        for directory in (fresh, committed)
        for path in directory.rglob("*_pb2*")
        if path.name.endswith(STUB_SUFFIXES)
    }
    return sorted(name for name in stubs if _content(fresh / name) != _content(committed / name))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
