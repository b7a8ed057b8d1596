import os
import stat
from pathlib import Path

import pytest
from signedjson.key import encode_signing_key_base64, generate_signing_key, read_signing_keys

from fedpresence.errors import ConfigError
from fedpresence.ids import ServerName
from fedpresence.ops.keys import generate_key_file, load_signing_keys
from fedpresence.wire.signing import Identity


def a_line(version: str = "a_AbCd") -> str:
    """A line with a fresh key."""
    return f"ed25519 {version} {encode_signing_key_base64(generate_signing_key(version))}\n"


def a_file(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    """A key file with this text."""
    path = folder / "test.signing.key"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def complaint(path: Path) -> str:
    """What loading says; always one problem, under the key of the setting."""
    with pytest.raises(ConfigError) as caught:
        load_signing_keys(path)
    [problem] = caught.value.problems
    assert problem.key == "signing_key_path"
    assert problem.fix
    return str(problem)


def test_a_generated_key_is_loaded_again_and_signs(tmp_path: Path) -> None:
    """The first thing that an operator does."""
    path = tmp_path / "new.signing.key"

    key_id = generate_key_file(path)
    keys = load_signing_keys(path)

    assert Identity(ServerName("here.test"), keys).key_id == key_id
    assert key_id.startswith("ed25519:a_")
    assert len(key_id) == len("ed25519:a_XXXX")


def test_a_generated_key_is_private_and_in_the_format_of_synapse(tmp_path: Path) -> None:
    """A homeserver beside us reads the same file (F:3.4), and nobody else does."""
    path = tmp_path / "new.signing.key"
    old_umask = os.umask(0)
    try:
        generate_key_file(path)
    finally:
        os.umask(old_umask)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert text.endswith("\n")
    assert len(text.split()) == 3
    assert len(read_signing_keys(text.splitlines())) == 1


def test_no_key_is_ever_written_over(tmp_path: Path) -> None:
    """A lost key is a lost name: other servers believe the old one for days."""
    path = tmp_path / "new.signing.key"
    generate_key_file(path)
    before = path.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")

    for existing in (path, link, tmp_path):
        with pytest.raises(ConfigError, match="never written over"):
            generate_key_file(existing)

    assert path.read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    """A wrong path gives a sentence, not a traceback."""
    with pytest.raises(ConfigError, match="cannot be made"):
        generate_key_file(tmp_path / "nowhere" / "new.signing.key")


def test_all_lines_are_keys_in_order_and_empty_ones_are_nothing(tmp_path: Path) -> None:
    """The first signs, all are published (F:3.4)."""
    path = a_file(tmp_path, "\n" + a_line("b_2") + "  \n\n" + a_line("a_1").replace(" ", " \t ") + "\n")

    keys = load_signing_keys(path)

    assert [key.version for key in keys] == ["b_2", "a_1"]
    assert Identity(ServerName("here.test"), keys).key_id == "ed25519:b_2"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_file_that_the_group_may_read_is_taken(tmp_path: Path, mode: int) -> None:
    """Synapse writes 0640."""
    assert load_signing_keys(a_file(tmp_path, a_line(), mode))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o660, 0o666, 0o777])
def test_a_file_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever reads it can speak for the server."""
    assert f"chmod 600 {tmp_path}" in complaint(a_file(tmp_path, a_line(), mode))


def test_a_file_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    """The first thing that a new operator sees."""
    path = tmp_path / "missing.key"

    assert f"fedpresence generate-key -o {path}" in complaint(path)


def test_a_folder_or_a_pipe_is_not_a_file(tmp_path: Path) -> None:
    """A pipe would be waited on for ever."""
    os.mkfifo(tmp_path / "pipe", 0o600)

    assert "is not a file" in complaint(tmp_path)
    assert "is not a file" in complaint(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("\n \n", "holds no key"),
        ("ed25519 a_1\n", "three fields"),
        (a_line().strip() + " more\n", "three fields"),
        (a_line().split()[2] + "\n", "ed25519 VERSION SEED"),
        (a_line().replace("ed25519", "rsa"), "unknown algorithm"),
        (a_line("a-b"), "bad version"),
        (a_line("x" * 65), "bad version"),
        ("ed25519 a_1 c2hvcnQ\n", "bad seed"),
        (a_line().strip()[:-1] + "!\n", "bad seed"),
        (a_line() + a_line(), "two keys of one version"),
        ("".join(a_line(f"a_{n}") for n in range(65)), "more than 64"),
        (b"\xff" * 40, "not a signing key file"),
        (b"\n" * 65_537, "not a signing key file"),
        ("-----BEGIN PRIVATE KEY-----\n", "unknown algorithm"),
    ],
)
def test_a_broken_file_is_explained_and_never_quoted(tmp_path: Path, text: str | bytes, says: str) -> None:
    """The operator learns the line and the fix; the log learns nothing of the key."""
    path = a_file(tmp_path, text)

    said = complaint(path)

    assert says in said
    for word in path.read_bytes().split():
        assert len(word) < 20 or word.decode("latin-1") not in said


def test_a_file_that_we_may_not_read_is_said_so(tmp_path: Path) -> None:
    """Most often the daemon runs as another user than the one who made the file."""
    path = a_file(tmp_path, a_line(), 0o000)
    if os.access(path, os.R_OK):
        pytest.skip("the superuser reads everything")

    assert "cannot be read" in complaint(path)
