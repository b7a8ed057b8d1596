"""Who waits for news of whom, and what each of them has not seen yet.

Always true:
- a waiting client is woken by the first news that it wants, within the turn that brought it; what the
  same turn brings besides is in the same answer, because an answer is read after the turn;
- news of one observed user wakes clients no more often than the throttle says, and the last word is
  always delivered (Z-18); that somebody may be seen no more is never delayed;
- a mailbox nobody has read for an hour is given up, its unread notices kept.

Source: P:13 (Y-1 to Y-5), S:8, Z-18.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred

from fedpresence.clients.mailbox import Mailbox
from fedpresence.clients.throttle import Throttle
from fedpresence.clock import Clock, Timer, now_ms
from fedpresence.engine.effects import Notice, TellObservers
from fedpresence.ids import UserID

GIVEN_UP_AFTER_MS = 3_600_000  # without a sync; whoever comes back then gets a snapshot
MAX_WAITING_PER_USER = 20  # syncs that wait for as long as they like
SURPLUS_WAIT_S = 5.0  # what one more waits at most: an answer at once, and all of them would ask in a circle
MAX_ASKING_PER_USER = 100  # GETs that wait for fresher news of one observed user
MAX_RESTING = 10_000  # mailboxes that nobody reads, kept for their notices
NEWS_PER_SECOND, NEWS_BURST = 5.0, 20  # of one observed user

Admits = Callable[[UserID], bool]


class _Waiter:
    """A sync that waits; fires True when woken, False when its time is up."""

    __slots__ = ("admits", "deferred", "timer")

    def __init__(self, admits: Admits, deferred: Deferred[bool], timer: Timer) -> None:
        self.admits = admits
        self.deferred = deferred
        self.timer = timer


class Feed:
    """Mailboxes of users who sync, and whoever waits at them.

    `epoch` is unlike that of any other run; by `patience` runs the time of who asks another server.
    """

    def __init__(self, clock: Clock, epoch: str, patience: Clock | None = None) -> None:
        self._clock = clock
        self._patience = clock if patience is None else patience
        self._epoch = epoch
        self._boxes: OrderedDict[UserID, Mailbox] = OrderedDict()  # longest unused first
        self._boxes_made = 0
        self._waiting: dict[UserID, dict[_Waiter, None]] = {}  # may be thousands of one user
        self._asking: dict[UserID, list[Deferred[None]]] = {}
        self._resting: OrderedDict[UserID, Mailbox] = OrderedDict()  # unused, with notices
        self._throttle: Throttle[UserID] = Throttle(NEWS_PER_SECOND, NEWS_BURST)
        self._held: dict[UserID, dict[UserID, None]] = {}  # observed: observers who are due its news
        self._timers: dict[UserID, Timer] = {}
        self._closed = False
        self.started_ms = now_ms(clock)

    def tell(self, effect: TellObservers) -> None:
        """Local users are due news of `effect.observed`."""
        observed = effect.observed
        if self._asking:
            self.heard(observed)
        if not self._boxes:
            return  # nobody reads: whoever begins to sees how things are then
        held = self._held.get(observed)
        if effect.gone:
            for observer in effect.observers if held else ():
                assert held is not None
                held.pop(observer, None)
            self._deliver(observed, effect.observers, gone=True)
        elif held is not None:
            held.update(dict.fromkeys(effect.observers))
        elif wait_ms := self._throttle.take(observed, now_ms(self._clock)):
            self._held[observed] = dict.fromkeys(effect.observers)
            self._timers[observed] = self._clock.callLater(wait_ms / 1000, self._release, observed)
        else:
            self._deliver(observed, effect.observers, gone=False)

    def notice(self, effect: Notice) -> None:
        """Keep a notice for a user, who may have no client just now."""
        user_id = effect.user_id
        box = self._boxes.get(user_id)
        if box is None:
            box = self._resting.get(user_id) or self._new_box(user_id, now_ms(self._clock))
            self._rest(box)
        box.add_notice(effect)
        for waiter in self._waiting.pop(user_id, {}):
            _wake(waiter, True)

    @property
    def somebody_asks(self) -> bool:
        """Whether `heard` would answer anybody."""
        return bool(self._asking)

    def heard(self, observed: UserID) -> None:
        """The origin has spoken of `observed`, with or without anything new: answer who asked."""
        for asking in self._asking.pop(observed, ()):
            asking.callback(None)

    def mailbox(self, user_id: UserID) -> Mailbox:
        """The user's mailbox, which is in use from now on."""
        now = now_ms(self._clock)
        self._give_up_unused(now)
        box = self._boxes.get(user_id)
        if box is None:
            box = self._resting.pop(user_id, None) or self._new_box(user_id, now)
            self._boxes[user_id] = box
        box.used_ms = now
        self._boxes.move_to_end(user_id)
        return box

    def wait(self, box: Mailbox, seen: int, admits: Admits, timeout_s: float) -> Deferred[bool]:
        """Fires True once the mailbox has news after `seen` of somebody admitted, or a notice.

        Fires False when the time is up, which is short where too many syncs of the user wait, or at the
        end of the run.
        """
        if box.number > seen or self._closed:
            ready: Deferred[bool] = Deferred()
            ready.callback(not self._closed)
            return ready
        waiting = self._waiting.setdefault(box.user_id, {})
        if len(waiting) >= MAX_WAITING_PER_USER:
            timeout_s = min(timeout_s, SURPLUS_WAIT_S)
        deferred: Deferred[bool] = Deferred(lambda _: self._leave(box.user_id, waiter))
        timer = self._clock.callLater(timeout_s, lambda: self._time_is_up(box.user_id, waiter))
        waiter = _Waiter(admits, deferred, timer)
        waiting[waiter] = None
        return deferred

    def ask(self, observed: UserID, timeout_s: float) -> Deferred[None]:
        """Fires when there is word of `observed`, or when the time is up."""
        asking: Deferred[None] = Deferred(lambda deferred: deferred.callback(None))
        all_asking = self._asking.setdefault(observed, [])
        if self._closed or len(all_asking) >= MAX_ASKING_PER_USER:
            asking.callback(None)
            return asking
        all_asking.append(asking)
        timer = self._patience.callLater(timeout_s, asking.cancel)
        return asking.addBoth(self._asked, observed, asking, timer)

    def close(self) -> None:
        """The run ends: answer everybody who waits, and let nobody wait again."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._held.clear()
        waiting, self._waiting = self._waiting, {}
        for waiter in [waiter for waiters in waiting.values() for waiter in waiters]:
            _wake(waiter, False)
        for observed in list(self._asking):
            self.heard(observed)

    def _deliver(self, observed: UserID, observers: Iterable[UserID], *, gone: bool) -> None:
        woken: list[_Waiter] = []
        for observer in observers:
            box = self._boxes.get(observer)
            if box is None:
                continue
            box.add_news(observed, gone=gone)
            waiting = self._waiting.get(observer)
            if waiting:
                called = [waiter for waiter in waiting if waiter.admits(observed)]
                for waiter in called:
                    del waiting[waiter]
                if not waiting:
                    del self._waiting[observer]
                woken += called
        for waiter in woken:
            _wake(waiter, True)

    def _release(self, observed: UserID) -> None:
        del self._timers[observed]
        wait_ms = self._throttle.take(observed, now_ms(self._clock))
        if wait_ms:
            self._timers[observed] = self._clock.callLater(wait_ms / 1000, self._release, observed)
            return
        self._deliver(observed, self._held.pop(observed), gone=False)

    def _give_up_unused(self, now: int) -> None:
        while self._boxes:
            user_id, box = next(iter(self._boxes.items()))
            if now - box.used_ms <= GIVEN_UP_AFTER_MS or user_id in self._waiting:
                break
            del self._boxes[user_id]
            if box.unread():
                box.forget_news()
                self._rest(box)

    def _new_box(self, user_id: UserID, now: int) -> Mailbox:
        self._boxes_made += 1
        return Mailbox(user_id, f"{self._epoch}.{self._boxes_made}", now)

    def _rest(self, box: Mailbox) -> None:
        """Keep a mailbox that nobody reads, for its notices."""
        self._resting[box.user_id] = box
        self._resting.move_to_end(box.user_id)
        if len(self._resting) > MAX_RESTING:
            self._resting.popitem(last=False)

    def _time_is_up(self, user_id: UserID, waiter: _Waiter) -> None:
        self._leave(user_id, waiter)
        waiter.deferred.callback(False)

    def _leave(self, user_id: UserID, waiter: _Waiter) -> None:
        waiting = self._waiting.get(user_id, {})
        waiting.pop(waiter, None)
        if not waiting:
            self._waiting.pop(user_id, None)
        if waiter.timer.active():
            waiter.timer.cancel()

    def _asked(self, _: object, observed: UserID, asking: Deferred[None], timer: Timer) -> None:
        if timer.active():
            timer.cancel()
        all_asking = self._asking.get(observed, [])
        if asking in all_asking:
            all_asking.remove(asking)
        if not all_asking:
            self._asking.pop(observed, None)


def _wake(waiter: _Waiter, woken: bool) -> None:
    if waiter.timer.active():
        waiter.timer.cancel()
    waiter.deferred.callback(woken)
