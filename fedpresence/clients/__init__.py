"""Our users and us."""
