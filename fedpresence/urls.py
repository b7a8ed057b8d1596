"""URLs as treq takes them: it hands every host to IDNA, which knows no IPv6 address.

Always true: what is asked for is the URL as it is written here; whoever writes it has quoted it.
"""

from hyperlink import URL


class _AsWritten(URL):
    """A URL that is one already."""

    def to_uri(self) -> URL:
        """Itself: a URL's `to_uri` encodes its host, whatever that is."""
        return self


def as_written(url: str) -> str | URL:
    """`url`, fit for treq also where its host is an IPv6 address."""
    return _AsWritten.from_text(url) if "://[" in url else url
