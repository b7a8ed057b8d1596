"""What a fake homeserver answers: as told, right or wrong.

Always true: an answer is a value, so one can be said many times and travel as JSON; of `hang`, `close` and
`raw` it has one at most.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedpresence.errors import BadRequest
from fedpresence.testing.homeserver.fields import MAX_MS, Fields, complaint
from fedpresence.testing.homeserver.received import SEND_PATH, ReceivedRequest

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}


@dataclass(frozen=True, slots=True)
class FakeAnswer:
    """One answer to one request.

    `body` is JSON, or bytes that are sent as they are; None is what usually goes with the status.
    `headers` are set beside, or instead of, those that belong there. `raw` is sent in place of any HTTP,
    then the connection is closed. `hang` never answers; `close` closes the connection without an answer.
    `delay_ms` passes before any of it; with `trickle_ms`, each byte takes so long, and then the connection
    is closed. Both are counted by the homeserver's clock.

    >>> FakeAnswer(429).encoded_body()
    b'{"errcode": "M_LIMIT_EXCEEDED", "error": "As told", "retry_after_ms": 1000}'
    """

    status: int = 200
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hang: bool = False
    close: bool = False
    delay_ms: int = 0
    trickle_ms: int = 0

    def __post_init__(self) -> None:
        if self.hang + self.close + (self.raw is not None) > 1:
            raise ValueError("an answer has one of hang, close and raw")

    def encoded_body(self) -> bytes:
        """The body's bytes."""
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(_usual(self.status) if self.body is None else self.body).encode()

    def encoded(self) -> bytes:
        """The whole answer, as it is trickled."""
        if self.raw is not None:
            return self.raw
        body = self.encoded_body()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | {**self.headers}
        head = f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'As told')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{head}Connection: close\r\n\r\n".encode("latin-1") + body


Scripted = FakeAnswer | Callable[[ReceivedRequest], FakeAnswer]
"""An answer, or what makes one of the request."""


@dataclass(frozen=True, slots=True)
class Script:
    """The answers to requests whose URI begins with `path`: `next` one by one, then `always`.

    `always` None is what a homeserver would answer by itself.
    """

    next: tuple[Scripted, ...] = ()
    always: Scripted | None = None
    path: str = SEND_PATH


_ANSWER_KEYS = frozenset(
    {
        "status",
        "body",
        "body_text",
        "body_base64",
        "headers",
        "raw",
        "raw_base64",
        "hang",
        "close",
        "delay_ms",
        "trickle_ms",
    }
)


def decode_answer(obj: object) -> FakeAnswer:
    """An answer from plain JSON; BadRequest names the key that is wrong.

    The keys are those of `FakeAnswer`, all optional. Bytes are text here, sent as UTF-8: `raw`, and
    `body_text` for a body that is not JSON; `raw_base64` and `body_base64` for what is no text either.

    >>> decode_answer({"status": 503, "delay_ms": 250}).status
    503
    >>> decode_answer({"raw": "not HTTP"}).raw
    b'not HTTP'
    >>> decode_answer({"status": "503"})
    Traceback (most recent call last):
    fedpresence.errors.BadRequest: status: must be a whole number from 200 to 599
    """
    fields = Fields(obj, "an answer", _ANSWER_KEYS)
    _one_at_most(fields, "body", "body_text", "body_base64")
    _one_at_most(fields, "raw", "raw_base64")
    body: object = fields.get("body")
    if "body" in fields and body is None:
        body = b"null"
    body_bytes = _bytes(fields, "body_text", "body_base64")
    headers = fields.texts("headers")
    for name, value in headers.items():
        if not (name.isascii() and name.isprintable() and " " not in name and ":" not in name and name):
            raise complaint("headers", "a header's name must be a token")
        if not (value.isascii() and value.isprintable()):
            raise complaint("headers", "a header's value must be printable ASCII")
    try:
        return FakeAnswer(
            status=fields.number("status", 200, 200, 599),
            body=body if body_bytes is None else body_bytes,
            headers=headers,
            raw=_bytes(fields, "raw", "raw_base64"),
            hang=fields.flag("hang"),
            close=fields.flag("close"),
            delay_ms=fields.number("delay_ms", 0, 0, MAX_MS),
            trickle_ms=fields.number("trickle_ms", 0, 0, MAX_MS),
        )
    except ValueError as error:
        raise complaint("hang", str(error)) from error


def encode_answer(answer: FakeAnswer) -> dict[str, object]:
    """The answer as plain JSON: what `decode_answer` reads, without what is left as it usually is."""
    encoded: dict[str, object] = {}
    if answer.status != 200:
        encoded["status"] = answer.status
    if isinstance(answer.body, bytes):
        encoded["body_base64"] = base64.b64encode(answer.body).decode()
    elif answer.body is not None:
        encoded["body"] = answer.body
    if answer.raw is not None:
        encoded["raw_base64"] = base64.b64encode(answer.raw).decode()
    if answer.headers:
        encoded["headers"] = dict(answer.headers)
    for key in ("hang", "close", "delay_ms", "trickle_ms"):
        if value := getattr(answer, key):
            encoded[key] = value
    return encoded


def decode_script(obj: object) -> Script:
    """A script from `{"next": [answer…], "always": answer or null, "path": "/_matrix/…"}`, all optional.

    BadRequest names the key that is wrong, `next[1].status` for one inside an answer.

    >>> decode_script({"next": [{"status": 500}]}).next[0].status
    500
    """
    fields = Fields(obj, "a script", {"next", "always", "path"})
    path = fields.text("path")
    if path is not None and not path.startswith("/"):
        raise complaint("path", "must begin with /")
    answers = tuple(
        _inside(f"next[{place}]", answer) for place, answer in enumerate(fields.array("next") or ())
    )
    always = fields.get("always")
    return Script(
        answers, None if always is None else _inside("always", always), SEND_PATH if path is None else path
    )


def _inside(place: str, obj: object) -> FakeAnswer:
    if not isinstance(obj, dict):
        raise complaint(place, "must be a JSON object")
    try:
        return decode_answer(obj)
    except BadRequest as error:
        raise BadRequest(error.errcode, f"{place}.{error.message}") from error


def _one_at_most(fields: Fields, *keys: str) -> None:
    there = [key for key in keys if key in fields]
    if len(there) > 1:
        raise complaint(there[1], f"cannot be there together with {there[0]}")


def _bytes(fields: Fields, as_text: str, as_base64: str) -> bytes | None:
    """The bytes of one of two keys; None where neither is there."""
    encoded = fields.text(as_base64)
    if encoded is not None:
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError:
            raise complaint(as_base64, "must be Base64") from None
    text = fields.text(as_text)
    try:
        return None if text is None else text.encode()
    except UnicodeEncodeError:
        raise complaint(as_text, "holds half a surrogate pair") from None


def _usual(status: int) -> dict[str, object]:
    if status < 300:
        return {"pdus": {}}
    if status == 429:
        return {"errcode": "M_LIMIT_EXCEEDED", "error": "As told", "retry_after_ms": 1000}
    errcode = {401: "M_UNAUTHORIZED", 403: "M_FORBIDDEN", 404: "M_UNRECOGNIZED", 413: "M_TOO_LARGE"}
    return {"errcode": errcode.get(status, "M_UNKNOWN"), "error": "As told"}
