"""EDUs as another homeserver writes them: JSON made by hand, without this package's own encoders.

Always true: what is made is what the words say, so a test reads like the wire; nothing is checked, for a
script must be able to say what is wrong too.

Source: Matrix server-server API, Presence (2018 text for the list EDUs); edus.md.
"""

Json = dict[str, object]


def push(user_id: str, presence: str = "online", last_active_ago: int = 0, **more: object) -> Json:
    """`m.presence` with one user's presence; `more` are further keys of the item.

    >>> push("@eve:fake.test", status_msg="Fika")["content"]["push"][0]["status_msg"]
    'Fika'
    """
    return presence_of(push_item(user_id, presence, last_active_ago, **more))


def push_item(user_id: str, presence: str = "online", last_active_ago: int = 0, **more: object) -> Json:
    """One item for `presence_of`; with `online` it says `currently_active`, unless `more` says otherwise."""
    item: Json = {"user_id": user_id, "presence": presence, "last_active_ago": last_active_ago}
    if presence == "online":
        item["currently_active"] = True
    return item | more


def presence_of(*items: object) -> Json:
    """`m.presence` with several users' presence."""
    return _edu("m.presence", {"push": list(items)})


def poll(*user_ids: str) -> Json:
    """`m.presence` that asks for the presence of these users (E:3)."""
    return _edu("m.presence", {"push": [], "poll": list(user_ids)})


def unpoll(*user_ids: str) -> Json:
    """`m.presence` that wants no more pushes of these users (E:3)."""
    return _edu("m.presence", {"push": [], "unpoll": list(user_ids)})


def invite(observer: str, observed: str) -> Json:
    """`m.presence_invite`: the observer asks to observe.

    >>> invite("@eve:fake.test", "@alice:here.test")["edu_type"]
    'm.presence_invite'
    """
    return _pair("m.presence_invite", observer, observed)


def accept(observer: str, observed: str) -> Json:
    """`m.presence_accept`: the observed user lets the observer."""
    return _pair("m.presence_accept", observer, observed)


def deny(observer: str, observed: str) -> Json:
    """`m.presence_deny`: the observed user does not let the observer, or no more."""
    return _pair("m.presence_deny", observer, observed)


def drop(observer: str, observed: str) -> Json:
    """`org.fedpresence.presence_drop`: the observer observes no more."""
    return _pair("org.fedpresence.presence_drop", observer, observed)


def _pair(edu_type: str, observer: str, observed: str) -> Json:
    return _edu(edu_type, {"observed_user": observed, "observer_user": observer})


def _edu(edu_type: str, content: Json) -> Json:
    return {"edu_type": edu_type, "content": content}
