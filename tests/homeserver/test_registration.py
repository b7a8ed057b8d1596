import re
import stat
from pathlib import Path

import pytest

from fedpresence.errors import ConfigError
from fedpresence.homeserver.registration import generate_registration, load_registration, write_registration
from fedpresence.ids import ServerName, UserID
from fedpresence.ops.cli import main
from fedpresence.ops.keys import generate_key_file

HERE = ServerName("here.test")
CONFIG = """
server_name: here.test
signing_key_path: here.signing.key
listeners:
  - {endpoint: "tcp:9009:interface=127.0.0.1", resources: [appservice]}
homeserver: {url: "http://127.0.0.1:8008"}
appservice: {registration: registration.yaml}
"""


def config_in(folder: Path, text: str = CONFIG) -> str:
    generate_key_file(folder / "here.signing.key")
    path = folder / "fedpresence.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_what_is_generated_is_what_is_loaded(tmp_path: Path) -> None:
    """Both sides read one file."""
    path = tmp_path / "registration.yaml"
    write_registration(path, generate_registration(HERE, "http://127.0.0.1:9009"))

    registration = load_registration(path)

    assert (registration.id, registration.url) == ("fedpresence", "http://127.0.0.1:9009")
    assert registration.bot(HERE) == UserID("@fedpresence:here.test")
    assert registration.receives_ephemeral
    assert registration.as_token != registration.hs_token
    assert registration.as_token not in repr(registration) and registration.hs_token not in repr(registration)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_everybody_here_is_meant_and_nobody_elsewhere() -> None:
    """A dot that matches anything, or a name that goes on, would claim others' users."""
    text = generate_registration(HERE, "http://x")
    (pattern,) = re.findall("regex: '(.*)'", text)

    assert re.match(pattern, "@alice:here.test")
    for other in ("@alice:hereatest", "@alice:here.test.evil", "@alice:there.test", "x@alice:here.test"):
        assert not re.match(pattern, other)
    assert "exclusive: false" in text


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("as_token: ", "no_token: "), "as_token"),
        (("sender_localpart: fedpresence", "sender_localpart: 'Fed Presence'"), "sender_localpart"),
        (("url: ", "url: 5 #"), "url"),
        (("id: fedpresence", "id: ''"), "id"),
        (("id:", "{"), "YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, change: tuple[str, str], part: str) -> None:
    """One line that says what to mend, and no token in it."""
    path = tmp_path / "registration.yaml"
    text = generate_registration(HERE, "http://x")
    write_registration(path, text.replace(*change))
    (hs_token,) = re.findall('hs_token: "(.*)"', text)

    with pytest.raises(ConfigError, match=part) as caught:
        load_registration(path)

    assert caught.value.problems[0].key == "appservice.registration"
    assert hs_token not in str(caught.value)


def test_a_file_that_everybody_reads_is_refused(tmp_path: Path) -> None:
    """The as_token may act as every user."""
    path = tmp_path / "registration.yaml"
    write_registration(path, generate_registration(HERE, "http://x"))
    path.chmod(0o644)

    with pytest.raises(ConfigError, match="chmod 640"):
        load_registration(path)
    path.chmod(0o640)
    load_registration(path)


def test_the_command_makes_the_file_that_the_configuration_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """check-config asks for it, generate-registration makes it, check-config is content."""
    config = config_in(tmp_path)

    before = main(["check-config", "-c", config])
    told = capsys.readouterr().err
    made = main(["generate-registration", "-c", config])
    steps = capsys.readouterr().err
    after = main(["check-config", "-c", config])

    assert (before, made, after) == (78, 0, 0)
    assert "generate-registration" in told
    assert "app_service_config_files" in steps
    assert load_registration(tmp_path / "registration.yaml").url == "http://127.0.0.1:9009"


def test_a_registration_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The homeserver knows the old tokens."""
    config = config_in(tmp_path)
    main(["generate-registration", "-c", config])
    content = (tmp_path / "registration.yaml").read_bytes()

    assert main(["generate-registration", "-c", config]) == 78
    assert (tmp_path / "registration.yaml").read_bytes() == content


def test_without_a_place_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To be piped to wherever the homeserver is."""
    text = CONFIG.replace("appservice: {registration: registration.yaml}", "").replace(
        "[appservice]", "[client]"
    )
    config = config_in(tmp_path, text)

    assert main(["generate-registration", "-c", config]) == 2
    assert main(["generate-registration", "-c", config, "--url", "http://10.0.0.2:9009"]) == 0

    printed = capsys.readouterr()
    assert 'url: "http://10.0.0.2:9009"' in printed.out
    assert "resource appservice" in printed.err


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("appservice: {registration: registration.yaml}", "", "appservice.registration"),
        ('homeserver: {url: "http://127.0.0.1:8008"}', "", "homeserver.url"),
    ],
)
def test_half_of_it_is_a_mistake_that_names_the_other_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, key: str
) -> None:
    """A listener without a registration would refuse everybody; a registration without a URL asks nobody."""
    config = config_in(tmp_path, CONFIG.replace(old, new))

    assert main(["generate-registration", "-c", config]) == 78
    assert capsys.readouterr().err.startswith(f"{key}: is missing")
