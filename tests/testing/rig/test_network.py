import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from fedpresence.testing.rig.activity import Activity
from fedpresence.testing.rig.network import Network, ServerReactor
from tests.in_reactor import in_reactor

MUCH = b"x" * 5_000_000  # more than any socket buffer


class Ear(Protocol):
    """Hears, and says `answer` where it was given one."""

    def __init__(self, answer: bytes = b"") -> None:
        self.heard = b""
        self.lost = False
        self._answer = answer

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        transport: Any = self.transport
        transport.write(self._answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True


class Ears(Factory):
    noisy = False

    def __init__(self, answer: bytes = b"") -> None:
        self.made: list[Ear] = []
        self._answer = answer

    def buildProtocol(self, addr: object) -> Ear:
        self.made.append(Ear(self._answer))
        return self.made[-1]


class Town:
    """Two servers' views of one reactor; the second listens."""

    def __init__(self, reactor: Any, answer: bytes = b"") -> None:
        self.activity = Activity(reactor)
        self.network = Network(reactor, self.activity)
        self.here, self.there = self.network.view(), self.network.view()
        self.port = self.network.reserve_port()
        self.ears = Ears(answer)
        self.there.listenTCP(self.port, self.ears, 50, "127.0.0.1")

    def dial(self, view: ServerReactor | None = None) -> Deferred[Any]:
        """A connection from here to there; its protocol's `transport` writes."""
        endpoint: Any = TCP4ClientEndpoint
        dialled: Deferred[Any] = endpoint(view or self.here, "127.0.0.1", self.port).connect(Ears())
        return dialled

    async def close(self) -> None:
        await self.here.cut()
        await self.there.cut()
        self.network.close()


def test_it_is_quiet_only_when_every_byte_has_arrived() -> None:
    """The clock may be turned then, and not before: whatever was sent would be late by what it was turned."""

    async def story(reactor: Any) -> tuple[bool, int, bytes]:
        town = Town(reactor, b"yes")
        one = await town.dial()
        one.transport.write(MUCH)
        was_quiet = town.activity.is_quiet()
        await town.activity.quiet()
        (ear,) = town.ears.made
        arrived = len(ear.heard), one.heard
        await town.close()
        return was_quiet, *arrived

    was_quiet, heard, answer = in_reactor(story)

    assert not was_quiet
    assert heard == len(MUCH)
    assert answer and not answer.strip(b"yes")


def test_a_connection_counts_until_it_is_accepted_or_refused() -> None:
    """Between a connect and an accept no byte is on its way, and still everything is to come."""

    async def story(reactor: Any) -> list[object]:
        town = Town(reactor)
        seen: list[object] = []
        dialled = town.dial()
        seen.append(town.activity.is_quiet())
        await town.activity.quiet()
        seen.append((dialled.called, len(town.ears.made)))
        await town.there.cut()
        refused = town.dial().addErrback(lambda failure: failure.check(ConnectionRefusedError))
        await town.activity.quiet()
        seen.append(await refused)
        await town.close()
        return seen

    assert in_reactor(story) == [False, (True, 1), ConnectionRefusedError]


def test_an_end_counts_until_the_other_has_noticed_it() -> None:
    """A sender whose peer was killed finds out at once, not with its next transaction."""

    async def story(reactor: Any) -> tuple[bool, bool]:
        town = Town(reactor)
        one = await town.dial()
        await town.activity.quiet()
        await town.there.cut()
        await town.activity.quiet()
        lost = one.lost, town.ears.made[0].lost
        await town.close()
        return lost

    here_noticed, the_dead_noticed = in_reactor(story)

    assert here_noticed
    assert not the_dead_noticed


def test_who_does_not_read_keeps_nobody_waiting() -> None:
    """A peer that hangs is a fault that is tested for: the rig must not hang with it."""

    async def story(reactor: Any) -> tuple[int, int]:
        town = Town(reactor)
        one = await town.dial()
        await town.activity.quiet()
        (ear,) = town.ears.made
        paused: Any = ear.transport
        paused.pauseProducing()
        one.transport.write(MUCH)
        await town.activity.quiet()
        while_paused = len(ear.heard)
        paused.resumeProducing()
        await town.activity.quiet()
        afterwards = len(ear.heard)
        await town.close()
        return while_paused, afterwards

    assert in_reactor(story) == (0, len(MUCH))


def test_what_comes_from_outside_is_nobodys_business() -> None:
    """A test's own client may hold a connection open for as long as it likes."""

    async def story(reactor: Any) -> tuple[bool, bytes]:
        town = Town(reactor)
        with socket.create_connection(("127.0.0.1", town.port)) as outside:
            outside.sendall(b"hello")
            await town.activity.quiet()
            while not town.ears.made or not town.ears.made[0].heard:
                await town.activity.quiet()
            heard = town.activity.is_quiet(), town.ears.made[0].heard
        await town.close()
        return heard

    assert in_reactor(story) == (True, b"hello")


def test_a_reserved_port_refuses_while_nobody_listens_and_stays_ours() -> None:
    """A server that was stopped must look stopped, and come back where it was."""

    async def story(reactor: Any) -> tuple[bool, bool, bool]:
        town = Town(reactor)
        await town.there.cut()
        try:
            socket.create_connection(("127.0.0.1", town.port)).close()
            refused = False
        except OSError:
            refused = True
        with socket.socket() as thief:
            try:
                thief.bind(("127.0.0.1", town.port))
                stolen = True
            except OSError:
                stolen = False
        again = town.network.view()
        again.listenTCP(town.port, town.ears, 50, "127.0.0.1")
        await town.dial()
        await town.activity.quiet()
        back = len(town.ears.made) == 1
        await again.cut()
        await town.close()
        return refused, stolen, back

    assert in_reactor(story) == (True, False, True)


def test_a_view_that_was_cut_off_opens_nothing_and_calls_nothing() -> None:
    """What is left of a killed server's coroutines may still try."""

    async def story(reactor: Any) -> tuple[int, list[str]]:
        town, called = Town(reactor), list[str]()
        town.here.callLater(0, called.append, "before")
        await town.here.cut()
        town.here.callLater(0, called.append, "after")
        town.dial()
        await town.activity.quiet()
        heard = sum(not ear.lost for ear in town.ears.made)
        await town.close()
        return heard, called

    assert in_reactor(story) == (0, [])


def test_two_who_wait_for_quiet_do_not_wait_for_each_other() -> None:
    """Each looks again in the reactor's next round, which is something to do."""

    async def story(reactor: Any) -> bool:
        town = Town(reactor)
        waiting = [town.activity.quiet() for _ in range(3)]
        for each in waiting:
            await each
        await town.close()
        return True

    assert in_reactor(story)
