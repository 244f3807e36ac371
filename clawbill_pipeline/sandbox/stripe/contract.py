"""Requests are held to the installed SDK's own types: ``stripe.params`` TypedDicts as closed, strict pydantic schemas.

A schema is built when its route is first called. What the SDK allows and the sandbox does not act on is refused too
(``acts_on`` of a route), so that no parameter is ever accepted and ignored.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError
from stripe._request_options import RequestOptions
from typing_extensions import TypedDict, get_type_hints, is_typeddict

from clawbill_pipeline.sandbox.stripe.errors import ApiError, unsupported

_REQUEST_OPTIONS = frozenset(RequestOptions.__annotations__)
_MARKERS: tuple[Any, ...] = (NotRequired, Required)
_typed_dict: Any = TypedDict
_INTEGER = re.compile(r"-?[0-9]{1,18}")


class Contract:
    """The request type of one route.

    ``source`` is a name in ``stripe.params`` (``"CustomerCreateParams"``, ``"billing.MeterCreateParams"``) or a
    TypedDict. ``acts_on`` lists what the handler uses: ``"items"`` with all below it, or ``"items.price"`` one by one.
    ``form`` says whether values arrive as form strings or as JSON.
    """

    def __init__(self, source: str | type, acts_on: str = "", *, form: bool = True) -> None:
        self.source = source
        self.form = form
        self.acts_on = {"expand", *acts_on.split()}
        self._parents = {name.rpartition(".")[0] for name in self.acts_on if "." in name}

    def check(self, params: dict[str, Any]) -> dict[str, Any]:
        """``params`` with their types. Raises ApiError (400) that names the parameter."""
        try:
            checked: dict[str, Any] = _adapter(self.source, self.form).validate_python(params)
        except ValidationError as error:
            raise _refusal(error) from None
        self._refuse_unused(checked, "")
        return checked

    def _refuse_unused(self, value: Any, path: str) -> None:
        if path in self._parents and isinstance(value, list):
            for entry in value:
                self._refuse_unused(entry, path)
        elif isinstance(value, dict) and (not path or path in self._parents):
            for name in value:
                inner = f"{path}.{name}" if path else name
                if inner not in self.acts_on and inner not in self._parents:
                    shown = inner.replace(".", "[", 1) + "]" if path else inner
                    raise unsupported(f"the parameter {shown}", shown)
                self._refuse_unused(value[name], inner)


@cache
def _adapter(source: str | type, form: bool) -> TypeAdapter[Any]:
    if isinstance(source, str):
        package, _, name = f"stripe.params.{source}".rpartition(".")
        source = getattr(import_module(package), name)
    return TypeAdapter(_Closing(form).close(source))


class _Closing:
    """Turns an SDK type into one that knows no other keys and no other values."""

    def __init__(self, form: bool) -> None:
        self.form = form
        self.done: dict[Any, Any] = {}

    def close(self, kind: Any) -> Any:
        if is_typeddict(kind):
            return self._closed_dict(kind)
        origin = get_origin(kind)
        if origin in (Union, types.UnionType):
            return self._closed_union([member for member in get_args(kind) if member is not type(None)])
        if origin is Annotated:
            return self.close(get_args(kind)[0])
        if origin is list:
            entries: Any = types.GenericAlias(list, (self.close(get_args(kind)[0]),))
            return Annotated[entries, BeforeValidator(_form_list)] if self.form else entries
        if origin is dict:
            return types.GenericAlias(dict, (str, self.close(get_args(kind)[1])))
        return self._leaf(kind)

    def _closed_dict(self, kind: Any) -> Any:
        if kind not in self.done:
            names = vars(sys.modules["stripe._request_options"]) | {"StripeContext": str}
            for base in getattr(kind, "__orig_bases__", ()):
                names |= vars(sys.modules.get(base.__module__, types))
            names |= vars(sys.modules[kind.__module__])
            fields: dict[str, Any] = {}
            for name, hint in get_type_hints(kind, names, include_extras=True).items():
                # Options such as api_key travel as headers, never as parameters.
                if name in _REQUEST_OPTIONS and kind.__optional_keys__ >= _REQUEST_OPTIONS:
                    continue
                # A module with postponed annotations tells its optional keys in the resolved hint alone.
                origin: Any = get_origin(hint)
                inner = get_args(hint)[0] if origin in _MARKERS else hint
                optional = origin is NotRequired if origin in _MARKERS else name in kind.__optional_keys__
                marker: Any = NotRequired if optional else Required
                fields[name] = marker[self.close(inner)]
            closed = _typed_dict(kind.__name__, fields)
            closed.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
            self.done[kind] = closed
        return self.done[kind]

    def _closed_union(self, members: list[Any]) -> Any:
        # The SDK also takes its own response objects where a plain dict goes; on the wire they are the same.
        members = [m for m in members if not _is_response_object(m)]
        words = [word for m in members if get_origin(m) is Literal for word in get_args(m)]
        others = [m for m in members if get_origin(m) is not Literal]
        if words and others and str in others and any(words):
            # An "open" enum of the SDK; Stripe itself knows only the words of its API version.
            others = [m for m in others if m is not str]
        if not others:
            return Literal[tuple(words)]
        inner = self.close(others[0]) if len(others) == 1 else Union[tuple(self.close(m) for m in others)]  # noqa: UP007
        return Annotated[inner, WrapValidator(_words_first(frozenset(words)))] if words else inner

    def _leaf(self, kind: Any) -> Any:
        if self.form:
            reader = _FORM_READERS.get(kind)
            if reader is not None:
                return Annotated[kind, BeforeValidator(reader)]
        return Annotated[Decimal, BeforeValidator(_decimal)] if kind is Decimal else kind


def _is_response_object(kind: Any) -> bool:
    name = getattr(get_origin(kind) or kind, "__name__", "")
    return name == "UntypedStripeObject"


def _words_first(words: frozenset[Any]) -> Callable[[Any, Callable[[Any], Any]], Any]:
    def validate(value: Any, inner: Callable[[Any], Any]) -> Any:
        return value if isinstance(value, str) and value in words else inner(value)

    return validate


def _form_list(value: Any) -> Any:
    if isinstance(value, dict) and list(value) == [str(index) for index in range(len(value))]:
        return list(value.values())
    raise PydanticCustomError("invalid_array", "Invalid array")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("invalid_string", "Invalid string")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    raise PydanticCustomError("invalid_integer", "Invalid integer")


def _boolean(value: Any) -> bool:
    if value in ("true", "false"):
        return bool(value == "true")
    raise PydanticCustomError("invalid_boolean", "Invalid boolean")


def _decimal(value: Any) -> Decimal:
    try:
        number = Decimal(_text(value))
    except InvalidOperation:
        raise PydanticCustomError("invalid_decimal", "Invalid decimal") from None
    if not number.is_finite():
        raise PydanticCustomError("invalid_decimal", "Invalid decimal")
    return number


def _number(value: Any) -> float:
    return float(_decimal(value))


def _moment(value: Any) -> datetime:
    raise PydanticCustomError("invalid_timestamp", "Invalid timestamp")


_FORM_READERS: dict[Any, Callable[[Any], Any]] = {
    str: _text,
    int: _integer,
    bool: _boolean,
    Decimal: _decimal,
    float: _number,
    datetime: _moment,
}
_NOT_A_KEY = re.compile(r"[\[(]|^function-|^literal|^list$|^dict$|^str$|^int$|^float$|^decimal$|Params")


def _refusal(error: ValidationError) -> ApiError:
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    path = [str(part) for part in fault["loc"] if not (isinstance(part, str) and _NOT_A_KEY.search(part))]
    param = path[0] + "".join(f"[{part}]" for part in path[1:]) if path else None
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        return ApiError(400, f"Received unknown parameter: {param}", code="parameter_unknown", param=param)
    if kind == "missing":
        return ApiError(400, f"Missing required param: {param}.", code="parameter_missing", param=param)
    if kind == "literal_error":
        return ApiError(400, f"Invalid {param}: must be {fault['ctx']['expected']}", param=param)
    if kind == "invalid_integer":
        return ApiError(400, f"Invalid integer: {value}", code="parameter_invalid_integer", param=param)
    wanted = {"invalid_boolean": "boolean", "invalid_decimal": "decimal", "invalid_array": "array"}.get(kind)
    wanted = wanted or ("object" if kind in ("dict_type", "typed_dict_type") else "value")
    return ApiError(400, f"Invalid {wanted}: {value!r} ({fault['msg']})", param=param)
