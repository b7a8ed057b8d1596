"""The log: text or JSON lines, levels per namespace, and never a secret.

Always true:
- one event is one line (a traceback follows in text, indented), whatever its values hold: another
  server cannot forge a line with a newline in a name;
- writing an event never raises, however broken its format, its fields or the stream;
- what looks like a token, a signature, a signing key or a query string is not written. This is the
  last defence: code does not log them in the first place.

What the standard library's `logging` and `warnings` say, and Twisted's old `log.msg`, comes here too.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, cast

from twisted.logger import (
    ILogObserver,
    LogBeginner,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    LogPublisher,
    PredicateResult,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str
from zope.interface import implementer

from fedpresence.config import LogConfig
from fedpresence.debugging import Debugging, debugging
from fedpresence.errors import ConfigError

REDACTED = "[redacted]"
MAX_TEXT = 8192  # characters of one message or field: a peer chooses how long its names and errors are
MAX_TRACEBACK = 65_536  # deep recursion makes a thousand frames

_SECRETS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (
            r"((?:access|as|hs|admin)_token['\"]?\s{0,4}(?:=|:|%3D)\s{0,4}['\"]?)[^\s&'\"<>,;)}\]]+",
            r"\1" + REDACTED,
        ),
        (r"(\bBearer\s{1,4})[^\s'\",;)}\]]+", r"\1" + REDACTED),
        (r"(\bsig\s{0,4}=\s{0,4})(?:\\{0,8}[\"'])?[^\s\"',\\]+", r"\1" + REDACTED),
        (r"(\bed25519 \w{1,64} )[A-Za-z0-9+/]{43}", r"\1" + REDACTED),  # a line of a signing key file
        (r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}(?![A-Za-z0-9+/])", REDACTED),  # an ed25519 signature
        (r"(\b(?:GET|POST|PUT|DELETE|HEAD|OPTIONS) [^\s\"?]{0,2048})\?[^\s\"]*", r"\1?" + REDACTED),
    )
)
_SECRET_FIELDS = frozenset(
    (
        "access_token",
        "authorization",
        "password",
        "secret",
        "sig",
        "signature",
        "signing_key",
        "status_msg",
        "token",
    )
)
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}

# What Twisted tells the diary about every connection; an operator wants it at debug or not at all.
_CHATTER = re.compile(
    r"(?:Starting|Stopping) (?:factory|protocol)|Timing out client|Main loop terminated"
    r"|.{1,200}? starting on \S+$|\(.{1,50} Port .{1,200} Closed\)$"
)
_TWISTED = ("twisted.", "log_legacy")
_LEGACY_FIELDS = frozenset(("message", "time", "system", "isError", "format", "logLevel", "why", "failure"))
_OUR_NAMES = frozenset(("ts", "level", "namespace", "message", "traceback"))


class Stream(Protocol):
    """Where lines go: a text file, as far as we need it."""

    def write(self, text: str, /) -> object:
        """Take some text."""

    def flush(self) -> object:
        """Let it out."""


@implementer(ILogObserver)
class LogWriter:
    """Writes events to a stream as the configuration says.

    `twistd` can be given one as its observer; everybody else calls `start_logging`.
    """

    def __init__(self, config: LogConfig, stream: Stream) -> None:
        self._stream = stream
        self._json = config.format == "json"
        self._levels = _levels(config)
        self.lowest = _lowest(config)

    def reload(self, config: LogConfig) -> None:
        """Take over levels and format; ConfigError, and nothing changes, where a level is unknown."""
        levels, lowest = _levels(config), _lowest(config)
        self._levels, self.lowest, self._json = levels, lowest, config.format == "json"

    def __call__(self, event: LogEvent) -> None:
        """Write `event`, if its level says so."""
        if event.get("log_level") is LogLevel.debug and self.lowest > logging.DEBUG:
            return  # most events, where nobody wants these
        try:
            if _is_chatter(event):
                event = {**event, "log_level": LogLevel.debug}
            if self._levels(event) == PredicateResult.no:
                return
            line = _json_line(event) if self._json else _text_line(event)
        except Exception as error:
            reason = type(error).__name__
            line = f"{_moment(None)} error [fedpresence.ops.logs] an event could not be written: {reason}"
        try:
            try:
                self._stream.write(line + "\n")
            except UnicodeEncodeError:
                self._stream.write(line.encode("ascii", "backslashreplace").decode("ascii") + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return  # a full disk or a closed pipe: there is nowhere left to say so


class Logging:
    """What `start_logging` began."""

    def __init__(
        self, writer: LogWriter, publisher: LogPublisher, root: logging.Logger, debugging: Debugging
    ) -> None:
        self._writer = writer
        self._publisher = publisher
        self._root = root
        self._debugging = debugging
        self._bridge = _Bridge(publisher)
        root.addHandler(self._bridge)
        self._set_lowest()

    def reload(self, config: LogConfig) -> None:
        """Take over new levels (SIGHUP); ConfigError, and nothing changes, where one is unknown."""
        self._writer.reload(config)
        self._set_lowest()

    def stop(self) -> None:
        """Write no more."""
        self._root.removeHandler(self._bridge)
        self._publisher.removeObserver(cast(ILogObserver, self._writer))
        self._debugging.is_read = True

    def _set_lowest(self) -> None:
        lowest = self._writer.lowest
        self._root.setLevel(lowest)
        self._debugging.is_read = lowest <= logging.DEBUG


def start_logging(
    config: LogConfig,
    stream: Stream,
    *,
    beginner: LogBeginner = globalLogBeginner,
    publisher: LogPublisher = globalLogPublisher,
    root: logging.Logger | None = None,
    debugging: Debugging = debugging,
) -> Logging:
    """Write this process's log to `stream` from now on, what was logged before included.

    Standard output and error stay as they are: the command line prints there. ConfigError names
    `log.level` or the key in `log.levels` that is no level. The keyword arguments are the process's own
    logging, unless a test brings another; `publisher` is the one that `beginner` publishes to.
    """
    writer = LogWriter(config, stream)
    beginner.beginLoggingTo([cast(ILogObserver, writer)], redirectStandardIO=False)
    return Logging(writer, publisher, root if root is not None else logging.getLogger(), debugging)


# --- levels ----------------------------------------------------------------------------------

_STDLIB_LEVELS = {
    LogLevel.debug: logging.DEBUG,
    LogLevel.info: logging.INFO,
    LogLevel.warn: logging.WARNING,
    LogLevel.error: logging.ERROR,
    LogLevel.critical: logging.CRITICAL,
}
_NAMED_LEVELS = {level.name: level for level in _STDLIB_LEVELS}


def _levels(config: LogConfig) -> LogLevelFilterPredicate:
    predicate = LogLevelFilterPredicate(_level("log.level", config.level))
    for namespace, name in config.levels.items():
        predicate.setLogLevelForNamespace(namespace, _level(f"log.levels.{namespace}", name))
    return predicate


def _lowest(config: LogConfig) -> int:
    """The standard library's number of the lowest level that anybody wants."""
    names = (config.level, *config.levels.values())
    return min(_STDLIB_LEVELS[_level("log.level", name)] for name in names)


def _level(key: str, name: str) -> Any:
    level = _NAMED_LEVELS.get(name)
    if level is None:
        raise ConfigError.of(key, f"{name!r} is no level.", f"Use one of {', '.join(_NAMED_LEVELS)}.")
    return level


def _is_chatter(event: LogEvent) -> bool:
    if event.get("log_level") != LogLevel.info:
        return False
    return str(event.get("log_namespace")).startswith(_TWISTED) and bool(_CHATTER.match(formatEvent(event)))


# --- lines -----------------------------------------------------------------------------------


def redact(text: str) -> str:
    """`text` without what looks like a secret."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _text_line(event: LogEvent) -> str:
    namespace, message = _clean(event.get("log_namespace")), _clean(formatEvent(event))
    head = f"{_moment(event.get('log_time'))} {_level_name(event)} [{namespace}] {message}"
    traceback = _traceback(event)
    if traceback is None:
        return head
    lines = (line.translate(_CONTROLS) for line in traceback.splitlines())
    return "\n    ".join((head, *lines))


def _json_line(event: LogEvent) -> str:
    record: dict[str, object] = {
        "ts": _moment(event.get("log_time")),
        "level": _level_name(event),
        "namespace": _clean(event.get("log_namespace")),
        "message": _clean(formatEvent(event)),
    }
    for name, value in event.items():
        if isinstance(name, str) and not name.startswith("log_") and name not in _LEGACY_FIELDS:
            record[f"_{name}" if name in _OUR_NAMES else name] = _field(name, value)
    traceback = _traceback(event)
    if traceback is not None:
        record["traceback"] = traceback
    return json.dumps(record, allow_nan=False)


def _field(name: str, value: object) -> object:
    if name.lower() in _SECRET_FIELDS or name.lower().endswith("_token"):
        return REDACTED
    match value:
        case None | bool():
            return value
        case int() if abs(value) < 2**63:
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
    return _clean(value)


def _clean(value: object) -> str:
    """A value as text fit for a line: without secrets and control characters, and not endless."""
    text = value if isinstance(value, str) else "-" if value is None else safe_str(value)
    cut = redact(text[: 2 * MAX_TEXT])  # before the cut, which could go through a secret
    if len(cut) > MAX_TEXT:
        cut = f"{cut[:MAX_TEXT]}... ({len(text)} characters)"
    return cut.translate(_CONTROLS)


def _traceback(event: LogEvent) -> str | None:
    failure = event.get("log_failure")
    if failure is None:
        return None
    try:
        text = str(failure.getTraceback())
    except Exception as error:
        text = f"(no traceback: {type(error).__name__})"
    if len(text) > MAX_TRACEBACK:
        text = f"{text[: MAX_TRACEBACK // 2]}\n...\n{text[-MAX_TRACEBACK // 2 :]}"
    return redact(text).rstrip()


def _level_name(event: LogEvent) -> str:
    return str(getattr(event.get("log_level"), "name", "info"))


def _moment(log_time: object) -> str:
    """ISO 8601 in UTC with milliseconds; now, where the event does not say."""
    try:
        moment = datetime.fromtimestamp(cast(float, log_time), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        moment = datetime.now(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- the standard library --------------------------------------------------------------------


class _Bridge(logging.Handler):
    """What libraries tell Python's own `logging`, told to Twisted's under the same names."""

    def __init__(self, publisher: LogPublisher) -> None:
        super().__init__()
        self._publisher = publisher

    def emit(self, record: logging.LogRecord) -> None:
        """Pass `record` on."""
        try:
            text = record.getMessage()
        except Exception:
            text = f"{record.msg!r} with arguments that do not fit it"
        fields: Mapping[str, object] = {}
        if record.exc_info and record.exc_info[1] is not None:
            fields = {"log_failure": Failure(record.exc_info[1], record.exc_info[0], record.exc_info[2])}
        log = Logger(namespace=record.name, observer=cast(ILogObserver, self._publisher))
        log.emit(_nearest(record.levelno), "{log_text}", log_text=text, **fields)


def _nearest(number: int) -> Any:
    """The highest of Twisted's levels that is not above one of the standard library's."""
    reached = [level for level, lowest in _STDLIB_LEVELS.items() if lowest <= number]
    return reached[-1] if reached else LogLevel.debug
