"""A homeserver made of the field's libraries alone, that does what a script says: `FakeHomeserver`."""

from fedpresence.testing.homeserver.answers import (
    FakeAnswer,
    Script,
    Scripted,
    decode_answer,
    decode_script,
    encode_answer,
)
from fedpresence.testing.homeserver.homeserver import FakeHomeserver
from fedpresence.testing.homeserver.orders import (
    FORGERIES,
    Answered,
    Forgery,
    SendOrder,
    decode_order,
    encode_answered,
)
from fedpresence.testing.homeserver.received import (
    KEY_PATH,
    SEND_PATH,
    VERSION_PATH,
    ReceivedRequest,
    encode_received,
)

__all__ = [
    "FORGERIES",
    "KEY_PATH",
    "SEND_PATH",
    "VERSION_PATH",
    "Answered",
    "FakeAnswer",
    "FakeHomeserver",
    "Forgery",
    "ReceivedRequest",
    "Script",
    "Scripted",
    "SendOrder",
    "decode_answer",
    "decode_order",
    "decode_script",
    "encode_answer",
    "encode_answered",
    "encode_received",
]
