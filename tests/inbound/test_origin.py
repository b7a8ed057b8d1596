import pytest

from fedpresence.engine.settings import ServerLists
from fedpresence.errors import BadRequest, NotAuthentic
from fedpresence.ids import KeyID, ServerName
from fedpresence.inbound.origin import OriginCheck
from fedpresence.wire.signing import Identity, VerifyKey
from tests.asynchronous import failure_of, result_of
from tests.inbound.servers import ELSEWHERE, HERE, THERE, a_transaction, an_identity

URI = "/_matrix/federation/v1/send/1"


class Keys:
    """Look-ups among known servers."""

    def __init__(self, *identities: Identity) -> None:
        self._identities = identities
        self.asked: list[tuple[ServerName, KeyID]] = []

    def key_at_hand(self, server_name: ServerName, key_id: KeyID) -> None:
        """None is: each is asked for."""

    async def verify_key(self, server_name: ServerName, key_id: KeyID, source: str) -> VerifyKey:
        """The key of one of them."""
        self.asked.append((server_name, key_id))
        for identity in self._identities:
            if identity.server_name == server_name and key_id in identity.verify_keys:
                return identity.verify_keys[key_id]
        raise NotAuthentic("no such key")


def a_check(*identities: Identity, servers: ServerLists | None = None) -> OriginCheck:
    return OriginCheck(HERE, Keys(*identities), servers or ServerLists())


def signed(identity: Identity, content: object, destination: ServerName = HERE) -> bytes:
    return identity.authorization("PUT", URI, destination, content).encode()


def verified(check: OriginCheck, headers: list[bytes], content: object, uri: str = URI) -> ServerName:
    credentials = result_of(check.credentials(check.claim(headers), "192.0.2.1"))
    return check.verify(credentials, method="PUT", uri=uri, content=content)


def test_a_signed_request_is_from_who_signed_it() -> None:
    """The one good case that all the others are measured against."""
    there = an_identity()
    content = a_transaction()

    assert verified(a_check(there), [signed(there, content)], content) == THERE


def test_the_body_the_uri_and_the_key_are_part_of_what_is_signed() -> None:
    """A header taken from another request proves nothing."""
    there, impostor = an_identity(), an_identity()
    content = a_transaction()

    for headers, body, uri in (
        ([signed(there, content)], content | {"x": 1}, URI),
        ([signed(there, content)], content, URI + "/"),
        ([signed(impostor, content)], content, URI),
    ):
        with pytest.raises(NotAuthentic):
            verified(a_check(there), headers, body, uri)


def test_no_header_and_another_scheme_are_401() -> None:
    """F:6.3."""
    for headers in ([], [b""], [b"Bearer x"], [b"X-Matrix"], [b"x-matrix origin=there.test"]):
        with pytest.raises(NotAuthentic) as refused:
            a_check().claim(headers)
        assert (refused.value.status, refused.value.errcode) == (401, "M_UNAUTHORIZED")


def test_a_request_for_somebody_else_is_401() -> None:
    """F:6.3: a server could pass on to us what it was sent."""
    there = an_identity()

    with pytest.raises(NotAuthentic):
        a_check(there).claim([signed(there, {}, ELSEWHERE)])


def test_a_missing_destination_is_accepted() -> None:
    """F:6.2: servers before v1.3 of the specification do not send one. It is signed all the same."""
    there = an_identity()
    content = a_transaction()
    header = signed(there, content).replace(b'destination="here.test",', b"")

    assert verified(a_check(there), [header], content) == THERE


def test_a_server_on_the_deny_list_is_403_before_any_key_is_looked_for() -> None:
    """Z-1: who is not wanted costs a comparison."""
    there = an_identity()
    keys = Keys(there)
    check = OriginCheck(HERE, keys, ServerLists(deny=("there.*",)))

    with pytest.raises(BadRequest) as refused:
        check.claim([signed(there, {})])

    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")
    assert keys.asked == []


def test_a_reload_of_the_server_lists_counts_at_once() -> None:
    """Z-9: an operator who denies a server means now."""
    there = an_identity()
    check = a_check(there)
    check.claim([signed(there, {})])

    check.reload(ServerLists(allow=("elsewhere.test",)))

    with pytest.raises(BadRequest):
        check.claim([signed(there, {})])


def test_of_several_headers_those_with_a_known_key_must_all_be_right() -> None:
    """F:6.2: one header per signing key; a key that we cannot get says nothing."""
    one, two, unknown = an_identity(), an_identity(version="2"), an_identity(version="3")
    content = a_transaction()
    wrong = signed(two, a_transaction() | {"x": 1})

    assert verified(a_check(one, two), [signed(one, content), signed(two, content)], content) == THERE
    assert verified(a_check(one), [signed(unknown, content), signed(one, content)], content) == THERE
    with pytest.raises(NotAuthentic):
        verified(a_check(one, two), [signed(one, content), wrong], content)
    failure_of(a_check().credentials(a_check().claim([signed(one, content)]), "x"), NotAuthentic)


def test_several_headers_must_name_one_origin_and_be_few() -> None:
    """F:6.2; and each header is a look-up, so their number is a cost."""
    there, elsewhere = an_identity(), an_identity(ELSEWHERE)
    check = a_check(there, elsewhere)

    for headers in ([signed(there, {}), signed(elsewhere, {})], [signed(there, {})] * 9):
        with pytest.raises(NotAuthentic):
            check.claim(headers)


def test_a_header_of_another_scheme_beside_ours_is_passed_over() -> None:
    """A proxy may add its own."""
    there = an_identity()
    content = a_transaction()

    assert verified(a_check(there), [b"Basic eDp5", signed(there, content)], content) == THERE
