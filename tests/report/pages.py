"""Pages taken apart: what a browser would see."""

import base64
import json
import zlib
from html.parser import HTMLParser


class Page(HTMLParser):
    """The elements of a page.

    Attributes:
        elements: (tag, attributes) of each, in their order.
        texts: what stands directly in script, style and payload elements, by tag or run.
    """

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.words = [], {}, []
        self._inside = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag in ("script", "style") or "payload" in (attributes.get("class") or ""):
            self._inside.append((tag, attributes.get("data-run", tag)))
            self.texts.setdefault(attributes.get("data-run", tag), []).append("")

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1][0] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if self._inside:
            self.texts[self._inside[-1][1]][-1] += data
        else:
            self.words.append(data)

    def all(self, tag=None, **wanted):
        """Attributes of the elements that have these."""
        return [
            attributes
            for found, attributes in self.elements
            if tag in (None, found)
            and all(attributes.get(name.replace("_", "-")) == v for name, v in wanted.items())
        ]

    @property
    def text(self):
        """All that is read."""
        return " ".join(" ".join(self.words).split())

    def payload(self, run="r1"):
        """What the script unpacks for a run."""
        return json.loads(zlib.decompress(base64.b64decode(self.texts[run][0])))
