"""Is everything around us as it must be? Asked at start, and by `fedpresence doctor`.

Always true: each question ends in one Finding, whatever the homeserver does; what can be mended by the
operator says how; a finding names no token. Only one makes going on senseless: a homeserver that knows us,
and takes us for somebody else.

Source: H:9, H:7, H:2.6; Z-23 for what a wrong name or key would do.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from fedpresence.clock import Clock, now_ms
from fedpresence.errors import FedpresenceError, HomeserverRefused, HomeserverUnavailable
from fedpresence.homeserver.api import HomeserverApi
from fedpresence.homeserver.registration import Registration
from fedpresence.ids import ServerName
from fedpresence.wire.signing import Identity, ServerKeys

MAX_CLOCK_DIFFERENCE_MS = 60_000

FetchKeys = Callable[[ServerName], Awaitable[ServerKeys]]
"""The keys that a server name publishes, found as any peer would."""


class Verdict(Enum):
    """How a question ended; the value is what `doctor` prints before it."""

    GOOD = "ok"
    WARNING = "warning"
    LATER = "unknown"  # it could not be asked: again later
    FATAL = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One question: what was found, and how to mend it where it is not good."""

    subject: str
    verdict: Verdict
    words: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.words} {self.fix}".rstrip()

    @property
    def is_good(self) -> bool:
        """Whether there is nothing to mend."""
        return self.verdict is Verdict.GOOD


def worth_saying(findings: Sequence[Finding], before: Sequence[Finding]) -> list[Finding]:
    """Of a round of questions what was not said of the one `before`: what is not well, and what is again."""
    troubled = {finding.subject for finding in before if not finding.is_good}
    return [
        finding
        for finding in findings
        if (finding.subject in troubled if finding.is_good else finding not in before)
    ]


class Checks:
    """The questions, in an order in which a later one makes sense after the earlier ones.

    `registration` None: beside a homeserver for its tokens alone; then only what needs none is asked.
    """

    def __init__(
        self,
        identity: Identity,
        api: HomeserverApi,
        registration: Registration | None,
        fetch_keys: FetchKeys,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._api = api
        self._registration = registration
        self._fetch_keys = fetch_keys
        self._clock = clock

    async def all(self) -> tuple[Finding, ...]:
        """Every question asked once; nothing more is asked of a homeserver that does not answer."""
        findings = list(await self.homeserver())
        if self._registration is not None and findings[0].verdict is Verdict.GOOD:
            findings.append(await self.federation())
            findings.append(await self.registration(self._registration))
            if findings[-1].verdict is Verdict.GOOD:
                findings.append(await self.ping(self._registration))
                findings.append(await self.presence(self._registration))
        findings.append(await self.key())
        return tuple(findings)

    async def homeserver(self) -> tuple[Finding, ...]:
        """Does it answer, and do our clocks agree?"""
        subject = "homeserver.url"
        fix = "Start the homeserver, or name its address on this machine, without a proxy before it."
        try:
            answered = await self._api.versions()
        except HomeserverUnavailable as error:
            return (Finding(subject, Verdict.LATER, f"the homeserver does not answer ({error}).", fix),)
        except HomeserverRefused as error:
            return (Finding(subject, Verdict.WARNING, f"what answers is no homeserver ({error}).", fix),)
        if await self._api.is_ourselves():
            words = "what answers is fedpresence, or a proxy that asks it: requests would go round."
            return (Finding(subject, Verdict.WARNING, words, fix),)
        findings = [Finding(subject, Verdict.GOOD, "the homeserver answers.")]
        if answered.date_ms is not None:
            difference_ms = now_ms(self._clock) - answered.date_ms
            if abs(difference_ms) > MAX_CLOCK_DIFFERENCE_MS:
                words = f"our clock and the homeserver's differ by {abs(difference_ms) // 1000} s."
                findings.append(
                    Finding("clock", Verdict.WARNING, words, "Let both follow a time server (NTP).")
                )
            else:
                findings.append(Finding("clock", Verdict.GOOD, "it agrees with the homeserver's."))
        return tuple(findings)

    async def federation(self) -> Finding:
        """Does it take transactions where we pass them on to? Its clients' port alone may not."""
        subject = "the homeserver's federation"
        fix = (
            "Name one of its listeners in homeserver.url that serves both (Synapse: resources of that "
            "listener: names: [client, federation])."
        )
        try:
            await self._api.federation_version()
        except HomeserverUnavailable as error:
            return Finding(subject, Verdict.LATER, f"it could not be asked ({error}).")
        except HomeserverRefused as error:
            words = (
                f"homeserver.url takes no transactions ({error}): what other servers send is not passed on."
            )
            return Finding(subject, Verdict.WARNING, words, fix)
        return Finding(subject, Verdict.GOOD, "it takes transactions at homeserver.url.")

    async def registration(self, registration: Registration) -> Finding:
        """Does the homeserver know us by our token, as whom we think we are?"""
        subject = "appservice.registration"
        bot = registration.bot(self._identity.server_name)
        fix = (
            "Name the registration file in the homeserver's own configuration (Synapse: "
            "app_service_config_files) and restart the homeserver."
        )
        try:
            known_as = await self._api.whoami()
        except HomeserverUnavailable as error:
            words = f"the homeserver does not know our registration yet ({error})."
            return Finding(subject, Verdict.LATER, words, fix)
        except HomeserverRefused as error:
            return Finding(
                subject, Verdict.LATER, f"the homeserver does not know our registration ({error}).", fix
            )
        if known_as != bot:
            return Finding(
                subject,
                Verdict.FATAL,
                f"the homeserver takes us for {known_as}, and we are {bot}.",
                "server_name must be the homeserver's, and the registration the one that it has.",
            )
        return Finding(subject, Verdict.GOOD, f"the homeserver knows us as {bot}.")

    async def ping(self, registration: Registration) -> Finding:
        """Does what the homeserver sends us arrive?"""
        subject = "appservice listener"
        fix = (
            f"Serve the resource appservice where the registration's url says ({registration.url}), and let "
            "the homeserver reach it; after a change of the registration, restart the homeserver."
        )
        if registration.url is None:
            words = "the registration has no url: the homeserver tells us nothing."
            fix = "Give it the address of that listener, and restart the homeserver."
            return Finding(subject, Verdict.WARNING, words, fix)
        try:
            duration_ms = await self._api.ping()
        except HomeserverUnavailable as error:
            return Finding(subject, Verdict.LATER, f"the homeserver could not be asked ({error}).", fix)
        except HomeserverRefused as error:
            if error.errcode == "M_UNRECOGNIZED":
                words = "this homeserver cannot ping; whether it reaches us is seen when it sends something."
                return Finding(subject, Verdict.LATER, words)
            return Finding(subject, Verdict.WARNING, f"the homeserver does not reach us ({error}).", fix)
        return Finding(subject, Verdict.GOOD, f"the homeserver reaches us, in {duration_ms} ms.")

    async def presence(self, registration: Registration) -> Finding:
        """Does the homeserver leave presence to us? Two at once, and users flap for everybody else.

        Our bot, who is in no room, says there that it is online: it is not where presence is off. (H:7 would
        have it sync instead, which Synapse refuses to application services.)
        """
        subject = "the homeserver's presence"
        bot = registration.bot(self._identity.server_name)
        try:
            await self._api.register_bot()
            await self._api.set_presence(bot, "online")
            state = await self._api.presence_of(bot)
            if state != "offline":
                await self._api.set_presence(bot, "offline")
        except HomeserverUnavailable as error:
            return Finding(subject, Verdict.LATER, f"it could not be asked ({error}).")
        except HomeserverRefused as error:
            if error.status == 403:  # as Tuwunel answers where presence is off
                return Finding(subject, Verdict.GOOD, "it is off.")
            return Finding(subject, Verdict.LATER, f"it could not be asked ({error}).")
        if state is not None and state != "offline":
            return Finding(
                subject,
                Verdict.WARNING,
                "it is on: both of us would tell other servers about the same users, each in its own way.",
                "Switch it off there (Synapse: presence: {enabled: false}) and restart the homeserver.",
            )
        return Finding(subject, Verdict.GOOD, "it is off.")

    async def key(self) -> Finding:
        """Is the key that we sign with the one that the world finds under our name?"""
        subject = "signing_key_path"
        name, key_id = self._identity.server_name, self._identity.key_id
        try:
            published = await self._fetch_keys(name)
        except FedpresenceError as error:
            words = f"the keys of {name} cannot be fetched from here ({error})."
            return Finding(
                subject,
                Verdict.LATER,
                words,
                f"Does https://{name}/_matrix/key/v2/server, or where the name is delegated to, answer?",
            )
        ours = self._identity.verify_keys[key_id]
        theirs = published.verify_keys.get(key_id)
        if theirs is None or bytes(theirs) != bytes(ours):
            has = "another key of that name" if theirs is not None else "no key of that name"
            return Finding(
                subject,
                Verdict.WARNING,
                f"we sign with {key_id}, and {name} publishes {has}: other servers will not believe us.",
                "Name the homeserver's own signing key file; a key added to it counts once the homeserver "
                "was restarted.",
            )
        return Finding(subject, Verdict.GOOD, f"{name} publishes the key that we sign with, {key_id}.")
