import base64
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.errors import BadRequest
from fedpresence.ids import UserID
from fedpresence.wire.filters import (
    EVERYTHING,
    MAX_ID_CHARACTERS,
    NO_FILTER_ID,
    PresenceFilter,
    decode_filter,
    decode_filter_id,
    encode_filter_id,
    filter_of,
)

BOB = UserID("@bob:there.test")


@pytest.mark.parametrize(
    ("types", "silent"),
    [
        (["m.presence"], False),
        (["*"], False),
        (["m.*"], False),
        (["*presence"], False),
        (["m*res*e"], False),
        (["m.presence*"], False),
        (["**"], False),
        (["m.room.*", "m.presence"], False),
        (["m.room.*"], True),
        (["m?presence"], True),
        (["[m].presence"], True),
        (["m.presence.*"], True),
        (["*x*"], True),
        (["m.pres*sence"], True),
        ([], True),
    ],
)
def test_types_are_globs_with_a_star_alone(types: list[str], silent: bool) -> None:
    """P:13: `*` is the one wildcard; and `not_types` is its mirror."""
    assert decode_filter({"presence": {"types": types}}).silent is silent
    assert decode_filter({"presence": {"not_types": types}}).silent is not silent


def test_what_has_no_presence_part_filters_nothing() -> None:
    """Most filters are about rooms."""
    assert decode_filter({"room": {"timeline": {"limit": 1}}}) == EVERYTHING


@pytest.mark.parametrize(
    "part",
    [
        [],
        "x",
        {"limit": "1"},
        {"limit": True},
        {"limit": 1.5},
        {"senders": [1]},
        {"types": {}},
        {"not_types": 1},
    ],
)
def test_a_part_of_the_wrong_type_is_refused(part: object) -> None:
    """400 `M_BAD_JSON`, not a guess."""
    with pytest.raises(BadRequest) as caught:
        decode_filter({"presence": part})

    assert caught.value.errcode == "M_BAD_JSON"


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "presence": st.fixed_dictionaries(
                {}, optional={"senders": st.lists(st.text("abc:@*"), max_size=3)}
            ),
            "room": st.dictionaries(st.text(max_size=5), st.integers(-10, 10), max_size=3),
        },
    )
)
def test_an_id_holds_its_filter(definition: dict[str, object]) -> None:
    """Nothing is kept, so nothing can be lost."""
    filter_id = encode_filter_id(definition)

    assert decode_filter_id(filter_id) == definition
    assert filter_of(filter_id) == decode_filter(definition)
    assert not filter_id.startswith("{")
    assert filter_id.isascii()


def test_a_long_filter_keeps_the_part_that_is_obeyed() -> None:
    """An ID stands in a request line."""
    rooms = {"rooms": [f"!{n * 7919 % 10007}:{n}.test" for n in range(2000)]}

    with_presence = encode_filter_id({"room": rooms, "presence": {"senders": [BOB]}})

    assert decode_filter_id(with_presence) == {"presence": {"senders": [BOB]}}
    assert encode_filter_id({"room": rooms}) == NO_FILTER_ID


def test_a_presence_part_that_fits_no_id_is_refused() -> None:
    """413's word, for a filter: `M_TOO_LARGE`."""
    senders = [f"@{n * 7919 % 10007}:{n * 31}.test" for n in range(3000)]

    with pytest.raises(BadRequest) as caught:
        encode_filter_id({"presence": {"senders": senders}})

    assert caught.value.errcode == "M_TOO_LARGE"


def test_an_id_is_no_bomb() -> None:
    """Z-2: a few bytes may not become megabytes."""
    bomb = "f" + base64.urlsafe_b64encode(zlib.compress(b'{"a":"' + b"a" * 1_000_000 + b'"}')).decode()

    assert len(bomb) < MAX_ID_CHARACTERS
    assert decode_filter_id(bomb) == {}


@given(st.text(max_size=60))
def test_any_text_is_some_filter_or_refused(text: str) -> None:
    """A sync's parameter comes from anybody."""
    try:
        found = filter_of(text)
    except BadRequest:
        assert text.startswith("{")
    else:
        assert isinstance(found, PresenceFilter)


def test_only_short_filters_are_remembered() -> None:
    """A client repeats its filter with each sync; one that invents long ones must not fill the memory."""
    short = json.dumps({"presence": {"senders": ["@alice:here.test"]}})
    long = json.dumps({"presence": {"senders": [f"@{number}:here.test" for number in range(100)]}})

    assert filter_of(short) is filter_of(short)
    assert filter_of(long) == filter_of(long)
    assert filter_of(long) is not filter_of(long)
