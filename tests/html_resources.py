"""What an HTML page is made of, for the tests of pages."""

from html.parser import HTMLParser


class Resources(HTMLParser):
    """Every tag of a page, and every place that it would load something from."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
