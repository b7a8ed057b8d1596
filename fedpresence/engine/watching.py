"""Remote users whom somebody here may observe: pushes in, polls out, silence noticed.

Always true:
- a push is believed only from the user's own server, and kept only while somebody here may see the user;
- nothing is answered to a server about a pair that we know nothing of; what is answered is rate-limited
  and tried once (Z-12).

Source: edus.md 2.3, 3; subscriptions.md O-8, O-14, O-20, O-26, O-26a, O-27; security.md Z-12.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from fedpresence.engine.effects import SendDropOnce, SendPoll, SendPush, SendUnpoll, TellObservers, Urgency
from fedpresence.engine.events import PollReceived, PushesReceived, PushReceived
from fedpresence.engine.presence import OFFLINE, ONLINE, PresenceRecord, Published, worth_telling
from fedpresence.engine.recently import Quota, Recently
from fedpresence.engine.remote import POLL_AFTER_ACCEPT_MS, USELESS_POLLS, RemoteUser
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS
from fedpresence.engine.subscription import ObserverStage
from fedpresence.engine.world import Turn, World, phase
from fedpresence.ids import ServerName, UserID, server_of

EARLY_PUSH_MS = 60_000  # a push may come that long before its accept (E:C-6), or before its room
MAX_EARLY_PUSHES = 10_000
EARLY_PUSHES_PER_ORIGIN = 1_000  # in a minute: no origin pushes out what others sent
POLL_AFTER_MEETING_MS = 1_000  # the other side pushes by itself when it learns of the room (E:P-9)
FRESH_MS = 10_000  # a copy younger than this is not asked for again (decision 7, E)
MAX_UNWANTED_ORIGINS = 100  # that are counted by name; wildcard DNS has no end of names
OTHERS = ServerName("")  # all further ones together: no server has this name
BOOT_POLLS_MS = 30_000  # polls of a restart are spread over this
LET_GO = (ObserverStage.NONE, ObserverStage.DENIED)  # an observer once did, and we know of it


class Watching:
    """Acts on remote users' records. `check` is asked to check a user's subscriptions (S:O-26a)."""

    def __init__(self, world: World, check: Callable[[Turn, UserID], None]) -> None:
        self._world = world
        self._check = check
        self._early: OrderedDict[UserID, tuple[PushReceived, int]] = OrderedDict()  # oldest first
        self._in_vain: dict[ServerName, int] = {}  # polls since a push answered one (E:Q-11)
        self._polls = Recently(FRESH_MS)
        self._unpolls = Recently(HOUR_MS)
        self._reminders = Recently(DAY_MS)
        self._replies = Quota(100, MINUTE_MS)
        self.unwanted: Counter[ServerName] = Counter()  # pushes that nobody here wants, by origin
        self._early_left = Quota(EARLY_PUSHES_PER_ORIGIN, EARLY_PUSH_MS)

    def pushes_received(self, turn: Turn, event: PushesReceived) -> None:
        """Push items of one server (E:R-1, R-2, R-5 to R-8)."""
        world, origin = self._world, event.origin
        if origin == world.our_name or not world.permits(origin):
            return
        for push in event.pushes:
            user_id = push.user_id
            if server_of(user_id) != origin:
                continue
            stages = world.pairs.stages_about(user_id)
            if not stages.isdisjoint(LET_GO):
                self._remind(turn, user_id, origin)
            if ObserverStage.ACCEPTED in stages or world.rooms.is_near(user_id):
                if self._early:
                    self._early.pop(user_id, None)  # this one is newer
                self._take(turn, push, turn.now_ms)
            else:
                self._not_wanted(turn, push, origin, is_asked_for=ObserverStage.PENDING in stages)

    def _not_wanted(self, turn: Turn, push: PushReceived, origin: ServerName, *, is_asked_for: bool) -> None:
        self._keep_early(push, origin, turn.now_ms)
        counted = origin in self.unwanted or len(self.unwanted) < MAX_UNWANTED_ORIGINS
        self.unwanted[origin if counted else OTHERS] += 1
        if is_asked_for:
            return
        if self._may_reply(turn, origin) and self._unpolls.allow(push.user_id, turn.now_ms):
            self._replies.allow(origin, turn.now_ms)
            turn.add(SendUnpoll(origin, push.user_id))

    def poll_received(self, turn: Turn, poll: PollReceived) -> None:
        """A server wants states: answered only where it has a right to them (E:Q-1 to Q-4, Q-7)."""
        for user_id in poll.user_ids:
            if (
                user_id in self._world.users
                and self._world.has_right(poll.origin, user_id)
                and self._polls.allow((poll.origin, user_id), turn.now_ms)
            ):
                turn.add(SendPush((poll.origin,), user_id, Urgency.ASKED))

    def welcome(self, turn: Turn, observed: UserID, observer: UserID) -> None:
        """A subscription was accepted: show what is here, or came early, or wait ten seconds and ask."""
        world = self._world
        if self._take_early(turn, observed):
            return
        remote = world.remotes.get(observed)
        if remote is not None and remote.heard_ms:
            turn.add(TellObservers(observed, (observer,)))
            return
        remote = world.remotes.setdefault(observed, RemoteUser())
        remote.poll_at_ms = turn.now_ms + POLL_AFTER_ACCEPT_MS
        self._schedule(observed, remote)

    def meet(self, turn: Turn, user_id: UserID) -> None:
        """A room with a remote user of whom nothing is here: show what came early, or soon ask.

        Both servers learn of a room, and each pushes when it does: the first push finds nobody who
        wants it. Where it came more than a minute ago, one poll asks for it.
        """
        if self._take_early(turn, user_id):
            return
        remote = self._world.remotes.setdefault(user_id, RemoteUser())
        if not remote.unanswered:
            remote.poll_at_ms = turn.now_ms + POLL_AFTER_MEETING_MS
            self._schedule(user_id, remote)

    def wants_fresher(self, observed: UserID, now_ms: int) -> bool:
        """Whether asking the origin for `observed` is worth a moment's wait (decision 7, E:Q-8 c).

        A server is believed to answer polls until three were in vain; a poll that is out is not repeated.
        """
        remote = self._world.remotes.get(observed)
        return (
            remote is not None
            and now_ms - remote.heard_ms > FRESH_MS
            and not remote.unanswered
            and not self._is_useless(server_of(observed))
            and self._world.permits(server_of(observed))
        )

    def status_wanted(self, turn: Turn, observer: UserID, observed: UserID) -> None:
        """A local user asked for the state of `observed` (E:Q-8 c)."""
        if self._world.may_see(observer, observed) and self.wants_fresher(observed, turn.now_ms):
            self._poll(turn, observed, self._world.remotes[observed])
            self._schedule(observed, self._world.remotes[observed])

    def alive(self, server: ServerName) -> None:
        """A server is back from an outage: what it did not answer meanwhile says nothing about polls."""
        self._in_vain.pop(server, None)

    def let_go(self, observed: UserID) -> None:
        """Forget a remote user whom nobody here may see any more (decision 19)."""
        world = self._world
        if world.is_local(observed) or world.is_wanted(observed):
            return
        if world.remotes.pop(observed, None) is not None:
            world.deadlines.set(observed, None)
            world.dirty.pop(observed, None)
            world.forgotten[observed] = None

    def time_passed(self, turn: Turn, user_id: UserID) -> None:
        """A remote user's moment has come: silence, or a poll that is due."""
        world = self._world
        remote = world.remotes.get(user_id)
        if remote is None:
            return
        if remote.is_overdue(turn.now_ms, world.settings):
            old = remote.shown()
            remote.stale = True
            if worth_telling(old, remote.shown(), world.settings.last_active_granularity_ms):
                turn.add(TellObservers(user_id, world.local_observers_of(user_id)))
            if not remote.poll_at_ms:  # otherwise a poll is planned, or out and unanswered
                is_useless = self._is_useless(server_of(user_id))
                remote.poll_at_ms = max(turn.now_ms, remote.polled_ms + DAY_MS if is_useless else 0)
        if remote.poll_at_ms and turn.now_ms >= remote.poll_at_ms:
            self._poll_due(turn, user_id, remote)
        self._schedule(user_id, remote)

    def _poll_due(self, turn: Turn, user_id: UserID, remote: RemoteUser) -> None:
        """A planned poll; after three in vain once a day, with a check.

        Who is seen by a room alone is asked once, if nothing was heard of them yet.
        """
        is_accepted = bool(self._world.watched_in(user_id, ObserverStage.ACCEPTED))
        if not is_accepted and (remote.heard_ms or remote.unanswered):
            remote.poll_at_ms = remote.unanswered = 0
        elif not self._world.permits(server_of(user_id)):
            remote.poll_at_ms = turn.now_ms + HOUR_MS  # asleep (Z-9)
        elif remote.unanswered >= USELESS_POLLS and not remote.gave_up:
            remote.give_up()
            self._check(turn, user_id)  # S:O-26a
        else:
            self._poll(turn, user_id, remote)
            if remote.gave_up:
                self._check(turn, user_id)

    def restore(self, record: PresenceRecord, now_ms: int) -> None:
        """What was written behind; called once, before any event, after rows and rooms."""
        if self._world.is_wanted(record.user_id):
            self._world.remotes[record.user_id] = RemoteUser.restored(record, now_ms)
        else:
            self._world.forgotten[record.user_id] = None

    def started(self, now_ms: int, accepted: Iterable[UserID]) -> None:
        """After a restart every accepted remote user is asked for, a server's users together (S:O-27)."""
        world = self._world
        moments: dict[ServerName, int] = {}
        for observed in accepted:
            server = server_of(observed)
            if server not in moments:
                moments[server] = now_ms + 1 + phase(BOOT_POLLS_MS, server)
            remote = world.remotes.get(observed)
            if remote is None:
                remote = world.remotes[observed] = RemoteUser()
            remote.poll_at_ms = moments[server]
        for user_id, remote in world.remotes.items():
            self._schedule(user_id, remote)

    def _keep_early(self, push: PushReceived, origin: ServerName, now_ms: int) -> None:
        """Keep the newest push of somebody nobody may see yet, for a minute and in bounded memory."""
        if not self._early_left.allow(origin, now_ms):
            return
        self._early.pop(push.user_id, None)
        self._early[push.user_id] = (push, now_ms)
        while now_ms - self._early[oldest := next(iter(self._early))][1] > EARLY_PUSH_MS:
            del self._early[oldest]
        if len(self._early) > MAX_EARLY_PUSHES:
            self._early.popitem(last=False)

    def _take_early(self, turn: Turn, user_id: UserID) -> bool:
        """Take a push that came before anybody might see the user; whether there was one."""
        early = self._early.pop(user_id, None)
        if early is None or turn.now_ms - early[1] > EARLY_PUSH_MS:
            return False
        self._take(turn, early[0], early[1])
        return True

    def _take(self, turn: Turn, push: PushReceived, heard_ms: int) -> None:
        world = self._world
        user_id, state, ago_ms, status_msg, is_active = push
        remote = world.remotes.get(user_id)
        if remote is None:
            remote = world.remotes[user_id] = RemoteUser()
        old = remote.shown()
        if remote.unanswered and heard_ms - remote.polled_ms <= FRESH_MS:
            self._in_vain.pop(server_of(user_id), None)  # later ones come by themselves
        active_ms = remote.published.last_active_ms
        if ago_ms is not None:
            active_ms = max(1, heard_ms - ago_ms)
        new = Published(state, active_ms, status_msg, is_active and state is ONLINE)
        remote.heard(new, heard_ms)
        world.dirty[user_id] = None
        if world.forgotten:
            world.forgotten.pop(user_id, None)
        # Silence that was to end what is shown begins anew: its end can only come later.
        is_later = old.state is not OFFLINE and heard_ms == turn.now_ms
        if not (is_later and world.deadlines.ask_again(user_id)):
            self._schedule(user_id, remote)
        if worth_telling(old, new, world.settings.last_active_granularity_ms):
            turn.add(TellObservers(user_id, world.local_observers_of(user_id)))

    def _remind(self, turn: Turn, user_id: UserID, origin: ServerName) -> None:
        """Tell once a day that an observer let go, where the other side seems not to know (Z-12)."""
        for observer in self._world.watched_in(user_id, *LET_GO):
            self.remind(turn, observer, user_id, origin)

    def remind(self, turn: Turn, observer: UserID, observed: UserID, origin: ServerName) -> None:
        """One `presence_drop`, where a note or tombstone of the pair exists (Z-12, Z-14)."""
        row = self._world.observer_row(observer, observed)
        if row is None or row.stage not in LET_GO or row.owed:
            return
        if self._may_reply(turn, origin) and self._reminders.allow((observer, observed), turn.now_ms):
            self._replies.allow(origin, turn.now_ms)
            turn.add(SendDropOnce(origin, observer, observed))

    def _may_reply(self, turn: Turn, origin: ServerName) -> bool:
        """Whether `origin` has answers left; asked first, so that a full minute uses up no day."""
        return self._replies.left(origin, turn.now_ms) > 0

    def _is_useless(self, server: ServerName) -> bool:
        return self._in_vain.get(server, 0) >= USELESS_POLLS

    def _poll(self, turn: Turn, user_id: UserID, remote: RemoteUser) -> None:
        server = server_of(user_id)
        remote.polled(turn.now_ms)
        self._in_vain[server] = self._in_vain.get(server, 0) + 1
        turn.add(SendPoll(server, user_id))

    def _schedule(self, user_id: UserID, remote: RemoteUser) -> None:
        self._world.deadlines.set(user_id, remote.next_deadline_ms(self._world.settings))
