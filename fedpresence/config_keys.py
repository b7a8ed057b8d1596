"""The table of configuration keys: each key's path, its field, its parser, its default and its words.

Always true: the loader, `generate-config` and `config.example.yaml` know a key only from here. A default
is written as in the file, in YAML, and passes through the same parser as the operator's own value.

Source: contract.md, "Config"; presence.md 8.4.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedpresence import config_parsers as parse
from fedpresence.config_model import DEFAULT_BLOCKED_NETWORKS
from fedpresence.engine.settings import JOIN_RULES, InvitePolicy

EXAMPLE_SERVER_NAME = "example.org"
BATCH_WINDOW_BESIDE_A_HOMESERVER = "5s"  # it tells its own users at once; ours ride along


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `default` None: it is required, and `sample` stands in a generated file.

    `field` is where the value lands in `Config`, dotted. A `verbatim` key takes an environment variable
    as it is, so that a token or a name of digits stays text; all others read it as YAML.
    """

    path: str
    field: str
    parse: Callable[[object, str, Path], object]
    default: str | None
    words: str
    sample: str = ""
    verbatim: bool = False


SECTIONS = {
    "database": "What must survive a restart.",
    "presence": "When a user counts as what (a bare number is milliseconds).",
    "lists": "Presence lists: who asked whom.",
    "rooms": "Rooms as a reason to see somebody's presence.",
    "federation": "Other servers.",
    "limits": "What we take before we say no. Sizes are bytes, or 64KiB, 16MiB.",
    "limits.client_changes": "Presence changes of one user: more are merged, and the last always counts.",
    "limits.client_changes_refused": "Presence changes of one user: more are answered with 429.",
    "limits.origin_bytes": "Bytes of transactions from one server.",
    "limits.origin_entries": "Pushes, polls and list EDUs from one server.",
    "log": "What is written to standard error.",
    "auth": "How access tokens of clients are checked.",
    "homeserver": "The homeserver behind us.",
    "appservice": "Rooms and activity taken from a homeserver.",
    "admin": "The admin API: at most one of the two keys.",
}


def _rate(path: str, words: str, per_second: str, burst: str) -> tuple[Key, Key]:
    return (
        Key(f"{path}.per_second", f"{path}.per_second", parse.positive, per_second, f"{words} a second."),
        Key(f"{path}.burst", f"{path}.burst", parse.whole(1), burst, "So many at once."),
    )


KEYS: tuple[Key, ...] = (
    Key(
        "server_name",
        "server_name",
        parse.server_name,
        None,
        "The Matrix server name that users here belong to.",
        sample="{server_name}",
        verbatim=True,
    ),
    Key(
        "signing_key_path",
        "signing_key_path",
        parse.key_file,
        None,
        "The homeserver's ed25519 signing key file. A new one: fedpresence generate-key -o FILE. Relative "
        "paths count from the folder of this file, here and below.",
        sample="{file_name}.signing.key",
        verbatim=True,
    ),
    Key(
        "old_signing_keys",
        "old_signing_keys",
        parse.mapping_of(parse.key_id, parse.old_key),
        "{}",
        "Keys we signed with before, still published: "
        "{ed25519:old: {key: VERIFY_KEY_IN_BASE64, expired_ts: UNIX_MILLISECONDS}}. The verify key is what "
        "/_matrix/key/v2/server shows, never what stands in the key file, which is secret.",
    ),
    Key(
        "listeners",
        "listeners",
        parse.listeners,
        None,
        "Where to listen (Twisted endpoint strings) and what to serve there: client, federation, admin, "
        "metrics, appservice. Plain tcp wants a proxy with TLS before it. For TLS of our own: "
        '"ssl:8448:privateKey=tls.key:certKey=tls.crt:extraCertChain=chain.pem".',
        sample="""
- endpoint: "tcp:8008:interface=127.0.0.1"
  resources: [client]
- endpoint: "tcp:8448:interface=127.0.0.1"
  resources: [federation]
- endpoint: "tcp:8009:interface=127.0.0.1"
  resources: [admin, metrics]""",
    ),
    Key(
        "database.url",
        "database_path",
        parse.database_path,
        "sqlite:///fedpresence.db",
        "sqlite:/// and a path; four slashes begin an absolute one.",
        verbatim=True,
    ),
    Key(
        "presence.idle_timeout",
        "presence.idle_timeout_ms",
        parse.length_of_time(),
        "5m",
        "Online to unavailable after this long without a pro-active event. At least last_active_granularity.",
    ),
    Key(
        "presence.last_active_granularity",
        "presence.last_active_granularity_ms",
        parse.length_of_time(),
        "1m",
        "How long after a pro-active event currently_active stays true.",
    ),
    Key(
        "presence.sync_online_timeout",
        "presence.sync_online_timeout_ms",
        parse.length_of_time(),
        "30s",
        "A device with no open stream for this long is offline.",
    ),
    Key(
        "presence.remote_timeout",
        "presence.remote_timeout_ms",
        parse.length_of_time(),
        "30m",
        "A remote user not heard of for this long is offline.",
    ),
    Key(
        "presence.refresh_interval",
        "presence.refresh_interval_ms",
        parse.length_of_time(),
        "25m",
        "A user who is not offline is pushed again at least this often, jittered. Shorter than "
        "remote_timeout: other servers forget users at the same pace.",
    ),
    Key(
        "presence.offline_on_stop",
        "presence.offline_on_stop",
        parse.switch,
        "false",
        "Whether a clean stop tells everyone that our users are offline.",
    ),
    Key(
        "presence.busy",
        "presence.busy",
        parse.switch,
        "false",
        "Whether the state org.matrix.msc3026.busy may be set.",
    ),
    Key(
        "lists.invite_policy",
        "lists.invite_policy",
        parse.member_of(InvitePolicy),
        "ask",
        "What a presence invite meets: ask (the user answers), accept, deny, accept_shared_room (accepted "
        "while both share a room that counts), accept_local (accepted from users of this server); what "
        "these do not accept is asked. The accept policies answer for users who exist and stay silent for "
        "those who do not: they tell other servers who has an account here.",
    ),
    Key("lists.max_entries", "lists.max_entries", parse.whole(1), "1000", "Longest list of one user."),
    Key(
        "rooms.share_presence",
        "rooms.share_presence",
        parse.switch,
        "true",
        "Whether sharing a room is an interest.",
    ),
    Key(
        "rooms.max_members",
        "rooms.max_members",
        parse.whole(1),
        "500",
        "From this many members on, a room no longer is one.",
    ),
    Key(
        "rooms.allow",
        "rooms.allow",
        parse.optional(parse.list_of(parse.room_glob)),
        "null",
        'IDs or globs of the rooms that may be: ["!ops:example.org", "*:example.net"]. null: all.',
    ),
    Key(
        "rooms.deny",
        "rooms.deny",
        parse.list_of(parse.room_glob),
        "[]",
        "IDs or globs of rooms that may not; stronger than allow.",
    ),
    Key(
        "rooms.join_rules",
        "rooms.join_rules",
        parse.optional(parse.list_of(parse.choice(*JOIN_RULES))),
        "null",
        "Only rooms with one of these join rules: invite, knock, restricted, knock_restricted, public, "
        "private; and unknown for rooms whose rule nobody told us (the admin API tells none). null: all. "
        "Whoever joins a public room sees the presence of those in it: leave out public to prevent that.",
    ),
    Key(
        "rooms.allow_servers",
        "rooms.allow_servers",
        parse.optional(parse.list_of(parse.glob)),
        "null",
        "Names or globs of the other servers with whose users a shared room may be an interest; presence "
        "lists do not ask this. null: all that federation.allow and federation.deny leave.",
    ),
    Key(
        "rooms.deny_servers",
        "rooms.deny_servers",
        parse.list_of(parse.glob),
        "[]",
        "Names or globs of servers with whose users it may not; stronger than allow_servers.",
    ),
    Key(
        "federation.allow",
        "federation.allow",
        parse.optional(parse.list_of(parse.glob)),
        "null",
        'Server names or globs that presence may be exchanged with: [example.com, "*.example.net"]. '
        "null: all.",
    ),
    Key(
        "federation.deny",
        "federation.deny",
        parse.list_of(parse.glob),
        "[]",
        "Server names or globs that it may not be exchanged with; stronger than allow.",
    ),
    Key(
        "federation.verify_certificates",
        "federation.verify_certificates",
        parse.switch,
        "true",
        "Whether other servers must prove their name with a certificate. Never false outside a test.",
    ),
    Key(
        "federation.ca_file",
        "federation.ca_file",
        parse.optional(parse.ca_file),
        "null",
        "Certificate authorities to trust, in PEM form. null: the system's.",
        verbatim=True,
    ),
    Key(
        "federation.resolve",
        "federation.resolve",
        parse.mapping_of(parse.server_name, parse.host_and_port),
        "{}",
        "Fixed addresses, before any discovery and whatever blocked_networks says: "
        '{there.test: "10.1.2.3:8448"}. Certificate, SNI and Host stay those of the server name.',
    ),
    Key(
        "federation.blocked_networks",
        "federation.blocked_networks",
        parse.list_of(parse.network),
        "\n" + "\n".join(f'- "{network}"' for network in DEFAULT_BLOCKED_NETWORKS),
        "Addresses never connected to.",
    ),
    Key(
        "federation.batch_window",
        "federation.batch_window_ms",
        parse.length_of_time(least_ms=0),
        "200ms",
        "Least time between two transactions to one destination. Left out beside a homeserver "
        f"(homeserver.url), it is {BATCH_WINDOW_BESIDE_A_HOMESERVER}.",
    ),
    Key(
        "federation.keep_connections",
        "federation.keep_connections_ms",
        parse.length_of_time(least_ms=0),
        "55s",
        "How long an idle connection to another server is kept; most servers close theirs after 60s.",
    ),
    Key(
        "federation.max_transactions_per_second",
        "federation.max_transactions_per_second",
        parse.whole(1, 100_000),
        "50",
        "Budget for all destinations together; under load, transactions carry more instead.",
    ),
    Key(
        "federation.notaries",
        "federation.notaries",
        parse.list_of(parse.server_name),
        "[]",
        "Servers asked for the keys of others before those themselves.",
    ),
    Key(
        "federation.serve_well_known",
        "federation.serve_well_known",
        parse.optional(parse.server_name),
        "null",
        "What /.well-known/matrix/server answers, for example matrix.example.org:443. null: nothing.",
        verbatim=True,
    ),
    *_rate("limits.client_changes", "Changes", "5", "10"),
    *_rate("limits.client_changes_refused", "Changes", "50", "100"),
    *_rate("limits.origin_bytes", "Bytes", "1048576", "16777216"),
    *_rate("limits.origin_entries", "Entries", "2000", "20000"),
    Key("limits.client_body", "limits.client_body", parse.size(1024), "64KiB", "A client's request body."),
    Key(
        "limits.transaction_body",
        "limits.transaction_body",
        parse.size(65_536),
        "12800KiB",
        "A transaction's body: 200 times 64KiB.",
    ),
    Key(
        "limits.bodies_in_flight",
        "limits.bodies_in_flight",
        parse.size(262_144),
        "64MiB",
        "All bodies being received. One server may have a quarter of it, so at least four times "
        "transaction_body.",
    ),
    Key(
        "limits.connections",
        "limits.connections",
        parse.whole(1),
        "10000",
        "Open ones, per listener. Beyond it those where nothing is asked give way.",
    ),
    Key(
        "limits.idle_connection",
        "limits.idle_connection_ms",
        parse.length_of_time(),
        "60s",
        "How long one stays open after an answer without a next request.",
    ),
    Key(
        "log.format", "log.format", parse.choice("text", "json"), "text", "text or json (one object a line)."
    ),
    Key("log.level", "log.level", parse.level, "info", "debug, info, warn, error or critical."),
    Key(
        "log.levels",
        "log.levels",
        parse.mapping_of(parse.namespace, parse.level),
        "{}",
        "Levels per module: {fedpresence.outbound: debug}.",
    ),
    Key(
        "auth.mode",
        "auth_mode",
        parse.choice("tokens", "homeserver"),
        "tokens",
        "tokens: ours (fedpresence token add); homeserver: asked of homeserver.url (whoami).",
    ),
    Key(
        "homeserver.url",
        "homeserver_url",
        parse.optional(parse.url),
        "null",
        "Its base URL, for example http://127.0.0.1:8008. null: there is none. With it, what the resource "
        "client does not answer itself is passed through, and /sync has presence in it; the resource "
        "sync_tap, for a proxy that mirrors /sync, only sees who is connected.",
        verbatim=True,
    ),
    Key(
        "appservice.registration",
        "appservice_registration",
        parse.optional(parse.path),
        "null",
        "The registration file, which the homeserver reads too. Make it with: fedpresence "
        "generate-registration -c FILE. Needs homeserver.url, and a listener with the resource appservice. "
        "null: the homeserver tells us nothing.",
        verbatim=True,
    ),
    Key(
        "appservice.scan_rate",
        "appservice_scan_rate",
        parse.whole(1, 1000),
        "20",
        "How many times a second the homeserver is asked at most while we find out who is in which room. "
        "After each start that is two questions a room before presence is shared by it.",
    ),
    Key(
        "admin.token",
        "admin_token",
        parse.optional(parse.secret),
        "null",
        "Bearer token of the admin API. null: it is off, if token_path is null too.",
        verbatim=True,
    ),
    Key(
        "admin.token_path",
        "admin_token_path",
        parse.optional(parse.secret_file),
        "null",
        "A file with that token, which not everybody may read.",
        verbatim=True,
    ),
)


def render(server_name: str) -> str:
    """The whole configuration as a commented file: every key with its default."""
    lines = [
        "# The configuration of fedpresence: every key, with its default.",
        "# Any key can come from the environment too: FEDPRESENCE_PRESENCE__IDLE_TIMEOUT=1m",
        "# Lengths of time are 200ms, 30s, 5m, 1h, 30d, or a bare number of milliseconds.",
    ]
    open_sections: list[str] = []
    for key in KEYS:
        *sections, name = key.path.split(".")
        shared = sum(1 for ours, theirs in zip(sections, open_sections, strict=False) if ours == theirs)
        for depth in range(shared, len(sections)):
            indent = "  " * depth
            lines += [
                *([""] if depth == 0 else []),
                *_comment(SECTIONS[".".join(sections[: depth + 1])], indent),
            ]
            lines.append(f"{indent}{sections[depth]}:")
        open_sections = sections
        indent = "  " * len(sections)
        if not sections:
            lines.append("")
        lines += _comment(key.words, indent)
        lines += _entry(name, _value(key, server_name), indent)
    return "\n".join(lines) + "\n"


def _value(key: Key, server_name: str) -> str:
    if key.default is not None:
        return key.default
    file_name = "".join(c if c.isalnum() or c in ".-" else "_" for c in server_name)
    text = key.sample.replace("{server_name}", server_name).replace("{file_name}", file_name)
    # A name of digits alone, or one in brackets, is no text to YAML unless quoted.
    return text if "\n" in text else f'"{text}"'


def _comment(words: str, indent: str) -> list[str]:
    return textwrap.wrap(
        words, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )


def _entry(name: str, value: str, indent: str) -> list[str]:
    if "\n" not in value:
        return [f"{indent}{name}: {value}"]
    return [f"{indent}{name}:", *(f"{indent}  {line}" for line in value.strip().splitlines())]
