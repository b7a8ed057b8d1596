"""For whoever tests against us."""
