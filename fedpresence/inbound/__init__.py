"""Other servers to us."""
