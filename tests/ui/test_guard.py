"""Who is let in."""

import pytest

from qlora_studio.ui.server.origin import find_refusal

HERE = "127.0.0.1:7860"
ELSEWHERE = "This request comes from another page."


@pytest.mark.parametrize("host", [HERE, "localhost:7860", "localhost", "[::1]:7860", "[::1]"])
def test_this_machine_is_welcome_under_its_own_names(host):
    assert find_refusal("GET", {"host": host}) == ""


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil", "", "[::1]x"]
)
def test_a_foreign_host_is_refused_so_that_rebinding_gains_nothing(host):
    assert find_refusal("GET", {"host": host}) == "The studio answers this machine only."


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:7860", "http://127.0.0.1:78600"],
)
def test_an_origin_that_is_not_this_very_page_is_refused(origin):
    assert find_refusal("POST", {"host": HERE, "origin": origin}) == ELSEWHERE


def test_the_pages_own_requests_are_welcome():
    headers = {"host": HERE, "origin": f"http://{HERE}", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    assert find_refusal("POST", headers) == ""


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_may_link_here_and_do_nothing_else(site):
    link = {"host": HERE, "sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert find_refusal("GET", link) == ""
    assert find_refusal("POST", link) == ELSEWHERE
    assert find_refusal("GET", {**link, "sec-fetch-dest": "iframe"}) == ELSEWHERE
    assert find_refusal("GET", {**link, "sec-fetch-mode": "no-cors"}) == ELSEWHERE
