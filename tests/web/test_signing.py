"""Who gets into the console, and what cannot be done to whoever is in."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.cli.served import Home
from tests.web.browser import Browser, csrf_of

New = Callable[[], Browser]
As = Callable[[str], Browser]


@pytest.fixture(scope="module", autouse=True)
def vm(rest: httpx.Client) -> None:
    made = rest.post("/vms", json={"name": "signed", "disks": [{"name": "root", "size_bytes": 1 << 20}]})
    assert made.status_code == 201


def test_a_token_signs_in_and_the_page_names_it(signed_in: As) -> None:
    page = signed_in("viewer").page("/")
    assert "signed" in page and "web-viewer" in page


def test_without_a_session_every_page_leads_to_sign_in(browser: New) -> None:
    for path in ("/", "/vms/signed", "/vms/signed/rename"):
        answer = browser().get(path)
        assert answer.status_code == 303 and answer.headers["Location"].startswith("/sign-in"), path


def test_the_cookie_is_for_this_host_and_its_pages_alone(browser: New, tokens: dict[str, str]) -> None:
    cookie = browser().sign_in(tokens["viewer"]).headers["Set-Cookie"]
    assert cookie.startswith("__Host-blockdev=")
    for word in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
        assert word in cookie, cookie


def test_no_token_and_no_cookie_is_in_any_page(signed_in: As, tokens: dict[str, str]) -> None:
    one = signed_in("admin")
    value = one.client.cookies["__Host-blockdev"]
    for path in ("/", "/vms/signed"):
        page = one.page(path)
        assert value not in page and tokens["admin"] not in page and "bdv_" not in page


def test_a_session_is_never_one_that_was_known_before(browser: New, tokens: dict[str, str]) -> None:
    one = browser()
    one.client.cookies.set("__Host-blockdev", "chosen-by-somebody", domain=one.client.base_url.host)
    one.sign_in(tokens["viewer"])
    first = [cookie.value for cookie in one.client.cookies.jar if cookie.value != "chosen-by-somebody"][0]
    other = browser()
    other.client.cookies.set("__Host-blockdev", "chosen-by-somebody")
    assert other.get("/").status_code == 303
    again = browser()
    again.client.cookies.set("__Host-blockdev", str(first))
    again.sign_in(tokens["viewer"])
    old = browser()
    old.client.cookies.set("__Host-blockdev", str(first))
    assert old.get("/").status_code == 303, "signing in again ends the session of before"


def test_a_form_without_the_csrf_token_of_the_session_changes_nothing(signed_in: As, rest: httpx.Client) -> None:
    one, other = signed_in("admin"), signed_in("admin")
    stolen = csrf_of(other.page("/"))
    for fields in ({}, {"csrf": ""}, {"csrf": stolen}):
        answer = one.client.post("/vms/signed/rename", data={"name": "taken", **fields})
        assert answer.status_code == 403
    assert rest.get("/vms/signed").status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_a_form_of_another_site_changes_nothing_even_with_the_csrf_token(signed_in: As, rest: httpx.Client, site: str) -> None:
    one = signed_in("admin")
    fields = {"name": "taken", "csrf": csrf_of(one.page("/"))}
    assert one.client.post("/vms/signed/rename", data=fields, headers={"Sec-Fetch-Site": site}).status_code == 403
    assert rest.get("/vms/signed").status_code == 200


def test_a_form_of_another_origin_changes_nothing_in_a_browser_that_says_the_origin_alone(signed_in: As, rest: httpx.Client) -> None:
    one = signed_in("admin")
    fields = {"name": "taken", "csrf": csrf_of(one.page("/"))}
    del one.client.headers["Sec-Fetch-Site"]
    for origin in ("https://evil.example", "null"):
        assert one.client.post("/vms/signed/rename", data=fields, headers={"Origin": origin}).status_code == 403
    assert rest.get("/vms/signed").status_code == 200


def test_a_role_is_the_tokens(signed_in: As, rest: httpx.Client) -> None:
    viewer = signed_in("viewer")
    answer = viewer.client.post("/vms/signed/rename", data={"name": "taken", "csrf": csrf_of(viewer.page("/"))})
    assert answer.status_code == 403 and "operator" in answer.text
    assert rest.get("/vms/signed").status_code == 200


def test_signing_out_ends_the_session_and_not_only_the_cookie(signed_in: As) -> None:
    one = signed_in("viewer")
    value = one.client.cookies["__Host-blockdev"]
    answer = one.client.post("/sign-out", data={"csrf": csrf_of(one.page("/"))})
    assert answer.status_code == 303
    one.client.cookies.set("__Host-blockdev", value)
    assert one.get("/").status_code == 303


def test_a_token_that_is_removed_signs_out(browser: New, home: Home) -> None:
    one = browser()
    one.sign_in(home("token", "add", "web-passing", "--role", "viewer").strip())
    assert one.get("/").status_code == 200
    home("token", "remove", "web-passing")
    assert one.get("/").status_code == 303


def test_a_code_signs_in_once_as_admin_and_its_session_goes_with_signing_out(browser: New, home: Home) -> None:
    made = home.json("console")
    assert made["address"] == f"{made['url']}/sign-in#code={made['code']}"
    one = browser()
    assert one.sign_in(made["code"]).status_code == 303
    assert 'class="tag">admin' in one.page("/")
    assert browser().sign_in(made["code"]).status_code == 401
    names = [token["name"] for token in home.json("token", "list")["tokens"]]
    assert made["name"] not in names and any(name.startswith("console-session-") for name in names)
    assert one.client.post("/sign-out", data={"csrf": csrf_of(one.page("/"))}).status_code == 303
    names = [token["name"] for token in home.json("token", "list")["tokens"]]
    assert not any(name.startswith("console-session-") for name in names)


def test_guessing_is_slowed_down_by_address(home: Home, browser: New, tokens: dict[str, str]) -> None:
    one = browser()
    one.client = httpx.Client(
        base_url=one.url, verify=False, headers={"Sec-Fetch-Site": "same-origin"}, transport=httpx.HTTPTransport(verify=False, local_address="127.0.0.9")
    )
    statuses = [one.sign_in(f"bdv_{number}").status_code for number in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert one.sign_in(tokens["viewer"]).status_code == 429, "whether a guess is right is not told either"
    assert browser().sign_in(tokens["viewer"]).status_code == 303, "others are not kept out"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost:99999999", "user@localhost"])
def test_a_name_that_is_not_ours_is_not_answered(browser: New, host: str) -> None:
    answer = browser().client.get("/sign-in", headers={"Host": host})
    assert answer.status_code in (400, 421)


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/\t/evil.example"])
def test_signing_in_leads_nowhere_else(browser: New, tokens: dict[str, str], to: str) -> None:
    answer = browser().client.post("/sign-in", data={"token": tokens["viewer"], "to": to})
    assert answer.status_code == 303 and answer.headers["Location"] == "/"


def test_every_answer_has_the_security_headers(browser: New, signed_in: As) -> None:
    one = signed_in("viewer")
    strangers = [browser().get(path) for path in ("/", "/sign-in", "/api/v1/vms", "/api/none", "/metrics")]
    known = [one.get(path) for path in ("/", "/none", "/static/console.css", "/vms/none", "/api/v1/vms")]
    assert [answer.status_code for answer in strangers[2:]] == [401] * 3, "the API has the origin of the pages, and no cookie is good for it"
    for answer in (*strangers, *known):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["X-Frame-Options"] == "DENY" and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"]
    assert one.get("/").headers["Cache-Control"] == "no-store"


def test_what_is_in_a_name_or_text_is_shown_and_not_run(signed_in: As, rest: httpx.Client) -> None:
    rest.patch("/vms/signed", json={"description": "<script>alert(1)</script>\"'>"})
    page = signed_in("operator").page("/vms/signed/rename")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_only_the_packages_scripts_and_styles_are_static_files(browser: New) -> None:
    one = browser()
    assert one.get("/static/console.js").headers["Content-Type"].startswith("text/javascript")
    for path in ("/static/vendor/htmx.LICENSE", "/static/../console.py", "/static/%2e%2e/console.py", "/static//etc/passwd", "/static/"):
        assert one.get(path).status_code == 404, path


def test_a_form_that_fails_is_shown_again_with_what_was_typed(signed_in: As) -> None:
    answer = signed_in("operator").send("/vms/signed/rename", name="not a name", description="typed")
    assert answer.status_code == 400 and 'role="alert"' in answer.text
    assert 'value="not a name"' in answer.text and "typed" in answer.text


def test_the_unix_socket_has_the_api_alone(home: Home) -> None:
    with home.rest() as client:
        assert client.get("http://blockdev/").status_code == 404


def test_a_form_of_a_stranger_that_is_large_is_refused(browser: New) -> None:
    answer = browser().client.post("/sign-in", data={"token": "x" * 20_000})
    assert answer.status_code == 400 and "larger" in answer.text


def test_registering_at_a_hypervisor_needs_the_owners_word_over_tcp(signed_in: As, rest: httpx.Client, tokens: dict[str, str], browser: New) -> None:
    one = browser()
    answer = one.client.post(
        "/api/v1/hypervisors/none/registrations", json={"vms": ["signed"]}, headers={"Authorization": f"Bearer {tokens['admin']}"}
    )
    assert answer.status_code == 403 and "--api-hypervisors" in answer.text
    assert rest.post("/hypervisors/none/registrations", json={"vms": ["signed"]}).status_code == 404


def test_the_api_takes_no_cookie(signed_in: As) -> None:
    one = signed_in("admin")
    assert one.get("/api/v1/vms").status_code == 401 and one.get("/metrics").status_code == 401
