"""Our signing keys in keys/: load, generate.

Always true:
- a key file that we make is mode 0600 from its first moment, and never written over;
- a key file that others on the machine can read, or change, is refused;
- no error and no log line holds anything of a key.

Source: the file format is Synapse's (F:3.4): the first line signs, all are published.
"""

import os
import re
import secrets
import stat
import string
from pathlib import Path

from signedjson.key import (
    NACL_ED25519,
    decode_signing_key_base64,
    encode_signing_key_base64,
    generate_signing_key,
)
from signedjson.types import SigningKey

from fedpresence.errors import BadRequest, ConfigError
from fedpresence.ids import KeyID, parse_key_id
from fedpresence.ops.secret_files import write_secret

SETTING = "signing_key_path"
MAX_FILE_BYTES = 65_536  # hundreds of keys; whatever is larger is another file
MAX_KEYS = 64  # other servers take no more from us: Z-4

_SEED = re.compile(r"[A-Za-z0-9+/]{43}=?\Z")  # 32 bytes
_TOO_OPEN = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP  # the group may read: Synapse writes 0640


def load_signing_keys(path: Path) -> tuple[SigningKey, ...]:
    """The keys in the file, in order, at least one; ConfigError naming `signing_key_path` otherwise."""
    text = _read(path)
    keys: list[SigningKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if fields:
            keys.append(_decode_line(path, number, fields))
    if not keys:
        raise ConfigError.of(SETTING, f"{path} holds no key.", _how_to_make(path))
    if len(keys) > MAX_KEYS:
        raise ConfigError.of(
            SETTING,
            f"{path} holds more than {MAX_KEYS} keys.",
            "Keep the first line, and list retired keys under old_signing_keys.",
        )
    versions = [key.version for key in keys]
    if len(set(versions)) != len(versions):
        raise ConfigError.of(SETTING, f"{path} holds two keys of one version.", "Remove one of the lines.")
    return tuple(keys)


def generate_key_file(path: Path) -> KeyID:
    """The ID of a new key, alone in a new file of mode 0600; ConfigError where it cannot be made."""
    version = "a_" + "".join(secrets.choice(string.ascii_letters) for _ in range(4))
    key = generate_signing_key(version)
    line = f"{key.alg} {key.version} {encode_signing_key_base64(key)}\n"
    write_secret(path, line, never_over="a key is never written over", instead="Name another file.")
    return parse_key_id(f"{key.alg}:{key.version}")


def _read(path: Path) -> str:
    try:
        # Not blocking: a named pipe would be waited on for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ConfigError.of(SETTING, f"there is no file {path}.", _how_to_make(path)) from error
    except OSError as error:
        raise ConfigError.of(
            SETTING, f"{path} cannot be read: {error.strerror}.", "Let the user of the daemon read it."
        ) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError.of(SETTING, f"{path} is not a file.", "Name the signing key file itself.")
        if mode & _TOO_OPEN:
            raise ConfigError.of(
                SETTING,
                f"{path} can be read or changed by others (mode {stat.S_IMODE(mode):04o}).",
                f"Run: chmod 600 {path}",
            )
        data = os.read(descriptor, MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES or not data.isascii():
        raise ConfigError.of(SETTING, f"{path} is not a signing key file.", _how_to_make(path))
    return data.decode("ascii")


def _decode_line(path: Path, number: int, fields: list[str]) -> SigningKey:
    where = f"line {number} of {path}"
    if len(fields) == 1:
        raise ConfigError.of(
            SETTING,
            f"{where} holds a seed alone, the format of 2014.",
            "Write it as ed25519 VERSION SEED, with the version that other servers know, else a_1.",
        )
    if len(fields) != 3:
        raise ConfigError.of(SETTING, f"{where} has not three fields.", "Expected: ed25519 VERSION SEED")
    algorithm, version, seed = fields
    if algorithm != NACL_ED25519:
        raise ConfigError.of(SETTING, f"{where} is of an unknown algorithm.", "Only ed25519 is known.")
    try:
        parse_key_id(f"{algorithm}:{version}")
    except BadRequest as error:
        raise ConfigError.of(
            SETTING, f"{where} has a bad version.", "Use letters, digits and underscores, for example a_1."
        ) from error
    if not _SEED.match(seed):
        raise ConfigError.of(SETTING, f"{where} has a bad seed.", "Expected 32 bytes in unpadded Base64.")
    return decode_signing_key_base64(algorithm, version, seed)


def _how_to_make(path: Path) -> str:
    return f"Name the homeserver's signing key file, or make one: fedpresence generate-key -o {path}"
