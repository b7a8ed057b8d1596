from fedpresence.outbound.alarms import Alarms


def test_alarms_come_in_the_order_of_their_moments_and_of_asking() -> None:
    """Whoever waited longer must not be woken later."""
    alarms: Alarms[str] = Alarms()
    for who, at_ms in (("late", 30), ("first", 10), ("second", 10), ("early", 5)):
        alarms.set(who, at_ms)

    assert alarms.next_ms() == 5
    assert alarms.pop_due(4) == []
    assert alarms.pop_due(10) == ["early", "first", "second"]
    assert alarms.next_ms() == 30
    assert len(alarms) == 1


def test_who_is_to_be_woken_need_not_be_comparable() -> None:
    """Senders have no order among them."""
    alarms: Alarms[object] = Alarms()
    some = [object() for _ in range(5)]
    for who in some:
        alarms.set(who, 1)

    assert alarms.pop_due(1) == some
    assert alarms.next_ms() is None
