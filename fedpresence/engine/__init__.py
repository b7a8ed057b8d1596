"""What is decided: pure, with time as an argument. Nothing here knows Twisted, JSON, SQL or a clock."""
