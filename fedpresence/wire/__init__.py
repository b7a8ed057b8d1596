"""JSON and values: pure, both ways."""
