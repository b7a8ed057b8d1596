"""Hypothesis strategies for JSON, user IDs and the EDUs that we send."""

from hypothesis import strategies as st

from fedpresence.engine.outgoing import ListEdu, PresenceEdu, Push
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.subscription import EduKind
from fedpresence.ids import ServerName, UserID
from fedpresence.wire.edus import MAX_AGO_MS, MAX_STATUS_BYTES
from fedpresence.wire.json import MAX_SAFE_INT

HERE = ServerName("here.test")
THERE = ServerName("there.test")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
safe_integers = st.integers(-MAX_SAFE_INT, MAX_SAFE_INT)
_leaves = st.none() | st.booleans() | safe_integers | texts


def json_values(*, floats: bool = True, leaves: int = 20) -> st.SearchStrategy[object]:
    """Whatever JSON can say, canonical JSON alone where `floats` is false."""
    scalars = _leaves | st.floats(allow_nan=False, allow_infinity=False) if floats else _leaves
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
        max_leaves=leaves,
    )


def user_ids(server_name: ServerName) -> st.SearchStrategy[UserID]:
    """Users that clients may be shown."""
    return st.text("abz019._=-/+AZ!~", min_size=1, max_size=40).map(
        lambda name: UserID(f"@{name}:{server_name}")
    )


_statuses = st.none() | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    min_size=1,
    max_size=MAX_STATUS_BYTES // 4,
)


@st.composite
def pushes(draw: st.DrawFn, server_name: ServerName) -> Push:
    """Push items as the engine makes them."""
    state = draw(st.sampled_from(PresenceState))
    return Push(
        user_id=draw(user_ids(server_name)),
        state=state,
        last_active_ago=draw(st.integers(0, MAX_AGO_MS)),
        status_msg=draw(_statuses),
        currently_active=state is PresenceState.ONLINE and draw(st.booleans()),
    )


def presence_edus(ours: ServerName, theirs: ServerName) -> st.SearchStrategy[PresenceEdu]:
    """What we send to `theirs`: our users' presence, their users polled."""
    asked = st.lists(user_ids(theirs), max_size=10, unique=True).map(tuple)
    return st.builds(
        PresenceEdu,
        push=st.lists(pushes(ours), max_size=10, unique_by=lambda push: push.user_id).map(tuple),
        poll=asked,
        unpoll=asked,
    )


@st.composite
def list_edus(draw: st.DrawFn, ours: ServerName, theirs: ServerName) -> ListEdu:
    """What our side of a pair may say to the other."""
    kind = draw(st.sampled_from(EduKind))
    we_observe = kind in (EduKind.INVITE, EduKind.DROP)
    observer = draw(user_ids(ours if we_observe else theirs))
    observed = draw(user_ids(theirs if we_observe else ours))
    return ListEdu(kind, observer, observed)


# Nearly right: the keys of EDUs with anything as their values.
_odd_users = user_ids(THERE) | user_ids(HERE) | texts | json_values(leaves=3)
_odd_items = st.fixed_dictionaries(
    {},
    optional={
        "user_id": _odd_users,
        "presence": st.sampled_from(["online", "offline", "busy", "free_for_chat"]) | json_values(leaves=3),
        "last_active_ago": st.integers() | json_values(leaves=3),
        "status_msg": json_values(leaves=3),
        "currently_active": json_values(leaves=3),
    },
)
_odd_contents = st.fixed_dictionaries(
    {},
    optional={
        "push": st.lists(_odd_items | json_values(leaves=3), max_size=5) | json_values(leaves=3),
        "poll": st.lists(_odd_users, max_size=5) | json_values(leaves=3),
        "unpoll": st.lists(_odd_users, max_size=5) | json_values(leaves=3),
        "observer_user": _odd_users,
        "observed_user": _odd_users,
    },
)
odd_edus = st.fixed_dictionaries(
    {},
    optional={
        "edu_type": st.sampled_from(["m.presence", "m.typing", *(kind.value for kind in EduKind)])
        | json_values(leaves=3),
        "content": _odd_contents | json_values(leaves=3),
    },
) | json_values(leaves=5)
