"""JSON as bytes, both ways: what we take is strict and bounded, what we send is canonical.

Always true:
- `decode_json` raises BadRequest and nothing else, whatever the bytes are, and what it costs is bounded
  before anything is built: the values and the nesting are counted in the bytes first (Z-2);
- numbers stay as they came, floats too: signatures are checked over them (Z-3);
- `encode_canonical` never lets a float, an integer beyond 2^53 - 1 or half a surrogate pair leave.

Source: Matrix appendices, "Canonical JSON" (F:2); Z-2, Z-3.
"""

import json
import math
import re
from json.encoder import encode_basestring
from typing import NoReturn

from canonicaljson import encode_canonical_json

from fedpresence.errors import BadRequest

MAX_DEPTH = 100  # arrays and objects inside each other: Z-2
MAX_VALUES = 100_000  # of all kinds, containers included, keys not: Z-2
MAX_INT_DIGITS = 4300  # Z-2; where Python itself stops reading integers
MAX_SAFE_INT = 2**53 - 1  # canonical JSON: appendices

# The closing quote is optional, so that a string without an end is one match, not one for each quote in it.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPES_ARE_WHOLE = re.compile(
    r"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+",
    re.DOTALL,
)
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_ALL_BUT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_BLANKS = " \t\r\n"
_WHITE_SPACE = _BLANKS.encode("ascii")


def decode_json(data: bytes) -> object:
    """The value of a JSON text in UTF-8 without a byte order mark.

    BadRequest `M_NOT_JSON` where it is no JSON, `M_BAD_JSON` where it is more than we read: nested
    deeper than 100, more than 100 000 values, an integer of more than 4300 digits, a number too large
    for a float, a key twice in one object, half a surrogate pair.
    """
    size = len(data)
    if size > MAX_DEPTH:  # what is shorter can neither be deep nor hold many values
        _check_size(data)
    try:
        text = data.decode("utf-8")
        decoder = _DECODER if size > MAX_INT_DIGITS else _SHORT_DECODER
        blank = len(text) - len(text.lstrip(_BLANKS))
        value: object
        value, end = decoder.raw_decode(text, blank)
        if more := text[end:].lstrip(_BLANKS):
            raise json.JSONDecodeError("Extra data", text, len(text) - len(more))
    except (RecursionError, ValueError) as error:
        # Not `from error`: it would keep the whole body alive in the log's failure.
        raise BadRequest("M_NOT_JSON", f"Not JSON: {_reason(error)}") from None
    if "\\" in text and _SURROGATE_ESCAPE.search(text) and not _ESCAPES_ARE_WHOLE.fullmatch(text):
        raise BadRequest("M_BAD_JSON", "A string holds half a surrogate pair")
    return value


def encode_canonical(value: object) -> bytes:
    """Canonical JSON of a value that we made ourselves.

    ValueError where it holds a float, an integer beyond 2^53 - 1, a key that is no string, half a
    surrogate pair or anything that is not JSON.
    """
    if isinstance(value, str):
        return encode_string(value)
    try:
        _check_canonical(value)
        return encode_canonical_json(value)
    except RecursionError:
        raise ValueError("nested too deeply for JSON") from None


def encode_string(text: str) -> bytes:
    """As `encode_canonical`, for a string."""
    return encode_basestring(text).encode("utf-8")


def encode_as_received(value: object) -> bytes:
    """Canonical JSON of a value from `decode_json`, floats kept, as homeservers make it (Z-3).

    Only to check signatures over. ValueError where it cannot be written at all.
    """
    try:
        return encode_canonical_json(value)
    except RecursionError:
        raise ValueError("nested too deeply for JSON") from None


def _check_size(data: bytes) -> None:
    """Refuse too many values or too deep nesting, before anything is built of them.

    First by what the bytes can hold at most, strings counted as if they were structure: a small body
    needs no more. Then exactly, with the strings taken out.
    """
    opening = data.count(b"[") + data.count(b"{")
    if opening <= MAX_DEPTH and (len(data) < MAX_VALUES or opening + data.count(b",") < MAX_VALUES):
        return
    bare, strings = _STRING.subn(b"0", data, 2 * MAX_VALUES + 1)
    if strings > 2 * MAX_VALUES:  # each value may be one, and have one for its key
        raise BadRequest("M_BAD_JSON", f"More than {MAX_VALUES} values")
    bare = bare.translate(None, _WHITE_SPACE)
    opening = bare.count(b"[") + bare.count(b"{")
    not_empty = opening - bare.count(b"[]") - bare.count(b"{}")
    # One value, one more behind each comma, and the first inside each container that is not empty.
    if 1 + bare.count(b",") + not_empty > MAX_VALUES:
        raise BadRequest("M_BAD_JSON", f"More than {MAX_VALUES} values")
    if opening > MAX_DEPTH:
        _check_depth(bare.translate(_AS_SQUARE, _ALL_BUT_BRACKETS))


def _check_depth(brackets: bytes) -> None:
    """Peel off the innermost pairs, layer by layer: a `replace` each, which is C."""
    if brackets.count(b"[") != brackets.count(b"]"):
        # Said before peeling: a million closing brackets would be copied a hundred times.
        raise BadRequest("M_NOT_JSON", "Not JSON: brackets do not match")
    for _ in range(MAX_DEPTH):
        peeled = brackets.replace(b"[]", b"")
        if len(peeled) == len(brackets):
            break
        brackets = peeled
    if b"[]" in brackets:
        raise BadRequest("M_BAD_JSON", f"Nested deeper than {MAX_DEPTH}")
    if brackets:
        raise BadRequest("M_NOT_JSON", "Not JSON: brackets do not match")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadRequest("M_BAD_JSON", "A key stands twice in one object")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS and len(digits.lstrip("-")) > MAX_INT_DIGITS:
        raise BadRequest("M_BAD_JSON", f"An integer has more than {MAX_INT_DIGITS} digits")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRequest("M_BAD_JSON", "A number is too large")
    return value


def _constant(_name: str) -> NoReturn:
    raise BadRequest("M_NOT_JSON", "Not JSON: NaN and Infinity are no numbers")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
# For texts too short to hold an integer that is too long: most of them.
_SHORT_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)


def _reason(error: Exception) -> str:
    """What is wrong and where, without a byte of the text itself."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "cannot be read"


def _check_canonical(value: object) -> None:
    if isinstance(value, str) or value is None:
        return  # half a surrogate pair is found by the encoding: UnicodeEncodeError is a ValueError
    if isinstance(value, int):
        if not -MAX_SAFE_INT <= value <= MAX_SAFE_INT:
            raise ValueError("an integer beyond 2^53 - 1 is not canonical JSON")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError("a key that is no string is not JSON")
            if not isinstance(inner, str):  # mostly it is: a call for each would take most of the time
                _check_canonical(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_canonical(inner)
    else:
        raise ValueError(f"{type(value).__name__} is not canonical JSON")
