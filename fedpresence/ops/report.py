"""What the commands print: aligned text from the admin API's JSON (pure).

Always true: text from elsewhere is printed without control characters, so no server can write into the
operator's terminal.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

NONE = "-"


def status_text(status: dict[str, Any], destinations: dict[str, Any], now_ms: int) -> str:
    """The daemon at a glance."""
    doubted = int(status.get("rooms_doubted") or 0)
    lines = [
        f"{plain(status.get('server_name'))}  fedpresence {plain(status.get('version'))}  "
        f"up {length(int(status.get('uptime_ms') or 0))}",
        "",
        *table(
            [
                ["users", _counts(status.get("users"))],
                ["subscriptions", _counts(status.get("subscriptions"))],
                ["destinations", _counts(status.get("destinations"))],
                *([["scan", _counts(status["scan"])]] if "scan" in status else []),
                *([["rooms to be read again", str(doubted)]] if doubted else []),
            ]
        ),
    ]
    rows = [
        [
            server,
            queue.get("state"),
            queue.get("pending_users"),
            queue.get("owed"),
            moment(queue.get("last_success_ts")),
            moment(queue.get("failing_since_ts")),
            _until(queue.get("next_try_ts"), now_ms),
            queue.get("last_error"),
        ]
        for server, queue in sorted(destinations.items())
    ]
    if rows:
        head = [
            "server",
            "state",
            "pending",
            "owed",
            "last success",
            "failing since",
            "next try",
            "last error",
        ]
        lines += ["", *table([head, *rows])]
    return "\n".join(lines)


def subscriptions_text(user: dict[str, Any]) -> str:
    """A user's list, invites and observers."""
    lines = [f"{plain(user.get('user_id'))}: {plain(user.get('presence'))}"]
    parts = {
        "list": [
            [entry.get("user_id"), entry.get("state"), "since " + moment(entry.get("since_ts"))]
            for entry in user.get("list") or ()
        ],
        "invites": [
            [entry.get("user_id"), "since " + moment(entry.get("since_ts"))]
            for entry in user.get("invites") or ()
        ],
        "observers": [
            [
                entry.get("user_id"),
                "since " + moment(entry.get("since_ts")),
                "muted" if entry.get("muted") else "",
            ]
            for entry in user.get("observers") or ()
        ],
    }
    for title, rows in parts.items():
        lines += ["", f"{title}: {len(rows) or 'none'}", *(f"  {line}" for line in table(rows))]
    return "\n".join(lines)


def tokens_text(tokens: Sequence[tuple[str, str | None, int]]) -> str:
    """User, device and age of each token."""
    return "\n".join(table([["user", "device", "created"], *([u, d, moment(ms)] for u, d, ms in tokens)]))


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows with their columns aligned."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def moment(ms: object) -> str:
    """A moment in UTC; a dash for none."""
    if not isinstance(ms, int) or ms <= 0:
        return NONE
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def length(ms: int) -> str:
    """A length of time in its two largest units."""
    seconds = max(0, ms // 1000)
    units = (
        ("d", seconds // 86400),
        ("h", seconds // 3600 % 24),
        ("m", seconds // 60 % 60),
        ("s", seconds % 60),
    )
    first = next((index for index, (_, count) in enumerate(units) if count), 3)
    return " ".join(f"{count}{unit}" for unit, count in units[first : first + 2])


def plain(value: object) -> str:
    """Printable text of whatever came."""
    if value is None:
        return NONE
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _counts(counts: object) -> str:
    if not isinstance(counts, dict) or not counts:
        return "none"
    return "  ".join(f"{plain(name)} {plain(count)}" for name, count in counts.items())


def _until(ms: object, now_ms: int) -> str:
    if not isinstance(ms, int) or ms <= 0:
        return NONE
    return "in " + length(ms - now_ms) if ms > now_ms else "now"
