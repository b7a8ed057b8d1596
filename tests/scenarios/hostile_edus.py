"""Hostile requests: EDUs that speak for others, and EDUs that are broken.

Always true: each comes in an honest transaction of the server that sends it, so 200 is its answer (F:R-3);
it is what the EDU says that must have no effect.
"""

from collections.abc import Iterator

from tests.scenarios.peer import Answer
from tests.scenarios.scene import (
    ACCEPT,
    ALICE,
    BOB,
    CAROL,
    DAN,
    DENY,
    DROP,
    ERIN,
    FRANK,
    GRACE,
    HARM,
    HEIDI,
    HERE,
    INVITE,
    IVAN,
    LIST_EDUS,
    MALLORY,
    OSCAR,
    QUIET,
    WRONG_TYPES,
    Row,
    Scene,
    list_edu,
    online,
    push,
)

NOT_USER_IDS: tuple[object, ...] = (
    *WRONG_TYPES,
    "@frank",
    "frank:there.test",
    "@frank:",
    "@frank:there.test:x",
    "@frank:there_test",
    "@fr\0ank:there.test",
    "@frank:there.test\0",
    "@frank:there.test/",
    " @frank:there.test",
    "@" + "f" * 245 + ":there.test",
    "@" + "\u00e9" * 123 + ":there.test",
    "@:there.test",
    "@fr ank:there.test",
    "@fr\u00e4nk:there.test",
    "@\u202eknarf:there.test",
)


def edus(sent: str, rule: str, origin: str, *each: object) -> Row:
    """Each of these EDUs in an honest transaction of its own: 200, and skipped."""

    def play(scene: Scene) -> Iterator[Answer]:
        peer = scene[origin]
        with scene.wire() as wire:
            for edu in each:
                yield wire.answer(peer.request(HERE, peer.transaction(edu)))

    return Row(sent, ("200",), rule, play, len(each))


# --- broken EDUs ------------------------------------------------------------------------------------------


def _each_field_broken() -> Iterator[object]:
    """EDUs of there.test that would change something, with one field of a wrong type or value."""
    pairs = {INVITE: (HEIDI, BOB), ACCEPT: (ALICE, DAN), DENY: (ALICE, CAROL), DROP: (FRANK, BOB)}
    for kind, (observer, observed) in pairs.items():
        good: dict[str, object] = {"observer_user": observer, "observed_user": observed}
        for name in good:
            for value in NOT_USER_IDS:
                yield {"edu_type": kind, "content": good | {name: value}}
            yield {"edu_type": kind, "content": {other: good[other] for other in good if other != name}}


def _each_push_broken() -> Iterator[object]:
    """Pushes of carol, whom alice watches, with one of the two fields that count broken."""
    for value in (*NOT_USER_IDS, CAROL.upper(), CAROL + " "):
        yield push(online(CAROL) | {"user_id": value})
    for value in (*WRONG_TYPES, "Online", "ONLINE", "online ", "hidden", "\0", "x" * 100_000):
        yield push(online(CAROL) | {"presence": value})
    for item in WRONG_TYPES:
        yield push(item)


def _each_list_broken() -> Iterator[object]:
    """`push`, `poll` and `unpoll` that are no lists, or lists of what is no user of ours."""
    for name in ("push", "poll", "unpoll"):
        for value in (None, True, 0, 1.5, "x", BOB, {}, {"0": BOB}):
            yield {"edu_type": "m.presence", "content": {name: value}}
    for name in ("poll", "unpoll"):
        yield {"edu_type": "m.presence", "content": {name: [*NOT_USER_IDS]}}
        yield {"edu_type": "m.presence", "content": {name: [[BOB], {"user_id": BOB}, CAROL, OSCAR]}}


EDU_SHAPES: tuple[object, ...] = (
    *WRONG_TYPES,
    {"edu_type": DROP},
    {"content": HARM["content"]},
    {"type": DROP, "content": HARM["content"]},
    [DROP, HARM["content"]],
    *({"edu_type": value, "content": HARM["content"]} for value in WRONG_TYPES),
    *({"edu_type": DROP, "content": value} for value in WRONG_TYPES),
    *({"edu_type": name, "content": HARM["content"]} for name in (DROP.upper(), DROP + " ", DROP + "\0")),
)


NUMBERS: tuple[object, ...] = (-1, -(2**63), 2**53, 2**63, 10**400, 1.5, 1e300, True, "5", None, [], {})
TEXTS: tuple[object, ...] = ("x" * 1_000_000, "\0" * 1000, "\U0001f600" * 100_000, 1, True, [], {"x": "y"})


# --- forged EDUs: evil.test speaks for others ---------------------------------------------------------------

LOOK_ALIKES = (
    "@frank:there.test:8448",
    "@frank:THERE.TEST",
    "@frank:there.test.",
    "@frank:evil.test:there.test",
    "@frank:there.test@evil.test",
    "@frank:there.test\0:evil.test",
    "@frank:there.test\n:evil.test",
    "@frank:there.test,evil.test",
    "@frank:[::1]",
    "@frank:sub.evil.test",
    "@frank:evil.test:8448",
    "@frank:EVIL.test",
)


def _forged(kind: str) -> Row:
    """One EDU type with observer or observed user of a third server, of ours, of a look-alike domain."""
    word = kind.rpartition("_")[2]
    observers_word = kind in (INVITE, DROP)
    strangers = (
        (FRANK, GRACE, HEIDI, OSCAR, ALICE, QUIET) if observers_word else (CAROL, DAN, ERIN, OSCAR, BOB)
    )
    ours = (BOB, ALICE, QUIET) if observers_word else (ALICE, BOB, QUIET)
    pairs = [(stranger, our) for stranger in (*strangers, *LOOK_ALIKES) for our in ours]
    pairs += [(MALLORY, other) for other in (CAROL, OSCAR, "@nobody:nowhere.test", "@bob:HERE.TEST", MALLORY)]
    both = [pair if observers_word else (pair[1], pair[0]) for pair in pairs]
    side = "observer" if observers_word else "observed user"
    return edus(
        f"a forged {word}: its {side} of a third server, of ours, of a look-alike; the other user not ours",
        f"E:8, decision 20: the {side}'s own server alone may say it",
        "evil.test",
        *(list_edu(kind, *pair) for pair in both),
    )


FORGED_EDUS = (
    *(_forged(kind) for kind in LIST_EDUS),
    edus(
        "an accept of nobody's invite, and one by a user whom alice has dropped",
        "S:O-6, E:C-4: no accept without a pending entry of ours",
        "evil.test",
        list_edu(ACCEPT, BOB, MALLORY),
        list_edu(ACCEPT, ALICE, MALLORY),
        list_edu(ACCEPT, ALICE, IVAN),
        list_edu(ACCEPT, QUIET, IVAN),
        list_edu(ACCEPT, "@nobody:here.test", IVAN),
    ),
    edus(
        "a deny or a drop of what never was, again and again",
        "S:O-7, S:T-8",
        "evil.test",
        *(list_edu(DENY, ALICE, MALLORY), list_edu(DROP, MALLORY, BOB), list_edu(DENY, ALICE, IVAN)) * 5,
    ),
    edus(
        "a late accept after our user was denied, and the deny again",
        "S:O-31, S:O-32, Z-14: a tombstone stays one",
        "there.test",
        *(list_edu(ACCEPT, ALICE, ERIN), list_edu(DENY, ALICE, ERIN)) * 5,
    ),
    edus(
        "a drop and new invites by somebody bob has blocked",
        "S:T-32, S:T-35, Z-13: drops do not wash tombstones",
        "evil.test",
        *(list_edu(DROP, MALLORY, BOB), list_edu(INVITE, MALLORY, BOB)) * 10,
    ),
    edus(
        "the same open invite fifty times",
        "S:T-13: one request, one notice",
        "there.test",
        *[list_edu(INVITE, GRACE, BOB)] * 50,
    ),
    edus(
        "invites for users who do not exist, or have no name that could",
        "Z-7: the same answer as for everybody",
        "evil.test",
        *(
            list_edu(INVITE, MALLORY, f"@{name}:here.test")
            for name in ("nobody", "Bob", "BOB", "bob ", "bo\u0431", "\0", "", "..", "bob/x", "x" * 230)
        ),
    ),
    edus(
        "a forged push: a user of a third server, of ours, of a look-alike domain",
        "E:R-1, E:R-2",
        "evil.test",
        *(push(online(user_id)) for user_id in (CAROL, OSCAR, ALICE, BOB, *LOOK_ALIKES)),
    ),
    edus(
        "a push for users whom nobody here watches, or only invited, a hundred at a time",
        "E:R-6, decision 19: not stored",
        "evil.test",
        push(online(MALLORY), online(IVAN)),
        *(push(*(online(f"@u{n}x{m}:evil.test") for n in range(100))) for m in range(10)),
    ),
    edus(
        "a poll by a server without a right, for users of ours, of others, of nobody",
        "E:Q-2: no answer and no hint",
        "evil.test",
        *(
            {"edu_type": "m.presence", "content": {"push": [], "poll": [user_id]}}
            for user_id in (BOB, ALICE, QUIET, CAROL, MALLORY, "@nobody:here.test", *LOOK_ALIKES)
        ),
        {
            "edu_type": "m.presence",
            "content": {"push": [], "poll": [f"@u{n}:here.test" for n in range(5000)]},
        },
    ),
    edus(
        "an unpoll by a server without a grant, or for users it has none of",
        "E:Q-6: nobody else's grant is muted",
        "evil.test",
        {"edu_type": "m.presence", "content": {"push": [], "unpoll": [BOB, ALICE, CAROL]}},
        {"edu_type": "m.presence", "content": {"unpoll": [BOB] * 200}},
    ),
)

BROKEN_EDUS = (
    edus(
        "an EDU that is none: no object, no type, no content, each of a wrong type, look-alike types",
        "F:R-3, F:R-5",
        "there.test",
        *EDU_SHAPES,
    ),
    edus(
        "invite, accept, deny and drop with each user ID missing, of each wrong type, or no user ID",
        "E:4, E:5, F:1.2",
        "there.test",
        *_each_field_broken(),
    ),
    edus(
        "a push whose `user_id` or `presence` is of a wrong type or value, or that is no object",
        "E:R-1, E:R-3",
        "there.test",
        *_each_push_broken(),
    ),
    edus(
        "`push`, `poll`, `unpoll` that are no lists, or hold no user IDs of ours",
        "E:2.1, E:Q-1",
        "there.test",
        *_each_list_broken(),
    ),
    edus(
        "`last_active_ago` negative, beyond 2^53, of 400 digits, a float, no number",
        "E:R-4, Z-3: the field counts as missing, the signature holds over the number as it came",
        "evil.test",
        *(push(online("@stranger:evil.test", last_active_ago=value)) for value in NUMBERS),
    ),
    edus(
        "`status_msg` of a megabyte, of NULs, of no text; `currently_active` likewise",
        "P:S-7, E:R-5",
        "loud.test",
        *(push(online("@stranger:loud.test", status_msg=value)) for value in TEXTS),
        *(push(online("@stranger:loud.test", currently_active=value)) for value in TEXTS[1:]),
    ),
    edus(
        "EDUs that belong to a homeserver, or to nobody, and a type of 100 000 characters",
        "F:R-5",
        "there.test",
        *(
            {"edu_type": name, "content": {"room_id": "!x:y", "user_id": CAROL}}
            for name in ("m.typing", "m.receipt", "m.device_list_update", "m.direct_to_device", "x" * 100_000)
        ),
    ),
)
