"""Hypothesis strategies for presence between servers: names, EDUs, transactions, events.

    >>> from hypothesis import given, settings
    >>> @settings(max_examples=5, database=None)
    ... @given(transactions("a.test", "b.test"))
    ... def nobody_else_is_pushed(transaction):
    ...     for edu in transaction["edus"]:
    ...         for item in edu["content"].get("push", []):
    ...             assert item["user_id"].endswith(":a.test")
    >>> nobody_else_is_pushed()

They are for any homeserver's tests: what they make is plain JSON, except for the events, which are for
this package's engine. Strategies of EDUs take who says it (`origin`) and to whom (`destination`).

Always true:
- what is called by its plain name keeps every rule of edus.md and of the Matrix specification, and a
  receiver must honour it; small examples are found first;
- what is called `broken` breaks one rule at least, and a receiver must leave it out; `refused` is answered
  with an error as a whole; `hostile` is anything, and no receiver may fall over it.

This package alone imports hypothesis (extra `test`). Source: edus.md, federation.md 1 and 7; Z-2, Z-3.
"""

from fedpresence.testing.strategies.events import (
    Happening,
    happenings,
    local_events,
    received_edus,
)
from fedpresence.testing.strategies.wire import (
    accept_edus,
    broken_edus,
    broken_list_edus,
    broken_presence_edus,
    broken_push_items,
    broken_user_ids,
    check,
    deny_edus,
    drop_edus,
    edus,
    hostile_bodies,
    hostile_transactions,
    invite_edus,
    json_values,
    list_edus,
    presence_contents,
    presence_edus,
    push_items,
    refused_transactions,
    server_names,
    status_messages,
    transactions,
    user_ids,
)

__all__ = [
    "Happening",
    "accept_edus",
    "broken_edus",
    "broken_list_edus",
    "broken_presence_edus",
    "broken_push_items",
    "broken_user_ids",
    "check",
    "deny_edus",
    "drop_edus",
    "edus",
    "happenings",
    "hostile_bodies",
    "hostile_transactions",
    "invite_edus",
    "json_values",
    "list_edus",
    "local_events",
    "presence_contents",
    "presence_edus",
    "push_items",
    "received_edus",
    "refused_transactions",
    "server_names",
    "status_messages",
    "transactions",
    "user_ids",
]
