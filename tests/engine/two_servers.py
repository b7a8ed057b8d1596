"""`here.test` and `there.test`, and what lies between them: see `servers.py` for what always holds."""

from collections.abc import Mapping

from fedpresence.ids import ServerName, UserID
from fedpresence.testing.builders import HERE, THERE
from tests.engine.servers import Servers


class TwoServers(Servers):
    """Both, and the clock they share; `links` go out from the server that they are named for."""

    def __init__(self, users: Mapping[ServerName, tuple[UserID, ...]]) -> None:
        super().__init__(users)
        self.links = {HERE: self.all_links[HERE, THERE], THERE: self.all_links[THERE, HERE]}
