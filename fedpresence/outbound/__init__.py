"""Us to other servers."""
