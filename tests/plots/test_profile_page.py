"""The page of a profile: boxes are as wide as shares, in the same place in every icicle."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import made_up
import pytest

from saprof.plots import profile_page
from saprof.plots.icicle import MEMORY, OPERATIONS, SAVED, TIME, boxes, finding
from saprof.plots.icicle_panels import icicle_figure
from saprof.plots.layer_kinds import by_kind, kind
from saprof.records.profiles import profiles


def tiny(**fields):
    return profiles(made_up.profile_rows(**fields), made_up.PROVENANCE)[0]


def places(profile, measure):
    return {(one.row.layer, one.row.operation): (one.start, one.end, one.level) for one in boxes(profile, measure)}


def test_boxes_are_shares_of_the_whole_below_their_module():
    found = places(tiny(), TIME)
    assert found["", None] == (0, 1, 0)
    assert found["stem", None] == pytest.approx((0, 0.3, 1))
    assert found["body", None] == pytest.approx((0.3, 1, 1))
    assert found["body.1", None] == pytest.approx((0.4, 1, 2))
    assert ("stem", "conv2d") not in found, "a module that is one operator is one box"


def test_what_was_timed_apart_shares_the_width_of_the_fused_operator_and_is_only_in_time():
    found = places(tiny(), TIME)
    assert ("body.1", "saprof::pairwise_attention") in found
    assert found["body.1", "saprof::pairwise_subtraction"] == pytest.approx((0.4, 0.6, 4))
    assert found["body.1", "saprof::aggregation"] == pytest.approx((0.6, 1, 4))
    assert ("body.1", "saprof::aggregation") not in places(tiny(), MEMORY)


def test_layers_have_the_same_order_and_colour_in_every_icicle():
    of_time, of_memory = ([one for one in boxes(tiny(), m) if not one.row.apart] for m in (TIME, OPERATIONS))
    assert [(one.key, one.kind) for one in of_time] == [(one.key, one.kind) for one in of_memory]


def test_operators_save_nothing_of_their_own():
    rows = [replace(row, saved_bytes=100) if row.operation is None else row for row in made_up.profile_rows()]
    assert all(one.row.operation is None for one in boxes(profiles(rows)[0], SAVED))


def test_containers_that_are_never_called_are_left_out():
    rows = [replace(row, calls=None) if row.layer == "body" else row for row in made_up.profile_rows()]
    found = places(profiles(rows)[0], TIME)
    assert ("body", None) not in found
    assert found["body.1", None] == pytest.approx((0.4, 1, 1))


def test_the_title_is_the_finding():
    assert finding(tiny(), TIME) == "body takes 70 % of 10 ms"
    nearly_all = "body.1 pairwise_attention() takes 96 % of 100 ms"
    assert finding(tiny(attention_ms=96), TIME) == nearly_all, "a layer with nearly all is looked into"
    flat = [row for row in made_up.profile_rows(attention_ms=1) if row.layer in (None, "", "stem")]
    flat.append(made_up.layer("", 3.5, "matmul"))
    assert finding(profiles(flat)[0], TIME) == "matmul() takes 70 % of 5 ms", "an operator may be the largest"
    assert profile_page.title([tiny()]) == "tiny: body takes 70 % of 10 ms"
    both = [tiny(), tiny(attention_ms=16, name="large")]
    assert re.fullmatch(r"large takes 2 \[[\d.]+, [\d.]+\] times as long as tiny", profile_page.title(both))


def test_kinds_add_up_to_the_whole_without_what_ran_apart():
    found = by_kind(tiny(), TIME.value)
    assert found == pytest.approx({"attention": 0.006, "convolution": 0.004})
    longer = {"": 0.012, "body": 0.009}
    rows = [replace(row, latency_s=longer.get(row.layer, row.latency_s)) for row in made_up.profile_rows()]
    assert by_kind(profiles(rows)[0], TIME.value)["between"] == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("conv2d", "convolution"),
        ("convolution_backward", "convolution"),
        ("saprof::pairwise_subtraction", "attention"),
        ("scaled_dot_product_attention", "attention"),
        ("native_batch_norm_backward", "normalisation"),
        ("addmm", "product"),
        ("add_", "elementwise"),
        ("adaptive_avg_pool2d", "pooling"),
        ("cat", "other"),
    ],
)
def test_the_kind_of_an_operator(operation, expected):
    assert kind(made_up.layer("x", 1, operation)) == expected


class Page(HTMLParser):
    """Counts the elements, and checks that they are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.labels = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.links += [known[name] for name in ("src", "href") if name in known]
        self.labels += [known["aria-label"]] if known.get("role") == "img" else []
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_a_description_of_each_icicle(tmp_path):
    path = profile_page.write([tiny()], tmp_path / "profile.html")
    text = path.read_text()
    page = Page(text)
    assert all(link.startswith(("#", "data:text/csv")) for link in page.links)
    assert "http" not in text.replace("http-equiv", "")
    assert len(page.labels) == 3
    assert page.labels[0].startswith("Icicle of tiny, time: body takes 70 % of 10 ms")
    assert "<h1>tiny: body takes 70 % of 10 ms</h1>" in text
    assert "timed apart" in text
    assert "overhead is +2.0 % [+0.0, +4.0]" in text


def test_two_networks_are_drawn_on_one_scale_with_what_differs():
    text = profile_page.render([tiny(), tiny(attention_ms=16, name="large")])
    widths = re.findall(r'data-network="(\d)" style="width: ([\d.]+)%', text)
    assert widths[:2] == [("0", "50.00"), ("1", "100.00")]
    table = text.partition('aria-label="Layers whose times differ"')[2].partition("</table>")[0]
    lines = [re.sub("<[^>]+>", " ", line).split() for line in table.split("<tr>")[2:]]
    assert [line[0] for line in lines] == ["the", "body", "body.1", "body.1"], "largest first, without what is the same"
    assert lines[0][-4:] == ["+10", "2", "[2,", "2]"]


@pytest.mark.parametrize("networks", [[tiny()], [tiny(), tiny(name="large")]], ids=["one", "two"])
def test_the_table_of_kinds_names_the_convention_of_its_operations(networks):
    table = profile_page.render(networks).partition('aria-label="What each kind of operator takes"')[2]
    headers = re.findall("<th[^>]*>(.*?)</th>", table.partition("</tr>")[0])
    found = [re.sub("<[^>]+>", "", header) for header in headers if "FLOPs" in header]
    assert len(found) == len(networks)
    assert all(header.endswith("MFLOPs (hardware)") for header in found)


def test_networks_without_common_layers_have_no_table_of_differences():
    other = [replace(row, layer=row.layer and f"x.{row.layer}") for row in made_up.profile_rows(name="other")]
    assert "Layers whose times differ" not in profile_page.render([tiny(), *profiles(other)])


def test_doubtful_layers_are_hatched_and_said(tmp_path):
    rows = [replace(row, status="unstable") if row.layer == "stem" else row for row in made_up.profile_rows()]
    text = profile_page.render(profiles(rows))
    assert (
        "1 of 5 layers of tiny are unstable or contended (hatched below); their self time is 30 % of the time" in text
    )
    assert 'class="box convolution doubtful"' in text
    assert "doubtful" not in re.sub("<(style|script)>.*?</\\1>", "", profile_page.render([tiny()]), flags=re.S)


def test_names_are_escaped():
    text = profile_page.render([tiny(name='<script>"x"')])
    assert "<script>&quot;" not in text
    assert '<script>"x"' not in text


def test_a_profile_without_counts_says_so():
    rows = [replace(row, flops_hardware=0) for row in made_up.profile_rows()]
    text = profile_page.render(profiles(rows))
    assert "Not drawn, since nothing was counted: operations." in text
    assert "0 MFLOPs" not in text


def test_the_figure_has_a_panel_per_network_on_one_scale_and_labels_that_fit():
    figure = icicle_figure([tiny(), tiny(attention_ms=16, name="large")], TIME, "some machine")
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim() == (0, pytest.approx(20))
    assert first.get_title(loc="left") == "tiny: body takes 70 % of 10 ms"
    widths = [patch.get_width() for patch in first.patches]
    assert widths[:3] == pytest.approx([10, 3, 7])
    labels = [text.get_text() for text in first.texts]
    assert labels[:3] == ["tiny", "stem", "body"]
    assert "pairwise_subtraction()" not in labels, "it is wider than its box"


def test_a_figure_of_what_was_not_measured_is_refused():
    with pytest.raises(ValueError, match="no profile has memory for the backward pass"):
        icicle_figure([tiny()], SAVED)
