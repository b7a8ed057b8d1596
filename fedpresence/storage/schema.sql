-- The newest schema, whole: a fresh database gets this; an older one the steps of migrations.py.
-- Moments are Unix milliseconds, 0 is never; flags are 0 or 1; a list is compact JSON.

CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    saved_at_ms INTEGER NOT NULL           -- when the daemon last wrote (Z-21)
);
INSERT INTO meta (id, saved_at_ms) VALUES (1, 0);

-- Rows never go, so a higher id is a newer user: new ones are found without reading all.
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL UNIQUE,
    deactivated INTEGER NOT NULL DEFAULT 0
);

-- Devices that declared themselves offline (P:D-8); the device of a token without one is NULL.
CREATE TABLE hidden_devices (
    user_id TEXT NOT NULL,
    device_id TEXT
);
CREATE INDEX hidden_devices_by_user ON hidden_devices (user_id);

-- Whoever stands in the rows of pairs, each once: ten million rows name some million users. Who stands in none
-- any more goes at the next start.
CREATE TABLE names (
    id INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL UNIQUE
);

-- The observer's half of each pair (S:2); both are ids of names. owed: [[kind, generation, since_ms, flags], ...] or NULL.
CREATE TABLE observer_rows (
    observer INTEGER NOT NULL,
    observed INTEGER NOT NULL,
    stage TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    invite_ms INTEGER NOT NULL,
    confirmed_ms INTEGER NOT NULL,
    check_ms INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    owed TEXT,
    PRIMARY KEY (observer, observed)
) WITHOUT ROWID;

-- The observed user's half of each pair (S:2).
CREATE TABLE observed_rows (
    observed INTEGER NOT NULL,
    observer INTEGER NOT NULL,
    stage TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    muted INTEGER NOT NULL,
    blocked INTEGER NOT NULL,
    by_room INTEGER NOT NULL,
    denials INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    owed TEXT,
    confirmed_ms INTEGER NOT NULL DEFAULT 0,  -- last invite of the observer's server
    PRIMARY KEY (observed, observer)
) WITHOUT ROWID;

-- Rooms we were told of. counts: whether sharing it is an interest now (Z-19). join_rule: NULL where it was
-- never told. from_homeserver: whether the homeserver beside us told who is in it, and not the admin API (Z-11).
-- Each join or leave is one row of room_members.
CREATE TABLE rooms (
    room_id TEXT PRIMARY KEY,
    counts INTEGER NOT NULL,
    join_rule TEXT,
    from_homeserver INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE room_members (
    room_id TEXT NOT NULL REFERENCES rooms (room_id) ON DELETE CASCADE,
    user_id TEXT NOT NULL,
    PRIMARY KEY (room_id, user_id)
) WITHOUT ROWID;

-- Transactions taken (F:R-1), and the newest origin_server_ts of each origin (Z-6).
CREATE TABLE answers (
    origin TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    origin_server_ts INTEGER NOT NULL,
    PRIMARY KEY (origin, txn_id)
) WITHOUT ROWID;
CREATE TABLE origins (
    origin TEXT PRIMARY KEY,
    newest_ts INTEGER NOT NULL
) WITHOUT ROWID;

-- List EDUs to be resolved (Z-7). edus: [[kind, origin, observer, observed], ...].
CREATE TABLE inbox (
    entry_id INTEGER PRIMARY KEY,
    edus TEXT NOT NULL
);

-- Presence, written behind (P:M-4).
CREATE TABLE presence (
    user_id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    last_active_ms INTEGER NOT NULL,
    status_msg TEXT,
    currently_active INTEGER NOT NULL,
    heard_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- Access tokens of the standalone mode: SHA-256 of the token, never the token.
CREATE TABLE tokens (
    token_hash BLOB PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tokens_by_user ON tokens (user_id);

-- Other servers' verified key objects, as canonical JSON.
CREATE TABLE server_keys (
    server_name TEXT PRIMARY KEY,
    key_object BLOB NOT NULL,
    fetched_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX server_keys_by_age ON server_keys (fetched_ms);

-- What is still to be asked of the homeserver beside us: users, rooms; and rooms too large to count.
CREATE TABLE scan (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    members INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
