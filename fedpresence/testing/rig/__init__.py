"""A rig: several daemons in one process, with a clock that can be turned and links that can be broken."""
