"""Everything hostile that we could think of, against one running daemon.

Always true: every request gets the answer in its row, and leaves everything as it was; no answer is a 500.
`python -m tests.scenarios.test_hostile > docs/hostile-requests.md` writes the table down.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpresence.testing.http import request
from tests.scenarios.hostile_body import AGAIN_AND_AGAIN, ENVELOPES, NOT_JSON
from tests.scenarios.hostile_edus import BROKEN_EDUS, FORGED_EDUS
from tests.scenarios.hostile_head import WHO_SPEAKS, WHOSE_KEYS
from tests.scenarios.hostile_http import BENT_HTTP, MEANWHILE, SLOW
from tests.scenarios.key_servers import KEY_SERVERS
from tests.scenarios.scene import (
    ACCEPT,
    ALICE,
    BOB,
    CAROL,
    DAN,
    INVITE,
    IVAN,
    Row,
    Scene,
    list_edu,
    online,
    push,
)

SECTIONS: dict[str, tuple[Row, ...]] = {
    "While others are slow": (MEANWHILE,),
    "Who speaks": WHO_SPEAKS,
    "Whose keys": WHOSE_KEYS,
    "HTTP": BENT_HTTP,
    "Bodies": NOT_JSON,
    "Transactions": ENVELOPES,
    "Forged EDUs": FORGED_EDUS,
    "Broken EDUs": BROKEN_EDUS,
    "Again, and all at once": AGAIN_AND_AGAIN,
    "Slow ones": SLOW,
}
TABLE = tuple(row for rows in SECTIONS.values() for row in rows)
DOCUMENT = Path(__file__).parents[2] / "docs" / "hostile-requests.md"
INTRODUCTION = f"""# Hostile and broken requests, and what each gets

{len(TABLE)} kinds of attack, {sum(row.times for row in TABLE)} requests, sent to one running daemon with TLS,
signatures and key servers as they are. None of them changes what the daemon knows: who may see whom, who is
on which list, who waits for an answer, what anybody is shown. None is answered with a 500.

Every request gets exactly the answer in its row; where there are several, each of them comes. "no answer"
means that the connection ends without one. A 200 for something that breaks a rule is on purpose: one bad EDU
must not cost the others in its transaction, and who asks in vain must not learn why.

The last column names the rule: F federation, E EDUs, S subscriptions, P presence, Z security.
This page is made by `python -m tests.scenarios.test_hostile > docs/hostile-requests.md`, from the table that
`tests/scenarios/test_hostile.py` plays.
"""
FAULT = re.compile(r"^\S+ (?:error|critical) .*$", re.MULTILINE)
SIGNATURE = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}(?![A-Za-z0-9+/])")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The daemon, its users and its enemies."""
    with Scene(tmp_path_factory.mktemp("hostile"), SLOW, KEY_SERVERS) as scene:
        yield scene


@pytest.fixture(scope="module")
def before(scene: Scene) -> dict[str, Any]:
    """How everything is before an attack; each row leaves here how it is after it."""
    return scene.state()


@pytest.mark.parametrize("row", TABLE, ids=[row.sent[:60] for row in TABLE])
def test_it_gets_its_answer_and_changes_nothing(row: Row, scene: Scene, before: dict[str, Any]) -> None:
    """Whoever can reach the port can send this: it must cost them more than us."""
    answers = scene.answers(row)

    print(f"{', '.join(sorted({str(answer) for answer in answers}))}  <-  {len(answers)} x {row.sent}")
    assert {str(answer) for answer in answers} == set(row.answers), [str(answer) for answer in answers]
    assert len(answers) == row.times
    for answer in answers:
        assert answer.status < 500
        if answer.status == 429:
            assert answer.json["retry_after_ms"] > 0
            assert int(answer.headers["retry-after"]) >= 1
        elif answer.status == 200:
            assert answer.json == {"pdus": {}}, "an answer that tells who exists"
    was, is_now = dict(before), scene.state()
    before.update(is_now)  # so that one row that fails fails alone
    assert is_now == was


def test_nobody_was_told_what_they_may_not_see(scene: Scene) -> None:
    """A state that is unchanged is no comfort where a copy of it went to a stranger."""
    seen = {name: peer.received for name, peer in scene.peers.items() if peer.received}

    for name in set(seen) - {"there.test", "elsewhere.test"}:
        for transaction in seen[name]:
            for edu in transaction["edus"]:
                assert edu["content"].get("push", []) == [], f"presence for {name}"
                pair = {edu["content"].get("observer_user"), edu["content"].get("observed_user")}
                assert pair <= {None, ALICE, IVAN}, f"somebody's list for {name}"
    for transaction in (*seen["there.test"], *seen["elsewhere.test"]):
        for edu in transaction["edus"]:
            for item in edu["content"].get("push", ()):
                assert item["user_id"] == BOB, "only bob has granted anything"


def test_our_users_noticed_nothing(scene: Scene) -> None:
    """No request, no answer and no presence reached a client that was not there before the attacks."""
    for user in (scene.alice, scene.bob):
        news = user.sync()
        assert news.get("presence", {}).get("events", []) == []
        assert news.get("to_device", {}).get("events", []) == []


def test_nothing_of_strangers_is_kept(scene: Scene) -> None:
    """Decision 19: pushes and invites of invented users must not grow the memory or the disk."""
    kept = {user_id for (user_id,) in scene.query("SELECT user_id FROM presence")}

    assert kept <= {user_id for user_id in scene.state() if user_id.startswith("@")}
    assert scene.query("SELECT max(n) FROM (SELECT count(*) AS n FROM answers GROUP BY origin)")[0][0] <= 1000


def test_the_log_has_no_fault_of_ours_and_no_secret(scene: Scene) -> None:
    """A traceback for a peer's mistake is a log that an attacker can fill, and a bug."""
    log = scene.server.log_file.read_text(encoding="utf-8", errors="replace")
    metrics = request("GET", f"{scene.server.client_url}/metrics").body

    assert "Traceback" not in log
    assert "fedpresence" in log and FAULT.findall(log) == []
    assert 'fedpresence_inbound_transactions_total{outcome="failed"} 0.0' in metrics
    assert not SIGNATURE.search(log)
    for secret in (
        "Fika",
        "reading",
        "cooking",
        scene.alice.token,
        scene.bob.token,
        scene.server.admin_token,
    ):
        assert secret not in log


def test_good_transactions_made_by_plain_signedjson_work_still(scene: Scene) -> None:
    """What defends must not defend against friends: none of our code signed or encoded these."""
    newcomer = "@newcomer:there.test"
    half_broken = online(CAROL, last_active_ago=1.5, status_msg=["x"], currently_active="yes")
    wrong = [None, {"edu_type": INVITE}, list_edu(INVITE, "@x:evil.test", BOB)]
    good = [list_edu(INVITE, newcomer, BOB), list_edu(ACCEPT, ALICE, DAN), push(half_broken)]
    last_active_ts = scene.state()[CAROL]["last_active_ts"]

    answer = scene.send("there.test", *wrong, *good)

    state = scene.state()
    assert (answer.status, answer.json) == (200, {"pdus": {}})
    assert newcomer in [entry["user_id"] for entry in state[BOB]["invites"]]
    assert {entry["user_id"]: entry["state"] for entry in state[ALICE]["list"]}[DAN] == "accepted"
    assert state[CAROL]["presence"] == "online"
    assert state[CAROL]["last_active_ts"] == last_active_ts, "Z-3: a float is no time"
    assert (state[CAROL]["status_msg"], state[CAROL]["currently_active"]) == (None, False)


def test_the_table_is_long_and_names_each_attack_once() -> None:
    """Two rows of one name would be one in the document."""
    assert len({row.sent for row in TABLE}) == len(TABLE) >= 70


def test_the_document_says_what_is_tested() -> None:
    """A table of promises that nobody keeps in step is worse than none."""
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python -m tests.scenarios.test_hostile"


def document() -> str:
    """The table, written down."""
    parts = [INTRODUCTION]
    for title, rows in SECTIONS.items():
        lines = [
            f"## {title}",
            "",
            "| what is sent | requests | what is answered | why |",
            "|---|---|---|---|",
        ]
        for row in rows:
            answers = ", ".join(re.sub(r"([A-Z]_[A-Z_]+)", r"`\1`", answer) for answer in row.answers)
            lines.append(f"| {row.sent} | {row.times} | {answers} | {row.rule} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
