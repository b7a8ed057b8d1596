"""Presence lists: runs the two tables of `subscription.py`, and owes the other server what they say.

Always true:
- what a row owes is stored with the row, before it leaves, until the 200 for that very generation;
- the observed side owes at most its last answer, the observer's side at most a drop and then an invite;
- both users on one server: the other table is called directly, in the same turn, and no EDU exists (S:6);
- whether a user exists, has not answered, or does not answer on principle looks the same from outside.

Source: subscriptions.md; security.md Z-7 to Z-17.
"""

from collections.abc import Callable
from dataclasses import replace

from fedpresence.engine.effects import (
    ForgetObservedRow,
    ForgetObserverRow,
    Notice,
    SaveObservedRow,
    SaveObserverRow,
    SendEdu,
    SendPush,
    TellObservers,
    UnsendEdus,
    Urgency,
)
from fedpresence.engine.events import ListChanged, ListEduReceived
from fedpresence.engine.pairs import PairKey
from fedpresence.engine.presence import OFFLINE
from fedpresence.engine.quotas import InviteQuotas, NoticeQuotas, OwnLimits
from fedpresence.engine.recently import Quota, Recently
from fedpresence.engine.schedules import (
    EXPIRIES,
    REPEAT_MS,
    next_repeat_ms,
    observed_moments,
    observer_moments,
    plan_confirmations,
)
from fedpresence.engine.settings import DAY_MS, HOUR_MS, InvitePolicy
from fedpresence.engine.subscription import (
    OBSERVED_TABLE,
    OBSERVER_TABLE,
    EduKind,
    ObservedAct,
    ObservedMove,
    ObservedRow,
    ObservedStage,
    ObserverAct,
    ObserverMove,
    ObserverRow,
    ObserverStage,
    OwedEdu,
)
from fedpresence.engine.watching import Watching
from fedpresence.engine.world import Turn, World
from fedpresence.ids import ServerName, UserID, server_of

DENIAL_REST_MS = DAY_MS  # S:T-30, T-31
MAX_EXPIRIES_PER_HOUR = 10_000  # Z-21: a clock that jumped does not empty the lists

INVITES = frozenset({ObservedMove.INVITE, ObservedMove.INVITE_BY_POLICY, ObservedMove.INVITE_SILENT})

Then = Callable[[], None]


class Lists:
    """Both halves of every subscription."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.watching = Watching(world, self.check)
        self._unheard: set[tuple[UserID, UserID, int]] = set()  # fresh invites no bytes were made of (Z-15)
        self._denied_again = Recently(HOUR_MS)
        self._notices = NoticeQuotas(world)
        self._checks = Recently(DAY_MS)  # Z-16
        self._expiries = Quota(MAX_EXPIRIES_PER_HOUR, HOUR_MS)
        self._quotas = InviteQuotas(world)
        self._limits = OwnLimits(world)

    # --- our users' words -----------------------------------------------------------------------

    def change(self, turn: Turn, change: ListChanged) -> None:
        """A user's whole change; BadRequest, and nothing done, where one part cannot be (S:8)."""
        me = change.user_id
        if me in (*change.invite, *change.deny):  # S:O-2, and nobody blocks themselves
            invite = tuple(other for other in change.invite if other != me)
            deny = tuple(other for other in change.deny if other != me)
            change = replace(change, invite=invite, deny=deny)
        self._limits.check(change, turn.now_ms)
        for other in change.invite:
            self.observer_move(turn, me, other, ObserverMove.INVITE)
        for other in change.accept:
            self.observed_move(turn, me, other, ObservedMove.ACCEPT)
        for other in change.deny:
            self.observed_move(turn, me, other, ObservedMove.DENY)
        for other in change.revoke:
            self.observed_move(turn, me, other, ObservedMove.REVOKE)
        for other in change.drop:
            self.observer_move(turn, me, other, ObserverMove.DROP)

    def user_added(self, turn: Turn, user_id: UserID) -> None:
        """Invites from here that met nobody are looked at again; other servers repeat theirs (S:3.5)."""
        for observer in self._world.watched_in(user_id, ObserverStage.PENDING):
            self.invited(turn, user_id, observer)

    def deactivate(self, turn: Turn, user_id: UserID) -> None:
        """S:O-36, T-19, T-27, T-38."""
        world = self._world
        for theirs in list(world.pairs.observed_rows(user_id)):
            self.observed_move(turn, user_id, theirs.observer, ObservedMove.DEACTIVATE)
        for mine in list(world.pairs.observer_rows(user_id)):
            move = ObserverMove.FORGET if mine.stage is ObserverStage.DENIED else ObserverMove.DROP
            self.observer_move(turn, user_id, mine.observed, move)

    # --- other servers' words -------------------------------------------------------------------

    def received(self, turn: Turn, edu: ListEduReceived) -> None:
        """A list EDU, checked against its origin first (E:8); what does not fit changes nothing."""
        world = self._world
        observers_word = edu.kind in (EduKind.INVITE, EduKind.DROP)
        theirs, ours = (edu.observer, edu.observed) if observers_word else (edu.observed, edu.observer)
        if server_of(theirs) != edu.origin or not world.is_local(ours) or world.is_local(theirs):
            return
        if not world.permits(edu.origin):
            return
        if edu.kind is EduKind.INVITE:
            if self._quotas.admit(edu.observer, edu.observed, turn.now_ms):
                self.invited(turn, edu.observed, edu.observer)
        elif edu.kind is EduKind.DROP:
            self._quotas.withdrawn(edu.observer, edu.observed, turn.now_ms)
            self.observed_move(turn, edu.observed, edu.observer, ObservedMove.DROP)
        elif edu.kind is EduKind.ACCEPT:
            self.observer_move(turn, edu.observer, edu.observed, ObserverMove.ACCEPT)
        else:
            self.observer_move(turn, edu.observer, edu.observed, ObserverMove.DENY)

    def invited(self, turn: Turn, observed: UserID, observer: UserID) -> None:
        """An invite of `observed`, from here or elsewhere: which row of S:4 it meets."""
        world = self._world
        if observed not in world.users:
            return  # S:T-4, T-5: as silent as a user who does not answer
        policy = world.settings.invite_policy
        row = world.observed_row(observed, observer)
        move, by_room = ObservedMove.INVITE, False
        if row is not None and row.stage is ObservedStage.DENIED:
            if row.blocked:
                move = ObservedMove.INVITE_BLOCKED
            elif turn.now_ms - row.changed_ms < DENIAL_REST_MS:
                move = ObservedMove.INVITE_EARLY
            elif policy is InvitePolicy.DENY:
                move = ObservedMove.INVITE_SILENT
        elif policy is InvitePolicy.DENY:
            move = ObservedMove.INVITE_SILENT
        elif policy is InvitePolicy.ACCEPT or (
            policy is InvitePolicy.ACCEPT_LOCAL and world.is_local(observer)
        ):
            move = ObservedMove.INVITE_BY_POLICY
        elif policy is InvitePolicy.ACCEPT_SHARED_ROOM and world.rooms.users_meet(observed, observer):
            move, by_room = ObservedMove.INVITE_BY_POLICY, True
            is_new = row is None or row.stage is ObservedStage.NONE
            if is_new and not world.is_local(observer) and world.rooms.meet_in_doubt(observed, observer):
                return  # as if it had not come (Z-11): the other server repeats it in an hour (S:3.5)
        if move is ObservedMove.INVITE and (row is None or row.stage is not ObservedStage.REQUESTED):
            gives_way = self._quotas.gives_way(observed, observer)
            if gives_way == observer:
                return
            if gives_way is not None:
                self.observed_move(turn, observed, gives_way, ObservedMove.EXPIRE)
        self.observed_move(turn, observed, observer, move, by_room=by_room)

    def polled(self, turn: Turn, origin: ServerName, observed: UserID) -> None:
        """A poll unmutes (S:T-23, E:Q-5)."""
        for row in self._world.granted_to(origin, observed):
            self.observed_move(turn, observed, row.observer, ObservedMove.POLL)

    def unpolled(self, turn: Turn, origin: ServerName, observed: UserID) -> None:
        """An unpoll mutes every grant of that server (S:T-24, E:Q-5, Q-6)."""
        for row in self._world.granted_to(origin, observed):
            self.observed_move(turn, observed, row.observer, ObservedMove.UNPOLL)

    # --- how sending went -----------------------------------------------------------------------

    def left(self, edu: OwedEdu) -> None:
        """Bytes were made of an owed EDU: it may have been heard from here on (Z-15)."""
        self._unheard.discard((edu.observer, edu.observed, edu.generation))

    def still_owed(self, edu: OwedEdu) -> bool:
        """Whether its row still owes exactly this."""
        return edu in self._owed_by(edu.observer, edu.observed)

    def delivered(self, turn: Turn, edu: OwedEdu) -> None:
        """A 200 took this EDU: a newer generation stays owed (Z-17)."""
        world = self._world
        if world.is_local(edu.observer):
            row = world.observer_row(edu.observer, edu.observed)
            if row is not None and edu in row.owed:
                # A check waits from when its first invite arrived (S:O-25a).
                is_check = edu.kind is EduKind.INVITE and edu.since_ms == row.check_ms
                check_ms = turn.now_ms if is_check else row.check_ms
                owed = tuple(o for o in row.owed if o != edu)
                self._keep_observer(turn, replace(row, owed=owed, check_ms=check_ms))
        else:
            theirs = world.observed_row(edu.observed, edu.observer)
            if theirs is not None and edu in theirs.owed:
                self._keep_observed(turn, replace(theirs, owed=()))

    def alive(self, turn: Turn, server: ServerName) -> None:
        """A server is back: what is owed goes out, and what is pending is asked again (S:3.5, O-16)."""
        self.watching.alive(server)
        for key in list(self._world.open_pairs.get(server, ())):
            observer, observed, observers_side = key
            if observers_side:
                row = self._world.observer_row(observer, observed)
                if (
                    row is not None
                    and row.stage is ObserverStage.PENDING
                    and turn.now_ms - row.invite_ms > REPEAT_MS
                ):
                    self.observer_move(turn, observer, observed, ObserverMove.RESEND)
                    continue
            self._send_owed(turn, observer, observed)

    # --- time -----------------------------------------------------------------------------------

    def due(self, turn: Turn, key: PairKey) -> None:
        """A pair's moment has come."""
        observer, observed, observers_side = key
        world = self._world
        if observers_side:
            row = world.observer_row(observer, observed)
            if row is None:
                return
            for at_ms, move in observer_moments(row, world):
                if at_ms > turn.now_ms:
                    continue
                if move in EXPIRIES and not self._may_expire(turn, key):
                    return
                if move is ObserverMove.CHECK and not self._may_check(turn, observer, observed):
                    world.deadlines.set(key, turn.now_ms + DAY_MS)
                    return
                self.observer_move(turn, observer, observed, move)
                return
        else:
            theirs = world.observed_row(observed, observer)
            if theirs is None:
                return
            for at_ms, their_move in observed_moments(theirs, world):
                if at_ms <= turn.now_ms:
                    if self._may_expire(turn, key):
                        self.observed_move(turn, observed, observer, their_move)
                    return
        self._send_owed(turn, observer, observed)
        self._schedule(turn, key)

    def _may_expire(self, turn: Turn, key: PairKey) -> bool:
        if self._expiries.allow("all", turn.now_ms):
            return True
        self._world.deadlines.set(key, turn.now_ms + HOUR_MS)
        return False

    def check(self, turn: Turn, observed: UserID) -> None:
        """Polls of `observed` go unanswered: ask whether the grants still stand (S:O-26a, Z-16)."""
        for observer in self._world.watched_in(observed, ObserverStage.ACCEPTED):
            if self._may_check(turn, observer, observed):
                self.observer_move(turn, observer, observed, ObserverMove.CHECK)

    def _may_check(self, turn: Turn, observer: UserID, observed: UserID) -> bool:
        """Z-16; and a check that still waits for its answer is not asked a second time."""
        row = self._world.observer_row(observer, observed)
        waits = row is not None and row.check_ms
        return not waits and self._checks.allow((observer, observed), turn.now_ms)

    def started(self, turn: Turn) -> None:
        """Everything owed goes to the queues again; whatever time moves gets its moment."""
        world = self._world
        restless, world.pairs.restless = world.pairs.restless, []
        for key in restless:
            self._schedule(turn, key)
        self.watching.started(turn.now_ms, plan_confirmations(world))
        for pairs in list(world.open_pairs.values()):
            for observer, observed, _ in pairs:
                self._send_owed(turn, observer, observed)

    # --- the observer's table -------------------------------------------------------------------

    def observer_move(self, turn: Turn, observer: UserID, observed: UserID, move: ObserverMove) -> None:
        """One step of S:3, stored before anything leaves."""
        world = self._world
        row = world.observer_row(observer, observed)
        stage = ObserverStage.NONE if row is None else row.stage
        step = OBSERVER_TABLE.get((stage, move))
        if step is None:
            return
        if row is None and step.stage is ObserverStage.NONE:
            if move is ObserverMove.ACCEPT and world.is_local(observed):
                self.observed_move(turn, observed, observer, ObservedMove.DROP)  # O-6: nobody asked
            return
        if row is not None and move in (ObserverMove.ACCEPT, ObserverMove.DENY):
            if self._is_unheard(row):
                return  # it answers an older invite: this one has not left yet
            row = replace(row, owed=tuple(o for o in row.owed if o.kind is not EduKind.INVITE))
        if row is None:
            row = ObserverRow(observer, observed, ObserverStage.NONE, turn.now_ms, turn.now_ms)
        was = row.stage
        if step.stage is not was:
            row = replace(row, stage=step.stage, changed_ms=turn.now_ms, check_ms=0)
        then: list[Then] = []
        for act in step.acts:
            row = self._observer_act(turn, row, was, act, then)
        nothing_to_note = world.is_local(observed) or row.generation == 0 or move is ObserverMove.FORGET
        if row.stage is ObserverStage.NONE and nothing_to_note and not row.owed:
            self._forget_observer(turn, row)
        else:
            self._keep_observer(turn, row)
        for call in then:
            call()

    def _observer_act(
        self, turn: Turn, row: ObserverRow, was: ObserverStage, act: ObserverAct, then: list[Then]
    ) -> ObserverRow:
        world, now_ms = self._world, turn.now_ms
        observer, observed = row.observer, row.observed
        match act:
            case ObserverAct.RESTART:
                row = replace(row, created_ms=now_ms, confirmed_ms=0)
            case ObserverAct.OWE_INVITE:
                row = self._owe_invite(turn, row, then, fresh=was is not row.stage)
            case ObserverAct.REINVITE:
                row = replace(row, created_ms=now_ms)
                if now_ms - row.invite_ms > REPEAT_MS:
                    row = self._owe_invite(turn, row, then, fresh=False)
            case ObserverAct.OWE_DROP:
                row = self._owe_drop(turn, row, was, then)
            case ObserverAct.CONFIRM:
                row = replace(row, confirmed_ms=now_ms, check_ms=0)
            case ObserverAct.START_CHECK:
                row = replace(row, check_ms=row.check_ms or now_ms)
            case ObserverAct.ANSWER_DROP:
                if world.is_local(observed):
                    then.append(lambda: self.observed_move(turn, observed, observer, ObservedMove.DROP))
                else:
                    server = server_of(observed)
                    then.append(lambda: self.watching.remind(turn, observer, observed, server))
            case ObserverAct.WELCOME:
                if world.is_local(observed):
                    then.append(lambda: turn.add(TellObservers(observed, (observer,))))
                else:
                    then.append(lambda: self.watching.welcome(turn, observed, observer))
            case ObserverAct.SHOW_OFFLINE:
                then.append(lambda: self._show_offline(turn, observer, observed))
            case ObserverAct.LET_GO:
                then.append(lambda: self.watching.let_go(observed))
            case ObserverAct.TELL_ACCEPTED:
                then.append(lambda: turn.add(Notice(observer, EduKind.ACCEPT, observer, observed)))
            case ObserverAct.TELL_DECLINED | ObserverAct.TELL_REVOKED | ObserverAct.TELL_EXPIRED:
                reason = act.value.rpartition(" ")[2]
                then.append(lambda: turn.add(Notice(observer, EduKind.DENY, observer, observed, reason)))
            case ObserverAct.REFUSE_EARLY:
                pass  # refused before anything is done: _check_change
        return row

    def _owe_invite(self, turn: Turn, row: ObserverRow, then: list[Then], *, fresh: bool) -> ObserverRow:
        observer, observed = row.observer, row.observed
        row = replace(row, invite_ms=turn.now_ms)
        if self._world.is_local(observed):
            then.append(lambda: self.invited(turn, observed, observer))
            return row
        if not any(owed.kind is EduKind.INVITE for owed in row.owed):
            row = _owing(row, EduKind.INVITE, turn.now_ms)
            if fresh:
                self._unheard.add((observer, observed, row.generation))
        then.append(lambda: self._send_owed(turn, observer, observed))
        return row

    def _owe_drop(self, turn: Turn, row: ObserverRow, was: ObserverStage, then: list[Then]) -> ObserverRow:
        world, observer, observed = self._world, row.observer, row.observed
        if world.is_local(observed):
            then.append(lambda: self.observed_move(turn, observed, observer, ObservedMove.DROP))
            return row
        server = server_of(observed)
        invites = [owed for owed in row.owed if owed.kind is EduKind.INVITE]
        row = replace(row, owed=tuple(owed for owed in row.owed if owed.kind is not EduKind.INVITE))
        then.append(lambda: turn.add(UnsendEdus(server, observer, observed)))
        cancelled = [i for i in invites if (observer, observed, i.generation) in self._unheard]
        if cancelled:  # nobody heard of it: the two cancel out (Z-15)
            self._unheard.discard((observer, observed, cancelled[0].generation))
            if cancelled[0].generation == 1:
                row = replace(row, generation=0)
        elif not any(owed.kind is EduKind.DROP for owed in row.owed):
            unpoll = was is ObserverStage.ACCEPTED and not self._is_watched_otherwise(observer, observed)
            row = _owing(row, EduKind.DROP, turn.now_ms, unpoll=unpoll)
        then.append(lambda: self._send_owed(turn, observer, observed))
        return row

    def _is_unheard(self, row: ObserverRow) -> bool:
        """Whether the other server cannot know of the pending invite: it waits behind a drop, or here."""
        return row.stage is ObserverStage.PENDING and any(
            owed.kind is EduKind.DROP or (owed.observer, owed.observed, owed.generation) in self._unheard
            for owed in row.owed
        )

    def _is_watched_otherwise(self, observer: UserID, observed: UserID) -> bool:
        """Whether anybody else here watches, or a room is shared (S:O-23)."""
        world = self._world
        watching = world.watched_in(observed, ObserverStage.PENDING, ObserverStage.ACCEPTED)
        return any(other != observer for other in watching) or world.rooms.is_near(observed)

    def is_unpoll_due(self, edu: OwedEdu) -> bool:
        """Whether the unpoll beside a drop still holds as it leaves."""
        return edu.unpoll and not self._is_watched_otherwise(edu.observer, edu.observed)

    def _show_offline(self, turn: Turn, observer: UserID, observed: UserID) -> None:
        if not self._world.may_see(observer, observed):
            turn.add(TellObservers(observed, (observer,), gone=True))

    # --- the observed user's table --------------------------------------------------------------

    def observed_move(
        self,
        turn: Turn,
        observed: UserID,
        observer: UserID,
        move: ObservedMove,
        *,
        by_room: bool = False,
    ) -> None:
        """One step of S:4, stored before anything leaves."""
        world = self._world
        row = world.observed_row(observed, observer)
        stage = ObservedStage.NONE if row is None else row.stage
        step = OBSERVED_TABLE.get((stage, move))
        if step is None or (row is None and step.stage is ObservedStage.NONE):
            return
        if row is None:
            row = ObservedRow(observer, observed, ObservedStage.NONE, turn.now_ms, turn.now_ms)
        was = row.stage
        had_right = was is ObservedStage.GRANTED and not row.muted
        if step.stage is not was:
            by_room = by_room and step.stage is ObservedStage.GRANTED
            row = replace(row, stage=step.stage, changed_ms=turn.now_ms, muted=False, by_room=by_room)
            if step.stage is ObservedStage.REQUESTED:
                row = replace(row, created_ms=turn.now_ms, confirmed_ms=turn.now_ms)
        elif move is ObservedMove.ACCEPT:
            row = replace(row, by_room=False)  # the user's own word outlives the room
        if row.stage is ObservedStage.GRANTED and move in INVITES:
            row = replace(row, confirmed_ms=turn.now_ms)
        if move in (ObservedMove.DEACTIVATE, ObservedMove.FORGET):
            row = replace(row, denials=0, blocked=False)
        then: list[Then] = []
        if (
            row.owed
            and row.stage is not was
            and (move is ObservedMove.DROP or row.stage is ObservedStage.REQUESTED)
        ):  # an answer to an older request is none to this one, nor to somebody who gave up
            row = replace(row, owed=())
            then.append(lambda: turn.add(UnsendEdus(server_of(observer), observer, observed)))
        for act in step.acts:
            row = self._observed_act(turn, row, act, then, had_right=had_right)
        self._keep_observed(turn, row)
        for call in then:
            call()

    def _observed_act(
        self, turn: Turn, row: ObservedRow, act: ObservedAct, then: list[Then], *, had_right: bool
    ) -> ObservedRow:
        world = self._world
        observer, observed = row.observer, row.observed
        match act:
            case ObservedAct.ASK:
                if self._notices.allow(EduKind.INVITE, observer, observed, turn.now_ms):
                    then.append(lambda: turn.add(Notice(observed, EduKind.INVITE, observer, observed)))
            case ObservedAct.TELL_DROPPED:
                if self._notices.allow(EduKind.DROP, observer, observed, turn.now_ms):
                    then.append(lambda: turn.add(Notice(observed, EduKind.DROP, observer, observed)))
            case ObservedAct.COUNT_DENIAL:
                row = replace(row, denials=row.denials + 1, blocked=row.denials >= 1)
            case ObservedAct.BLOCK:
                row = replace(row, blocked=True)
            case ObservedAct.UNBLOCK:
                row = replace(row, blocked=False, denials=0)
            case ObservedAct.MUTE:
                row = replace(row, muted=True)
            case ObservedAct.UNMUTE:
                row = replace(row, muted=False)
            case ObservedAct.PUSH if had_right:
                pass  # nothing was muted: the poll's own answer is enough, and limited (E:Q-7)
            case ObservedAct.PUSH:
                then.append(lambda: turn.add(SendPush((server_of(observer),), observed, Urgency.ASKED)))
            case ObservedAct.OWE_ACCEPT:
                row = self._owe_answer(turn, row, EduKind.ACCEPT, then)
            case ObservedAct.OWE_DENY:
                row = self._owe_answer(turn, row, EduKind.DENY, then)
            case ObservedAct.OWE_DENY_AGAIN:
                if self._denied_again.allow((observer, observed), turn.now_ms):
                    row = self._owe_answer(turn, row, EduKind.DENY, then)
            case ObservedAct.OWE_LAST_DENY:
                online = world.published(observed, turn.now_ms).state is not OFFLINE
                row = self._owe_answer(turn, row, EduKind.DENY, then, final_push=online and had_right)
        return row

    def _owe_answer(
        self, turn: Turn, row: ObservedRow, kind: EduKind, then: list[Then], *, final_push: bool = False
    ) -> ObservedRow:
        """Owe the other side the newest answer; an older one is worth nothing any more."""
        observer, observed = row.observer, row.observed
        if self._world.is_local(observer):
            move = ObserverMove.ACCEPT if kind is EduKind.ACCEPT else ObserverMove.DENY
            then.append(lambda: self.observer_move(turn, observer, observed, move))
            return row
        self._quotas.settled(observer, observed)
        server = server_of(observer)
        edu = OwedEdu(kind, observer, observed, row.generation + 1, turn.now_ms, final_push=final_push)
        then.append(lambda: turn.add(UnsendEdus(server, observer, observed)))
        then.append(lambda: self._send_owed(turn, observer, observed))
        if kind is EduKind.ACCEPT:
            then.append(lambda: turn.add(SendPush((server,), observed, Urgency.ASKED)))
        return replace(row, generation=edu.generation, owed=(edu,))

    # --- keeping --------------------------------------------------------------------------------

    def _keep_observer(self, turn: Turn, row: ObserverRow) -> None:
        if self._world.observer_row(row.observer, row.observed) != row:
            self._world.put_observer_row(row)
            turn.add(SaveObserverRow(row))
        self._schedule(turn, (row.observer, row.observed, True))

    def _forget_observer(self, turn: Turn, row: ObserverRow) -> None:
        if self._world.observer_row(row.observer, row.observed) is not None:
            self._world.remove_observer_row(row.observer, row.observed)
            turn.add(ForgetObserverRow(row.observer, row.observed))
        self._world.deadlines.set((row.observer, row.observed, True), None)

    def _keep_observed(self, turn: Turn, row: ObservedRow) -> None:
        if row.stage is ObservedStage.NONE and not row.owed and not row.denials:
            self._forget_observed(turn, row)
            return
        if self._world.observed_row(row.observed, row.observer) != row:
            self._world.put_observed_row(row)
            turn.add(SaveObservedRow(row))
        self._schedule(turn, (row.observer, row.observed, False))

    def _forget_observed(self, turn: Turn, row: ObservedRow) -> None:
        if self._world.observed_row(row.observed, row.observer) is not None:
            self._world.remove_observed_row(row.observed, row.observer)
            turn.add(ForgetObservedRow(row.observer, row.observed))
        self._world.deadlines.set((row.observer, row.observed, False), None)

    def _owed_by(self, observer: UserID, observed: UserID) -> tuple[OwedEdu, ...]:
        if self._world.is_local(observer):
            row = self._world.observer_row(observer, observed)
            return () if row is None else row.owed
        theirs = self._world.observed_row(observed, observer)
        return () if theirs is None else theirs.owed

    def _send_owed(self, turn: Turn, observer: UserID, observed: UserID) -> None:
        server = server_of(observed) if self._world.is_local(observer) else server_of(observer)
        for edu in self._owed_by(observer, observed):
            turn.add(SendEdu(server, edu))

    def _schedule(self, turn: Turn, key: PairKey) -> None:
        """The pair's next moment: a row of the tables, or asking again for what is still owed."""
        world = self._world
        observer, observed, observers_side = key
        moments: list[int] = []
        owed: tuple[OwedEdu, ...] = ()
        if observers_side:
            row = world.observer_row(observer, observed)
            if row is not None:
                moments = [at_ms for at_ms, _ in observer_moments(row, world)]
                owed = row.owed
        else:
            theirs = world.observed_row(observed, observer)
            if theirs is not None:
                moments = [at_ms for at_ms, _ in observed_moments(theirs, world)]
                owed = theirs.owed
        if owed:
            moments.append(next_repeat_ms(owed[0].since_ms, turn.now_ms))
        world.deadlines.set(key, min(moments, default=None))


def _owing(row: ObserverRow, kind: EduKind, now_ms: int, *, unpoll: bool = False) -> ObserverRow:
    generation = row.generation + 1
    edu = OwedEdu(kind, row.observer, row.observed, generation, now_ms, unpoll=unpoll)
    return replace(row, generation=generation, owed=(*row.owed, edu))
