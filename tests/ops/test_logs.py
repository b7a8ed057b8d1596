import io
import json
import logging
from collections.abc import Iterator
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import pytest
from twisted.logger import ILogObserver, LogBeginner, Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure

from fedpresence.config import LogConfig
from fedpresence.debugging import Debugging
from fedpresence.errors import ConfigError
from fedpresence.ops.logs import MAX_TEXT, Logging, LogWriter, redact, start_logging

SIGNATURE = "Ab1+" * 21 + "Z9"
SEED = "c" * 43


class Process:
    """A process's logging, without this one's: publisher, warnings, root logger and stream."""

    def __init__(self, config: LogConfig) -> None:
        self.stream = io.StringIO()
        self.publisher = LogPublisher()
        self.warnings = SimpleNamespace(showwarning=lambda *_: None)
        self.root = logging.Logger("root")
        self.beginner = LogBeginner(self.publisher, io.StringIO(), SimpleNamespace(), self.warnings)
        self.debugging = Debugging()
        self.early = self.logger("fedpresence.early")
        self.early.info("before the beginning")
        self.logging: Logging = start_logging(
            config,
            self.stream,
            beginner=self.beginner,
            publisher=self.publisher,
            root=self.root,
            debugging=self.debugging,
        )

    def logger(self, namespace: str) -> Logger:
        """A module's logger."""
        return Logger(namespace=namespace, observer=cast(ILogObserver, self.publisher))

    def lines(self) -> list[str]:
        """What was written since the last call."""
        written = self.stream.getvalue().splitlines()
        self.stream.seek(0)
        self.stream.truncate()
        return written

    def records(self) -> list[dict[str, Any]]:
        """The same, as JSON."""
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def text() -> Iterator[Process]:
    process = Process(LogConfig())
    process.lines()
    yield process
    process.logging.stop()


@pytest.fixture
def as_json() -> Iterator[Process]:
    process = Process(LogConfig(format="json"))
    process.lines()
    yield process
    process.logging.stop()


# --- lines -----------------------------------------------------------------------------------


def test_a_text_line_has_the_moment_the_level_the_namespace_and_the_message(text: Process) -> None:
    """Operators sort, grep and cut these lines."""
    event = {"log_time": 1_700_000_000.0625, "log_level": LogLevel.warn, "log_namespace": "fedpresence.hub"}

    text.publisher({**event, "log_format": "{origin} is late", "origin": "there.test"})

    assert text.lines() == ["2023-11-14T22:13:20.062Z warn [fedpresence.hub] there.test is late"]


def test_a_json_line_has_the_fields_by_their_names(as_json: Process) -> None:
    """A log store searches for `destination`, not for a sentence (style 10)."""
    as_json.logger("fedpresence.outbound.sender").info(
        "{destination} took {txn_id}",
        destination="there.test",
        txn_id="fp1",
        delay_ms=5,
        users=("a", "b"),
        ok=True,
    )

    (record,) = as_json.records()
    assert record.pop("ts").endswith("Z")
    assert record == {
        "level": "info",
        "namespace": "fedpresence.outbound.sender",
        "message": "there.test took fp1",
        "destination": "there.test",
        "txn_id": "fp1",
        "delay_ms": 5,
        "users": "('a', 'b')",
        "ok": True,
    }


def test_a_field_cannot_pose_as_one_of_ours(as_json: Process) -> None:
    """A record whose level or time another server chose would mislead whoever reads it."""
    as_json.logger("x").warn("hello", traceback="none", ts="never", namespace="no")

    (record,) = as_json.records()
    assert (record["namespace"], record["_namespace"], record["_ts"]) == ("x", "no", "never")
    assert (record["_traceback"], record.get("traceback")) == ("none", None)


def test_what_was_logged_before_the_beginning_is_written(as_json: Process) -> None:
    """Mistakes of the start are made before the configuration is read."""
    process = Process(LogConfig())

    assert [line.split("] ")[1] for line in process.lines()] == ["before the beginning"]
    process.logging.stop()


def test_a_failure_keeps_its_traceback(text: Process, as_json: Process) -> None:
    """A defect that cannot be found again must be told whole, the first time."""
    for process in (text, as_json):
        try:
            raise ZeroDivisionError("by nought")
        except ZeroDivisionError:
            process.logger("fedpresence.hub").failure("the turn failed")

    first, *rest = text.lines()
    (record,) = as_json.records()
    assert first.endswith("critical [fedpresence.hub] the turn failed")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1].endswith("builtins.ZeroDivisionError: by nought")
    assert record["traceback"].endswith("builtins.ZeroDivisionError: by nought")


def test_another_server_cannot_forge_a_line(text: Process) -> None:
    """A newline or a terminal's escape in a name would be read as our own word."""
    text.logger("x").warn("{name} failed", name="there\n2030-01-01 info [x] all is well\x1b[2J\u2028\r")

    (line,) = text.lines()
    assert "there\\n2030" in line
    assert line.isprintable()


def test_an_endless_message_is_cut(text: Process, as_json: Process) -> None:
    """A peer chooses the length of its errors; our disk should not pay for it."""
    for process in (text, as_json):
        process.logger("x").warn("{reason}", reason="y" * 1_000_000)

    assert len(text.lines()[0]) < MAX_TEXT + 200
    (record,) = as_json.records()
    assert len(record["reason"]) < MAX_TEXT + 200


# --- levels ----------------------------------------------------------------------------------


def test_levels_are_per_namespace_and_can_be_reloaded() -> None:
    """An operator looks at one module closely, without a restart and without the rest."""
    process = Process(LogConfig(levels=MappingProxyType({"fedpresence.outbound": "debug", "treq": "error"})))
    process.lines()

    def say() -> list[str]:
        process.logger("fedpresence.outbound.sender").debug("sender")
        process.logger("fedpresence.hub").debug("hub")
        process.logger("treq.client").warn("treq")
        process.logger("fedpresence.hub").info("info")
        return [line.split("] ")[1] for line in process.lines()]

    assert say() == ["sender", "info"]
    process.logging.reload(LogConfig(level="warn"))
    assert say() == ["treq"]
    process.logging.reload(LogConfig(level="debug", format="json"))
    assert len(say_json(process)) == 1
    process.logging.stop()


def test_who_would_say_something_at_debug_can_ask_whether_anybody_reads_it() -> None:
    """A word of every transaction costs as much as reading its answer, and mostly nobody wants it."""
    process = Process(LogConfig())
    assert not process.debugging.is_read

    process.logging.reload(LogConfig(levels=MappingProxyType({"fedpresence.outbound": "debug"})))
    assert process.debugging.is_read

    process.logging.reload(LogConfig())
    process.logging.stop()
    assert process.debugging.is_read  # by whoever else listens


def say_json(process: Process) -> list[dict[str, Any]]:
    process.logger("fedpresence.hub").debug("hub")
    return process.records()


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (LogConfig(level="loud"), "log.level"),
        (LogConfig(levels=MappingProxyType({"fedpresence.hub": "WARN"})), "log.levels.fedpresence.hub"),
    ],
)
def test_an_unknown_level_names_its_key_and_changes_nothing(
    text: Process, config: LogConfig, key: str
) -> None:
    """A reload with a slip of the pen must not silence the daemon."""
    with pytest.raises(ConfigError) as raised:
        text.logging.reload(config)

    text.logger("x").info("still here")
    assert raised.value.problems[0].key == key
    assert len(text.lines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        "Starting factory <twisted.web.server.Site object at 0x7f00>",
        "Starting protocol <twisted.names.dns.DNSDatagramProtocol object at 0x7f00>",
        "Stopping protocol <twisted.names.dns.DNSDatagramProtocol object at 0x7f00>",
        "Timing out client: IPv4Address(type='TCP', host='127.0.0.1', port=5)",
        "Site starting on 8448",
        "Site (TLS) starting on 8448",
        "(TCP Port 8448 Closed)",
        "Main loop terminated.",
    ],
)
def test_twisteds_chatter_is_for_debug(text: Process, line: str) -> None:
    """A line for every connection buries the one that matters."""
    text.logger("twisted.web.http").info("{line}", line=line)
    text.logger("fedpresence.x").info("{line}", line=line)
    assert [entry.split()[2] for entry in text.lines()] == ["[fedpresence.x]"]

    text.logging.reload(LogConfig(level="debug"))
    text.logger("twisted.web.http").info("{line}", line=line)
    assert text.lines()[0].split()[1] == "debug"


# --- secrets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("GET /sync?access_token=s3cr3t&since=1 failed", "s3cr3t"),
        ("access_token%3Ds3cr3t", "s3cr3t"),
        ("{'access_token': 's3cr3t', 'x': 1}", "s3cr3t"),
        ('{"hs_token": "s3cr3t"}', "s3cr3t"),
        ("as_token: s3cr3t", "s3cr3t"),
        ("Authorization: Bearer s3cr3t.a-b_c~+/=", "s3cr3t"),
        ("b'bearer s3cr3t'", "s3cr3t"),
        ('X-Matrix origin="a.test",key="ed25519:1",sig="s3cr3t+/"', "s3cr3t"),
        ("X-Matrix origin=a.test,sig=s3cr3t,destination=b.test", "s3cr3t"),
        ('"X-Matrix origin=\\"a.test\\",sig=\\"s3cr3t\\""', "s3cr3t"),
        (f'{{"signatures": {{"a.test": {{"ed25519:1": "{SIGNATURE}"}}}}}}', SIGNATURE),
        (f"ed25519 a_1 {SEED}", SEED),
        ('"GET /_matrix/client/v3/sync?since=s3cr3t HTTP/1.1" 200', "s3cr3t"),
    ],
)
def test_what_looks_like_a_secret_is_not_written(
    text: Process, as_json: Process, line: str, secret: str
) -> None:
    """Logs are mailed, pasted and archived; this is the last defence before that."""
    for process in (text, as_json):
        process.logger("x").warn("{reason}", reason=line)
        process.logger("x").failure("failed", failure=Failure(ValueError(line)))
        process.logger("x").warn("the format {is broken", reason=line)

        written = "\n".join(process.lines())
        assert "[redacted]" in written
        assert secret not in written


def test_fields_with_the_name_of_a_secret_are_not_written(as_json: Process) -> None:
    """A bare token looks like nothing; its field's name tells."""
    as_json.logger("x").info(
        "a user said something", token="s3cr3t", status_msg="s3cr3t", admin_token="s3cr3t"
    )

    assert "s3cr3t" not in "\n".join(as_json.lines())


def test_ordinary_lines_stay_as_they_are() -> None:
    """A log in which half is missing helps nobody."""
    for line in (
        "@alice:here.test observes @bob:there.test since 1700000000000",
        "no verify key ed25519:a1 of there.test: signature refused",
        "database.url: /var/lib/fedpresence/fedpresence.db is in use",
        "unknown token for GET /_matrix/client/v3/sync",
    ):
        assert redact(line) == line


# --- whatever comes --------------------------------------------------------------------------


class Unprintable:
    """An object that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


class UntellableFailure:
    """A failure without a traceback."""

    def getTraceback(self) -> str:
        """Never."""
        raise RuntimeError


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"log_format": "{missing}"},
        {"log_format": "{unclosed"},
        {"log_format": 17},
        {"log_format": b"\xff"},
        {"log_format": "{x}", "x": Unprintable()},
        {"log_format": "x", "log_failure": UntellableFailure()},
        {"log_format": "x", "log_time": "yesterday"},
        {"log_format": "x", "log_time": 1e300},
        {"log_format": "{x}", "x": "\ud800", 5: 6},
        {"log_format": "{x} {y} {z}", "x": float("nan"), "y": 10**5000, "z": b"\xff"},
        {"log_format": "x", "log_namespace": Unprintable()},
        {"log_format": "x", "log_namespace": None},
    ],
)
@pytest.mark.parametrize("format", ["text", "json"])
def test_no_event_makes_logging_fail(event: dict[Any, Any], format: str) -> None:
    """A log line is written where something went wrong already; it must not make that worse."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    writer = LogWriter(LogConfig(format=format), stream)

    writer({"log_level": LogLevel.error, "log_namespace": "x", "log_time": 1.0, **event})
    writer({"log_level": LogLevel.error, "log_namespace": "x", "log_format": "and on it goes"})

    stream.seek(0)
    lines = stream.read().splitlines()
    assert lines
    assert "and on it goes" in lines[-1]


def test_a_stream_that_is_gone_does_not_stop_the_daemon() -> None:
    """Somebody closes the terminal, or the disk with the log is full."""
    stream = io.StringIO()
    stream.close()

    LogWriter(LogConfig(), stream)({"log_level": LogLevel.error, "log_namespace": "x", "log_format": "x"})


# --- other people's logging ------------------------------------------------------------------


def test_the_standard_librarys_logging_comes_here_under_its_names(text: Process) -> None:
    """Libraries that know nothing of Twisted are read in the same place, at the same levels."""
    library = logging.Logger("charset.detector")
    library.parent = text.root

    library.debug("too small")
    library.warning("odd: %s", "x")
    library.error("broken %d", "arguments")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        library.exception("failed")
    written = text.lines()

    assert written[0].endswith("warn [charset.detector] odd: x")
    assert "error [charset.detector] 'broken %d'" in written[1]
    assert written[2].endswith("error [charset.detector] failed")
    assert written[-1].endswith("builtins.ZeroDivisionError:")


def test_warnings_come_here_too(text: Process) -> None:
    """A deprecation is for whoever upgrades, not for a terminal nobody looks at."""
    text.warnings.showwarning("mend it", DeprecationWarning, "x.py", 7)

    (line,) = text.lines()
    assert line.endswith("x.py:7: builtins.DeprecationWarning: mend it")


def test_twisteds_old_log_comes_here_too(as_json: Process) -> None:
    """Parts of Twisted still speak it, `adbapi` for one."""
    old = legacy.LogPublisher(publishPublisher=as_json.publisher, logBeginner=as_json.beginner)

    old.msg("in the old way", token="s3cr3t")

    (record,) = as_json.records()
    assert (record["namespace"], record["message"]) == ("log_legacy", "in the old way")
    assert "isError" not in record


def test_after_the_stop_nothing_is_written(text: Process) -> None:
    """A test rig starts and stops many servers in one process."""
    text.logging.stop()

    text.logger("x").error("too late")
    text.root.error("too late")

    assert text.lines() == []
