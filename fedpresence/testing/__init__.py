"""What fedpresence gives to tests of homeservers: rigs, a scripted homeserver, builders, strategies.

    from fedpresence.testing import Rig

Always true: importing this package imports nothing else; a name is imported when it is first asked for,
so `strategies` alone needs hypothesis (`pip install 'fedpresence[test]'`).

Source: contract.md, "Test rig"; docs/testing-your-homeserver.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpresence.testing import builders, homeserver
    from fedpresence.testing import strategies as strategies
    from fedpresence.testing.certificates import ThrowawayCA
    from fedpresence.testing.homeserver import Answered, FakeAnswer, FakeHomeserver, ReceivedRequest
    from fedpresence.testing.http import Answer, request
    from fedpresence.testing.processes import LocalFederation
    from fedpresence.testing.rig.faults import Faults
    from fedpresence.testing.rig.process import Rig, RigHomeserver, RigServer, RigUser
    from fedpresence.testing.rig.twisted import RigOptions, TwistedRig
    from fedpresence.testing.rig.wirelog import Recorded, WireLog

__all__ = [
    "Answer",
    "Answered",
    "FakeAnswer",
    "FakeHomeserver",
    "Faults",
    "LocalFederation",
    "ReceivedRequest",
    "Recorded",
    "Rig",
    "RigHomeserver",
    "RigOptions",
    "RigServer",
    "RigUser",
    "ThrowawayCA",
    "TwistedRig",
    "WireLog",
    "builders",
    "homeserver",
    "request",
]  # without strategies: `import *` would need hypothesis

_HOMES = {
    "Answer": "http",
    "Answered": "homeserver",
    "FakeAnswer": "homeserver",
    "FakeHomeserver": "homeserver",
    "Faults": "rig.faults",
    "LocalFederation": "processes",
    "ReceivedRequest": "homeserver",
    "Recorded": "rig.wirelog",
    "Rig": "rig.process",
    "RigHomeserver": "rig.process",
    "RigOptions": "rig.twisted",
    "RigServer": "rig.process",
    "RigUser": "rig.process",
    "ThrowawayCA": "certificates",
    "TwistedRig": "rig.twisted",
    "WireLog": "rig.wirelog",
    "request": "http",
}
_MODULES = ("builders", "homeserver", "strategies")


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        try:
            value = import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != "hypothesis":
                raise
            needs = f"{__name__}.{name} needs hypothesis: pip install 'fedpresence[test]'"
            raise ModuleNotFoundError(needs, name="hypothesis") from error
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
