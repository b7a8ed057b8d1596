from fedpresence.ops.report import length, moment, plain, status_text, subscriptions_text, table, tokens_text

NOW_MS = 1_700_000_000_000


def test_columns_are_aligned() -> None:
    """Lists of hundreds of servers are read by eye."""
    assert table([["server", "owed"], ["a.test", 1], ["longer.test", None]]) == [
        "server       owed",
        "a.test       1",
        "longer.test  -",
    ]


def test_lengths_and_moments_are_short() -> None:
    """Two units say enough."""
    assert [length(ms) for ms in (0, 59_999, 3_600_000, 90_061_000)] == ["0s", "59s", "1h 0m", "1d 1h"]
    assert moment(NOW_MS) == "2023-11-14 22:13:20"
    assert moment(None) == moment(0) == "-"


def test_no_server_writes_into_the_terminal() -> None:
    """An error of another server may hold escape sequences."""
    assert plain("a\x1b[2Jb\n") == "a?[2Jb?"


def test_status_tells_what_fails_and_when_it_is_tried_again() -> None:
    """The question behind most calls of `fedpresence status`."""
    status = {
        "server_name": "here.test",
        "version": "1",
        "uptime_ms": 61_000,
        "users": {"online": 1, "offline": 2},
        "subscriptions": {"pending": 3},
        "destinations": {"failing": 1},
    }
    queue = {
        "state": "failing",
        "pending_users": 4,
        "owed": 5,
        "failing_since_ts": NOW_MS - 60_000,
        "next_try_ts": NOW_MS + 30_000,
        "last_success_ts": None,
        "last_error": "refused",
    }

    text = status_text(status, {"there.test": queue}, NOW_MS)

    assert "here.test  fedpresence 1  up 1m 1s" in text
    assert "online 1  offline 2" in text
    line = next(line for line in text.splitlines() if line.startswith("there.test"))
    assert line.split()[:4] == ["there.test", "failing", "4", "5"]
    assert "in 30s" in line
    assert line.endswith("refused")


def test_status_says_how_many_rooms_are_still_to_be_read_again() -> None:
    """Z-11: why the others hear nothing yet; and no word of it where all is well."""
    status = {"server_name": "here.test", "version": "1", "uptime_ms": 1}

    assert "rooms to be read again  12" in status_text({**status, "rooms_doubted": 12}, {}, NOW_MS)
    assert "again" not in status_text({**status, "rooms_doubted": 0}, {}, NOW_MS)


def test_subscriptions_are_told_in_three_parts() -> None:
    """Whom I watch, who asks, who watches me."""
    text = subscriptions_text(
        {
            "user_id": "@alice:here.test",
            "presence": "online",
            "list": [{"user_id": "@bob:there.test", "state": "accepted", "since_ts": NOW_MS}],
            "invites": [],
            "observers": [{"user_id": "@bob:there.test", "since_ts": NOW_MS, "muted": True}],
        }
    )

    assert text.splitlines()[0] == "@alice:here.test: online"
    assert "list: 1\n  @bob:there.test  accepted  since 2023-11-14 22:13:20" in text
    assert "invites: none" in text
    assert text.endswith("muted")


def test_an_empty_list_of_tokens_is_a_heading() -> None:
    """Not an error: nobody was given one yet."""
    assert tokens_text([]) == "user  device  created"
