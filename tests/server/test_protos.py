"""The ``.proto`` files: stubs that are current, names by the rules, a comment on everything."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from candidate_search.v1 import admin_service_pb2, candidate_search_service_pb2
from google.protobuf import descriptor_pb2
from google.rpc import status_pb2

PROTOS = Path(__file__).parents[2] / "protos"
PROTO_FILES = ("candidate_search_service.proto", "admin_service.proto")
CURRENT = {one.DESCRIPTOR.name: one for one in (candidate_search_service_pb2, admin_service_pb2)}


@pytest.fixture(scope="module", params=PROTO_FILES)
def description(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> descriptor_pb2.FileDescriptorProto:
    target = tmp_path_factory.mktemp("protos") / "set.bin"
    include = [f"-I{one}" for one in (PROTOS, Path(status_pb2.__file__).parents[2])]
    output = ["--include_source_info", f"--descriptor_set_out={target}"]
    # In a process of its own: the compiler's native library does not bear TensorFlow's beside it.
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        *include,
        *output,
        f"candidate_search/v1/{request.param}",
    ]
    subprocess.run(command, check=True)
    return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file[0]


def test_the_committed_stubs_are_what_the_file_says() -> None:
    command = [sys.executable, str(PROTOS / "generate.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_every_element_has_a_comment(description: descriptor_pb2.FileDescriptorProto) -> None:
    commented = {
        tuple(location.path)
        for location in description.source_code_info.location
        if location.leading_comments.strip()
    }
    missing = [name for path, name in _elements(description) if path not in commented]
    assert missing == []


def test_enums_begin_with_unspecified_and_repeat_their_name(
    description: descriptor_pb2.FileDescriptorProto,
) -> None:
    for enum in description.enum_type:
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name)[1:]
        assert f"{prefix}_UNSPECIFIED" == enum.value[0].name
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value)


def test_requests_and_responses_are_named_after_their_method(
    description: descriptor_pb2.FileDescriptorProto,
) -> None:
    (service,) = description.service
    assert service.name.endswith("Service")
    for method in service.method:
        assert f".candidate_search.v1.{method.name}Request" == method.input_type
        assert f".candidate_search.v1.{method.name}Response" == method.output_type


def test_no_field_is_unsigned(description: descriptor_pb2.FileDescriptorProto) -> None:
    field_type = descriptor_pb2.FieldDescriptorProto
    unsigned = {field_type.TYPE_UINT32, field_type.TYPE_UINT64, field_type.TYPE_FIXED32}
    fields = [field for message in description.message_type for field in message.field]
    assert [field.name for field in fields if field.type in unsigned] == []


def test_what_was_released_still_holds() -> None:
    """Clients were built with it. After a release: ``python protos/generate.py --release``."""
    released = descriptor_pb2.FileDescriptorSet.FromString((PROTOS / "released.binpb").read_bytes())
    assert len(PROTO_FILES) == len(released.file)
    for before in released.file:
        now = descriptor_pb2.FileDescriptorProto()
        CURRENT[before.name].DESCRIPTOR.CopyToProto(now)
        assert set() == set(_promises(before)) - set(_promises(now))


def _promises(description: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    """Yield what must never change of a file: additions are allowed, all else breaks clients."""
    for message in description.message_type:
        for one in (message, *message.nested_type):
            for field in one.field:
                oneof = (
                    one.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
                )
                kind = f"{field.type} {field.type_name} {field.label} {oneof}"
                yield f"{message.name}.{one.name} {field.number} {field.name} {kind}"
    for enum in description.enum_type:
        for value in enum.value:
            yield f"{enum.name} {value.number} {value.name}"
    for service in description.service:
        for method in service.method:
            yield f"{service.name}.{method.name} {method.input_type} {method.output_type}"


def _elements(
    description: descriptor_pb2.FileDescriptorProto,
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield path and name of every message, field, oneof, enum, value, service and method."""
    for i, message in enumerate(description.message_type):
        yield (4, i), message.name
        for j, field in enumerate(message.field):
            yield (4, i, 2, j), f"{message.name}.{field.name}"
        for j, oneof in enumerate(message.oneof_decl):
            if not oneof.name.startswith("_"):  # made by protoc for an optional field
                yield (4, i, 8, j), f"{message.name}.{oneof.name}"
    for i, enum in enumerate(description.enum_type):
        yield (5, i), enum.name
        for j, value in enumerate(enum.value):
            yield (5, i, 2, j), value.name
    for i, service in enumerate(description.service):
        yield (6, i), service.name
        for j, method in enumerate(service.method):
            yield (6, i, 2, j), method.name
