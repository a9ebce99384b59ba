"""What a page does beside being looked at: what it complains of, and where it reaches for."""

from urllib.parse import urlsplit


class Watched:
    """A browser's context whose complaints are kept, and which reaches nothing but where ``address`` is from.

    A file may load nothing at all beside itself; a page that is served, from its own server alone.
    """

    def __init__(self, context, address, expected=()):
        self.address, self.expected = address, tuple(expected)
        self.complaints, self.strangers = [], []
        context.on("console", self._said)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.route("**/*", self._asked)
        context.route_web_socket("**/*", lambda socket: self.strangers.append(socket.url))
        context.set_offline(address.startswith("file:"))

    def judge(self):
        """Fails if there was anything."""
        assert not self.strangers, f"the page reached for {self.strangers}"
        assert not self.complaints, f"the browser complained: {self.complaints}"

    def _said(self, message):
        expected = any(part in message.text for part in self.expected)
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(f"{message.type}: {message.text}")

    def _asked(self, route):
        if self._own(route.request.url):
            route.continue_()
        else:
            self.strangers.append(route.request.url)
            route.abort()

    def _own(self, url):
        if url.startswith(("blob:", "data:")):
            return True
        if self.address.startswith("file:"):
            return url.split("#")[0] == self.address.split("#")[0]
        return urlsplit(url)[:2] == urlsplit(self.address)[:2]
