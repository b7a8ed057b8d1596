"""One daemon as a process: signals, the ready file, the exit code.

Source: contract.md, `fedpresence run` and "Exit codes".
"""

import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.main import installReactor
from twisted.logger import Logger
from twisted.python.failure import Failure

from fedpresence.clock import MonotonicClock
from fedpresence.config import Config, load_config, warnings
from fedpresence.daemon import Daemon
from fedpresence.errors import ConfigError, FedpresenceError
from fedpresence.homeserver.registration import load_registration
from fedpresence.ops.admin_client import admin_url
from fedpresence.ops.keys import load_signing_keys
from fedpresence.ops.logs import Logging, start_logging
from fedpresence.storage.lock import leave_word

_log = Logger()

WATCH_CLOCK_S = 60.0
CLOCK_JUMP_MS = 3_600_000

RESOLVER_THREADS = 50  # the system's resolver blocks one for each name; a slow zone must not take all ten

FAILED = 1
WRONG_CONFIG = 78


def run(
    config: Config,
    config_path: Path,
    *,
    ready_file: Path | None = None,
    force: bool = False,
    wire_log: Callable[[Any], None] | None = None,
) -> int:
    """Run until a signal or a failure; the exit code.

    `wire_log` hears of every transaction that was tried.
    """
    reactor = _reactor()
    files = allow_many_files()
    if ready_file is not None:
        remove_stale_ready_file(ready_file)
    reactor.suggestThreadPoolSize(RESOLVER_THREADS)
    leave_behind(reactor.getThreadPool())
    logging = start_logging(config.log, sys.stderr)
    process = _Process(config, config_path, reactor, logging, ready_file, force, wire_log, files)
    reactor.callWhenRunning(process.start)
    reactor.addSystemEventTrigger("before", "shutdown", process.stop)
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(process.reload))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))  # what came during the start is taken
    reactor.run()
    return process.exit_code


class _LeftBehind(Thread):
    """A thread whose end nobody waits for, not even Python as it exits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, daemon=True)

    def join(self, timeout: float | None = None) -> None:
        """Return at once."""


def leave_behind(pool: Any) -> None:
    """Let the end of a reactor's thread pool not wait for its threads; called before it has any.

    They look up names, for which the system may take half a minute each, and everybody can make us begin it;
    by then nobody wants to know.
    """
    pool.threadFactory = _LeftBehind


def _reactor() -> Any:
    """Our own where there is epoll, unless another was chosen before."""
    if sys.platform == "linux" and "twisted.internet.reactor" not in sys.modules:
        from fedpresence.polling import PlainReactor  # other systems could not even import it

        installReactor(PlainReactor())
    from twisted.internet import reactor  # chosen by the first import: nowhere else

    return reactor


def allow_many_files() -> int:
    """How many files we may open: as many as the system lets us, where the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def fitted(config: Config, files: int) -> Config:
    """With connections, on all listeners, for half of our `files` at most; a line says where these are fewer.

    Else silent connections would take them all, and none would ever be asked to give way.
    """
    most = files // 2 // len(config.listeners)
    limits = config.limits
    if most >= limits.connections:
        return config
    _log.warn(
        "the system lets us open {files} files: each listener takes {most} connections, and not the {asked} "
        "of limits.connections; raise LimitNOFILE= of the unit, or ulimit -n",
        files=files,
        most=most,
        asked=limits.connections,
    )
    return replace(config, limits=replace(limits, connections=most))


def write_ready_file(path: Path, ready: object) -> None:
    """Write it whole and in one rename: who sees it can read it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(ready) + "\n", encoding="utf-8")
    partial.replace(path)


def remove_stale_ready_file(path: Path) -> None:
    """Take away what a process that is no more left behind: who waits for the file would take it for ours."""
    try:
        os.kill(_pid_in(path), 0)
    except ProcessLookupError:
        path.unlink(missing_ok=True)
    except OSError:
        return  # it is not there; or cannot be read; or its process is somebody else's, and lives


def remove_ready_file(path: Path) -> None:
    """Take ours away at the end; one that another process has put in its place stays."""
    try:
        _pid_in(path)
    except ProcessLookupError:
        path.unlink(missing_ok=True)
    except OSError:
        return  # it is not there


def _pid_in(path: Path) -> int:
    """Whose ready file it is; ProcessLookupError where nobody's or, in a container, our own of before."""
    try:
        pid = json.loads(path.read_bytes())["pid"]
    except (ValueError, LookupError, TypeError) as error:
        raise ProcessLookupError from error
    if not isinstance(pid, int) or not 0 < pid < 2**31 or pid == os.getpid():
        raise ProcessLookupError
    return pid


class _Process:
    def __init__(
        self,
        config: Config,
        config_path: Path,
        reactor: Any,
        logging: Logging,
        ready_file: Path | None,
        force: bool,
        wire_log: Callable[[Any], None] | None,
        files: int,
    ) -> None:
        self.exit_code = 0
        self._said_ready = False
        self._stopping = False
        self._files = files
        self._config = config = fitted(config, files)
        self._config_path = config_path
        self._reactor = reactor
        self._logging = logging
        self._ready_file = ready_file
        self._clock = MonotonicClock(reactor)
        self._drift_ms = 0
        self._daemon = Daemon(
            config, reactor, self._clock, SystemRandom(), self._fatal, wire_log=wire_log, force=force
        )

    def start(self) -> None:
        """Start the daemon; whatever prevents it ends the process."""
        for warning in warnings(self._daemon.config):
            _log.warn("{warning}", warning=warning)
        ensureDeferred(self._daemon.start()).addCallback(self._ready).addErrback(self._fatal)

    def stop(self) -> Deferred[None]:
        """What the reactor waits for before it ends."""
        self._stopping = True
        if self._ready_file is not None and self._said_ready:  # else it is that of another process
            remove_ready_file(self._ready_file)
        return self._daemon.stop()

    def reload(self) -> None:
        """SIGHUP: certificates, authorities, log levels, server lists, limits."""
        try:
            config = load_config(
                self._config_path,
                os.environ,
                check_signing_key=load_signing_keys,
                check_registration=load_registration,
            )
            later = self._take_over(fitted(config, self._files))
        except ConfigError as error:
            _log.error("not reloaded, the old configuration stays: {error}", error=error)
            return
        if later:
            _log.warn("a restart is needed for what changed in: {keys}", keys=", ".join(later))
        _log.info("reloaded the configuration")

    def _take_over(self, config: Config) -> list[str]:
        """All of it or nothing."""
        before = self._daemon.config.log
        self._logging.reload(config.log)
        try:
            return self._daemon.reload(config)
        except ConfigError:
            self._logging.reload(before)
            raise

    def _watch_wall_clock(self) -> None:
        """A stepped wall clock changes nothing here, which is worth a line in the diary (Z-21)."""
        drift_ms = self._clock.drift_ms()
        if abs(drift_ms - self._drift_ms) > CLOCK_JUMP_MS:
            _log.warn(
                "the wall clock jumped by {jump_ms} ms; time here goes on as before until a restart",
                jump_ms=drift_ms - self._drift_ms,
            )
            self._drift_ms = drift_ms
        self._reactor.callLater(WATCH_CLOCK_S, self._watch_wall_clock)

    def _ready(self, _: object) -> None:
        if self._stopping:
            return
        gc.freeze()  # what was loaded stays: no collection need look at it again
        self._watch_wall_clock()
        url = admin_url(self._config, [place.port for place in self._daemon.listening])
        if url is not None:  # for the command line, which knows no port that the system chose
            leave_word(self._config.database_path, url)
        if self._ready_file is None:
            return
        ready = {
            "pid": os.getpid(),
            "server_name": self._daemon.config.server_name,
            "listeners": [
                {"resources": list(place.resources), "host": place.host, "port": place.port}
                for place in self._daemon.listening
            ],
        }
        write_ready_file(self._ready_file, ready)
        self._said_ready = True

    def _fatal(self, failure: Failure) -> None:
        """The last line says what happened; the exit code says whose turn it is."""
        error = failure.value
        self.exit_code = WRONG_CONFIG if isinstance(error, ConfigError) else FAILED
        if isinstance(error, FedpresenceError | OSError | CannotListenError):
            _log.error("stopping: {error}", error=error)
        else:
            _log.failure("stopping: a bug in fedpresence", failure)
        if self._reactor.running and not self._stopping:
            self._reactor.stop()
