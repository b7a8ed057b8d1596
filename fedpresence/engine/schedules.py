"""When a pair falls due: resends, checks, expiries.

Every moment follows from the row alone, so a restart plans exactly what was planned before.

Source: subscriptions.md 3.5, O-15 to O-18, O-25, O-25a, O-34, T-18, T-37; security.md Z-21.
"""

from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS
from fedpresence.engine.subscription import (
    EduKind,
    ObservedMove,
    ObservedRow,
    ObservedStage,
    ObserverMove,
    ObserverRow,
    ObserverStage,
)
from fedpresence.engine.world import World, phase
from fedpresence.ids import UserID

REQUEST_LIFE_MS = 180 * DAY_MS  # S:O-17, T-18
TOMBSTONE_LIFE_MS = 30 * DAY_MS  # S:O-34, T-37, and the notes of S:5
CONFIRM_AFTER_MS = 7 * DAY_MS  # S:O-25
CONFIRM_PHASE_MS = 12 * HOUR_MS  # so that checks are never in herds, and done within nine days (S:5)
UNCONFIRMED_AFTER_MS = DAY_MS  # S:O-25a
REPEAT_MS = 10 * MINUTE_MS  # S:O-12: an invite younger than this is not repeated

# S:3.5: after 1 h, 6 h, 24 h, then daily up to day 7, then weekly up to day 180.
REPEATS_MS = (
    HOUR_MS,
    6 * HOUR_MS,
    *(day * DAY_MS for day in range(1, 8)),
    *(day * DAY_MS for day in range(14, 181, 7)),
)

EXPIRIES = frozenset({ObserverMove.EXPIRE, ObserverMove.FORGET, ObserverMove.UNCONFIRMED})


def next_repeat_ms(since_ms: int, after_ms: int) -> int:
    """The first moment of S:3.5, counted from `since_ms`, that is later than `after_ms`."""
    for repeat_ms in REPEATS_MS:
        if since_ms + repeat_ms > after_ms:
            return since_ms + repeat_ms
    weeks = (after_ms - since_ms) // (7 * DAY_MS) + 1
    return since_ms + weeks * 7 * DAY_MS


def plan_confirmations(world: World) -> list[UserID]:
    """After a start: each pair at rest with a remote user gets its moment. Answers who is accepted there."""
    accepted = []
    for observed in world.pairs.everybody_observed():
        if not world.is_local(observed):
            at_rest = world.pairs.at_rest(observed)
            for observer, confirmed_ms in at_rest:
                at_ms = _confirm_at_ms(observer, observed, confirmed_ms, world)
                world.deadlines.set((observer, observed, True), at_ms)
            if at_rest or world.pairs.watching(observed, ObserverStage.ACCEPTED):
                accepted.append(observed)
    return accepted


def observer_moments(row: ObserverRow, world: World) -> list[tuple[int, ObserverMove]]:
    """What time will do to an observer's row, each with its moment; the first due is done."""
    held_ms = world.hold_expiries_until_ms
    remote = not world.is_local(row.observed)
    moments: list[tuple[int, ObserverMove]] = []
    match row.stage:
        case ObserverStage.NONE:
            if not row.owed:
                moments.append((max(held_ms, row.changed_ms + TOMBSTONE_LIFE_MS), ObserverMove.FORGET))
        case ObserverStage.PENDING:
            moments.append((max(held_ms, row.created_ms + REQUEST_LIFE_MS), ObserverMove.EXPIRE))
            moments.append((_resend_ms(row, world), ObserverMove.RESEND))
        case ObserverStage.ACCEPTED if remote and row.check_ms:
            if not any(owed.kind is EduKind.INVITE for owed in row.owed):
                unconfirmed_ms = row.check_ms + UNCONFIRMED_AFTER_MS
                moments.append((max(held_ms, unconfirmed_ms), ObserverMove.UNCONFIRMED))
        case ObserverStage.ACCEPTED if remote:
            at_ms = _confirm_at_ms(row.observer, row.observed, row.confirmed_ms, world)
            moments.append((at_ms, ObserverMove.CHECK))
        case ObserverStage.DENIED:
            moments.append((max(held_ms, row.changed_ms + TOMBSTONE_LIFE_MS), ObserverMove.FORGET))
        case ObserverStage.ACCEPTED:
            pass  # both users are ours: nothing can be lost between them
    return moments


def observed_moments(row: ObservedRow, world: World) -> list[tuple[int, ObservedMove]]:
    """What time will do to an observed user's row."""
    held_ms = world.hold_expiries_until_ms
    match row.stage:
        case ObservedStage.REQUESTED:
            return [(max(held_ms, row.created_ms + REQUEST_LIFE_MS), ObservedMove.EXPIRE)]
        case ObservedStage.NONE if not row.owed:
            return [(max(held_ms, row.changed_ms + TOMBSTONE_LIFE_MS), ObservedMove.FORGET)]
        case ObservedStage.DENIED if not row.blocked:
            return [(max(held_ms, row.changed_ms + TOMBSTONE_LIFE_MS), ObservedMove.FORGET)]
        case _:
            return []


def _confirm_at_ms(observer: UserID, observed: UserID, confirmed_ms: int, world: World) -> int:
    """When an accepted remote user is to be asked whether that still holds (S:O-25)."""
    phase_ms = phase(CONFIRM_PHASE_MS, observer, observed)
    return max(confirmed_ms + CONFIRM_AFTER_MS + phase_ms, world.started_ms + phase_ms // 12)


def _resend_ms(row: ObserverRow, world: World) -> int:
    """S:O-15; after a restart what is overdue or old is spread over an hour (S:O-18)."""
    due_ms = next_repeat_ms(row.created_ms, row.invite_ms)
    if max(row.invite_ms, row.created_ms) >= world.started_ms:
        return due_ms
    spread_ms = world.started_ms + phase(HOUR_MS, row.observer, row.observed)
    is_old = row.invite_ms < world.started_ms - DAY_MS
    return spread_ms if is_old or due_ms < spread_ms else due_ms
