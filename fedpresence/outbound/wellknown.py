"""`/.well-known/matrix/server`: fetched with care, read with suspicion, remembered for as long as it says.

Always true: a redirect leads to https only, at most five times, and every hop's address is checked like
any other; whatever is invalid means "no delegation", never an error.

Source: F:5.1, Z-5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from fedpresence.errors import BadRequest, DeliveryFailed
from fedpresence.ids import ServerName, parse_server_name
from fedpresence.outbound.connections import Connections
from fedpresence.outbound.exchange import fetch, http_date_ms, values_of
from fedpresence.outbound.http11 import Answer
from fedpresence.outbound.route import Route
from fedpresence.wire.json import decode_json

PATH = "/.well-known/matrix/server"
MAX_BYTES = 50 * 1024
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DEFAULT_LIFE_MS = 24 * HOUR_MS
SHORTEST_LIFE_MS = 5 * MINUTE_MS
LONGEST_LIFE_MS = 48 * HOUR_MS
REFRESH_SHARE = 0.8  # asked again in the last fifth of its life
JITTER_SHARE = 0.1
FIRST_ERROR_LIFE_MS = 5 * MINUTE_MS
LONGEST_ERROR_LIFE_MS = HOUR_MS
LATELY_VALID_LIFE_MS = 2 * MINUTE_MS  # an error where a valid answer expired less than this ago:
LATELY_MS = 2 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Delegation:
    """What a server's well-known said: `delegated` None means nothing valid.

    `valid_until_ms` is when its last valid answer expires or expired, `errors` how many came in a row.
    """

    delegated: ServerName | None
    refresh_at_ms: int
    expires_at_ms: int
    valid_until_ms: int = 0
    errors: int = 0


async def fetch_well_known(connections: Connections, host: str) -> Answer | None:
    """The answer of the last hop; None where there is none, or redirects go too far or leave https."""
    scheme, authority, uri = "https", host, PATH
    for _ in range(MAX_REDIRECTS + 1):
        try:
            target = parse_server_name(authority)
            parts = urlsplit(f"{scheme}://{target}")
            name, port = parts.hostname, parts.port or 443
        except (BadRequest, ValueError):
            return None
        if scheme != "https" or not name:
            return None
        # urlsplit lowers the case of a name; DNS and certificates do not mind.
        route = Route(target, ((name, port),), host_header=authority, tls_name=name)
        try:
            answer = await fetch(connections, route, uri, MAX_BYTES)
        except DeliveryFailed:
            return None
        if answer.status not in REDIRECTS:
            return answer
        location = (values_of(answer.headers, b"location") or [""])[0]
        try:
            there = urlsplit(urljoin(f"https://{authority}{uri}", location))
        except ValueError:
            return None
        scheme, authority = there.scheme, there.netloc
        uri = (there.path or "/") + (f"?{there.query}" if there.query else "")
        if not uri.isascii() or not uri.isprintable() or " " in uri:
            return None
    return None


def judge(answer: Answer | None, before: Delegation | None, now_ms: int, jitter: float) -> Delegation:
    """What to believe after an answer (None: no answer came), and for how long; `jitter` is in 0..1."""
    delegated = _delegated(answer)
    if delegated is not None:
        assert answer is not None
        life_ms = _life_ms(answer.headers, now_ms, jitter)
        expires_at_ms = now_ms + life_ms
        return Delegation(delegated, now_ms + int(life_ms * REFRESH_SHARE), expires_at_ms, expires_at_ms)
    errors = before.errors + 1 if before is not None else 1
    valid_until_ms = before.valid_until_ms if before is not None else 0
    temporary = answer is None or answer.status >= 500 or (answer.status == 200 and not answer.body)
    if temporary and before is not None and before.delegated is not None and now_ms < before.expires_at_ms:
        again_ms = min(now_ms + LATELY_VALID_LIFE_MS, before.expires_at_ms)
        return Delegation(before.delegated, again_ms, before.expires_at_ms, valid_until_ms, errors)
    if temporary and now_ms < valid_until_ms + LATELY_MS:
        life_ms = LATELY_VALID_LIFE_MS
    elif temporary:
        life_ms = min(FIRST_ERROR_LIFE_MS << min(errors - 1, 10), LONGEST_ERROR_LIFE_MS)
    else:
        life_ms = LONGEST_ERROR_LIFE_MS
    life_ms = int(life_ms * (1 - JITTER_SHARE * jitter))
    return Delegation(None, now_ms + life_ms, now_ms + life_ms, valid_until_ms, errors)


def _delegated(answer: Answer | None) -> ServerName | None:
    if answer is None or answer.status != 200:
        return None
    try:
        body = decode_json(answer.body)  # whatever its Content-Type
        return parse_server_name(body.get("m.server")) if isinstance(body, dict) else None
    except BadRequest:
        return None


def _life_ms(headers: Mapping[bytes, list[bytes]], now_ms: int, jitter: float) -> int:
    """How long a valid answer may be kept, by its cache headers."""
    directives: dict[str, str] = {}
    for line in values_of(headers, b"cache-control"):
        for directive in line.split(","):
            name, _, value = directive.partition("=")
            directives[name.strip().lower()] = value.strip(' "')
    if "no-store" in directives:
        return SHORTEST_LIFE_MS  # kept this long all the same, or each transaction would ask
    if directives.get("max-age", "").isdecimal():
        life_ms = int(directives["max-age"][:10]) * 1000
    elif expires := values_of(headers, b"expires"):
        life_ms = (http_date_ms(expires[0]) or 0) - now_ms  # an unreadable date has passed (RFC 9111)
    else:
        life_ms = int(DEFAULT_LIFE_MS * (1 - JITTER_SHARE * jitter))
    return min(max(life_ms, SHORTEST_LIFE_MS), LONGEST_LIFE_MS)
