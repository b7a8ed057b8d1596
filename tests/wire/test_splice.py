import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedpresence.wire.splice import MAX_KEY, Change, Splicer, encode_events, with_events

OURS = {"type": "m.presence", "sender": "@bob:there.test", "content": {"presence": "online"}}

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)
names = st.sampled_from(["presence", "to_device", "next_batch", "", "a\\b", 'quo"te', "é", "{", "[],"])
objects = st.dictionaries(names | st.text(), values, max_size=6)
layouts = st.sampled_from([(None, (",", ":")), (None, (", ", ": ")), (1, (" ,", " : ")), (2, (",", ":"))])


def changed(value: object) -> Change:
    """Whatever it was, it becomes this."""
    return lambda old: json.dumps(value).encode()


def spliced(text: bytes, changes: dict[str, Change], cuts: list[int] | None = None) -> tuple[bytes, bool]:
    """The text cut into pieces and put together again, and whether it was complete."""
    splicer = Splicer(changes)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts or ()), len(text)]
    out = [splicer.feed(text[a:b]) for a, b in pairwise(edges)]
    return b"".join(out) + splicer.finish(), splicer.complete


@given(objects, layouts, st.booleans(), st.lists(st.integers(0, 500), max_size=30))
def test_members_are_changed_and_added_and_all_else_stays(
    body: dict[str, Any], layout: tuple[int | None, tuple[str, str]], ascii: bool, cuts: list[int]
) -> None:
    """Whatever the homeserver's JSON looks like and however its bytes are cut, it means the same."""
    indent, separators = layout
    text = json.dumps(body, indent=indent, separators=separators, ensure_ascii=ascii)
    data = text.encode("utf-8", "surrogatepass")

    out, complete = spliced(data, {"presence": changed({"events": [OURS]})}, cuts)

    read = json.loads(out.decode("utf-8", "surrogatepass"), object_pairs_hook=_no_key_twice)
    assert read == {**body, "presence": {"events": [OURS]}}
    assert complete


@given(st.lists(values, min_size=1, max_size=5), st.lists(st.integers(0, 20_000), max_size=20))
def test_long_values_pass_whatever_is_in_them(rooms: list[Any], cuts: list[int]) -> None:
    """What is only counted ends where what is read ends."""
    body = {"rooms": {"join": rooms * 100, "\\": ['"{['] * 50}, "presence": rooms * 50, "more": rooms}
    data = json.dumps(body, separators=(",", ":")).encode()

    out, complete = spliced(data, {"presence": changed({"events": [OURS]})}, cuts)

    assert json.loads(out) == {**body, "presence": {"events": [OURS]}}
    assert complete


@given(objects, layouts, st.lists(st.integers(0, 500), max_size=30))
def test_without_a_change_every_byte_stays(
    body: dict[str, Any], layout: tuple[int | None, tuple[str, str]], cuts: list[int]
) -> None:
    """The values asked for are as they stood there, and reading them alone changes nothing."""
    seen: dict[str, bytes] = {}

    def reads(name: str) -> Change:
        return lambda old: seen.__setitem__(name, old)

    text = json.dumps(body, indent=layout[0], separators=layout[1]).encode()

    out, complete = spliced(text, {name: reads(name) for name in ("presence", "next_batch")}, cuts)

    assert (out, complete) == (text, True)
    for name, old in seen.items():
        assert (json.loads(old) == body[name]) if old else (name not in body)


@given(st.binary() | st.text(alphabet='{}[]",:\\ab1 \n').map(str.encode), st.lists(st.integers(0, 500)))
@example(b'{"a":1,}', [])
@example(b'{,"a":1}', [])
@example(b'{"a":1 "b":2}', [])
@example(b'{"a":1]', [])
@example(b"[1]", [])
@example(b'{"a', [1, 2])
@example(b'"\\', [1])
def test_what_is_no_object_passes_untouched(data: bytes, cuts: list[int]) -> None:
    """An answer that we do not understand is the client's to judge."""
    out, complete = spliced(data, {"presence": lambda old: None}, cuts)

    assert out == data
    assert not complete or data.strip(b" \t\r\n").startswith(b"{")


@given(st.text(alphabet='{}[]",:\\ab1 \n', max_size=30).map(str.encode))
def test_what_is_cut_off_is_never_complete(rest: bytes) -> None:
    """A homeserver that dies half-way has answered nothing."""
    data = b'{"a":{"b":"' + rest.replace(b'"', b"")

    out, complete = spliced(data, {"a": changed(1), "presence": changed(2)})

    assert (out, complete) == (data, False)


def test_a_key_may_be_written_with_escapes() -> None:
    """It is the same key, and would otherwise stand twice."""
    out, _ = spliced(rb'{"\u0070resence":1}', {"presence": changed(2)})

    assert json.loads(out, object_pairs_hook=_no_key_twice) == {"presence": 2}


def test_an_inner_member_of_the_same_name_is_none_of_ours() -> None:
    """Events of rooms may have any keys."""
    text = b'{"rooms":{"presence":{"a":[{"presence":1}]}},"x":"\\"presence\\":1"}'

    out, _ = spliced(text, {"presence": changed(2)})

    assert out == text[:-1] + b',"presence":2}'


def test_a_key_without_end_is_passed_on() -> None:
    """Memory has a bound, whatever comes."""
    splicer = Splicer({"presence": changed(1)})

    out = splicer.feed(b'{"' + b"a" * MAX_KEY)

    assert out.endswith(b"aaa")
    assert splicer.feed(b"more") == b"more"
    assert not splicer.complete


def test_a_value_that_is_not_asked_for_is_never_kept() -> None:
    """Tens of megabytes pass piece by piece, one string of them too."""
    splicer = Splicer({"presence": changed(1)})
    splicer.feed(b'{"rooms":[')

    for piece in (b'"' + b"x" * 70_000, b"\\\\" * 35_000, b'","y",', b'{"a":1},' * 9_000):
        assert splicer.feed(piece) == piece


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (b"", [OURS]),
        (b"{}", [OURS]),
        (b' {"events": []}', [OURS]),
        (b'{"events":[{"type":"m.dummy","n":1.0}]}', [OURS, {"type": "m.dummy", "n": 1.0}]),
        (b'{ "events" : [ 1 ], "more": 2 }', [OURS, 1]),
    ],
)
def test_events_join_those_of_a_section(section: bytes, expected: list[object]) -> None:
    """To-device messages of the homeserver stay as they are: they carry keys."""
    joined = with_events(section, [OURS])

    assert joined is not None
    assert json.loads(joined)["events"] == expected
    inside = section.strip()[1:-1].strip()
    assert inside.partition(b"[")[2].strip() in joined


@pytest.mark.parametrize("section", [b"null", b"[]", b'{"other":{"events":[]}}', b'{"more":1,"events":[]}'])
def test_a_section_of_another_shape_stays_as_it_is(section: bytes) -> None:
    """What we do not know we do not touch."""
    assert with_events(section, [OURS]) is None


def test_no_events_are_an_empty_section() -> None:
    """The shape of every section of a sync."""
    assert encode_events([]) == b'{"events":[]}'
    assert with_events(b'{"events":[1]}', []) == b'{"events":[1]}'


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    assert len(read) == len(pairs)
    return read
