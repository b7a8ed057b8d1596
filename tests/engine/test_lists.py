from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedpresence.engine.effects import (
    ForgetInbox,
    ForgetObserverRow,
    InboxFilled,
    Notice,
    SaveInbox,
    SendDropOnce,
    SendEdu,
    SendPush,
    TellObservers,
)
from fedpresence.engine.events import (
    EdusDelivered,
    InboxDue,
    RoomMembersSet,
    SettingsChanged,
    UserAdded,
    UserDeactivated,
)
from fedpresence.engine.lists import MAX_EXPIRIES_PER_HOUR
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, EngineSettings, InvitePolicy, ServerLists
from fedpresence.engine.subscription import EduKind, ObservedStage, ObserverStage
from fedpresence.errors import BadRequest
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    HERE,
    THERE,
    a_deny,
    a_drop,
    a_put,
    a_stream,
    a_transaction,
    an_accept,
    an_invite,
)
from tests.engine.side import Side, kinds, of_type, sent, told

INVITE, ACCEPT, DENY, DROP = EduKind.INVITE, EduKind.ACCEPT, EduKind.DENY, EduKind.DROP
ROOM = RoomID("!room:here.test")
EVIL = ServerName("evil.test")
N, P, A, D = ObserverStage.NONE, ObserverStage.PENDING, ObserverStage.ACCEPTED, ObserverStage.DENIED
n, r, g, d = ObservedStage.NONE, ObservedStage.REQUESTED, ObservedStage.GRANTED, ObservedStage.DENIED


def stages(
    side: Side, observer: UserID = ALICE, observed: UserID = CAROL
) -> tuple[ObserverStage, ObservedStage]:
    """Both halves of a pair of our own users."""
    mine, theirs = side.observer_row(observer, observed), side.observed_row(observed, observer)
    return (N if mine is None else mine.stage, n if theirs is None else theirs.stage)


# --- one change of a user ---------------------------------------------------------------------------


def test_a_change_with_one_bad_part_does_nothing() -> None:
    """S:8: the whole body is checked first; a client can repeat it without thinking."""
    side = Side()

    with pytest.raises(BadRequest):
        side.change(ALICE, invite=(BOB,), accept=(DAVE,))

    assert side.observer_row(ALICE, BOB) is None
    assert not side.owed


def test_a_change_is_done_in_its_order() -> None:
    """invite, accept, deny, revoke, drop (S:8)."""
    side = Side()
    erin, frank = UserID("@erin:there.test"), UserID("@frank:there.test")
    side.hear(an_invite(observer=DAVE), an_invite(observer=erin), an_invite(observer=frank))
    side.change(ALICE, accept=(frank,))

    effects = side.change(
        ALICE, invite=(BOB,), accept=(DAVE,), deny=(erin,), revoke=(frank,), drop=(UserID("@x:y.test"),)
    )

    assert sent(effects) == [INVITE, ACCEPT, DENY, DENY]


def test_our_own_users_are_listed_whatever_the_server_lists_say() -> None:
    """`federation.allow` names other servers; nobody writes their own name there."""
    side = Side(servers=ServerLists(allow=("there.test",)))

    side.change(ALICE, invite=(CAROL,))

    assert stages(side) == (P, r)


def test_one_user_makes_us_know_a_hundred_servers_a_day() -> None:
    """Z-15: invented names would make us connect to all the world."""
    side = Side()
    users = tuple(UserID(f"@x:{number}.test") for number in range(100))
    side.change(ALICE, invite=users)

    with pytest.raises(BadRequest) as refused:
        side.change(ALICE, invite=(UserID("@x:one-more.test"),))
    side.change(ALICE, invite=(UserID("@another:7.test"),))
    side.change(CAROL, invite=(UserID("@x:one-more.test"),))

    assert (refused.value.status, refused.value.errcode) == (429, "M_LIMIT_EXCEEDED")
    side.wait(DAY_MS)
    side.change(ALICE, invite=(UserID("@x:two-more.test"),))


def test_blocking_and_forgiving_strangers_makes_us_know_no_more_servers() -> None:
    """Z-15: an accept for somebody who never asked can be as invented as an invite, and its grant stays."""
    side = Side()
    strangers = tuple(UserID(f"@x:{number}.test") for number in range(100))
    known = UserID("@y:7.test")
    side.change(ALICE, deny=(*strangers, known))
    side.change(ALICE, accept=strangers)

    with pytest.raises(BadRequest) as refused:
        side.change(ALICE, accept=(known,))
    with pytest.raises(BadRequest):
        side.change(ALICE, invite=(UserID("@x:one-more.test"),))

    assert (refused.value.status, refused.value.errcode) == (429, "M_LIMIT_EXCEEDED")
    side.wait(DAY_MS)
    side.change(ALICE, accept=(known,))


def test_whoever_asked_may_be_forgiven_at_any_time() -> None:
    """S:T-33: the limit is on names that nobody but our user knows."""
    side = Side()
    side.hear(an_invite(observed=ALICE))
    side.change(ALICE, deny=(BOB,))
    side.change(ALICE, invite=tuple(UserID(f"@x:{number}.test") for number in range(100)))

    side.change(ALICE, accept=(BOB,))

    assert [entry.user_id for entry in side.engine.observers_of(ALICE)] == [BOB]


def test_a_refused_change_uses_up_nothing() -> None:
    """The hundred servers of a day are for changes that were made."""
    side = Side()
    users = tuple(UserID(f"@x:{number}.test") for number in range(100))
    with pytest.raises(BadRequest):
        side.change(ALICE, invite=users, accept=(BOB,))

    side.change(ALICE, invite=users)

    assert len(side.engine.presence_list(ALICE, side.now_ms)) == 100


def test_notes_and_blocks_count_towards_a_users_limit() -> None:
    """Z-15: what a user makes us keep is bounded, whatever its kind."""
    side = Side(max_entries=2)
    side.change(ALICE, deny=(UserID("@1:there.test"), UserID("@2:there.test"), UserID("@3:there.test")))
    side.change(ALICE, invite=(BOB,))
    side.sends_and_is_heard()
    side.change(ALICE, drop=(BOB,))  # leaves a note

    with pytest.raises(BadRequest):
        side.change(ALICE, invite=(DAVE,))
    with pytest.raises(BadRequest):
        side.change(ALICE, deny=(UserID("@4:there.test"),))
    side.change(ALICE, invite=(BOB,))  # the note becomes an entry: no new row


def test_whoever_has_too_many_rows_may_still_forgive() -> None:
    """The limit was lowered, or others made the rows: what adds none is no more of them."""
    side = Side()
    strangers = tuple(UserID(f"@{number}:there.test") for number in range(10))
    side.change(ALICE, deny=strangers)
    side.do(SettingsChanged(replace(side.settings, max_entries=1)))

    side.change(ALICE, accept=strangers[:1])

    with pytest.raises(BadRequest):
        side.change(ALICE, deny=(BOB,))


def test_a_denial_of_a_request_is_always_possible() -> None:
    """S:8: the rows that others make count for nobody."""
    side = Side(max_entries=1)
    side.change(ALICE, deny=(UserID("@1:there.test"), UserID("@2:there.test")))
    side.hear(an_invite())

    assert sent(side.change(ALICE, deny=(BOB,))) == [DENY]


# --- other servers' words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edu", "why"),
    [
        (an_invite(origin=EVIL), "the observer is not of the origin"),
        (an_invite(observed=BOB), "the observed user is not ours"),
        (an_invite(observer=CAROL), "the observer is ours"),
        (a_drop(origin=EVIL), "the observer is not of the origin"),
        (an_accept(origin=EVIL), "the observed user is not of the origin"),
        (a_deny(origin=EVIL), "the observed user is not of the origin"),
        (an_accept(observed=CAROL), "the observed user is ours"),
        (a_deny(observer=DAVE), "the observer is not ours"),
    ],
)
def test_only_the_right_server_says_it(edu: object, why: str) -> None:
    """E:8, decision 20: none of these was checked by the servers that had lists."""
    side = Side()
    side.change(ALICE, invite=(BOB,))
    side.hear(an_invite())
    side.change(ALICE, accept=(BOB,))
    side.sends_and_is_heard()
    before = (side.observer_row(ALICE, BOB), side.observed_row(ALICE, BOB))

    effects = side.hear(edu, origin=edu.origin)  # type: ignore[arg-type, attr-defined]  # a list EDU

    assert (side.observer_row(ALICE, BOB), side.observed_row(ALICE, BOB)) == before, why
    assert (sent(effects), told(effects)) == ([], [])


def test_a_denied_server_is_not_listened_to() -> None:
    """S:7: as if the EDU had never come."""
    side = Side(servers=ServerLists(deny=("there.test",)))

    effects = side.hear(an_invite())

    assert (side.observed_row(ALICE, BOB), told(effects)) == (None, [])


@pytest.mark.parametrize("observed", [ALICE, UserID("@nobody:here.test")])
def test_invites_for_all_users_take_the_same_path(observed: UserID) -> None:
    """Z-7: stored before the answer and resolved after it, whoever exists."""
    side = Side()

    effects = side.hear(an_invite(observed=observed))

    visible = [
        e for e in effects if isinstance(e, SaveInbox | ForgetInbox | InboxFilled | SendEdu | SendPush)
    ]
    assert [type(effect) for effect in visible] == [SaveInbox, InboxFilled, ForgetInbox]


def test_stored_edus_are_resolved_after_a_crash() -> None:
    """The other server had its 200: it will not say it again."""
    side = Side()
    side.engine.receive(a_transaction(an_invite()), side.now_ms)  # and the commit fails: never said
    assert side.observed_row(ALICE, BOB) is None
    event = a_transaction(an_invite())
    effects = side.engine.receive(event, side.now_ms)
    side.store.commit([e for e in effects if isinstance(e, SaveInbox)], side.now_ms)

    assert InboxFilled() in side.restart()
    assert side.observed_row(ALICE, BOB) is not None


def test_edus_are_resolved_in_the_order_in_which_they_came() -> None:
    """A drop behind its invite, in a transaction of its own, before the inbox was looked at."""
    side = Side()
    for edu in (an_invite(), a_drop()):
        side.engine.receive(a_transaction(edu), side.now_ms)

    effects = side.do(InboxDue())

    assert [notice.kind for notice in of_type(effects, Notice)] == [INVITE, DROP]
    assert side.observed_row(ALICE, BOB) is None


# --- both users are ours (S:6) ----------------------------------------------------------------------


def test_a_pair_of_our_own_users_needs_no_edus() -> None:
    """The two tables run in one turn, and their rows never disagree."""
    side = Side()
    seen = []
    for change in (
        {"user_id": ALICE, "invite": (CAROL,)},
        {"user_id": CAROL, "accept": (ALICE,)},
        {"user_id": CAROL, "revoke": (ALICE,)},
    ):
        user_id = change.pop("user_id")
        assert isinstance(user_id, str)
        effects = side.change(UserID(user_id), **change)  # type: ignore[arg-type]  # tuples are left
        assert not of_type(effects, SendEdu) and not of_type(effects, SendPush)
        seen.append((stages(side), told(effects)))

    assert seen == [
        ((P, r), [(CAROL, INVITE, None)]),
        ((A, g), [(ALICE, ACCEPT, None)]),
        ((D, d), [(ALICE, DENY, "revoked")]),
    ]


def test_an_own_user_who_is_accepted_is_seen_at_once() -> None:
    """No poll and no push: the state is here."""
    side = Side()
    side.do(a_stream(user_id=CAROL), a_put(user_id=CAROL))
    side.change(ALICE, invite=(CAROL,))

    effects = side.change(CAROL, accept=(ALICE,))

    assert TellObservers(CAROL, (ALICE,)) in effects
    assert CAROL in side.engine.visible_to(ALICE)


def test_a_drop_between_our_own_users_leaves_nothing() -> None:
    """No note is needed: nothing can be lost between two rows of one database."""
    side = Side()
    side.change(ALICE, invite=(CAROL,))
    side.change(CAROL, accept=(ALICE,))

    effects = side.change(ALICE, drop=(CAROL,))

    assert (side.observer_row(ALICE, CAROL), side.observed_row(CAROL, ALICE)) == (None, None)
    assert told(effects) == [(CAROL, DROP, None)]


@pytest.mark.parametrize("begin", ["declined", "blocked in advance"])
def test_an_own_user_who_changes_her_mind_is_asked_again(begin: str) -> None:
    """T-33 where nothing is pending here is answered by a drop (O-6, O-31): no grant nobody asked for."""
    side = Side()
    if begin == "declined":
        side.change(ALICE, invite=(CAROL,))
    side.change(CAROL, deny=(ALICE,))

    effects = side.change(CAROL, accept=(ALICE,))

    assert stages(side) == ((D if begin == "declined" else N), n)
    assert of_type(effects, SendDropOnce) == []
    side.wait(HOUR_MS)
    side.change(ALICE, invite=(CAROL,))
    assert stages(side) == (P, r)


@pytest.mark.parametrize(
    ("policy", "after"),
    [
        (InvitePolicy.ASK, (P, r)),
        (InvitePolicy.ACCEPT, (A, g)),
        (InvitePolicy.ACCEPT_LOCAL, (A, g)),
        (InvitePolicy.ACCEPT_SHARED_ROOM, (P, r)),
        (InvitePolicy.DENY, (P, n)),
    ],
)
def test_policies_for_an_invite_between_our_own_users(
    policy: InvitePolicy, after: tuple[ObserverStage, ObservedStage]
) -> None:
    """S:7, for users of the same server."""
    side = Side(invite_policy=policy)

    side.change(ALICE, invite=(CAROL,))

    assert stages(side) == after


@pytest.mark.parametrize(
    ("policy", "shared", "after"),
    [
        (InvitePolicy.ASK, True, r),
        (InvitePolicy.ACCEPT, False, g),
        (InvitePolicy.ACCEPT_LOCAL, True, r),
        (InvitePolicy.ACCEPT_SHARED_ROOM, False, r),
        (InvitePolicy.ACCEPT_SHARED_ROOM, True, g),
        (InvitePolicy.DENY, True, n),
    ],
)
def test_policies_for_an_invite_of_another_server(
    policy: InvitePolicy, shared: bool, after: ObservedStage
) -> None:
    """S:7, for everybody else."""
    side = Side(invite_policy=policy)
    if shared:
        side.do(RoomMembersSet(ROOM, frozenset({ALICE, BOB})))

    side.hear(an_invite())

    row = side.observed_row(ALICE, BOB)
    assert (n if row is None else row.stage) is after


def test_a_user_who_comes_to_exist_finds_the_request() -> None:
    """Our own server repeats invites to itself as it does to others."""
    side = Side(users=(ALICE,))
    side.change(ALICE, invite=(CAROL,))
    assert stages(side) == (P, n)

    side.do(UserAdded(CAROL))
    side.wait(HOUR_MS)

    assert stages(side) == (P, r)


class OurOwnPair(RuleBasedStateMachine):
    """Alice and Carol of one server: whatever they do, the two rows tell the same story."""

    def __init__(self) -> None:
        super().__init__()
        self.side = Side()

    def _change(self, user_id: UserID, word: str, other: UserID) -> None:
        try:
            effects = self.side.change(user_id, **{word: (other,)})
        except BadRequest:
            return
        assert not of_type(effects, SendEdu) and not of_type(effects, SendDropOnce)

    @rule(word=st.sampled_from(("invite", "drop")))
    def alice_says(self, word: str) -> None:
        """The observer's words."""
        self._change(ALICE, word, CAROL)

    @rule(word=st.sampled_from(("accept", "deny", "revoke")))
    def carol_says(self, word: str) -> None:
        """The observed user's words."""
        self._change(CAROL, word, ALICE)

    @rule(ms=st.sampled_from((MINUTE_MS, HOUR_MS, 25 * HOUR_MS, 8 * DAY_MS, 31 * DAY_MS, 180 * DAY_MS)))
    def time_passes(self, ms: int) -> None:
        """Through every deadline."""
        self.side.wait(ms)

    @rule(policy=st.sampled_from(InvitePolicy))
    def a_policy_changes(self, policy: InvitePolicy) -> None:
        """A reload."""
        self.side.settings = EngineSettings(HERE, invite_policy=policy)
        self.side.do(SettingsChanged(self.side.settings))

    @rule(members=st.sampled_from(((), (ALICE,), (ALICE, CAROL))))
    def a_room_has_these_members(self, members: tuple[UserID, ...]) -> None:
        """Grants by a room begin and end."""
        self.side.do(RoomMembersSet(ROOM, frozenset(members)))

    @rule()
    def the_server_restarts(self) -> None:
        """Rows are all there is."""
        self.side.restart(invite_policy=self.side.settings.invite_policy)

    @rule()
    def alice_is_deactivated(self) -> None:
        """O-36."""
        self.side.do(UserDeactivated(ALICE))
        assert stages(self.side)[0] is N

    @invariant()
    def the_rows_never_disagree(self) -> None:
        """S:6. A pending request may meet silence: a block, a policy, an answer of less than a day ago."""
        mine, theirs = stages(self.side)
        assert (mine, theirs) in {(N, n), (P, r), (A, g), (D, d), (N, d), (D, n), (P, n), (P, d)}
        assert self.side.engine.rights(HERE) == 0
        assert not self.side.owed

    def teardown(self) -> None:
        """Where everybody may be asked, silence has one reason: a block."""
        self.a_policy_changes(InvitePolicy.ASK)
        self.side.wait(8 * DAY_MS)
        mine, theirs = stages(self.side)
        row = self.side.observed_row(CAROL, ALICE)
        assert (mine, theirs) != (P, n)
        assert (mine, theirs) != (P, d) or (row is not None and row.blocked)


TestOurOwnPair = OurOwnPair.TestCase
TestOurOwnPair.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)


# --- time -------------------------------------------------------------------------------------------


def test_a_clock_that_jumped_while_we_were_away_expires_nothing_for_an_hour() -> None:
    """Z-21: ten years forward at a boot must not empty every list before somebody looks."""
    side = Side()
    side.change(ALICE, invite=(BOB,))
    side.sends_and_is_heard()
    side.now_ms += 3650 * DAY_MS

    side.restart(crashed=True)
    effects = side.wait(HOUR_MS - 1)

    assert told(effects) == []
    assert told(side.wait(MINUTE_MS)) == [(ALICE, DENY, "expired")]


def test_a_clock_that_went_back_leaves_no_moment_in_the_future() -> None:
    """Z-21: rows from a wrong future would otherwise be asked again when it comes."""
    side = Side()
    side.now_ms += 3650 * DAY_MS
    side.change(ALICE, invite=(BOB,))
    side.now_ms -= 3650 * DAY_MS

    effects = side.restart(crashed=True)

    (edu,) = of_type(effects, SendEdu)
    assert edu.edu.since_ms == side.now_ms
    assert sent(side.wait(HOUR_MS)) != []


def test_expiries_are_capped_in_every_hour() -> None:
    """Z-21: a wrong clock costs an hour's worth of rows, not all of them."""
    side = Side(max_entries=2 * MAX_EXPIRIES_PER_HOUR)
    users = tuple(UserID(f"@{number}:there.test") for number in range(MAX_EXPIRIES_PER_HOUR + 3))
    side.change(ALICE, invite=users)
    side.sends_and_is_heard()
    side.change(ALICE, drop=users)
    side.sends_and_is_heard()  # what is left are notes, all of one age

    effects = side.wait(30 * DAY_MS)
    assert len(of_type(effects, ForgetObserverRow)) == MAX_EXPIRIES_PER_HOUR
    effects = side.wait(HOUR_MS)
    assert len(of_type(effects, ForgetObserverRow)) == 3


@pytest.mark.parametrize("rows", ["observer", "observed"])
def test_a_deadline_is_exact(rows: str) -> None:
    """`next_deadline_ms` is when something changes by time alone: waking earlier does nothing."""
    side = Side()
    if rows == "observer":
        side.change(ALICE, invite=(BOB,))
    else:
        side.hear(an_invite())
    deadline_ms = side.engine.next_deadline_ms()
    assert deadline_ms is not None

    assert side.wait(deadline_ms - side.now_ms - 1) == ()
    assert side.engine.next_deadline_ms() == deadline_ms


def test_a_200_that_names_an_edu_of_before_changes_nothing() -> None:
    """Z-17, on the observed side: an older accept does not clear the deny."""
    side = Side()
    side.hear(an_invite())
    side.change(ALICE, accept=(BOB,))
    (accept,) = side.owed
    side.sends()
    side.change(ALICE, revoke=(BOB,))

    side.do(EdusDelivered(THERE, (accept,)))

    row = side.observed_row(ALICE, BOB)
    assert row is not None
    assert [owed.kind for owed in row.owed] == [DENY]
    assert kinds(side.sends_and_is_heard()) == [DENY]
