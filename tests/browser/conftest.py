"""A browser for all tests of the page, and the page as a reader opens it."""

from __future__ import annotations

import contextlib

import pytest

import needs

# These import the server's packages.
collect_ignore_glob = [] if needs.is_there("serve") else ["test_page_*.py"]


@pytest.fixture(scope="session")
def chrome():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=needs.chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chrome):
    """Opens a page; at the end none may have logged an error, broken the policy, or asked another server.

    A page has its `complaints`; a test that wants one takes it out.
    """
    with contextlib.ExitStack() as contexts:
        pages = []

        def open_page(address, locale="en-US", scheme="light", width=1280, height=900, **more):
            context = chrome.new_context(viewport={"width": width, "height": height}, locale=locale,
                                         color_scheme=scheme, **more)
            contexts.callback(context.close)
            page = context.new_page()
            page.complaints = []
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("console", lambda message: page.complaints.append(message.text))
            page.on("request", lambda request: request.url.startswith((address.split("#")[0], "data:"))
                    or page.complaints.append(request.url))
            page.add_init_script(WATCH)
            page.set_default_timeout(20_000)
            page.goto(address)
            page.wait_for_selector("#view > .view")
            pages.append(page)
            return page

        yield open_page
        for page in pages:
            assert page.complaints == []


# Counts how far things moved without the reader's doing (https://web.dev/cls), and what the policy refused.
WATCH = """
  window.shifts = [];
  window.refused = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      const names = entry.sources.map(({ node }) => node && (node.className || node.nodeName));
      if (!entry.hadRecentInput) shifts.push([entry.value, ...names]);
    }
  }).observe({ type: "layout-shift", buffered: true });
  addEventListener("securitypolicyviolation", (event) => refused.push(event.violatedDirective + event.blockedURI));
"""
