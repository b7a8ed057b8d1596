import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from fedpresence.config import (
    DEFAULT_BLOCKED_NETWORKS,
    Config,
    FederationConfig,
    LimitsConfig,
    ListsConfig,
    LogConfig,
    OldKey,
    PresenceConfig,
    Rate,
    RoomsConfig,
    engine_settings,
    load_config,
    render,
    warnings,
)
from fedpresence.config_keys import EXAMPLE_SERVER_NAME, KEYS, SECTIONS
from fedpresence.engine.settings import InvitePolicy, RoomPolicy, ServerLists
from fedpresence.errors import ConfigError
from fedpresence.ops.keys import generate_key_file, load_signing_keys

PROJECT = Path(__file__).parent.parent

MINIMAL = """
server_name: here.test
signing_key_path: here.signing.key
listeners:
  - endpoint: "tcp:0:interface=127.0.0.1"
    resources: [client, federation]
"""
SEED = "c2VjcmV0IGhhbGYgb2YgYSByZXRpcmVkIGtleSAwMTI"  # nobody's: "secret half of a retired key 012"
VERIFY_KEY = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI"  # of the specification's examples


def load(folder: Path, text: str = "", environ: dict[str, str] | None = None) -> Config:
    """The minimal configuration with `text` added."""
    key = folder / "here.signing.key"
    if not key.exists():
        generate_key_file(key)
    path = folder / "fedpresence.yaml"
    path.write_text(MINIMAL + text, encoding="utf-8")
    return load_config(path, environ or {})


def problems_of(folder: Path, text: str = "", environ: dict[str, str] | None = None) -> dict[str, str]:
    """What is wrong with the minimal configuration and `text`: complaint by key."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_a_minimal_file_has_every_default(tmp_path: Path) -> None:
    """Whoever writes four lines runs what the contract's table of defaults promises."""
    config = load(tmp_path)

    assert config == Config(
        folder=tmp_path,
        server_name=config.server_name,
        signing_key_path=tmp_path / "here.signing.key",
        listeners=config.listeners,
        database_path=tmp_path / "fedpresence.db",
    )
    assert config.presence == PresenceConfig()
    assert config.lists == ListsConfig()
    assert config.rooms == RoomsConfig()
    assert config.federation == FederationConfig()
    assert config.limits == LimitsConfig()
    assert config.log == LogConfig()
    assert config.federation.blocked_networks == DEFAULT_BLOCKED_NETWORKS


def test_every_field_of_the_configuration_has_a_key() -> None:
    """A field without a key could never be set; one without a field would be forgotten silently."""
    made_by_keys = {key.field for key in KEYS}

    def leaves(cls: type, prefix: str = "") -> set[str]:
        found: set[str] = set()
        for each in fields(cls):
            default: Any = each.default
            nested = type(default) if is_dataclass(default) else None
            found |= leaves(nested, f"{prefix}{each.name}.") if nested else {prefix + each.name}
        return found

    assert leaves(Config) - {"folder"} == made_by_keys - {"admin_token_path"}


def test_every_section_of_the_table_has_words() -> None:
    """A generated file explains each block to the operator."""
    named = {key.path.rpartition(".")[0] for key in KEYS} - {""}

    assert named <= set(SECTIONS)
    assert all(key.words.endswith(".") for key in KEYS)


def test_the_example_file_is_what_the_table_says() -> None:
    """An example that lags behind the code misleads everybody who copies it."""
    example = (PROJECT / "config.example.yaml").read_text(encoding="utf-8")

    assert example == render(EXAMPLE_SERVER_NAME)


def test_the_example_file_loads_and_its_values_are_the_defaults(tmp_path: Path) -> None:
    """The contract: config.example.yaml shows every key with its default."""
    path = tmp_path / "config.yaml"
    path.write_bytes((PROJECT / "config.example.yaml").read_bytes())
    generate_key_file(tmp_path / "example.org.signing.key")

    config = load_config(path, {}, check_signing_key=load_signing_keys)

    default = load(tmp_path)
    assert config.server_name == "example.org"
    for name in ("presence", "lists", "rooms", "federation", "limits", "log", "auth_mode", "database_path"):
        assert getattr(config, name) == getattr(default, name)
    assert (config.old_signing_keys, config.homeserver_url, config.admin_token) == ({}, None, None)
    assert warnings(config) == []


@pytest.mark.parametrize("server_name", ["here.test", "here.test:8448", "[::1]:8448", "10.1.2.3", "1234"])
def test_a_generated_file_loads_for_every_kind_of_server_name(tmp_path: Path, server_name: str) -> None:
    """`generate-config` must not need editing before its first use."""
    text = render(server_name)
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    key_line = next(line for line in text.splitlines() if line.startswith("signing_key_path"))
    generate_key_file(tmp_path / key_line.split('"')[1])

    assert load_config(path, {}).server_name == server_name


WRONG = {
    "server_name": '"not a name"',
    "signing_key_path": "nowhere.key",
    "old_signing_keys": "[]",
    "listeners": "[]",
    "database.url": "mysql://here",
    "presence.idle_timeout": '"5 mins"',
    "presence.last_active_granularity": "-1",
    "presence.sync_online_timeout": "1.5",
    "presence.remote_timeout": "0",
    "presence.refresh_interval": "10000d",
    "presence.offline_on_stop": '"yes"',
    "presence.busy": "1",
    "lists.invite_policy": "maybe",
    "lists.max_entries": "0",
    "rooms.share_presence": "null",
    "rooms.max_members": '"500"',
    "rooms.allow": "['#alias:here.test']",
    "rooms.deny": "['room:here.test']",
    "rooms.join_rules": "[anybody]",
    "rooms.allow_servers": "here.test",
    "rooms.deny_servers": "['bad_server!']",
    "federation.allow": "here.test",
    "federation.deny": '["bad name"]',
    "federation.verify_certificates": "[]",
    "federation.ca_file": "nowhere.pem",
    "federation.resolve": '{there.test: "no port"}',
    "federation.blocked_networks": '["10.0.0.1/8"]',
    "federation.batch_window": "soon",
    "federation.keep_connections": "long",
    "federation.max_transactions_per_second": "0",
    "federation.notaries": '["@"]',
    "federation.serve_well_known": '"https://here.test"',
    "limits.client_changes.per_second": "0",
    "limits.client_changes.burst": "0.5",
    "limits.client_changes_refused.per_second": "true",
    "limits.client_changes_refused.burst": "x",
    "limits.origin_bytes.per_second": "-1",
    "limits.origin_bytes.burst": "null",
    "limits.origin_entries.per_second": '"1"',
    "limits.origin_entries.burst": "0",
    "limits.client_body": "10",
    "limits.transaction_body": "64 KiB",
    "limits.bodies_in_flight": "true",
    "limits.connections": "0",
    "limits.idle_connection": "a while",
    "log.format": "xml",
    "log.level": "loud",
    "log.levels": "{fedpresence: 5}",
    "auth.mode": "none",
    "homeserver.url": '"here.test"',
    "appservice.registration": "/",
    "appservice.scan_rate": "0",
    "admin.token": '"two words"',
    "admin.token_path": "nowhere.txt",
}


def test_every_key_has_a_wrong_value_below() -> None:
    """A key that is added must show what it refuses."""
    assert set(WRONG) == {key.path for key in KEYS}


def test_all_mistakes_are_told_at_once_each_by_its_key(tmp_path: Path) -> None:
    """Mending a file one error at a time is how an afternoon goes."""
    environ = {"FEDPRESENCE_" + path.replace(".", "__").upper(): value for path, value in WRONG.items()}
    environ["FEDPRESENCE_SERVER_NAME"] = "not a name"
    environ["FEDPRESENCE_ADMIN__TOKEN"] = "two words"

    problems = problems_of(tmp_path, environ=environ)

    named = {key.partition("[")[0] for key in problems}
    for path in WRONG:
        assert any(key == path or key.startswith(f"{path}.") for key in named), path
    assert "two words" not in "".join(problems.values()), "a secret is never repeated"


@pytest.mark.parametrize("path", [path for path in WRONG if "." in path])
def test_a_wrong_value_in_the_file_is_refused(tmp_path: Path, path: str) -> None:
    """Each parser refuses by itself, not only beside others."""
    *sections, name = path.split(".")
    text = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
    text += f"{'  ' * len(sections)}{name}: {WRONG[path]}\n"

    problems = problems_of(tmp_path, text)

    assert all(key == path or key.startswith((f"{path}.", f"{path}[")) for key in problems), problems


def test_a_complaint_names_the_key_the_problem_and_the_fix(tmp_path: Path) -> None:
    """The operator should not have to look anything up."""
    problems = problems_of(tmp_path, 'presence: {idle_timeout: "5 mins"}')

    assert problems["presence.idle_timeout"] == (
        'presence.idle_timeout: "5 mins" is not a length of time. '
        "Use for example 300s, 5m or 30d (a bare number is milliseconds)."
    )


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        ("presense: {}", "presense", "not a known key"),
        ("presence: {idle_timout: 5m}", "presence.idle_timout", "Did you mean presence.idle_timeout?"),
        ("idle_timeout: 5m", "idle_timeout", "Did you mean presence.idle_timeout?"),
        ("presence: 5m", "presence", "not a section"),
        ("limits: {client_changes: 5}", "limits.client_changes", "not a section"),
        ("presence: {busy: true, busy: false}", "presence.busy", "given twice"),
        ("1: 2", "1", "not a known key"),
        ("homeserver: {url: 'http://here.test?x=1'}", "homeserver.url", "not a base URL"),
        ("database: {url: 'sqlite:///:memory:'}", "database.url", "names no file"),
        ("database: {url: sqlite:///none/x.db}", "database.url", "mkdir -p"),
        (
            "old_signing_keys: {ed25519:a: {key: short, expired_ts: 1}}",
            "old_signing_keys.ed25519:a.key",
            "is not an ed25519 verify key",
        ),
        (
            "old_signing_keys: {rsa:a: {key: short, expired_ts: 1}}",
            "old_signing_keys.rsa:a",
            "not a key ID",
        ),
    ],
)
def test_what_nobody_could_mean_is_an_error(tmp_path: Path, text: str, key: str, part: str) -> None:
    """A key that is misspelt and ignored is worse than one that is refused."""
    assert part in problems_of(tmp_path, text)[key]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("presence: {idle_timeout: 59s}", "presence.idle_timeout"),
        ("presence: {refresh_interval: 30m}", "presence.remote_timeout"),
        ("presence: {remote_timeout: 25m}", "presence.remote_timeout"),
        ("federation: {batch_window: 1h}", "presence.refresh_interval"),
        ("limits: {client_changes: {per_second: 51}}", "limits.client_changes_refused.per_second"),
        ("limits: {bodies_in_flight: 16MiB}", "limits.bodies_in_flight"),
        ("limits: {origin_bytes: {burst: 1000}}", "limits.origin_bytes.burst"),
        ("auth: {mode: homeserver}", "homeserver.url"),
    ],
)
def test_a_set_that_contradicts_itself_is_an_error(tmp_path: Path, text: str, key: str) -> None:
    """P:14: for one, nobody is idle while still currently active."""
    assert set(problems_of(tmp_path, text)) == {key}


@pytest.mark.parametrize(
    ("endpoint", "part"),
    [
        ("tcp:80000", "port 80000 is out of range."),
        ("tcp", "has no port"),
        ("tcp:http", "is not a port"),
        ("tcp:8008:interfac=127.0.0.1", "is not an endpoint"),
        ("smoke:8008", "is not an endpoint"),
        ("ssl:8448", "names no privateKey"),
        ("ssl:8448:privateKey=no.key:certKey=no.crt", "cannot be read"),
        ("unix:.", "names no socket"),
        ("unix:mode=660", "names no socket"),
        ("", "is not text"),
    ],
)
def test_a_listener_that_cannot_listen_is_named_by_its_index(
    tmp_path: Path, endpoint: str, part: str
) -> None:
    """Found by check-config, not by the start at night."""
    environ = {"FEDPRESENCE_LISTENERS": f'[{{endpoint: "{endpoint}", resources: [client]}}]'}

    assert part in problems_of(tmp_path, environ=environ)["listeners[0].endpoint"]


@pytest.mark.parametrize(
    ("listeners", "key", "part"),
    [
        ("[{endpoint: 'tcp:0', resources: [clients]}]", "resources[0]", "is not a resource"),
        ("[{endpoint: 'tcp:0', resources: []}]", "resources", "is empty"),
        ("[{endpoint: 'tcp:0', resources: [client, client]}]", "resources", "twice"),
        ("[{endpoint: 'tcp:0'}]", "resources", "is missing"),
        ("[{resources: [client]}]", "endpoint", "is missing"),
        ("[{endpoint: 'tcp:0', resources: [client], port: 1}]", "port", "is not a known key"),
    ],
)
def test_a_wrong_listener_is_refused(tmp_path: Path, listeners: str, key: str, part: str) -> None:
    """A resource that silently is not served looks like an outage."""
    problems = problems_of(tmp_path, environ={"FEDPRESENCE_LISTENERS": listeners})

    assert part in problems[f"listeners[0].{key}"]


def test_two_listeners_on_one_port_are_refused(tmp_path: Path) -> None:
    """Twisted would tell it too, but after the first listener already answers."""
    listeners = "[{endpoint: 'tcp:81', resources: [client]}, {endpoint: 'tcp:81', resources: [federation]}]"

    problems = problems_of(tmp_path, environ={"FEDPRESENCE_LISTENERS": listeners})

    assert "taken by listeners[0]" in problems["listeners[1].endpoint"]


def test_paths_are_relative_to_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager starts the daemon somewhere else than where it was configured."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(elsewhere)
    listeners = (
        "[{endpoint: 'unix:run.sock:mode=660', resources: [client]}, "
        "{endpoint: 'unix:address=named.sock', resources: [admin]}]"
    )

    config = load(tmp_path / "conf", environ={"FEDPRESENCE_LISTENERS": listeners})

    assert config.folder == tmp_path / "conf"
    assert config.database_path == tmp_path / "conf" / "fedpresence.db"
    assert config.listeners[0].endpoint == f"unix:{tmp_path}/conf/run.sock:mode=660"
    assert config.listeners[1].endpoint == f"unix:{tmp_path}/conf/named.sock"


def test_a_socket_whose_folder_is_not_there_yet_is_no_mistake(tmp_path: Path) -> None:
    """It may be made with the daemon, by systemd: the commands beside it work before and after."""
    for folder in ("run", "n" * 300):
        listeners = f"[{{endpoint: 'unix:{folder}/x.sock', resources: [client]}}]"

        config = load(tmp_path, environ={"FEDPRESENCE_LISTENERS": listeners})

        assert config.listeners[0].endpoint == f"unix:{tmp_path}/{folder}/x.sock"
        assert any(f"there is no folder {tmp_path}/{folder}" in warning for warning in warnings(config))


def test_the_secret_half_of_a_retired_key_is_not_taken_for_its_verify_key(tmp_path: Path) -> None:
    """Both are 32 bytes in Base64; the one that stands in the key file would be shown to the whole world."""
    problems = problems_of(tmp_path, f"old_signing_keys: {{ed25519:old: {{key: {SEED}, expired_ts: 5}}}}")

    problem = problems["old_signing_keys.ed25519:old.key"]
    assert "secret half" in problem
    assert SEED not in problem


def test_values_are_read_as_they_are_meant(tmp_path: Path) -> None:
    """Units, globs, addresses and rates arrive in the shapes that the code works with."""
    config = load(
        tmp_path,
        f"""
old_signing_keys: {{ed25519:old: {{key: {VERIFY_KEY}, expired_ts: 5}}}}
database: {{url: "sqlite:///{tmp_path}/other.db"}}
presence: {{idle_timeout: 1h, last_active_granularity: 200ms, sync_online_timeout: 1500, busy: true}}
lists: {{invite_policy: accept_local}}
federation:
  allow: ["*.test"]
  resolve: {{there.test: "10.1.2.3:8448", six.test: "[::1]:8449"}}
  batch_window: 0
limits:
  client_body: 1MiB
  client_changes: {{per_second: 0.5, burst: 1}}
log: {{level: debug, levels: {{fedpresence.outbound: warn}}}}
homeserver: {{url: "http://127.0.0.1:8008/"}}
admin: {{token: "0123456789abcdef"}}
""",
    )

    assert dict(config.old_signing_keys) == {"ed25519:old": OldKey(VERIFY_KEY, 5)}
    assert config.database_path == tmp_path / "other.db"
    assert config.presence.idle_timeout_ms == 3_600_000
    assert config.presence.last_active_granularity_ms == 200
    assert config.presence.sync_online_timeout_ms == 1500
    assert config.lists.invite_policy is InvitePolicy.ACCEPT_LOCAL
    assert config.federation.allow == ("*.test",)
    assert dict(config.federation.resolve) == {"there.test": ("10.1.2.3", 8448), "six.test": ("::1", 8449)}
    assert config.federation.batch_window_ms == 0
    assert config.limits.client_body == 1_048_576
    assert config.limits.client_changes == Rate(0.5, 1)
    assert dict(config.log.levels) == {"fedpresence.outbound": "warn"}
    assert config.homeserver_url == "http://127.0.0.1:8008"
    assert config.admin_token == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(config)


def test_beside_a_homeserver_transactions_wait_longer_unless_told_otherwise(tmp_path: Path) -> None:
    """The contract: `200ms`; `5s` beside a homeserver."""
    url = "homeserver: {url: http://127.0.0.1:8008}\n"

    beside = load(tmp_path, url).federation.batch_window_ms
    told = load(tmp_path, url + "federation: {batch_window: 1s}").federation.batch_window_ms

    assert (beside, told) == (5000, 1000)


def test_the_environment_overrides_any_key(tmp_path: Path) -> None:
    """Containers are configured that way; values are read as in the file."""
    environ = {
        "FEDPRESENCE_PRESENCE__IDLE_TIMEOUT": "2m",
        "FEDPRESENCE_FEDERATION__RESOLVE": '{there.test: "127.0.0.1:1"}',
        "FEDPRESENCE_LIMITS__CLIENT_CHANGES__BURST": "20",
        "FEDPRESENCE_DATABASE": "{url: sqlite:///env.db}",
        "FEDPRESENCE_ADMIN__TOKEN": "1234567890123456",
        "FEDPRESENCE_FEDERATION__CA_FILE": "",
        "HOME": "/nowhere",
    }

    config = load(tmp_path, "presence: {idle_timeout: 10m, busy: true}", environ)

    assert config.presence == PresenceConfig(idle_timeout_ms=120_000, busy=True)
    assert dict(config.federation.resolve) == {"there.test": ("127.0.0.1", 1)}
    assert config.limits.client_changes == Rate(5, 20)
    assert config.database_path == tmp_path / "env.db"
    assert config.admin_token == "1234567890123456", "digits stay text"
    assert config.federation.ca_file is None


def test_the_variable_in_every_guide_is_a_good_one(tmp_path: Path) -> None:
    """The contract, the README and the example configuration show this one: whoever copies it is served."""
    config = load(tmp_path, "", {"FEDPRESENCE_PRESENCE__IDLE_TIMEOUT": "1m"})

    assert config.presence.idle_timeout_ms == config.presence.last_active_granularity_ms == 60_000


def test_a_variable_that_is_wrong_or_unknown_is_named(tmp_path: Path) -> None:
    """A typing error in a container's environment would otherwise be silent."""
    problems = problems_of(
        tmp_path,
        environ={
            "FEDPRESENCE_PRESENCE__IDLE_TIMOUT": "1m",
            "FEDPRESENCE_presence__busy": "true",
            "FEDPRESENCE_FEDERATION__DENY": "[unclosed",
            "FEDPRESENCE_PRESENCE__BUSY": "perhaps",
            "FEDPRESENCE_LISTS": "[]",
        },
    )

    unknown = problems["FEDPRESENCE_PRESENCE__IDLE_TIMOUT"]
    assert "Did you mean FEDPRESENCE_PRESENCE__IDLE_TIMEOUT?" in unknown
    assert "not a known variable" in problems["FEDPRESENCE_presence__busy"]
    assert "not YAML" in problems["FEDPRESENCE_FEDERATION__DENY"]
    assert "FEDPRESENCE_PRESENCE__BUSY" in problems["presence.busy"]
    assert "no section" in problems["FEDPRESENCE_LISTS"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1, 2", ":1:9: is not YAML"),
        ("a: {b\n", "is not YAML"),
        ("a: !!python/object:os.system {}", "is not YAML"),
        ("just words", "holds"),
        ("- a\n- b", "holds"),
        ("a: 2026-02-30", "is not YAML that can be read"),
        ("[" * 5000, "is not YAML"),
        ("a: *unknown", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("a: \x07", "is not YAML"),
    ],
)
def test_what_is_not_yaml_is_told_with_its_place(tmp_path: Path, text: str, part: str) -> None:
    """A wrong configuration never gives a traceback."""
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError, match=part):
        load_config(path, {})


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null", b"# nothing\n"])
def test_an_empty_or_binary_file_is_told(tmp_path: Path, content: bytes) -> None:
    """Whatever stands there, the operator learns what is missing."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"is missing|UTF-8"):
        load_config(path, {})


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    """The first thing a new operator meets."""
    with pytest.raises(ConfigError, match="generate-config"):
        load_config(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})


def test_a_file_that_is_there_and_cannot_be_read_is_not_to_be_made_anew(tmp_path: Path) -> None:
    """A new signing key in the place of one with the wrong owner is a server that nobody knows."""
    (tmp_path / "keys").mkdir()

    with pytest.raises(ConfigError) as of_config:
        load_config(tmp_path / "keys", {})
    by_variable = problems_of(tmp_path, environ={"FEDPRESENCE_SIGNING_KEY_PATH": "keys"})
    problem = by_variable["signing_key_path"]

    assert "cannot be read" in str(of_config.value)
    assert "generate-" not in str(of_config.value)
    assert "cannot be read" in problem
    assert "generate-" not in problem


def test_a_token_file_for_everybody_is_refused(tmp_path: Path) -> None:
    """Its token deactivates users; other accounts on the machine must not have it."""
    secret = tmp_path / "admin.token"
    secret.write_text("0123456789abcdef\n", encoding="utf-8")
    text = "admin: {token_path: admin.token}"

    secret.chmod(0o644)
    problem = problems_of(tmp_path, text)["admin.token_path"]
    secret.chmod(0o640)
    config = load(tmp_path, text)

    assert "chmod 600" in problem
    assert config.admin_token == "0123456789abcdef"
    assert "admin.token_path" in problems_of(tmp_path, "admin: {token_path: admin.token, token: abcdef}")


def test_a_key_file_that_is_wrong_is_told_with_the_rest(tmp_path: Path) -> None:
    """`check-config` says all mistakes at once, the key file's among them."""
    (tmp_path / "here.signing.key").write_text("nonsense\n", encoding="utf-8")
    (tmp_path / "here.signing.key").chmod(0o600)
    (tmp_path / "c.yaml").write_text(MINIMAL + "log: {level: loud}", encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", {}, check_signing_key=load_signing_keys)

    assert {problem.key for problem in caught.value.problems} == {"signing_key_path", "log.level"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("lists: {invite_policy: accept}", "who has an account here"),
        ("lists: {invite_policy: accept_shared_room}\nrooms: {share_presence: false}", "accepts nobody"),
        ("rooms: {allow: []}", "leaves no room"),
        ("rooms: {join_rules: []}", "leaves no room"),
        ("federation: {verify_certificates: false}", "pose as another server"),
        ("federation: {allow: []}", "with nobody"),
        ("admin: {token: short}", "guessed"),
    ],
)
def test_what_is_allowed_and_unwise_is_warned_of(tmp_path: Path, text: str, part: str) -> None:
    """Z-7: accept policies show who exists; the operator should have read that once."""
    assert any(part in warning for warning in warnings(load(tmp_path, text)))


def test_the_engine_is_given_its_share(tmp_path: Path) -> None:
    """A setting that the engine never hears of would be accepted and ignored."""
    config = load(
        tmp_path,
        """
presence: {idle_timeout: 11m, last_active_granularity: 2m, sync_online_timeout: 31s, remote_timeout: 41m,
  refresh_interval: 21m}
lists: {invite_policy: deny, max_entries: 7}
rooms: {share_presence: false, max_members: 8, allow: ["!ops:*"], deny: ["!v12room"],
  join_rules: [invite, unknown], allow_servers: [c.test], deny_servers: ["*.d.test"]}
federation: {allow: [a.test], deny: [b.test]}
""",
    )

    settings = engine_settings(config)

    assert settings.server_name == "here.test"
    assert (settings.idle_timeout_ms, settings.last_active_granularity_ms) == (660_000, 120_000)
    assert (settings.sync_online_timeout_ms, settings.remote_timeout_ms) == (31_000, 2_460_000)
    assert (settings.refresh_interval_ms, settings.invite_policy) == (1_260_000, InvitePolicy.DENY)
    assert (settings.max_entries, settings.share_presence_in_rooms, settings.max_room_members) == (
        7,
        False,
        8,
    )
    assert (settings.servers.allow, settings.servers.deny) == (("a.test",), ("b.test",))
    assert settings.room_policy == RoomPolicy(
        ("!ops:*",), ("!v12room",), ("invite", "unknown"), ServerLists(("c.test",), ("*.d.test",))
    )


def test_a_secret_of_the_environment_stays_out_of_complaints(tmp_path: Path) -> None:
    """Complaints are pasted into chats."""
    problems = problems_of(tmp_path, environ={"FEDPRESENCE_ADMIN__TOKEN": "pass\tword"})

    assert os.linesep.join(problems.values()).find("word") == -1
