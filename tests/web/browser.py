"""A browser without scripts, for the console: it keeps cookies, finds a page's forms and sends them as people would."""

from __future__ import annotations

import re
import ssl
from html.parser import HTMLParser
from types import TracebackType

import httpx

from tests.cli.served import SECONDS_MAX


class Forms(HTMLParser):
    """The forms of a page: their actions and the fields that have values."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self._is_open = False
        self._choice = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.found.append((given.get("action") or "", {}))
            self._is_open = True
        elif self._is_open and tag == "input" and given.get("name"):
            if given.get("type") not in ("checkbox", "radio") or "checked" in given:
                self.found[-1][1][str(given["name"])] = given.get("value") or ""
        elif self._is_open and tag == "select":
            self._choice = given.get("name") or ""
        elif self._is_open and tag == "option" and ("selected" in given or self._choice not in self.found[-1][1]):
            self.found[-1][1][self._choice] = given.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._is_open = False


def csrf_of(page: str) -> str:
    """Of the session that a page is of."""
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found
    return found[1]


class Browser:
    """One person's."""

    def __init__(self, url: str, trust: ssl.SSLContext) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, verify=trust, timeout=SECONDS_MAX)
        self.client.headers["Sec-Fetch-Site"] = "same-origin"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()

    def sign_in(self, token: str) -> httpx.Response:
        return self.client.post("/sign-in", data={"token": token})

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def page(self, path: str) -> str:
        """The text of a page that is there."""
        answer = self.client.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer.text

    def send(self, path: str, action: str | None = None, /, **fields: str) -> httpx.Response:
        """Fill in a form of a page and send it: the one with that action, else the first after the one to sign out."""
        forms = [form for form in Forms(self.page(path)).found if form[0] != "/sign-out"]
        where, given = next(form for form in forms if action is None or form[0] == action)
        return self.client.post(where or path, data={**given, **fields})
