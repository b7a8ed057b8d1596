"""`here.test` and `there.test`, and what lies between them: see `servers.py` for what always holds."""

from fedpresence.testing.builders import ALICE, BOB, CAROL, DAVE, HERE, THERE
from tests.engine.servers import Servers


class TwoServers(Servers):
    """Both, and the clock they share; `links` go out from the server that they are named for."""

    def __init__(self) -> None:
        super().__init__({HERE: (ALICE, CAROL), THERE: (BOB, DAVE)})
        self.links = {HERE: self.all_links[HERE, THERE], THERE: self.all_links[THERE, HERE]}
