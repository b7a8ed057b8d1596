"""Where a message ends, and whether everybody reads its head alike.

What can be read in two ways smuggles requests past a proxy; what cannot be read at all is answered as it is,
for there is no request to answer.

Source: RFC 9112, 6.1, 6.3 and 11.2.
"""

import re

from httptools import HttpParserError, HttpParserInvalidMethodError

from fedpresence.fields import Fields
from fedpresence.request import Request

MAX_HEAD_BYTES = 16_384  # of a request line, and of all fields together
MAX_FIELDS = 500
MAX_LENGTH_DIGITS = 20  # 64 bits; the parser lets any number of zeros stand before them

_METHOD = re.compile(rb"[A-Za-z]+ /")


def _answer_of(status: bytes, body: bytes) -> bytes:
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (status, len(body), body)
    )


MALFORMED = _answer_of(
    b"400 Bad Request", b'{"errcode":"M_UNKNOWN","error":"Not an HTTP request that we can read"}'
)
UNKNOWN_METHOD = _answer_of(
    b"405 Method Not Allowed", b'{"errcode":"M_UNRECOGNIZED","error":"Unrecognized method"}'
)


def is_sound(request: Request, head_bytes: int) -> bool:
    """Whether the head is one that everybody reads alike, and not too large; sets how long the body is."""
    fields = request.requestHeaders
    if request.version not in (b"1.1", b"1.0") or len(fields) > MAX_FIELDS:
        return False
    if head_bytes > MAX_HEAD_BYTES and not _fits(request.uri, fields):
        return False
    coding = fields.getRawHeaders(b"transfer-encoding")
    if coding:
        request.length = None
        return len(coding) == 1 and coding[0].lower() == b"chunked" and request.version == b"1.1"
    announced = fields.getRawHeaders(b"content-length")
    if announced:
        if len(announced[0]) > MAX_LENGTH_DIGITS:
            return False
        request.length = int(announced[0])  # the parser lets nothing through that is no number
    return True


def is_endless(request: Request | None, unseen_bytes: int) -> bool:
    """Whether more has come of a head, or between the pieces of a body, than there may be."""
    target = len(request.uri) if request is not None and not request.method else 0
    return unseen_bytes > MAX_HEAD_BYTES + min(target, MAX_HEAD_BYTES)


def head_of_body(length: int | None) -> bytes:
    """A head that makes a parser read a body of this length (None: chunked)."""
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing


def answer_to(error: HttpParserError, data: bytes) -> bytes:
    """What `data`, which cannot be read, is answered; it may be but the method that is not known."""
    is_method = isinstance(error, HttpParserInvalidMethodError) and _METHOD.match(data) is not None
    return UNKNOWN_METHOD if is_method else MALFORMED


def _fits(uri: bytes, fields: Fields) -> bool:
    sizes = (len(name) + 4 + len(value) for name, values in fields.getAllRawHeaders() for value in values)
    return len(uri) <= MAX_HEAD_BYTES and sum(sizes) <= MAX_HEAD_BYTES
