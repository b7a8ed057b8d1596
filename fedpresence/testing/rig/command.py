"""`fedpresence rig`: a rig as a process, controlled over HTTP.

Always true:
- the ready file appears whole, in one rename, once everything answers, and is gone when the rig is;
- a signal stops it cleanly; what it made for itself on disk is removed, a folder that was named stays.

Source: contract.md, "Test rig" and "Exit codes".
"""

import argparse
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clock import MonotonicClock, within
from fedpresence.config import LogConfig, read_settings
from fedpresence.config_keys import KEYS
from fedpresence.errors import BadRequest, ConfigError, ConfigProblem, FedpresenceError
from fedpresence.ids import ServerName, parse_server_name
from fedpresence.ops.accounts import parse_local_user
from fedpresence.ops.logs import start_logging
from fedpresence.process import (
    FAILED,
    RESOLVER_THREADS,
    allow_many_files,
    remove_ready_file,
    remove_stale_ready_file,
    write_ready_file,
)
from fedpresence.testing.merging import merged
from fedpresence.testing.rig.control import control_site
from fedpresence.testing.rig.twisted import RigOptions, TwistedRig

_log = Logger()

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0  # what is open then is abandoned: a rig's data are thrown away in any case
MAX_SEED = 2**32
# What a rig decides for each of its servers; another value would only break it.
RIGS_OWN = ("server_name", "signing_key_path", "listeners", "federation.ca_file", "federation.resolve")


class WrongUsage(Exception):
    """An argument that cannot be; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for."""

    options: RigOptions
    log: LogConfig
    ready_file: Path | None
    stop_at_eof: bool = False
    remove_at_eof: Path | None = None


def order_of(arguments: argparse.Namespace) -> Order:
    """The order that the arguments make; WrongUsage, or ConfigError for what `--config` names."""
    servers = tuple(_server_name(text) for text in _names(arguments.servers))
    if not servers:
        raise WrongUsage("--servers: name at least one, for example --servers a.test,b.test")
    if len(set(servers)) != len(servers):
        raise WrongUsage("--servers: a name is there twice")
    virtual = arguments.clock == "virtual"
    if arguments.addressable and virtual:
        raise WrongUsage("--addressable needs --clock real: nobody outside knows a virtual clock's time")
    users = tuple(_user_id(text, servers) for text in _names(arguments.users))
    if len(set(users)) != len(users):
        raise WrongUsage("--users: a user is there twice")
    if arguments.remove_at_eof is not None and not arguments.stop_at_eof:
        raise WrongUsage("--remove-at-eof needs --stop-at-eof: a rig that runs on needs its folder")
    config = {} if arguments.config is None else _config(arguments.config)
    return Order(
        RigOptions(
            servers=servers,
            users=users,
            virtual=virtual,
            folder=None if arguments.dir is None else arguments.dir.absolute(),
            seed=secrets.randbelow(MAX_SEED) if arguments.seed is None else arguments.seed,
            config=config,
            addressable=arguments.addressable,
        ),
        _log_config(config, Path.cwd()),
        arguments.ready_file,
        arguments.stop_at_eof,
        arguments.remove_at_eof,
    )


def run_rig(arguments: argparse.Namespace) -> int:
    """Run until a signal or a failure; the exit code.

    WrongUsage where the arguments cannot be, ConfigError where `--config` is wrong.
    """
    order = order_of(arguments)
    if order.stop_at_eof and sys.stdin is None:
        raise WrongUsage("--stop-at-eof: standard input is closed, so it cannot end. Give it a pipe")
    from twisted.internet import reactor as installed  # by the first import: nowhere else

    reactor: Any = installed
    allow_many_files()
    if order.ready_file is not None:
        remove_stale_ready_file(order.ready_file)
    reactor.suggestThreadPoolSize(RESOLVER_THREADS)
    start_logging(order.log, sys.stderr)
    process = _Process(order, reactor)
    reactor.callWhenRunning(process.start)
    reactor.addSystemEventTrigger("before", "shutdown", process.stop)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(process.end))
    reactor.run()
    if process.is_orphan and order.remove_at_eof is not None:
        shutil.rmtree(order.remove_at_eof, ignore_errors=True)
    if process.wrong_config is not None:
        raise process.wrong_config
    return process.exit_code


class _Input(Protocol):
    """Standard input, of which only the end counts."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended()


class _Process:
    def __init__(self, order: Order, reactor: Any) -> None:
        self.exit_code = 0
        self.wrong_config: ConfigError | None = None
        self.is_orphan = False  # whoever started us has gone
        self._order = order
        self._reactor = reactor
        self._clock = MonotonicClock(reactor)
        self._rig: TwistedRig | None = None
        self._listening: Any = None
        self._site: Any = None
        self._said_ready = False
        self._stopping = False
        self._starting: Deferred[None] | None = None

    def start(self) -> None:
        """Start the rig, then its control API; whatever prevents it ends the process.

        Only now do signals stop it cleanly: the first line may be what somebody waits for to send one.
        """
        print(f"seed {self._order.options.seed}", flush=True)
        if self._order.stop_at_eof:
            watch: Any = StandardIO
            watch(_Input(self._nobody_is_there), reactor=self._reactor)
        self._starting = within(ensureDeferred(self._start()), START_TIMEOUT_S, self._clock)
        self._starting.addErrback(self._failed)

    async def _start(self) -> None:
        rig = self._rig = await TwistedRig.start(self._reactor, self._order.options)
        self._site = control_site(rig, self._clock)
        self._listening = self._reactor.listenTCP(0, self._site, interface="127.0.0.1")
        url = f"http://127.0.0.1:{self._listening.getHost().port}"
        print(f"control {url}", flush=True)
        if self._order.ready_file is not None:
            ready = {"control_url": url, "pid": os.getpid()} | rig.ready()
            write_ready_file(self._order.ready_file, ready)
            self._said_ready = True

    def stop(self) -> Deferred[None]:
        """What the reactor waits for before it ends."""
        self._stopping = True
        if self._order.ready_file is not None and self._said_ready:  # else it is that of another process
            remove_ready_file(self._order.ready_file)
        stopped = within(ensureDeferred(self._stop()), STOP_TIMEOUT_S, self._clock)
        return stopped.addErrback(_abandoned).addErrback(self._failed)

    def end(self) -> None:
        """Stop, where that has not begun."""
        if self._reactor.running and not self._stopping:
            self._reactor.stop()

    def _nobody_is_there(self) -> None:
        if not self._stopping:  # our own end closes standard input, too
            self.is_orphan = True
            self.end()

    async def _stop(self) -> None:
        if self._starting is not None and not self._starting.called:
            self._starting.cancel()  # half a rig takes itself down
            await self._starting
        if self._listening is not None:
            await self._listening.stopListening()
        rig, self._rig = self._rig, None
        if rig is not None:
            await rig.stop()
        if self._site is not None:
            await self._site.close()

    def _failed(self, failure: Failure) -> None:
        """The last line says what happened; the exit code says whose turn it is."""
        error = failure.value
        if self._stopping and failure.check(CancelledError):
            return
        self.exit_code = FAILED
        if isinstance(error, ConfigError):
            self.wrong_config = error
        elif isinstance(error, TookTooLong):
            _log.error("starting takes too long")
        elif isinstance(error, FedpresenceError | OSError | CannotListenError | ValueError):
            _log.error("stopping: {error}", error=error)
        else:
            _log.failure("stopping: a bug in fedpresence", failure)
        if self._reactor.running and not self._stopping:
            self._reactor.stop()


def _abandoned(failure: Failure) -> None:
    failure.trap(TookTooLong)
    _log.warn("stopping took longer than {seconds} s: something was left open", seconds=STOP_TIMEOUT_S)


# --- what the arguments say ------------------------------------------------------------------


def _names(text: str) -> list[str]:
    """The names in a list with commas; none in an empty one."""
    return [name.strip() for name in text.split(",")] if text.strip() else []


def _server_name(text: str) -> ServerName:
    try:
        return parse_server_name(text)
    except BadRequest as error:
        raise WrongUsage(f"--servers: {text!r} is no server name") from error


def _user_id(text: str, servers: tuple[ServerName, ...]) -> str:
    """`alice@a.test` or `@alice:a.test` as the latter."""
    localpart, _, server = text.removeprefix("@").partition(":" if text.startswith("@") else "@")
    if server not in servers:
        raise WrongUsage(
            f"--users: {text!r} is at none of the servers. Use for example alice@{servers[0]} or "
            f"@alice:{servers[0]}"
        )
    try:
        return parse_local_user(f"@{localpart}:{server}", ServerName(server))
    except BadRequest as error:
        raise WrongUsage(f"--users: {text!r}: {error.message}") from error


def _config(path: Path) -> dict[str, Any]:
    settings = read_settings(path)
    problems = [
        ConfigProblem(key, "is decided by the rig for each server.", "Take it out.")
        for key in RIGS_OWN
        if _is_given(key, settings)
    ]
    if problems:
        raise ConfigError(problems)
    return settings


def _is_given(key: str, settings: Mapping[str, Any]) -> bool:
    section, _, name = key.rpartition(".")
    place = settings.get(section) if section else settings
    return isinstance(place, Mapping) and name in place


def _log_config(config: Mapping[str, Any], folder: Path) -> LogConfig:
    """What is logged: warnings and worse, unless the configuration says otherwise."""
    log = config.get("log")
    written = merged({"format": "text", "level": "warn", "levels": {}}, log if isinstance(log, dict) else {})
    problems: list[ConfigProblem] = []
    values: dict[str, Any] = {}
    for key in KEYS:
        section, _, name = key.path.partition(".")
        if section == "log":
            try:
                values[name] = key.parse(written[name], key.path, folder)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    return LogConfig(**values)
