"""The homeserver beside us: what it tells us, what we ask it, and what passes through us to it.

Source: homeserver-integration.md.
"""
