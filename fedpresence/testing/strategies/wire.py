"""Hypothesis strategies for what servers send each other: names, presence, EDUs, transactions, as JSON.

Always true: what keeps the rules keeps those of the Matrix specification and of edus.md alike; what breaks
one does so for every careful receiver, not for ours alone.

Source: edus.md; federation.md 1 and 7; Z-2, Z-3; P:1, S-7.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from fedpresence.engine.settings import DAY_MS
from fedpresence.ids import ServerName, UserID, server_of
from fedpresence.testing.builders import NOW_MS

Json = dict[str, Any]

MAX_INT = 2**53 - 1  # the largest integer of canonical JSON
MAX_AGO_MS = 10 * 365 * DAY_MS  # ten years: a receiver may cut off what is longer (E:R-4)
MAX_STATUS_CHARACTERS = 1024  # 4096 bytes at most: a receiver may cut off what is longer (P:S-7)
MAX_EDUS, MAX_PDUS = 100, 50  # in one transaction: server-server API
STATES = ("online", "unavailable", "offline")

_INVITE, _ACCEPT, _DENY = "m.presence_invite", "m.presence_accept", "m.presence_deny"
_DROP = "org.fedpresence.presence_drop"
_OTHER_EDUS = ("m.typing", "m.receipt", "m.device_list_update", "m.direct_to_device", "org.example.new")

Value = TypeVar("Value")

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def check(
    strategy: st.SearchStrategy[Value], condition: Callable[[Value], object], examples: int = 20
) -> None:
    """Nothing, where the condition holds for so many examples; an AssertionError with a small one if not.

    For a quick look at a strategy, as in the examples below; tests use `given` and its report.

    >>> check(server_names(), lambda name: len(name) > 0)
    """

    def holds(value: Value) -> None:
        assert condition(value), f"does not hold for {value!r}"

    quietly = settings(max_examples=examples, database=None, deadline=None, report_multiple_bugs=False)
    quietly(given(strategy)(holds))()


# --- names and JSON --------------------------------------------------------------------------


def json_values(*, floats: bool = True, leaves: int = 10) -> st.SearchStrategy[object]:
    """Whatever JSON can say; without `floats` only what canonical JSON can.

    >>> check(json_values(floats=False), lambda value: not isinstance(value, float))
    """
    scalars: st.SearchStrategy[object] = st.none() | st.booleans() | st.integers(-MAX_INT, MAX_INT) | _texts
    if floats:
        scalars = scalars | st.floats(allow_nan=False, allow_infinity=False)
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_texts, inner, max_size=5),
        max_leaves=leaves,
    )


def server_names() -> st.SearchStrategy[ServerName]:
    """Server names of every form: DNS, IPv4, IPv6, with a port and without (F:1.1).

    >>> check(server_names(), lambda name: "@" not in name and " " not in name)
    """
    label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
    dns = st.lists(label, min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "test"]))
    host = dns | st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")
    port = st.just("") | st.integers(1, 65535).map(lambda port: f":{port}")
    return st.builds(lambda host, port: ServerName(host + port), host, port)


def user_ids(server_name: str | None = None) -> st.SearchStrategy[UserID]:
    """Users that clients may be shown, of this server or of any (F:1.2).

    >>> check(user_ids("a.test"), lambda user_id: user_id.endswith(":a.test"))
    """
    names = server_names() if server_name is None else st.just(ServerName(server_name))
    localparts = st.text("abcxyz0189._=-/+", min_size=1, max_size=20)
    return st.builds(lambda localpart, server: UserID(f"@{localpart}:{server}"), localparts, names)


def broken_user_ids() -> st.SearchStrategy[object]:
    """What is no user ID, or one that a server must not show its clients (F:1.2).

    >>> check(broken_user_ids(), lambda user_id: user_id != "@alice:a.test")
    """
    return st.one_of(
        st.sampled_from(
            (
                "",
                "@",
                "@alice",
                "alice:a.test",
                "@alice:",
                "@alice:a_b.test",
                "@alice:a.test:0",
                "@alice:a.test:65536",
                "@alice:[::1",
                "@alice:1.2.3.256",
                "@al\0ice:a.test",
                "@:a.test",
                "@al ice:a.test",
                "@ålice:a.test",
                f"@{'a' * 250}:a.test",
            )
        ),
        json_values(leaves=3).filter(lambda value: not isinstance(value, str)),
    )


# --- presence --------------------------------------------------------------------------------


def status_messages() -> st.SearchStrategy[str]:
    """Messages that every receiver keeps as they are.

    >>> check(status_messages(), lambda text: 0 < len(text.encode()) <= 4096)
    """
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.text(characters, min_size=1, max_size=100) | st.just("☕" * MAX_STATUS_CHARACTERS)


@st.composite
def presence_contents(draw: st.DrawFn) -> Json:
    """Presence as it stands in a client's `m.presence` event, without the user.

    >>> check(presence_contents(), lambda content: content["presence"] in STATES)
    """
    content: Json = {"presence": draw(st.sampled_from(STATES))}
    if draw(st.booleans()):
        content["last_active_ago"] = draw(st.integers(0, MAX_AGO_MS))
    if draw(st.booleans()):
        content["status_msg"] = draw(status_messages())
    if content["presence"] == "online" and draw(st.booleans()):
        content["currently_active"] = draw(st.booleans())
    return content


@st.composite
def push_items(draw: st.DrawFn, origin: str) -> Json:
    """One item of a push, about a user of `origin` (E:2.1).

    >>> check(push_items("a.test"), lambda item: item["last_active_ago"] >= 0)
    """
    content = draw(presence_contents())
    ago = content.pop("last_active_ago", 0)
    return {
        "user_id": draw(user_ids(origin)),
        "presence": content.pop("presence"),
        "last_active_ago": ago,
    } | (content)


@st.composite
def broken_push_items(draw: st.DrawFn, origin: str) -> object:
    """Items that a receiver must leave out: no object, another server's user, an unknown state (E:2.3).

    >>> good = {"user_id": "@a:a.test", "presence": "online", "last_active_ago": 0}
    >>> check(broken_push_items("a.test"), lambda item: item != good)
    """
    item: Any = draw(push_items(origin))
    match draw(st.integers(0, 4)):
        case 0:
            item = draw(json_values(leaves=3).filter(lambda value: not isinstance(value, dict)))
        case 1:
            item["user_id"] = draw(user_ids().filter(lambda user_id: server_of(user_id) != origin))
        case 2:
            item["user_id"] = draw(broken_user_ids())
        case 3:
            states = st.sampled_from(("", "Online", "busy", "hidden", "invisible", "online "))
            values = json_values(leaves=3).filter(lambda value: not isinstance(value, str))
            item["presence"] = draw(states | values)
        case _:
            del item[draw(st.sampled_from(("user_id", "presence")))]
    return item


# --- EDUs ------------------------------------------------------------------------------------


def presence_edus(origin: str, destination: str) -> st.SearchStrategy[Json]:
    """`m.presence`: pushes of the origin's users, polls and unpolls of the destination's (E:2, E:3).

    >>> check(presence_edus("a.test", "b.test"), lambda edu: "push" in edu["content"])
    """
    asked = st.lists(user_ids(destination), min_size=1, max_size=5, unique=True)
    pushed = st.lists(push_items(origin), max_size=5, unique_by=lambda item: item["user_id"])
    contents = st.fixed_dictionaries({"push": pushed}, optional={"poll": asked, "unpoll": asked})
    said = contents.filter(lambda content: content["push"] or len(content) > 1)
    return said.map(lambda content: _edu("m.presence", content))


def invite_edus(origin: str, destination: str) -> st.SearchStrategy[Json]:
    """`m.presence_invite` (E:4): the origin's user asks to observe the destination's.

    >>> of_origin = lambda edu: edu["content"]["observer_user"].endswith(":a.test")
    >>> check(invite_edus("a.test", "b.test"), of_origin)
    """
    return _pair_edus(_INVITE, user_ids(origin), user_ids(destination))


def accept_edus(origin: str, destination: str) -> st.SearchStrategy[Json]:
    """`m.presence_accept` (E:5): the origin's user lets the destination's observe.

    >>> of_origin = lambda edu: edu["content"]["observed_user"].endswith(":a.test")
    >>> check(accept_edus("a.test", "b.test"), of_origin)
    """
    return _pair_edus(_ACCEPT, user_ids(destination), user_ids(origin))


def deny_edus(origin: str, destination: str) -> st.SearchStrategy[Json]:
    """`m.presence_deny` (E:5): the origin's user does not let the destination's observe, or no more.

    >>> check(deny_edus("a.test", "b.test"), lambda edu: edu["edu_type"] == "m.presence_deny")
    """
    return _pair_edus(_DENY, user_ids(destination), user_ids(origin))


def drop_edus(origin: str, destination: str) -> st.SearchStrategy[Json]:
    """`org.fedpresence.presence_drop` (E:6): the origin's user observes the destination's no more.

    >>> of_origin = lambda edu: edu["content"]["observer_user"].endswith(":a.test")
    >>> check(drop_edus("a.test", "b.test"), of_origin)
    """
    return _pair_edus(_DROP, user_ids(origin), user_ids(destination))


def list_edus(origin: str, destination: str) -> st.SearchStrategy[Json]:
    """Any of the four that make, answer and end subscriptions.

    >>> check(list_edus("a.test", "b.test"), lambda edu: len(edu["content"]) == 2)
    """
    return st.one_of(
        invite_edus(origin, destination),
        accept_edus(origin, destination),
        deny_edus(origin, destination),
        drop_edus(origin, destination),
    )


def edus(origin: str, destination: str) -> st.SearchStrategy[Json]:
    """Any EDU about presence that keeps every rule.

    >>> check(edus("a.test", "b.test"), lambda edu: set(edu) == {"edu_type", "content"})
    """
    return presence_edus(origin, destination) | list_edus(origin, destination)


@st.composite
def broken_presence_edus(draw: st.DrawFn, origin: str) -> Json:
    """`m.presence` of which nothing can be honoured: broken items, keys of wrong types (E:2.3, E:3).

    >>> check(broken_presence_edus("a.test"), lambda edu: edu["edu_type"] == "m.presence")
    """
    no_list = json_values(leaves=3).filter(lambda value: not isinstance(value, list))
    no_users = st.lists(_no_user_ids(), min_size=1, max_size=5)
    content: Json = {}
    push, poll, unpoll = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    if push or not (poll or unpoll):
        content["push"] = draw(st.lists(broken_push_items(origin), min_size=1, max_size=5) | no_list)
    if poll:
        content["poll"] = draw(no_users | no_list)
    if unpoll:
        content["unpoll"] = draw(no_users | no_list)
    return _edu("m.presence", content)


@st.composite
def broken_list_edus(draw: st.DrawFn, origin: str, destination: str) -> Json:
    """Invites, accepts, denies and drops that a receiver must leave out (E:4, E:5).

    A user of the wrong server (above all: somebody else's accept), no user ID, a key missing, or no
    content at all.

    >>> good = {"observed_user": "@a:a.test", "observer_user": "@a:b.test"}
    >>> check(broken_list_edus("a.test", "b.test"), lambda edu: edu["content"] != good)
    """
    edu = draw(list_edus(origin, destination))
    content = edu["content"]
    ours = "observer_user" if edu["edu_type"] in (_INVITE, _DROP) else "observed_user"
    match draw(st.integers(0, 3)):
        case 0:
            content[ours] = draw(user_ids().filter(lambda user_id: server_of(user_id) != origin))
        case 1:
            content[draw(st.sampled_from(sorted(content)))] = draw(broken_user_ids())
        case 2:
            del content[draw(st.sampled_from(sorted(content)))]
        case _:
            edu["content"] = draw(json_values(leaves=3).filter(lambda value: not isinstance(value, dict)))
    return edu


def broken_edus(origin: str, destination: str) -> st.SearchStrategy[object]:
    """Anything in the place of an EDU that a receiver must leave out, unknown types included (F:R-3, R-5).

    >>> check(broken_edus("a.test", "b.test"), lambda edu: edu != {"edu_type": "m.presence", "content": {}})
    """
    other = st.sampled_from(_OTHER_EDUS)
    return st.one_of(
        broken_presence_edus(origin),
        broken_list_edus(origin, destination),
        st.builds(_edu, other, json_values(leaves=3)),
        json_values(leaves=3).filter(lambda value: not (isinstance(value, dict) and "edu_type" in value)),
    )


# --- transactions ----------------------------------------------------------------------------


def transactions(origin: str, destination: str, *, max_edus: int = 5) -> st.SearchStrategy[Json]:
    """Bodies of `PUT /send/{txnId}` that keep every rule (F:7.1).

    >>> check(transactions("a.test", "b.test"), lambda body: body["pdus"] == [])
    """
    return _envelopes(origin, st.lists(edus(origin, destination), max_size=max_edus))


@st.composite
def refused_transactions(draw: st.DrawFn, origin: str, destination: str) -> object:
    """JSON that is refused as a whole, with 400 or 403: the envelope itself is wrong (F:7.1).

    >>> good = {"origin": "a.test", "origin_server_ts": 5, "pdus": [], "edus": []}
    >>> check(refused_transactions("a.test", "b.test"), lambda body: body != good)
    """
    body: Json = draw(transactions(origin, destination))
    not_list = json_values(leaves=3).filter(lambda value: not isinstance(value, list))
    match draw(st.integers(0, 6)):
        case 0:
            return draw(json_values(leaves=3).filter(lambda value: not isinstance(value, dict)))
        case 1:
            names: st.SearchStrategy[object] = server_names() | json_values(leaves=3)
            body["origin"] = draw(names.filter(lambda name: name != origin))
        case 2:
            not_int = json_values(leaves=3).filter(
                lambda value: isinstance(value, bool) or not isinstance(value, int)
            )
            body["origin_server_ts"] = draw(not_int)
        case 3:
            body["pdus"] = draw(not_list | st.just([{}] * (MAX_PDUS + 1)))
        case 4:
            body["edus"] = draw(not_list)
        case 5:
            edu = draw(edus(origin, destination))
            body["edus"] = [edu] * (MAX_EDUS + draw(st.integers(1, 10)))
        case _:
            del body[draw(st.sampled_from(("origin_server_ts", "pdus")))]
    return body


def hostile_transactions(origin: str, destination: str) -> st.SearchStrategy[object]:
    """Anything that is JSON: good EDUs among broken ones, full envelopes, wrong ones.

    >>> import json
    >>> check(hostile_transactions("a.test", "b.test"), lambda body: json.dumps(body) != "")
    """
    mixed = edus(origin, destination) | broken_edus(origin, destination)
    return st.one_of(
        _envelopes(origin, st.lists(mixed, max_size=10)),
        _envelopes(origin, mixed.map(lambda edu: [edu] * MAX_EDUS)),
        refused_transactions(origin, destination),
    )


def hostile_bodies() -> st.SearchStrategy[bytes]:
    """Bodies that no careful receiver parses (Z-2): answered 400, at once.

    >>> check(hostile_bodies(), lambda body: isinstance(body, bytes))
    """
    numbers = st.sampled_from((b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000))
    deep = st.integers(101, 5000).map(lambda depth: b"[" * depth + b"]" * depth)
    torn = st.sampled_from((b"", b"{", b'{"edus":[', b'{"a":1}}', b"\xff\xfe", b"'a'", b'"\\ud800"'))
    return st.one_of(
        torn,
        numbers,
        numbers.map(lambda number: b'{"origin_server_ts":' + number + b"}"),
        deep,
        st.just(b'{"edus":[],"edus":[]}'),
        st.just(b"[" + b"0," * 100_000 + b"0]"),
    )


# --- below -----------------------------------------------------------------------------------


def _edu(edu_type: str, content: object) -> Json:
    return {"edu_type": edu_type, "content": content}


def _pair_edus(
    edu_type: str, observers: st.SearchStrategy[UserID], observed: st.SearchStrategy[UserID]
) -> st.SearchStrategy[Json]:
    contents = st.fixed_dictionaries({"observed_user": observed, "observer_user": observers})
    return contents.map(lambda content: _edu(edu_type, content))


def _no_user_ids() -> st.SearchStrategy[object]:
    """What is no user ID at all: polls may name any user whom the receiver could have."""
    return st.sampled_from(("", "alice", "@alice", "@alice:", "@alice:a_b.test")) | json_values(
        leaves=3
    ).filter(lambda value: not isinstance(value, str))


def _envelopes(origin: str, edu_lists: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries(
        {
            "origin": st.just(origin),
            "origin_server_ts": st.just(NOW_MS) | st.integers(0, MAX_INT),
            "pdus": st.just([]),
            "edus": edu_lists,
        }
    )
