"""The script of a page in a real browser: tables sort by a click on a header, and filter."""

import pytest

from saprof.markup import Html
from saprof.plots import page

LINES = [["b", "10 ms ±3%", "x"], ["a", "9 ms", ""], ["c", "", "y"], ["d", "1,200 ms", "z"], ["e", "−5 ms", "w"]]


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_tables_sort_and_filter(browser, tmp_path):
    table = page.Table("times", ["name", "time", "note"], [*LINES, *([f"f{n}", "", ""] for n in range(20))])
    path = tmp_path / "page.html"
    path.write_text(page.document("a page", "test", "", Html("<h1>a page</h1>"), [page.Section("Times", [table])]))
    browser.get(path.as_uri())

    def names():
        return browser.execute_script(
            "return [...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
        )

    original = names()
    (time,) = [
        button for button in browser.find_elements("css selector", "th button") if button.text.startswith("time")
    ]
    for order, expected in (("ascending", "eabd"), ("descending", "dbae"), ("none", "bacd")):
        time.click()
        assert browser.find_elements("css selector", "th")[1].get_attribute("aria-sort") == order
        assert "".join(names()[:4]) == expected
    assert names() == original
    browser.find_element("css selector", "input[type=search]").send_keys("1,200")
    assert names() == ["d"]
    assert browser.find_element("css selector", ".size").text == "1 of 25 rows"
    assert not browser.get_log("browser")
