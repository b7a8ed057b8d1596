"""The homeserver beside us: what goes through to it, and what we learn from it."""
