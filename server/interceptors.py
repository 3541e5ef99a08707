"""What stands between gRPC and every method: decoding, errors to statuses, request ids.

It wraps the methods where they are registered instead of being a ``grpc.aio.ServerInterceptor``,
which costs a cheap search a twentieth of its throughput. The table below is the only place that
knows which status a domain error becomes.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from server import errors, metrics
from server.limits import RETRY_AFTER_SECONDS, InFlight

ERROR_DOMAIN = "candidate-search"
REQUEST_ID_KEY = "x-request-id"
STATUS_KEY = "grpc-status-details-bin"

STATUS_CODES: dict[type[errors.SearchError], grpc.StatusCode] = {
    errors.QueryMissingError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CountOutOfRangeError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DimensionMismatchError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFiniteError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.LimitExceededError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FilterInvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FieldUnknownError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BackendUnknownError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UndecodableError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UserUnknownError: grpc.StatusCode.NOT_FOUND,
    errors.CandidateUnknownError: grpc.StatusCode.NOT_FOUND,
    errors.NoQueryTowerError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NoRankerError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PageTokenExpiredError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotServingError: grpc.StatusCode.UNAVAILABLE,
    errors.EngineUnreachableError: grpc.StatusCode.UNAVAILABLE,
    errors.VersionUnknownError: grpc.StatusCode.NOT_FOUND,
    errors.VersionRefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NoPreviousVersionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

_log = structlog.get_logger(__name__)
# A call's trailers may take 8 KiB, and the message is in them twice, once with three characters for
# every byte that is not ASCII.
_MAX_MESSAGE_BYTES = 1000
_MAX_METADATA_BYTES = 400
_OK, _CANCELLED = grpc.StatusCode.OK.name, grpc.StatusCode.CANCELLED.name  # slow to read
_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.name
_SLOW_SECONDS = 1.0  # calls that take longer are logged...
_SECONDS_A_LINE = 1.0  # ... of a method at most one in so long: in overload all are slow
_ROUNDED_UP, _ROUNDED_UP_SECONDS = 0.99, 0.01  # gRPC rounds a timeout up by no more
_USABLE_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)  # as all text in metadata

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any, float | None], Awaitable[bytes]]
"""From a request, and the seconds until the caller gives up if it does, to a serialised response;
what it raises becomes a status."""
Method = tuple[Answer, type[Message]]
"""What answers, and the message that it takes."""


def service_handler(
    service: str, methods: Mapping[str, Method], in_flight: InFlight | None = None
) -> grpc.GenericRpcHandler:
    """Return what a gRPC server calls for one service of unary methods.

    Args:
        service: its full name.
        methods: its methods by name.
        in_flight: what bounds its calls, if anything does.
    """
    handlers = {name: _handler(name, *method, in_flight) for name, method in methods.items()}
    handler = grpc.method_handlers_generic_handler(service, handlers)
    return handler if in_flight is None else _Announcing(handler, in_flight)


class _Announcing(grpc.GenericRpcHandler):
    """Tells of calls as soon as gRPC asks what handles them, before their requests are here.

    Args:
        handler: what handles them.
        in_flight: what is told.
    """

    def __init__(self, handler: grpc.GenericRpcHandler, in_flight: InFlight) -> None:
        self._handler = handler
        self._in_flight = in_flight

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return what handles a call; None if it is not ours."""
        handler = self._handler.service(handler_call_details)
        if handler is not None:
            self._in_flight.announce()
        return handler


def _handler(
    name: str, answer: Answer, request_type: type[Message], in_flight: InFlight | None
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """Return the handler of a method that answers every error as the wire promises."""
    decode = request_type.FromString
    histogram = metrics.REQUEST_SECONDS.labels(name)
    counters = {code.name: metrics.REQUESTS.labels(name, code.name) for code in grpc.StatusCode}
    slow_calls = _SlowCalls(name)

    async def handle(body: bytes, context: Context) -> bytes:
        start = perf_counter()
        status = _CANCELLED
        seconds_left = context.time_remaining()
        try:
            if in_flight is None:
                _check_time(seconds_left)
                response = await answer(decode(body), seconds_left)
            else:
                with in_flight:
                    _check_time(seconds_left)
                    response = await answer(decode(body), seconds_left)
            status = _OK
        except TimeoutError:
            # Nobody waits for the answer any more; the caller knows this status already.
            status = _DEADLINE_EXCEEDED
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status
            if isinstance(error, DecodeError):
                expected = request_type.DESCRIPTOR.full_name
                error = errors.UndecodableError(f"the body is no {expected}")
            status = code_of(error).name
            await abort(context, error)
        finally:
            seconds = perf_counter() - start
            if status == _CANCELLED and _is_over(seconds, seconds_left):
                status = _DEADLINE_EXCEEDED  # gRPC ends such calls as it ends those given up
            metrics.count(counters[status])
            metrics.observe(histogram, seconds)
            if seconds > _SLOW_SECONDS:
                slow_calls.log(status, seconds, context)
        return response

    # The body is decoded in here: gRPC would answer a bad one with INTERNAL.
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(handle)
    return handler


class _SlowCalls:
    """Logs the slow calls of a method, or few of them and how many it left out before each.

    Args:
        method: its name.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._logged_at = -math.inf
        self._n_left_out = 0

    def log(self, code: str, seconds: float, context: Context) -> None:
        """Log a call, or count it as left out."""
        now = perf_counter()
        if now - self._logged_at < _SECONDS_A_LINE:
            self._n_left_out += 1
            return
        _log.warning(
            "slow call",
            method=self._method,
            code=code,
            seconds=seconds,
            request_id=_request_id(context),
            left_out=self._n_left_out,
        )
        self._logged_at, self._n_left_out = now, 0


def _check_time(seconds_left: float | None) -> None:
    """Raise TimeoutError if a caller has given up already."""
    if seconds_left is not None and seconds_left <= 0:
        raise TimeoutError


def _is_over(seconds: float, seconds_left: float | None) -> bool:
    """Whether so long after its arrival a caller's time is over.

    Clients round the time up that they tell us of, and give up when it is over by their own clock.
    """
    if seconds_left is None:
        return False
    return seconds >= _ROUNDED_UP * seconds_left - _ROUNDED_UP_SECONDS


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the status that an error becomes."""
    if isinstance(error, errors.SearchError):
        return STATUS_CODES[type(error)]
    return grpc.StatusCode.INTERNAL


def status_of(error: Exception, request_id: str) -> status_pb2.Status:
    """Return an error as a status with ``ErrorInfo``; one of our own faults is logged as well."""
    if not isinstance(error, errors.SearchError):
        _log.error("internal error", request_id=request_id, exc_info=error)
        error = errors.InternalError(
            f"the server failed; its log has the cause under request id {request_id}",
            request_id=request_id,
        )
    metadata = {
        name: _clipped(value, _MAX_METADATA_BYTES) for name, value in error.metadata.items()
    }
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if isinstance(error, errors.OverloadedError):
        delay = duration_pb2.Duration(nanos=round(RETRY_AFTER_SECONDS * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code, _ = STATUS_CODES[type(error)].value
    return status_pb2.Status(
        code=code, message=_clipped(str(error), _MAX_MESSAGE_BYTES), details=map(_packed, details)
    )


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def new_request_id() -> str:
    """Return an id under which a refused call can be found in the log."""
    return uuid.uuid4().hex


def _clipped(text: str, limit_bytes: int) -> str:
    """Return a text that fits into a trailer, whatever a caller made us repeat in it."""
    encoded = text.encode()
    if len(encoded) <= limit_bytes:
        return text
    return encoded[:limit_bytes].decode(errors="ignore") + "…"


def _request_id(context: Context) -> str:
    """Return the caller's request id, or a new one where it sent none that can be logged."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _USABLE_REQUEST_ID.fullmatch(value):
            return value
    return new_request_id()


async def abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status that an error becomes."""
    request_id = _request_id(context)
    status = status_of(error, request_id)
    await context.abort(
        code_of(error),
        status.message,
        trailing_metadata=(
            (REQUEST_ID_KEY, request_id),
            (STATUS_KEY, status.SerializeToString()),
        ),
    )
