"""The command `fedpresence`: what the contract lists, and its exit codes.

Always true: 0 done, 1 failed while running, 2 wrong usage, 78 the configuration or a key file is wrong;
what the operator can mend is told in a line that says how, never as a traceback.

Source: contract.md, "Command line".
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react

from fedpresence import __version__
from fedpresence.clock import MonotonicClock, now_ms
from fedpresence.config import Config, engine_settings, load_config, render, warnings
from fedpresence.config_parsers import url as parse_url
from fedpresence.errors import BadRequest, ConfigError, ConfigProblem, DeliveryFailed, FedpresenceError
from fedpresence.homeserver import registration
from fedpresence.homeserver.registration import load_registration
from fedpresence.ids import DeviceID, ServerName, UserID, parse_server_name, parse_user_id
from fedpresence.ops import accounts, report
from fedpresence.ops.admin_client import HOW_TO_SWITCH_ON, AdminClient, NotRunning, admin_url
from fedpresence.ops.keys import generate_key_file, load_signing_keys
from fedpresence.storage.lock import word_of_holder
from fedpresence.storage.sqlite import SQLiteStore

DONE = 0
FAILED = 1
WRONG_USAGE = 2
WRONG_CONFIG = 78  # EX_CONFIG of sysexits.h

RELOAD = (signal.SIGHUP,)
LIST_CHANGES = ("invite", "accept", "deny", "revoke", "drop")

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except _WrongUsageError as error:
        return _complain(str(error), WRONG_USAGE)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return WRONG_CONFIG
    except BadRequest as error:
        return _complain(error.message, FAILED)
    except FedpresenceError as error:
        return _complain(str(error), FAILED)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _complain(f"{error.filename or 'fedpresence'}: {error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return FAILED


class _WrongUsageError(Exception):
    """An argument that argparse could not judge."""


# --- the commands ----------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    # A reload that is asked for while we start would end us, for good where systemd watches: it calls that a
    # clean end. It waits for whoever takes it; see `process.run`.
    signal.pthread_sigmask(signal.SIG_BLOCK, RELOAD)
    try:
        config = _load(arguments, with_keys=True)
        from fedpresence.process import run  # the whole daemon: other commands start without it

        return run(config, arguments.config, ready_file=arguments.ready_file, force=arguments.force)
    finally:
        if signal.SIGHUP in signal.sigpending():  # of a start that failed: the exit code says more
            signal.sigwait(RELOAD)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RELOAD)


def _demo(arguments: argparse.Namespace) -> int:
    from fedpresence.ops.demo import run_demo

    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: its two servers end with it
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    return run_demo()


def _rig(arguments: argparse.Namespace) -> int:
    from fedpresence.testing.rig.command import WrongUsage, run_rig

    try:
        return run_rig(arguments)
    except WrongUsage as error:
        raise _WrongUsageError(str(error)) from error


def _generate_config(arguments: argparse.Namespace) -> int:
    try:
        server_name = parse_server_name(arguments.server_name)
    except BadRequest as error:
        raise _WrongUsageError(f"--server-name {arguments.server_name}: {error.message}") from error
    print(render(server_name), end="")
    return DONE


def _generate_key(arguments: argparse.Namespace) -> int:
    key_id = generate_key_file(arguments.output)
    print(f"{key_id} is in {arguments.output}")
    return DONE


def _generate_registration(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    url = arguments.url or registration.appservice_url(config)
    if url is None:
        raise _WrongUsageError(
            "--url: where the homeserver reaches us cannot be known: no plain tcp listener with a fixed port "
            "serves appservice. Give it, for example --url http://127.0.0.1:9009"
        )
    try:
        text = registration.generate_registration(config.server_name, parse_url(url, "--url", config.folder))
    except ConfigError as error:
        raise _WrongUsageError(str(error)) from error
    path: Path | None = arguments.output or config.appservice_registration
    if path is None:
        print(text, end="")
    else:
        registration.write_registration(path, text)
        print(f"The registration is in {path}")
    print(registration.next_steps(config, path), file=sys.stderr)
    return DONE


def _check_config(arguments: argparse.Namespace) -> int:
    config = _load(arguments, with_keys=True)
    for warning in warnings(config):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{arguments.config}: nothing wrong")
    return DONE


def _token_add(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    user_id = _local_user(arguments.user, config.server_name)
    device_id = _device(arguments) or accounts.new_device_id()
    if config.auth_mode != "tokens":
        print(f"warning: auth.mode is {config.auth_mode}, so this token is not honoured", file=sys.stderr)

    async def work(reactor: Any) -> str:
        async with _store(config, reactor) as store:
            return await accounts.add_token(store, user_id, device_id, _now_ms(reactor))

    print(_in_reactor(work))
    return DONE


def _token_list(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    user_id = _local_user(arguments.user, config.server_name) if arguments.user else None

    async def work(reactor: Any) -> Any:
        async with _store(config, reactor) as store:
            return await store.list_tokens(user_id)

    tokens = _in_reactor(work)
    if arguments.json:
        rows = [{"user_id": user, "device_id": device, "created_ts": ms} for user, device, ms in tokens]
        _print_json({"tokens": rows})
    else:
        print(report.tokens_text(tokens))
    return DONE


def _token_revoke(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    user_id = _local_user(arguments.user, config.server_name)
    device_id = _device(arguments)

    async def work(reactor: Any) -> Any:
        async with _store(config, reactor) as store:
            return await accounts.revoke_tokens(store, user_id, device_id)

    devices = _in_reactor(work)
    if not devices:
        of_device = f" for device {device_id}" if device_id else ""
        return _complain(f"{user_id} has no token{of_device}", FAILED)
    print(f"revoked: {', '.join(device or 'no device' for device in devices)}")
    return DONE


def _user_deactivate(arguments: argparse.Namespace) -> int:
    """By the running daemon where there is one; else in the database, which only one may hold."""
    from fedpresence.engine.engine import Engine

    config = _load(arguments)
    user_id = _local_user(arguments.user, config.server_name)

    async def offline(reactor: Any) -> None:
        now = _now_ms(reactor)
        try:
            async with _store(config, reactor, exclusive=True) as store:
                await accounts.deactivate(store, Engine(engine_settings(config), now), user_id, now)
        except ConfigError as error:
            raise ConfigError([*error.problems, *_admin_is_off(config, arguments)]) from error

    async def work(reactor: Any) -> str:
        url = _admin_url(config, arguments)
        if url is not None and config.admin_token is not None:
            try:
                await _admin(config, url, reactor).deactivate(user_id)
            except NotRunning:
                if arguments.url:
                    raise
            else:
                return "by the running daemon"
        await offline(reactor)
        return "in the database: no daemon runs"

    print(f"{user_id} is deactivated ({_in_reactor(work)})")
    return DONE


def _subscriptions(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    user_id = _local_user(arguments.user, config.server_name)
    change = {name: getattr(arguments, name) for name in LIST_CHANGES if getattr(arguments, name)}
    for others in change.values():
        for other in others:
            _user(other)
    url = _admin_url_or_explain(config, arguments)

    async def work(reactor: Any) -> dict[str, Any]:
        admin = _admin(config, url, reactor)
        if change:
            await admin.change_list(user_id, change)
        return await admin.user(user_id)

    user = _in_reactor(work)
    if arguments.json:
        _print_json({name: user.get(name) for name in ("user_id", "list", "invites", "observers")})
    else:
        print(report.subscriptions_text(user))
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    url = _admin_url_or_explain(config, arguments)

    async def work(reactor: Any) -> tuple[dict[str, Any], dict[str, Any], int]:
        admin = _admin(config, url, reactor)
        status = await admin.status()
        destinations = (await admin.destinations()).get("destinations") or {}
        return status, destinations, _now_ms(reactor)

    status, destinations, now = _in_reactor(work)
    if arguments.json:
        _print_json({"status": status, "destinations": destinations})
    else:
        print(report.status_text(status, destinations, now))
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    config = _load(arguments, with_keys=True)
    if config.homeserver_url is None:
        raise ConfigError.of(
            "homeserver.url", "is missing: there is no homeserver to ask.", "Name the one behind us."
        )
    from fedpresence.doctor import examine  # most of the daemon: other commands start without it

    findings = _in_reactor(lambda reactor: examine(config, reactor))
    for finding in findings:
        print(f"{finding.verdict.value:8}{finding}")
    return DONE if all(finding.is_good for finding in findings) else FAILED


# --- what they share -------------------------------------------------------------------------


def _load(arguments: argparse.Namespace, *, with_keys: bool = False) -> Config:
    if not with_keys:
        return load_config(arguments.config, os.environ)
    return load_config(
        arguments.config,
        os.environ,
        check_signing_key=load_signing_keys,
        check_registration=load_registration,
    )


def _user(text: str) -> UserID:
    try:
        return parse_user_id(text)
    except BadRequest as error:
        raise _WrongUsageError(f"{text}: {error.message}") from error


def _device(arguments: argparse.Namespace) -> DeviceID | None:
    try:
        return None if arguments.device is None else accounts.parse_device_id(arguments.device)
    except BadRequest as error:
        raise _WrongUsageError(f"--device: {error.message}") from error


def _local_user(text: str, server_name: ServerName) -> UserID:
    try:
        return accounts.parse_local_user(text, server_name)
    except BadRequest as error:
        raise _WrongUsageError(f"{text}: {error.message}") from error


def _now_ms(reactor: Any) -> int:
    return now_ms(MonotonicClock(reactor))


@asynccontextmanager
async def _store(config: Config, reactor: Any, *, exclusive: bool = False) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore.open(config.database_path, reactor, exclusive=exclusive)
    try:
        yield store
    finally:
        await store.close()


def _admin(config: Config, url: str, reactor: Any) -> AdminClient:
    assert config.admin_token is not None, "asked for only where there is one"
    return AdminClient.at(url, config.admin_token, reactor)


def _admin_url_or_explain(config: Config, arguments: argparse.Namespace) -> str:
    if config.admin_token is None:
        raise DeliveryFailed("the admin API", f"it is off. {HOW_TO_SWITCH_ON}")
    url = _admin_url(config, arguments)
    if url is None:
        raise DeliveryFailed(
            "the admin API",
            "no Unix socket and no plain tcp listener with a fixed port has it in the configuration, and no "
            "daemon that runs says where it is. Give its address, for example --url http://127.0.0.1:8009. "
            f"{HOW_TO_SWITCH_ON}",
        )
    return url


def _admin_url(config: Config, arguments: argparse.Namespace) -> str | None:
    """What was given, else by the configuration, else as the running daemon has it; None where none says."""
    url: str | None = arguments.url
    return url or admin_url(config) or word_of_holder(config.database_path)


def _admin_is_off(config: Config, arguments: argparse.Namespace) -> tuple[ConfigProblem, ...]:
    if config.admin_token is not None and _admin_url(config, arguments) is not None:
        return ()
    return (
        ConfigProblem(
            "admin",
            "a running daemon can be asked only through its admin API, which is off."
            if config.admin_token is None
            else "a running daemon can be asked only through its admin API, and no Unix socket and no plain "
            "tcp listener with a fixed port has it in the configuration.",
            HOW_TO_SWITCH_ON if config.admin_token is None else "Give its address with --url.",
        ),
    )


def _in_reactor(work: Callable[[Any], Awaitable[T]]) -> T:
    """What `work(reactor)` answers, or its error; the reactor runs for as long and never again."""
    answers: list[T] = []
    errors: list[Exception] = []

    async def until_done(reactor: Any) -> None:
        try:
            answers.append(await work(reactor))
        except (FedpresenceError, OSError) as error:
            errors.append(error)

    try:
        react(lambda reactor: ensureDeferred(until_done(reactor)))
    except SystemExit:
        if not answers and not errors:
            raise
    if errors:
        raise errors[0]
    return answers[0]


def _complain(message: str, code: int) -> int:
    print(f"fedpresence: {message}", file=sys.stderr)
    return code


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


# --- the arguments ---------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedpresence",
        description="Presence between Matrix homeservers, by consent.",
        epilog="Exit codes: 0 done, 1 failed while running, 2 wrong usage, 78 wrong configuration or key.",
    )
    parser.add_argument("--version", action="version", version=f"fedpresence {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = _command(commands, "run", _run, "run the daemon in the foreground")
    run.add_argument(
        "--ready-file",
        type=_ready_file,
        metavar="PATH",
        help="written once every listener answers: pid and ports",
    )
    run.add_argument(
        "--force", action="store_true", help="send even where another process answers for our server name"
    )

    _command(
        commands, "demo", _demo, "two servers on loopback: an invite, an accept, activity", with_config=False
    )

    generate_config = _command(
        commands, "generate-config", _generate_config, "print a commented configuration", with_config=False
    )
    generate_config.add_argument(
        "--server-name", required=True, metavar="NAME", help="the users' server name"
    )

    generate_key = _command(
        commands, "generate-key", _generate_key, "make an ed25519 signing key file", with_config=False
    )
    generate_key.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="a new file")

    _command(commands, "doctor", _doctor, "ask the homeserver beside us whether everything is as it must be")
    generate_registration = _command(
        commands,
        "generate-registration",
        _generate_registration,
        "make the file that introduces us to the homeserver beside us, as an application service",
    )
    generate_registration.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="a new file (appservice.registration of the configuration; else it is printed)",
    )
    generate_registration.add_argument(
        "--url", metavar="URL", help="where the homeserver reaches us (the listener that serves appservice)"
    )

    _command(commands, "check-config", _check_config, "say everything that is wrong with a configuration")

    token = commands.add_parser("token", help="access tokens of our own").add_subparsers(
        metavar="COMMAND", required=True
    )
    add = _command(token, "add", _token_add, "print a new access token; makes the user exist")
    add.add_argument("user", metavar="@user:server")
    add.add_argument("--device", metavar="ID", help="its device (a new one)")
    listing = _command(token, "list", _token_list, "who has tokens")
    listing.add_argument("user", metavar="@user:server", nargs="?")
    listing.add_argument("--json", action="store_true", help="as JSON")
    revoke = _command(token, "revoke", _token_revoke, "take tokens back")
    revoke.add_argument("user", metavar="@user:server")
    revoke.add_argument("--device", metavar="ID", help="only this device's (all)")

    user = commands.add_parser("user", help="accounts").add_subparsers(metavar="COMMAND", required=True)
    deactivate = _command(user, "deactivate", _user_deactivate, "no tokens, grants ended, lists dropped")
    deactivate.add_argument("user", metavar="@user:server")
    _with_url(deactivate)

    subscriptions = _command(
        commands, "subscriptions", _subscriptions, "show or change a user's list, invites and observers"
    )
    subscriptions.add_argument("user", metavar="@user:server")
    for name in LIST_CHANGES:
        subscriptions.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="@other")
    subscriptions.add_argument("--json", action="store_true", help="as JSON")
    _with_url(subscriptions)

    status = _command(commands, "status", _status, "the running daemon at a glance")
    status.add_argument("--json", action="store_true", help="as JSON")
    _with_url(status)

    _add_rig(commands)
    return parser


def _add_rig(commands: Any) -> None:
    words = "several servers in one process, to test a homeserver or a client against"
    rig = _command(commands, "rig", _rig, words, with_config=False)
    rig.add_argument("--servers", required=True, metavar="NAME,...", help="their server names")
    rig.add_argument(
        "--users", default="", metavar="USER,...", help="who has a token: alice@a.test or @alice:a.test"
    )
    rig.add_argument(
        "--ready-file",
        type=_ready_file,
        metavar="PATH",
        help="written once all answer: URLs, tokens and keys",
    )
    rig.add_argument(
        "--clock",
        choices=("virtual", "real"),
        default="virtual",
        help="virtual time passes only when the control API says so (virtual)",
    )
    rig.add_argument(
        "--dir", type=Path, metavar="DIR", help="keep their data there (else removed at the end)"
    )
    rig.add_argument("--seed", type=int, metavar="N", help="of everything random (a new one, printed)")
    rig.add_argument("--config", type=Path, metavar="FILE", help="merged into every server's configuration")
    rig.add_argument(
        "--remove-at-eof", type=Path, metavar="DIR", help="remove that folder too when standard input ends"
    )
    rig.add_argument(
        "--stop-at-eof",
        action="store_true",
        help="stop when standard input ends, so that no rig outlives whoever started it",
    )
    rig.add_argument(
        "--addressable",
        action="store_true",
        help="name them 127.0.0.1:PORT, so that a server outside finds them; needs --clock real",
    )


def _ready_file(text: str) -> Path:
    """A file that can be: whoever waits for it would wait in vain for any other."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder. Name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}. Make it first")
    return path


def _command(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    words: str,
    *,
    with_config: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=words, description=words)
    parser.set_defaults(command=command)
    if with_config:
        parser.add_argument(
            "-c", "--config", required=True, type=Path, metavar="FILE", help="the configuration"
        )
    return parser


def _with_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", metavar="URL", help="the daemon's admin API (found by the configuration)")
