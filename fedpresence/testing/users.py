"""What a script asks of a server, synchronously: as one of its users, and as its operator.

Always true: nothing here knows how the server runs. It is a process of its own or one of a rig's; both are
a `Server`, which says where it is and how to be admitted.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from fedpresence.ids import ServerName
from fedpresence.testing.http import Answer, request


class Server(ABC):
    """One server, as its users and its operator reach it."""

    name: ServerName
    admin_token: str

    @property
    @abstractmethod
    def client_url(self) -> str:
        """Where clients knock."""

    @property
    @abstractmethod
    def admin_url(self) -> str:
        """Where the admin API is."""

    def admin(self, method: str, path: str, body: object = None) -> Answer:
        """One request to the admin API, with its token."""
        url = f"{self.admin_url}/_fedpresence/admin/v1{path}"
        return request(method, url, body, token=self.admin_token)

    def is_active(self, user_id: str) -> None:
        """A pro-active event of a user, as if seen elsewhere."""
        answer = self.admin("POST", "/activity", {"events": [{"user_id": user_id}]})
        assert answer.status == 200, answer


class User:
    """One user's device at one server: what a client would ask for."""

    def __init__(self, server: Server, user_id: str, token: str) -> None:
        self.server = server
        self.user_id = user_id
        self.token = token
        self.since: str | None = None

    def call(self, method: str, path: str, body: object = None, timeout_s: float = 60.0) -> Answer:
        """One request with the user's token."""
        return request(method, self.server.client_url + path, body, token=self.token, timeout_s=timeout_s)

    def change_list(self, **change: Sequence[str]) -> Answer:
        """`POST .../presence/list`: invite=[...], accept=[...], deny, revoke, drop."""
        return self.call("POST", f"/_matrix/client/v3/presence/list/{self.user_id}", change)

    def put_status(self, presence: str, status_msg: str | None = None) -> Answer:
        """`PUT .../presence/{userId}/status`."""
        body = {"presence": presence} | ({"status_msg": status_msg} if status_msg else {})
        return self.call("PUT", f"/_matrix/client/v3/presence/{self.user_id}/status", body)

    def status_of(self, user_id: str) -> Answer:
        """`GET .../presence/{userId}/status`."""
        return self.call("GET", f"/_matrix/client/v3/presence/{user_id}/status")

    def subscriptions(self) -> Any:
        """The caller's list, invites and observers."""
        return self.call("GET", f"/_fedpresence/client/v1/subscriptions/{self.user_id}").body

    def sync(self, timeout_ms: int = 0, set_presence: str | None = None) -> Any:
        """One `/sync`, from where the last one ended."""
        query = f"?timeout={timeout_ms}"
        if self.since is not None:
            query += f"&since={self.since}"
        if set_presence is not None:
            query += f"&set_presence={set_presence}"
        answer = self.call("GET", f"/_matrix/client/v3/sync{query}", timeout_s=timeout_ms / 1000 + 30)
        if answer.status == 200:
            self.since = answer.body["next_batch"]
        return answer.body

    def sync_until(self, wanted: Callable[[Any], bool], timeout_s: float = 10.0, **kwargs: Any) -> Any:
        """Long polls until one answer holds what is wanted; AssertionError where none did in time."""
        __tracebackhide__ = True  # pytest then shows the line of the test
        deadline = time.monotonic() + timeout_s
        last: Any = None
        while (left_s := deadline - time.monotonic()) > 0:
            last = self.sync(timeout_ms=max(1, int(left_s * 1000)), **kwargs)
            if wanted(last):
                return last
        raise AssertionError(f"{self.user_id} saw nothing of it in {timeout_s} s; last: {last}")

    def presence_of(self, user_id: str, timeout_s: float = 10.0, **wanted: object) -> dict[str, Any]:
        """Long polls until `user_id` is shown with this content; answers the whole content."""
        __tracebackhide__ = True

        def found(answer: Any) -> dict[str, Any] | None:
            for event in answer.get("presence", {}).get("events", ()):
                content: dict[str, Any] = event["content"]
                if event["sender"] == user_id and all(content.get(k) == v for k, v in wanted.items()):
                    return content
            return None

        content = found(self.sync_until(lambda answer: found(answer) is not None, timeout_s))
        if content is None:
            raise AssertionError("unreachable: sync_until answered what was found")
        return content


class OpenStream:
    """Holds a user's `/sync` open, one long poll after the other, until closed."""

    def __init__(self, user: User) -> None:
        self._user = User(user.server, user.user_id, user.token)
        self._closed = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._first.wait(10):
            raise AssertionError(f"{user.user_id} could not open a stream")

    def close(self) -> None:
        """Open no further poll; the one that is open ends within a second."""
        self._closed.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._user.sync(timeout_ms=1000 if self._user.since else 0)
            except OSError:
                return
            self._first.set()
