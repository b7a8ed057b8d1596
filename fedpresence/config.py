"""YAML and environment to one frozen Config; each complaint names its key.

Always true: a Config that exists is complete and possible. Lengths of time are whole milliseconds;
paths are absolute. YAML is read here alone. All mistakes are told at once.

Source: contract.md, "Config"; presence.md 14 (a set that contradicts itself is an error).
"""

import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedpresence.config_endpoints import missing_folder
from fedpresence.config_keys import BATCH_WINDOW_BESIDE_A_HOMESERVER, KEYS, SECTIONS, Key, render
from fedpresence.config_model import (
    DEFAULT_BLOCKED_NETWORKS,
    RESOURCES,
    Config,
    FederationConfig,
    LimitsConfig,
    ListenerConfig,
    ListsConfig,
    LogConfig,
    OldKey,
    PresenceConfig,
    Rate,
    RoomsConfig,
)
from fedpresence.config_parsers import length_of_time, shown
from fedpresence.engine.settings import EngineSettings, InvitePolicy, RoomPolicy, ServerLists
from fedpresence.errors import ConfigError, ConfigProblem

__all__ = (
    "DEFAULT_BLOCKED_NETWORKS",
    "RESOURCES",
    "Config",
    "FederationConfig",
    "LimitsConfig",
    "ListenerConfig",
    "ListsConfig",
    "LogConfig",
    "OldKey",
    "PresenceConfig",
    "Rate",
    "RoomsConfig",
    "engine_settings",
    "load_config",
    "read_settings",
    "render",
    "warnings",
)

ENVIRONMENT_PREFIX = "FEDPRESENCE_"
_KEYS_BY_PATH = {key.path: key for key in KEYS}
_ABSENT = object()


def load_config(
    path: Path,
    environ: Mapping[str, str],
    *,
    check_signing_key: Callable[[Path], object] | None = None,
    check_registration: Callable[[Path], object] | None = None,
) -> Config:
    """The configuration in the file at `path`, overridden by `environ`; ConfigError with every mistake.

    `check_signing_key` and `check_registration` read the files of these names and raise ConfigError where
    they are wrong.
    """
    folder = path.absolute().parent
    problems: list[ConfigProblem] = []
    written = _read(path, problems)
    variables = _override(written, environ, problems)
    _find_unknown(written, "", problems)

    values: dict[str, Any] = {}
    for key in KEYS:
        found: list[ConfigProblem] = []
        value = _value_of(key, written, folder, found)
        if key.path in variables:
            found = [_from_variable(problem, variables[key.path]) for problem in found]
        problems += found
        if not found:
            values[key.field] = value
    if _lookup(written, "federation.batch_window") is _ABSENT and values.get("homeserver_url"):
        values["federation.batch_window_ms"] = length_of_time()(BATCH_WINDOW_BESIDE_A_HOMESERVER, "", folder)
    for field, check in (
        ("signing_key_path", check_signing_key),
        ("appservice_registration", check_registration),
    ):
        if check is not None and values.get(field) is not None:
            try:
                check(values[field])
            except ConfigError as error:
                problems += error.problems
    problems += _contradictions(values)
    if problems:
        raise ConfigError(problems)
    return _build(values, folder)


def read_settings(path: Path) -> dict[Any, Any]:
    """The keys in the YAML file at `path`, not judged yet; ConfigError where it cannot be read as such."""
    problems: list[ConfigProblem] = []
    written = _read(path, problems)
    if problems:
        raise ConfigError(problems)
    return written


NEWS_BURST_S = 120  # whoever changes as fast as limits.client_changes lets him, for so long, flaps (Z-18)


def engine_settings(config: Config) -> EngineSettings:
    """The engine's share of the configuration."""
    return EngineSettings(
        server_name=config.server_name,
        idle_timeout_ms=config.presence.idle_timeout_ms,
        last_active_granularity_ms=config.presence.last_active_granularity_ms,
        sync_online_timeout_ms=config.presence.sync_online_timeout_ms,
        remote_timeout_ms=config.presence.remote_timeout_ms,
        refresh_interval_ms=config.presence.refresh_interval_ms,
        invite_policy=config.lists.invite_policy,
        max_entries=config.lists.max_entries,
        share_presence_in_rooms=config.rooms.share_presence,
        max_room_members=config.rooms.max_members,
        room_policy=RoomPolicy(
            allow=config.rooms.allow,
            deny=config.rooms.deny,
            join_rules=config.rooms.join_rules,
            servers=ServerLists(allow=config.rooms.allow_servers, deny=config.rooms.deny_servers),
        ),
        news_burst=max(1, int(config.limits.client_changes.per_second * NEWS_BURST_S)),
        servers=ServerLists(allow=config.federation.allow, deny=config.federation.deny),
    )


def warnings(config: Config) -> list[str]:
    """What is allowed and still worth a second look: one sentence each, beginning with its key."""
    found = []
    policy = config.lists.invite_policy
    if policy in (InvitePolicy.ACCEPT, InvitePolicy.ACCEPT_SHARED_ROOM):
        found.append(
            f"lists.invite_policy: {policy.value} grants presence without asking the user, and tells other "
            "servers who has an account here."
        )
    if policy is InvitePolicy.ACCEPT_SHARED_ROOM and not config.rooms.share_presence:
        found.append(
            "lists.invite_policy: accept_shared_room accepts nobody while rooms.share_presence is false."
        )
    for key, names in (("rooms.allow", config.rooms.allow), ("rooms.join_rules", config.rooms.join_rules)):
        if names == () and config.rooms.share_presence:
            found.append(f"{key}: an empty list leaves no room to share presence in; null means all.")
    if not config.federation.verify_certificates:
        found.append("federation.verify_certificates: false lets anybody on the path pose as another server.")
    if config.federation.allow == ():
        found.append("federation.allow: an empty list exchanges presence with nobody; null means all.")
    if config.admin_token is not None and len(config.admin_token) < 16:
        found.append("admin.token: shorter than 16 characters can be guessed.")
    served = {resource for listener in config.listeners for resource in listener.resources}
    if "federation" not in served:
        found.append("listeners: no listener serves federation, so no other server can reach us.")
    if config.admin_token is not None and "admin" not in served:
        found.append("listeners: admin.token is set, but no listener serves admin.")
    if config.appservice_registration is not None and "appservice" not in served:
        found.append(
            "listeners: appservice.registration is given, but no listener serves appservice, so the "
            "homeserver can tell us nothing."
        )
    for listener in config.listeners:
        if (folder := missing_folder(listener.endpoint)) is not None:
            found.append(f"listeners: there is no folder {folder}; there must be when the daemon starts.")
    return found


# --- reading ---------------------------------------------------------------------------------


def _read(path: Path, problems: list[ConfigProblem]) -> dict[Any, Any]:
    where = str(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError.of(
            where,
            f"cannot be read: {error.strerror}.",
            "Write one with: fedpresence generate-config --server-name NAME"
            if isinstance(error, FileNotFoundError)
            else "Name a file that the user who runs this may read.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError.of(where, "is not UTF-8 text.", "Save it as UTF-8.") from error
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _find_duplicates(node, "", problems, set())
        written = {} if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise ConfigError.of(
            place, f"is not YAML: {error.problem or error.context}.", "Check indentation, quotes and colons."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError.of(where, f"is not YAML: {' '.join(str(error).split())}.") from error
    except (ValueError, RecursionError, OverflowError) as error:  # 2026-02-30; brackets without end
        raise ConfigError.of(where, f"is not YAML that can be read: {error}.") from error
    if written is None:
        written = {}
    if not isinstance(written, dict):
        raise ConfigError.of(where, f"holds {shown(written)}, not keys.", "Write key: value on each line.")
    return written


def _find_duplicates(node: yaml.Node, path: str, problems: list[ConfigProblem], seen: set[int]) -> None:
    """YAML lets the last of two equal keys win without a word; an operator means one of them."""
    if id(node) in seen:  # an alias, possibly to a node around it
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _find_duplicates(item, f"{path}[{index}]", problems, seen)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                continue
            name, line = name_node.value, name_node.start_mark.line + 1
            below = f"{path}.{name}" if path else name
            if name in first_lines and name != "<<":
                problems.append(
                    ConfigProblem(
                        below, f"is given twice (lines {first_lines[name]} and {line}).", "Keep one."
                    )
                )
            first_lines.setdefault(name, line)
            _find_duplicates(value_node, below, problems, seen)


def _override(
    written: dict[Any, Any], environ: Mapping[str, str], problems: list[ConfigProblem]
) -> dict[str, str]:
    """Put the environment's values into `written`; answers key path to variable for those given."""
    variables: dict[str, str] = {}
    for variable in sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX)):
        path = variable.removeprefix(ENVIRONMENT_PREFIX).replace("__", ".").lower()
        key = _KEYS_BY_PATH.get(path)
        if (key is None and path not in SECTIONS) or variable != variable.upper():
            known = [_variable(each.path) for each in KEYS]
            problems.append(
                ConfigProblem(variable, "is not a known variable.", _did_you_mean(variable, known))
            )
            continue
        value: object = environ[variable]
        if key is None or not key.verbatim or value == "":
            try:
                value = yaml.safe_load(environ[variable])
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                reason = " ".join(str(error).split())
                problems.append(
                    ConfigProblem(variable, f"is not YAML: {reason}.", "Quote it as in the file.")
                )
                continue
        if key is None and not isinstance(value, dict):
            problems.append(ConfigProblem(variable, f"{shown(value)} is no section.", "Use {key: value}."))
            continue
        _put(written, path, value, variable, variables)
    return variables


def _put(written: dict[Any, Any], path: str, value: object, variable: str, variables: dict[str, str]) -> None:
    if path in SECTIONS and isinstance(value, dict):
        for name, item in value.items():
            _put(written, f"{path}.{name}", item, variable, variables)
        return
    variables[path] = variable
    *sections, leaf = path.split(".")
    for name in sections:
        below = written.get(name)
        if not isinstance(below, dict):
            below = written[name] = {}
        written = below
    written[leaf] = value


def _variable(path: str) -> str:
    return ENVIRONMENT_PREFIX + path.replace(".", "__").upper()


def _from_variable(problem: ConfigProblem, variable: str) -> ConfigProblem:
    return ConfigProblem(problem.key, f"{problem.problem} (It comes from {variable}.)", problem.fix)


# --- checking --------------------------------------------------------------------------------


def _find_unknown(written: dict[Any, Any], section: str, problems: list[ConfigProblem]) -> None:
    for name, value in written.items():
        path = f"{section}.{name}" if section else str(name)
        if path in _KEYS_BY_PATH and isinstance(name, str):
            continue
        if path in SECTIONS and isinstance(name, str):
            if isinstance(value, dict):
                _find_unknown(value, path, problems)
            elif value is not None:
                problems.append(
                    ConfigProblem(
                        path, f"{shown(value)} is not a section.", "Write its keys below it, indented."
                    )
                )
            continue
        problems.append(ConfigProblem(path, "is not a known key.", _did_you_mean(path, list(_KEYS_BY_PATH))))


def _did_you_mean(path: str, known: list[str]) -> str:
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    if not close:
        # The right name in the wrong section.
        leaf = path.rpartition(".")[2]
        close = [each for each in known if each.rpartition(".")[2] == leaf][:1]
    return f"Did you mean {close[0]}?" if close else "Take it out; config.example.yaml has every key."


def _lookup(written: dict[Any, Any], path: str) -> object:
    value: object = written
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _value_of(key: Key, written: dict[Any, Any], folder: Path, problems: list[ConfigProblem]) -> object:
    value = _lookup(written, key.path)
    if value is _ABSENT:
        if key.default is None:
            problems.append(ConfigProblem(key.path, "is missing.", key.words))
            return None
        value = yaml.safe_load(key.default)
    try:
        return key.parse(value, key.path, folder)
    except ConfigError as error:
        problems += error.problems
        return None


def _contradictions(values: dict[str, Any]) -> list[ConfigProblem]:
    """What each key allows and the set does not; a key that is wrong by itself contradicts nothing."""
    found: list[ConfigProblem] = []

    def ordered(lower: str, upper: str, *, strict: bool, times: int = 1, why: str) -> None:
        low, high = values.get(_field(lower)), values.get(_field(upper))
        if low is None or high is None or low * times < high or (not strict and low * times == high):
            return
        relation = "longer than" if strict else "at least" if times == 1 else f"at least {times} times"
        found.append(ConfigProblem(upper, f"must be {relation} {lower}: {why}.", "Change one of the two."))

    ordered(
        "presence.last_active_granularity",
        "presence.idle_timeout",
        strict=False,  # one ends before that long, the other begins after it (P:A-8, I-2)
        why="nobody is idle while still currently active",
    )
    ordered(
        "presence.refresh_interval",
        "presence.remote_timeout",
        strict=True,
        why="users would expire between two refreshes",
    )
    ordered(
        "federation.batch_window",
        "presence.refresh_interval",
        strict=True,
        why="a refresh would wait for longer than it lasts",
    )
    for part in ("per_second", "burst"):
        ordered(
            f"limits.client_changes.{part}",
            f"limits.client_changes_refused.{part}",
            strict=False,
            why="changes are merged before they are refused",
        )
    ordered(
        "limits.transaction_body",
        "limits.bodies_in_flight",
        strict=False,
        times=4,
        why="one server may use a quarter of it (Z-2)",
    )
    if values.get("auth_mode") == "homeserver" and values.get("homeserver_url", _ABSENT) is None:
        found.append(
            ConfigProblem(
                "homeserver.url",
                "is missing: auth.mode is homeserver.",
                "Use for example http://127.0.0.1:8008.",
            )
        )
    registration = values.get("appservice_registration", _ABSENT)
    if registration not in (None, _ABSENT) and values.get("homeserver_url", _ABSENT) is None:
        found.append(
            ConfigProblem(
                "homeserver.url",
                "is missing: appservice.registration is given.",
                "Use for example http://127.0.0.1:8008.",
            )
        )
    for index, listener in enumerate(values.get("listeners", ())):
        if registration is None and "appservice" in listener.resources:
            found.append(
                ConfigProblem(
                    "appservice.registration",
                    f"is missing: listeners[{index}] serves appservice.",
                    "Name a file, for example registration.yaml, and run: fedpresence generate-registration",
                )
            )
            break
    if values.get("admin_token") and values.get("admin_token_path"):
        found.append(ConfigProblem("admin.token_path", "stands beside admin.token.", "Keep one of the two."))
    burst = values.get("limits.origin_bytes.burst", math.inf)
    if burst < values.get("limits.transaction_body", 0):
        found.append(
            ConfigProblem(
                "limits.origin_bytes.burst",
                "is less than limits.transaction_body: a whole transaction would never fit.",
                "Change one of the two.",
            )
        )
    return found


def _field(path: str) -> str:
    return _KEYS_BY_PATH[path].field


def _build(values: dict[str, Any], folder: Path) -> Config:
    def section(name: str) -> dict[str, Any]:
        prefix = f"{name}."
        return {
            field.removeprefix(prefix): value for field, value in values.items() if field.startswith(prefix)
        }

    limits = {name: value for name, value in section("limits").items() if "." not in name}
    for rate in ("client_changes", "client_changes_refused", "origin_bytes", "origin_entries"):
        limits[rate] = Rate(**section(f"limits.{rate}"))
    whole = {field: value for field, value in values.items() if "." not in field}
    token_in_file = whole.pop("admin_token_path")
    whole["admin_token"] = whole["admin_token"] or token_in_file
    return Config(
        folder=folder,
        **whole,
        presence=PresenceConfig(**section("presence")),
        lists=ListsConfig(**section("lists")),
        rooms=RoomsConfig(**section("rooms")),
        federation=FederationConfig(**section("federation")),
        limits=LimitsConfig(**limits),
        log=LogConfig(**section("log")),
    )
