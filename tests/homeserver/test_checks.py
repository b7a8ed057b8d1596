from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from signedjson.key import generate_signing_key, get_verify_key
from twisted.internet.task import Clock

from fedpresence.errors import DeliveryFailed, HomeserverRefused, HomeserverUnavailable
from fedpresence.homeserver.api import Answered
from fedpresence.homeserver.checks import Checks, Finding, Verdict, worth_saying
from fedpresence.homeserver.registration import Registration
from fedpresence.ids import KeyID, ServerName, UserID
from fedpresence.wire.signing import Identity, ServerKeys
from tests.asynchronous import result_of

HERE = ServerName("here.test")
BOT = UserID("@fedpresence:here.test")
REGISTRATION = Registration("fedpresence", "http://127.0.0.1:9009", "as", "hs", "fedpresence", True)
OUR_KEY = generate_signing_key("one")
KEY_ID = KeyID("ed25519:one")


@dataclass
class Homeserver:
    """Answers as told; an exception in the place of an answer is raised."""

    versions_are: Any = field(default_factory=lambda: Answered({}, 0))
    ourselves: bool = False
    federation: Any = field(default_factory=lambda: Answered({}, 0))
    we_are: Any = BOT
    pinged: Any = 3
    presence: Any = "offline"
    told: list[str] = field(default_factory=list)

    async def versions(self) -> Any:
        return answer(self.versions_are)

    async def is_ourselves(self) -> bool:
        return self.ourselves

    async def federation_version(self) -> Any:
        return answer(self.federation)

    async def whoami(self) -> Any:
        return answer(self.we_are)

    async def ping(self) -> Any:
        return answer(self.pinged)

    async def register_bot(self) -> None:
        pass

    async def set_presence(self, user_id: UserID, state: str) -> None:
        assert user_id == BOT
        self.told.append(state)

    async def presence_of(self, user_id: UserID) -> Any:
        return answer(self.presence)


def answer(told: Any) -> Any:
    if isinstance(told, Exception):
        raise told
    return told


def examine(
    homeserver: Homeserver,
    published: Any = OUR_KEY,
    registration: Registration | None = REGISTRATION,
) -> dict[str, Finding]:
    async def fetch(server_name: ServerName) -> ServerKeys:
        if isinstance(published, Exception):
            raise published
        return ServerKeys(server_name, {KEY_ID: get_verify_key(published)}, 0)

    api: Any = homeserver
    findings = result_of(Checks(Identity(HERE, [OUR_KEY], {}), api, registration, fetch, Clock()).all())
    return {finding.subject: finding for finding in findings}


def test_where_all_is_well_every_question_is_answered_so() -> None:
    """An operator who reads seven times `ok` has done everything that the guide asks."""
    findings = examine(Homeserver())

    assert len(findings) == 7
    assert all(finding.is_good and not finding.fix for finding in findings.values())


@pytest.mark.parametrize(
    ("homeserver", "subject", "verdict", "words"),
    [
        (Homeserver(versions_are=Answered({}, 61_000)), "clock", Verdict.WARNING, "differ by 61 s"),
        (
            Homeserver(federation=HomeserverRefused(404, "M_UNRECOGNIZED")),
            "the homeserver's federation",
            Verdict.WARNING,
            "takes no transactions",
        ),
        (
            Homeserver(we_are=UserID("@bot:other.test")),
            "appservice.registration",
            Verdict.FATAL,
            "takes us for @bot:other.test",
        ),
        (
            Homeserver(we_are=HomeserverUnavailable("it answered 401 M_UNKNOWN_TOKEN")),
            "appservice.registration",
            Verdict.LATER,
            "does not know our registration",
        ),
        (
            Homeserver(pinged=HomeserverRefused(502, "M_CONNECTION_FAILED")),
            "appservice listener",
            Verdict.WARNING,
            "does not reach us",
        ),
        (Homeserver(presence="online"), "the homeserver's presence", Verdict.WARNING, "it is on"),
    ],
)
def test_what_is_not_well_is_said_with_its_fix(
    homeserver: Homeserver, subject: str, verdict: Verdict, words: str
) -> None:
    """H:9: one clear line for each, and what to do."""
    finding = examine(homeserver)[subject]

    assert finding.verdict is verdict
    assert words in finding.words
    assert finding.fix


def test_a_registration_without_an_address_is_asked_to_have_one() -> None:
    """H:2.1: a null is valid, and no event ever comes."""
    finding = examine(Homeserver(), registration=replace(REGISTRATION, url=None))["appservice listener"]

    assert (finding.verdict, finding.words) == (
        Verdict.WARNING,
        "the registration has no url: the homeserver tells us nothing.",
    )


def test_presence_that_is_on_is_left_as_it_was() -> None:
    """A question must not change the answer for good."""
    homeserver = Homeserver(presence="online")

    examine(homeserver)

    assert homeserver.told == ["online", "offline"]


def test_a_homeserver_whose_presence_refuses_has_none() -> None:
    """H:7: as Tuwunel answers where presence is off."""
    refusing = Homeserver(presence=HomeserverRefused(403, "M_FORBIDDEN"))

    assert examine(refusing)["the homeserver's presence"].is_good


def test_a_homeserver_that_is_down_is_asked_nothing_more() -> None:
    """Its other questions would say the same thing five times."""
    findings = examine(Homeserver(versions_are=HomeserverUnavailable("ConnectionRefusedError")))

    assert [finding.verdict for finding in findings.values()] == [Verdict.LATER, Verdict.GOOD]


def test_an_address_that_leads_back_to_us_is_asked_nothing_more() -> None:
    """The public name, say: of everything else it would be we who answer."""
    findings = examine(Homeserver(ourselves=True))

    assert [finding.verdict for finding in findings.values()] == [Verdict.WARNING, Verdict.GOOD]
    assert "fedpresence" in findings["homeserver.url"].words


@pytest.mark.parametrize(
    ("published", "verdict", "words"),
    [
        (generate_signing_key("one"), Verdict.WARNING, "another key of that name"),
        (DeliveryFailed(HERE, "cannot connect"), Verdict.LATER, "cannot be fetched"),
    ],
)
def test_a_key_that_the_world_does_not_know_is_found_before_the_world_finds_it(
    published: Any, verdict: Verdict, words: str
) -> None:
    """With a wrong key every push is refused, everywhere, and nobody here would notice."""
    finding = examine(Homeserver(), published)["signing_key_path"]

    assert finding.verdict is verdict
    assert words in finding.words


def test_without_a_registration_only_what_needs_none_is_asked() -> None:
    """`auth: homeserver` alone is a way to run, too."""
    assert set(examine(Homeserver(), registration=None)) == {"homeserver.url", "clock", "signing_key_path"}


def test_a_round_says_what_is_new_in_it() -> None:
    """Asked each hour until all is well; a diary that repeats itself is not read."""
    good = Finding("ping", Verdict.GOOD, "in 3 ms.")
    bad = Finding("ping", Verdict.WARNING, "it does not reach us.", "Open the port.")
    worse = Finding("ping", Verdict.WARNING, "it is gone.", "Start it.")

    assert worth_saying([good], []) == []
    assert worth_saying([bad], []) == [bad]
    assert worth_saying([bad], [bad]) == []
    assert worth_saying([worse], [bad]) == [worse]
    assert worth_saying([good], [bad]) == [good]
    assert worth_saying([Finding("ping", Verdict.GOOD, "in 1 ms.")], [good]) == []
    assert worth_saying([bad], [good]) == [bad]
