import json
import sys
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedpresence.errors import BadRequest
from fedpresence.wire.json import (
    MAX_DEPTH,
    MAX_INT_DIGITS,
    MAX_SAFE_INT,
    MAX_VALUES,
    decode_json,
    encode_as_received,
    encode_canonical,
)
from tests.wire.strategies import json_values

LONG_INPUT = """{"auth": {"success": true, "mxid": "@john.doe:example.com",
  "profile": {"display_name": "John Doe", "three_pids": [
    {"medium": "email", "address": "john.doe@example.org"},
    {"medium": "msisdn", "address": "123456789"}]}}}"""
LONG_CANONICAL = (
    '{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":'
    '[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},'
    '"success":true}}'
)


def refusal(data: bytes) -> str:
    """The errcode that `data` is refused with; always a 400."""
    with pytest.raises(BadRequest) as caught:
        decode_json(data)
    assert caught.value.status == 400
    return caught.value.errcode


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("{}", "{}"),
        ('{ "one": 1, "two": "Two" }', '{"one":1,"two":"Two"}'),
        ('{ "b": "2", "a": "1" }', '{"a":"1","b":"2"}'),
        ('{"b":"2","a":"1"}', '{"a":"1","b":"2"}'),
        ('{ "a": "日本語" }', '{"a":"日本語"}'),
        ('{ "本": 2, "日": 1 }', '{"日":1,"本":2}'),
        (r'{ "a": "\u65E5" }', '{"a":"日"}'),
        ('{ "a": null }', '{"a":null}'),
        (r'["\b\t\n\f\r\"\\\/\u0000\u000B\u001F"]', r'["\b\t\n\f\r\"\\/\u0000\u000b\u001f"]'),
        (
            '{"～":0,"😀":0,"z":0,"Z":0,"_":0,"10":0,"9":0,"":0}',
            '{"":0,"10":0,"9":0,"Z":0,"_":0,"z":0,"～":0,"😀":0}',
        ),
        (LONG_INPUT, LONG_CANONICAL),
    ],
)
def test_the_examples_of_the_specification_come_out_canonical(text: str, canonical: str) -> None:
    """One byte of difference and no signature of ours would be believed (F:2)."""
    value = decode_json(text.encode())

    assert encode_canonical(value) == canonical.encode()
    assert encode_as_received(value) == canonical.encode()


def test_numbers_that_came_as_floats_stay_floats() -> None:
    """Homeservers check signatures over what Python makes of 1e10, so we do too (Z-3)."""
    value = decode_json(b'{ "a": -0, "b": 1e10, "c": 1.0 }')

    assert encode_as_received(value) == b'{"a":0,"b":10000000000.0,"c":1.0}'
    with pytest.raises(ValueError, match="float"):
        encode_canonical(value)


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        float("nan"),
        float("inf"),
        2**53,
        -(2**53),
        {1: 1},
        {"a": [b"x"]},
        "\ud800",
        {"\udfff": 1},
        {1, 2},
    ],
)
def test_nothing_that_is_not_canonical_leaves(value: object) -> None:
    """A peer may fail a whole transaction over it, or sign something else than we did."""
    with pytest.raises(ValueError, match=r".+"):
        encode_canonical({"a": [value]})


@pytest.mark.parametrize("value", [MAX_SAFE_INT, -MAX_SAFE_INT, True, False, None, (1, "a"), "\x7f\u2028"])
def test_what_is_just_within_the_rules_leaves(value: object) -> None:
    """The limit of integers is 2^53 - 1, both ways."""
    assert decode_json(encode_canonical([value])) == json.loads(json.dumps([value]))


def test_a_value_inside_itself_is_an_error_and_no_crash() -> None:
    """A bug of ours must not look like a stack overflow."""
    value: list[object] = []
    value.append(value)

    with pytest.raises(ValueError, match="nested"):
        encode_canonical(value)


@given(json_values(floats=False))
def test_decoding_undoes_encoding(value: object) -> None:
    """What we say is what is heard."""
    assert decode_json(encode_canonical(value)) == value


@given(json_values())
def test_every_json_value_is_read_as_python_reads_it(value: object) -> None:
    """Strictness refuses; it never changes a value."""
    assert decode_json(json.dumps(value, indent=1).encode()) == value
    assert decode_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0dD8 1e-9tn', max_size=60).map(str.encode))
@example(b"")
@example(b"[1")
@example(b'"' + b'\\"' * 10)
def test_whatever_the_bytes_only_bad_request_comes_out(data: bytes) -> None:
    """An unauthenticated peer must not find a 500."""
    try:
        decode_json(data)
    except BadRequest as error:
        assert error.errcode in ("M_NOT_JSON", "M_BAD_JSON")


@pytest.mark.parametrize("depth", [1, MAX_DEPTH - 1, MAX_DEPTH])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_up_to_a_hundred_is_read(depth: int, opening: str, closing: str) -> None:
    """The limit is on the far side of anything real (Z-2)."""
    inner = "1"

    assert decode_json((opening * depth + inner + closing * depth).encode())
    assert decode_json(
        ("[" + "[]," * 200 + opening * (depth - 1) + inner + closing * (depth - 1) + "]").encode()
    )


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 2_000, 100_000, 3_000_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"]":', "}]")])
def test_deeper_nesting_is_refused_before_it_is_built(depth: int, opening: str, closing: str) -> None:
    """A bomb of brackets ends neither in a stack overflow nor in a long silence (Z-2)."""
    started = time.perf_counter()

    assert refusal((opening * depth + "1" + closing * depth).encode()) == "M_BAD_JSON"
    assert time.perf_counter() - started < 5


def test_brackets_in_strings_are_not_structure() -> None:
    """A status message of brackets is a status message."""
    text = "[" * 200 + "]" * 7 + '"\\{,' * 200

    assert decode_json(json.dumps([text, {text: text}]).encode()) == [text, {text: text}]


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"0," * (MAX_VALUES - 2) + b"0]",
        b"[" + b"{}," * (MAX_VALUES - 2) + b"[ ]]",
        b"{" + b",".join(b'"%d":""' % i for i in range(MAX_VALUES - 1)) + b"}",
        b"[" + b"[[0]]," * ((MAX_VALUES - 2) // 3) + b"0]",
    ],
)
def test_a_hundred_thousand_values_are_read_and_one_more_is_not(data: bytes) -> None:
    """What is built is bounded; containers count, keys and empty space do not (Z-2)."""
    assert decode_json(data)

    assert (
        refusal(data[:-1] + b',"a":0}' if data.startswith(b"{") else data[:-1] + b",0,0,0]") == "M_BAD_JSON"
    )


def test_commas_in_strings_are_not_values() -> None:
    """Text is bounded by the size of the body, not by its commas."""
    text = "," * (MAX_VALUES + 1)

    assert decode_json(json.dumps([text]).encode()) == [text]


@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_of_4300_digits_is_read_and_one_more_is_not(sign: str) -> None:
    """The time to convert digits grows with their square (Z-2)."""
    sys.set_int_max_str_digits(0)  # our limit does not lean on Python's, which an operator can change
    try:
        assert isinstance(decode_json(f"[{sign}{'9' * MAX_INT_DIGITS}]".encode()), list)
        assert refusal(f"[{sign}{'9' * (MAX_INT_DIGITS + 1)}]".encode()) == "M_BAD_JSON"
        assert refusal(b"9" * 1_000_000) == "M_BAD_JSON"
    finally:
        sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}'])
def test_what_is_no_number_is_no_json(text: str) -> None:
    """Python reads these, JSON does not know them."""
    assert refusal(text.encode()) == "M_NOT_JSON"


@pytest.mark.parametrize("text", ["1e400", "-1e400", "[1" + "0" * 400 + ".0]"])
def test_a_number_too_large_for_a_float_is_refused(text: str) -> None:
    """It would become Infinity, which cannot be written again to check a signature."""
    assert refusal(text.encode()) == "M_BAD_JSON"


@pytest.mark.parametrize(
    "text",
    [
        r'"\ud83d\ude00"',
        r'"\uD83D\uDE00 \\ud800"',
        r'"\\\\ud800 \u00e9 \uE000 \ud7ff"',
        r'{"\ud83d\ude00":"\n"}',
    ],
)
def test_whole_surrogate_pairs_are_read(text: str) -> None:
    """Escaped emoji are common, and a backslash before a backslash is no escape."""
    assert decode_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        r'"\ud83d"',
        r'"\ude00"',
        r'"\ude00\ud83d"',
        r'"\ud83d\ud83d\ude00"',
        r'"\ud83d \ude00"',
        r'{"\uDBFF":1}',
        r'["\\\ud800"]',
    ],
)
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    """It cannot be UTF-8, so nothing that holds it can be signed, stored or passed on (F:2)."""
    assert refusal(text.encode()) == "M_BAD_JSON"


@pytest.mark.parametrize("text", ['{"a":1,"a":1}', r'[{"b":{"a":1,"c":2,"\u0061":3}}]'])
def test_a_key_that_stands_twice_is_refused(text: str) -> None:
    """Two readers could believe two different things of one signed body (F:2)."""
    assert refusal(text.encode()) == "M_BAD_JSON"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32-le"),
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{'a':1}",
        b"01",
        b"+1",
        b"1.",
        b'"\n"',
        b'"\\x41"',
        b"{} {}",
        b"nul",
        b"/**/{}",
        b"[" * 101,
        b"[" * 101 + b"]" * 102,
        b"[}" * 101,
        b"]" * 101 + b"[" * 101,
    ],
)
def test_what_is_not_json_is_said_to_be_none(data: bytes) -> None:
    """The errcode tells the sender's author where to look: no byte order mark, no other encoding."""
    assert refusal(data) == "M_NOT_JSON"


def test_an_error_does_not_repeat_what_was_sent() -> None:
    """Bodies hold status messages, and errors are logged."""
    with pytest.raises(BadRequest) as caught:
        decode_json(b'{"status_msg": "at the doctor", oops}')

    assert "doctor" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "data",
    [b'["' + b'\\"' * 3_000_000, b'"' + b'\\"' * 3_000_000, b'"' * 3_000_001, b"]" * 6_000_000 + b"[" * 101],
)
def test_strings_without_an_end_do_not_cost_the_square_of_their_length(data: bytes) -> None:
    """The count is made before anybody is authenticated by a signature: it must be linear."""
    started = time.perf_counter()

    refusal(data + b"[" * 101)

    assert time.perf_counter() - started < 5
