import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpresence.errors import BadRequest, NotAuthentic
from fedpresence.ids import KeyID, ServerName
from fedpresence.wire.signing import XMatrix, parse_x_matrix
from tests.wire.vectors import KEY_ID, SIG, header

ALL = XMatrix(ServerName("a.test"), ServerName("b.test:8448"), KeyID("ed25519:a_x"), SIG)


@pytest.mark.parametrize(
    "text",
    [
        'X-Matrix origin="a.test",destination="b.test:8448",key="ed25519:a_x",sig="{sig}"',
        'X-Matrix origin=a.test,destination=b.test:8448,key=ed25519:a_x,sig="{sig}"',
        "X-Matrix origin=a.test,destination=b.test:8448,key=ed25519:a_x,sig={sig}",
        'x-matrix    ORIGIN="a.test" ,\tDestination="b.test:8448"\t , Key="ed25519:a_x",SIG="{sig}" ',
        'X-MATRIX sig="{sig}",key="ed25519:a_x",destination="b.test:8448",origin="a.test"',
        'X-Matrix origin="a\\.te\\st",destination="b.test:8448",key="ed25519:a_x",sig="{sig}"',
        'X-Matrix x="a,origin=\\"c.test\\",b",origin="a.test",destination="b.test:8448",key="ed25519:a_x",'
        'sig="{sig}",y=z,signature="no",z="\xe9"',
        'X-Matrix ,origin="a.test",,destination="b.test:8448", ,key="ed25519:a_x",sig="{sig}",',
        'X-Matrix origin = "a.test",destination= "b.test:8448",key ="ed25519:a_x",sig="{sig}"',
    ],
)
def test_every_form_of_the_header_that_the_specification_allows_is_read(text: str) -> None:
    """Old senders quote nothing, new ones may write it in any order and case (F:6.2)."""
    assert header(text) == ALL


def test_the_header_of_the_seed_has_no_destination() -> None:
    """Servers before 2022 (F:9, row 5)."""
    auth = header('X-Matrix origin=[::1]:8448,key="ed25519:1",sig="{sig}=="')

    assert auth == XMatrix(ServerName("[::1]:8448"), None, KEY_ID, SIG + "==")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "X-Matrix",
        "X-Matrix ",
        "Bearer abc",
        'X-Matrixorigin="a.test",key="ed25519:1",sig="{sig}"',
        'X-Matrix\torigin="a.test",key="ed25519:1",sig="{sig}"',
        'X-Matrix key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:1"',
        'X-Matrix origin="a.test",key="ed25519:1",signature="{sig}"',
        'X-Matrix origin="",key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a_b.test",key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test:99999",key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",destination="",key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",key="rsa:1",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:a b",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="abc"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{sig}="',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{sig}\\\n"',
        'X-Matrix origin="a.test" key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test"key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test;key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{sig}',
        'X-Matrix origin,key="ed25519:1",sig="{sig}"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{sig}",x=',
        'X-Matrix origin="\xe9.test",key="ed25519:1",sig="{sig}"',
    ],
)
def test_a_header_that_cannot_be_read_is_not_believed(text: str) -> None:
    """401, and nothing of what was sent in the answer (F:6.3)."""
    with pytest.raises(NotAuthentic) as caught:
        header(text)
    assert caught.value.status == 401
    assert SIG not in str(caught.value)


@pytest.mark.parametrize("more", ['origin="b.test"', "ORIGIN=a.test", 'sig="x"', "x=1,X=2"])
def test_a_parameter_that_stands_twice_is_refused(more: str) -> None:
    """Two readers could believe two different things (F:6.2)."""
    with pytest.raises(BadRequest) as caught:
        header(f'X-Matrix origin="a.test",key="ed25519:1",sig="{{sig}}",{more}')
    assert caught.value.status == 400


@pytest.mark.parametrize("tail", ["", ',destination="b.test"'])
def test_headers_that_differ_in_their_signatures_alone_keep_each_its_own(tail: str) -> None:
    """The rest is read once: what is remembered of one request must not pass for another's proof."""
    other = "B" * 86

    for signature in (SIG, other, "A" * 86, SIG + "=="):
        text = f'X-Matrix origin="a.test",key="ed25519:1",sig="{signature}"{tail}'
        assert parse_x_matrix(text.encode()).signature == signature


@pytest.mark.parametrize(
    "text",
    [
        'X-Matrix x="a,sig="{sig}"",origin="a.test",key="ed25519:1",sig="{other}"',
        'X-Matrix x="a",xsig="{sig}",origin="a.test",key="ed25519:1",sig="\\A' + "A" * 85 + '"',
        'X-Matrix xsig="{sig}",origin="a.test",key="ed25519:1",sig="{other}"',
        'X-Matrix origin="a.test",key="ed25519:1",sig="{other}",x="sig=\\"{sig}\\""',
    ],
)
def test_what_only_looks_like_the_signature_is_not_taken_for_it(text: str) -> None:
    """A header is believed for its `sig` alone, wherever 86 such characters stand besides."""
    try:
        found = parse_x_matrix(text.format(sig=SIG, other="A" * 86).encode())
    except NotAuthentic:
        return
    assert found.signature == "A" * 86


def test_a_header_of_four_kibibytes_is_read_and_a_longer_one_is_not() -> None:
    """It is read before anybody is known."""
    start = f'X-Matrix origin="a.test",key="ed25519:1",sig="{SIG}",x="'.encode()

    assert parse_x_matrix(start + b"x" * (4096 - len(start) - 1) + b'"').origin == "a.test"
    with pytest.raises(NotAuthentic, match="too long"):
        parse_x_matrix(start + b"x" * (4096 - len(start)) + b'"')


@given(st.binary(max_size=80) | st.text('origin,="\\ \tkeysig:X-Matrix', max_size=80).map(str.encode))
def test_whatever_the_header_only_bad_request_is_raised(data: bytes) -> None:
    """Anybody on the internet can send it."""
    for text in (data, b"X-Matrix " + data):
        try:
            parse_x_matrix(text)
        except BadRequest as error:
            assert error.status in (400, 401)
