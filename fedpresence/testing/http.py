"""JSON over plain HTTP, synchronously: what a script or a test without a reactor needs."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered: `body` parsed where it is JSON, else its text."""

    status: int
    body: Any
    headers: dict[str, str]


def request(
    method: str,
    url: str,
    body: object = None,
    *,
    token: str | None = None,
    timeout_s: float = 60.0,
) -> Answer:
    """One request; OSError where the server cannot be reached or ends in the middle."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"{method} {parts.path}: {error!r}") from error
    finally:
        connection.close()
    answered = {name.lower(): value for name, value in response.getheaders()}
    is_json = answered.get("content-type", "") == "application/json"
    return Answer(response.status, json.loads(text) if is_json else text.decode("utf-8", "replace"), answered)
