"""fedpresence: presence between Matrix homeservers, by consent."""

__version__ = "0.1.0"
