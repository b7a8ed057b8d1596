"""Users of several domains: made, brought together, and kept busy."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from fedpresence.testing.domains import Domain, Person

PAUSE_S = 0.02  # between two changes: some thirty a second
LAST_ANSWER_S = 10.0

_numbers = count(1)


def people(*places: tuple[Domain, str]) -> list[Person]:
    """A new user for each, in a first sync already."""
    number = next(_numbers)
    found = [domain.user(f"{name}{number}") for domain, name in places]
    for person in found:
        person.sync()
    return found


def share_a_room(first: Person, *others: Person) -> str:
    """A public room that the first makes and the others join."""
    room_id = first.create_room()
    for other in others:
        other.join(room_id, first.domain.name)
    return room_id


@contextmanager
def presence_load(crowd: list[Person]) -> Iterator[None]:
    """Everybody in the crowd changes their status, again and again, until the end.

    AssertionError at the end where a change was refused or failed: then there was no such load.
    """
    ended = threading.Event()
    wrong: list[str] = []

    def change() -> None:
        for number in count():
            person = crowd[number % len(crowd)]
            try:
                answer = person.put_status("online" if number % 2 else "unavailable", f"status {number}")
            except OSError as error:
                wrong.append(f"{person.user_id} was not answered: {error}")
                return
            if answer.status != 200:
                wrong.append(f"{person.user_id} was answered {answer.status}")
            if ended.wait(PAUSE_S):
                return

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LAST_ANSWER_S)
    assert not thread.is_alive() and not wrong, wrong or "a change was not answered"
