"""Every transaction that was seen between servers, in the order in which they were sent.

Always true:
- an entry stands where its transaction was sent; what became of it is added later;
- it has an answer only where the sender got one;
- at most so many entries and bytes are kept, then the oldest go first and are counted.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fedpresence.ids import ServerName

MAX_ENTRIES = 100_000
MAX_BYTES = 256 * 1024 * 1024  # of bodies
MAX_SHOWN = 8  # pushes, or user IDs, of one EDU in a line for humans
MAX_SHOWN_STATUS = 40  # characters of a status message in such a line

UNKNOWN = ServerName("?")  # the origin of a transaction that does not say who sent it

_LIST_WORDS = {
    "m.presence_invite": "invite {observer_user} → {observed_user}",
    "m.presence_accept": "accept {observed_user} → {observer_user}",
    "m.presence_deny": "deny {observed_user} → {observer_user}",
    "org.fedpresence.presence_drop": "drop {observer_user} → {observed_user}",
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One transaction. `content` is its body as it came; times are the rig's.

    `answered_ms` and `status` are None where its sender got no answer. `duplicate`: the path sent it once
    more, nobody waited for its answer. `note` says in a few words what the path did to it.
    """

    origin: ServerName
    destination: ServerName
    txn_id: str
    sent_ms: int
    content: bytes
    duplicate: bool = False
    answered_ms: int | None = None
    status: int | None = None
    note: str = ""

    @property
    def body(self) -> Any:
        """The parsed body; its text where it is not JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return self.content.decode("utf-8", "replace")


class WireLog:
    """Keeps what the paths saw. `dropped` counts the entries that are no longer kept.

    `watch` is told of every entry as it is sent; it must not raise.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[int, Recorded] = OrderedDict()
        self._bytes = 0
        self._next = 0
        self.dropped = 0
        self.watch: Callable[[Recorded], object] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def record(
        self,
        origin: ServerName,
        destination: ServerName,
        txn_id: str,
        content: bytes,
        sent_ms: int,
        *,
        duplicate: bool = False,
    ) -> int:
        """A transaction was sent; its number, for what becomes of it."""
        number = self._next
        self._next += 1
        recorded = Recorded(origin, destination, txn_id, sent_ms, content, duplicate)
        self._entries[number] = recorded
        self._bytes += len(content)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= len(oldest.content)
            self.dropped += 1
        if self.watch is not None:
            self.watch(recorded)
        return number

    def answered(self, number: int, status: int, answered_ms: int) -> None:
        """Its sender got an answer."""
        recorded = self._entries.get(number)
        if recorded is not None:
            self._entries[number] = replace(recorded, status=status, answered_ms=answered_ms)

    def note(self, number: int, note: str) -> None:
        """Something happened to it on its way; said after what was noted before."""
        recorded = self._entries.get(number)
        if recorded is not None:
            before = f"{recorded.note}, " if recorded.note else ""
            self._entries[number] = replace(recorded, note=before + note)

    def clear(self) -> None:
        """Forget all entries; a new test begins."""
        self._entries.clear()
        self._bytes = 0
        self.dropped = 0

    def transactions(
        self, origin: ServerName | None = None, destination: ServerName | None = None
    ) -> list[Recorded]:
        """What was sent, in order; only from `origin` and only to `destination` where they are given."""
        return [
            recorded
            for recorded in self._entries.values()
            if origin in (None, recorded.origin) and destination in (None, recorded.destination)
        ]

    def text(
        self,
        origin: ServerName | None = None,
        destination: ServerName | None = None,
        *,
        last: int | None = None,
    ) -> str:
        """One line for each transaction, for humans; times in seconds since the first one that is kept.

        `last`: only so many, the newest.
        """
        recorded = self.transactions(origin, destination)
        left_out = self.dropped
        if last is not None and len(recorded) > last:
            left_out += len(recorded) - last
            recorded = recorded[len(recorded) - last :]
        start_ms = next(iter(self._entries.values())).sent_ms if self._entries else 0
        lines = [f"({left_out} earlier left out)"] if left_out else []
        lines.extend(_line(each, start_ms) for each in recorded)
        return "\n".join(lines)


def encode(recorded: Recorded) -> dict[str, object]:
    """An entry as the control API shows it; `duplicate` only where it is one."""
    encoded: dict[str, object] = {
        "from": recorded.origin,
        "to": recorded.destination,
        "txn_id": recorded.txn_id,
        "sent_ms": recorded.sent_ms,
        "answered_ms": recorded.answered_ms,
        "status": recorded.status,
        "body": recorded.body,
    }
    if recorded.duplicate:
        encoded["duplicate"] = True
    return encoded


def describe(body: object) -> str:
    """What a transaction says, in a few words; whatever it is, this does not fail."""
    if not isinstance(body, dict):
        return "not a transaction"
    said: list[str] = []
    edus = body.get("edus", [])
    for edu in edus if isinstance(edus, list) else ["malformed"]:
        said.extend(_said_by(edu))
    pdus = body.get("pdus")
    if isinstance(pdus, list) and pdus:
        said.append(f"{len(pdus)} PDU{'s' if len(pdus) > 1 else ''}")
    return "; ".join(said) or "nothing"


def _line(recorded: Recorded, start_ms: int) -> str:
    answer = "no answer" if recorded.status is None else str(recorded.status)
    if recorded.answered_ms is not None and recorded.answered_ms > recorded.sent_ms:
        answer += f" after {recorded.answered_ms - recorded.sent_ms} ms"
    if recorded.duplicate:
        answer = "once more"
    note = f" [{recorded.note}]" if recorded.note else ""
    seconds = (recorded.sent_ms - start_ms) / 1000
    return (
        f"{seconds:+12.3f} s  {recorded.origin} → {recorded.destination}  {recorded.txn_id}  "
        f"{answer}{note}: {describe(recorded.body)}"
    )


def _said_by(edu: object) -> Iterator[str]:
    edu_type = edu.get("edu_type") if isinstance(edu, dict) else None
    content = edu.get("content") if isinstance(edu, dict) else None
    if not isinstance(edu_type, str) or not isinstance(content, dict):
        yield "a malformed EDU"
    elif edu_type == "m.presence":
        yield from _presence(content)
    elif edu_type in _LIST_WORDS:
        users = {key: content.get(key, "?") for key in ("observer_user", "observed_user")}
        yield _LIST_WORDS[edu_type].format(**users)
    else:
        yield edu_type


def _presence(content: dict[str, Any]) -> Iterator[str]:
    pushes = content.get("push", [])
    if not isinstance(pushes, list):
        yield "a malformed push"
        pushes = []
    for push in pushes[:MAX_SHOWN]:
        yield _push(push) if isinstance(push, dict) else "a malformed push"
    if len(pushes) > MAX_SHOWN:
        yield f"{len(pushes) - MAX_SHOWN} more pushes"
    for word in ("poll", "unpoll"):
        users = content.get(word, [])
        if not isinstance(users, list):
            yield f"a malformed {word}"
        elif users:
            shown = ", ".join(str(user) for user in users[:MAX_SHOWN])
            more = f" and {len(users) - MAX_SHOWN} more" if len(users) > MAX_SHOWN else ""
            yield f"{word} {shown}{more}"
    if not any(content.get(word) for word in ("push", "poll", "unpoll")):
        yield "an empty m.presence"


def _push(push: dict[str, Any]) -> str:
    details = []
    if "last_active_ago" in push:
        details.append(f"{push['last_active_ago']} ms ago")
    if push.get("currently_active") is True:
        details.append("active")
    status_msg = push.get("status_msg")
    if status_msg is not None:
        shown = str(status_msg)
        details.append(json.dumps(shown[:MAX_SHOWN_STATUS], ensure_ascii=False))
    aside = f" ({', '.join(details)})" if details else ""
    return f"push {push.get('user_id', '?')} {push.get('presence', '?')}{aside}"
