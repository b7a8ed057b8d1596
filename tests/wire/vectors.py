"""The key of the specification's test vectors, and what it signs.

Source: Matrix appendices, "Cryptographic Test Vectors"; F:3.3 and F:6.1 for requests and key objects.
"""

from signedjson.key import decode_signing_key_base64

from fedpresence.ids import KeyID, ServerName
from fedpresence.wire.signing import Identity, SigningKey, XMatrix, parse_x_matrix

SEED = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"  # of the appendices' test vectors: nobody's secret
DOMAIN = ServerName("domain")
DESTINATION = ServerName("dest.example")
KEY_ID = KeyID("ed25519:1")
PUBLIC = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI"
NOW_MS = 1_652_262_000_000
DAY_MS = 86_400_000
SIG = "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"
KEY_OBJECT_SIG = "FGoX7oBz36Xr5gZoCR7HSq2FtzDErzcUj0qWuPVA6XtQjT7TFP6ASqj4RJawsHF5EaV2tLUd6bBZ+yn4qYEIDw"

PUSH_BODY: dict[str, object] = {
    "edus": [
        {
            "content": {
                "push": [
                    {
                        "currently_active": True,
                        "last_active_ago": 5000,
                        "presence": "online",
                        "status_msg": "Fika ☕",
                        "user_id": "@alice:domain",
                    }
                ]
            },
            "edu_type": "m.presence",
        }
    ],
    "origin": "domain",
    "origin_server_ts": 1456225982000,
    "pdus": [],
}
INVITE_BODY: dict[str, object] = {
    "edus": [
        {
            "content": {"observed_user": "@bob:dest.example", "observer_user": "@alice:domain"},
            "edu_type": "m.presence_invite",
        }
    ],
    "origin": "domain",
    "origin_server_ts": 1456225982000,
    "pdus": [],
}
REQUESTS = [
    (
        "GET",
        "/_matrix/federation/v1/version",
        None,
        "XOTpTXYBoHdD8HXxAZsL1wvW0g1FDWwRwGZr/r7fau61fejuE4EYHI7nTOWeotZ1FqaQlAaizTvE3ktP7lZeCg",
    ),
    (
        "GET",
        "/_matrix/federation/v1/query/profile?user_id=%40bob%3Adest.example&field=displayname",
        None,
        "+0YAGZO7Gkt5DfJ+vJRQw2uR/RzSB5RcYMhrwPBHoC+cWdflKO2ZfFpSW1XWSWdNtHq2w3+1yH8PEQ2tWYWdDw",
    ),
    (
        "POST",
        "/_matrix/key/v2/query",
        {},
        "m+7XPle7QBK7kM2DBUDxRiCr8XDPY+Y8K32GvrEavGIhnX0cT39ZQrbxtWVuzB3vO8G9Q5WRiNkb0EK+QLVrCQ",
    ),
    (
        "PUT",
        "/_matrix/federation/v1/send/1456225982000",
        PUSH_BODY,
        "EsHxQoPehmQiuljerhggS6SVxhEW3opCAdRJruxP0JWvtTEaYsXb5xh2foMSZd8PgeJkpDQMVvOx/bOfiTnUBA",
    ),
    (
        "PUT",
        "/_matrix/federation/v1/send/2",
        INVITE_BODY,
        "/YFNTxW9TBokBScSVNNOiBb4BfDREu5RVi4obEbKHi+VfUKuq/sYUt7OtazNoveLgOL+vLWN32TPKHsbzgojDQ",
    ),
]


def the_key() -> SigningKey:
    """The key of the specification's vectors."""
    return decode_signing_key_base64("ed25519", "1", SEED)


def an_identity(*more: SigningKey) -> Identity:
    """`domain`, with the key of the vectors first."""
    return Identity(DOMAIN, [the_key(), *more])


def header(text: str) -> XMatrix:
    """The claims of a header, with {sig} filled in."""
    return parse_x_matrix(text.replace("{sig}", SIG).encode("latin-1"))
