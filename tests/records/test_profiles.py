"""A profile as text, as HTML and as a table of pandas; and how it is read from the rows of a run."""

import re

import made_up
import pytest

from saprof.records.profiles import common_columns, profiles


def tiny(**fields):
    return profiles(made_up.profile_rows(**fields), made_up.PROVENANCE)[0]


def test_print_fits_80_columns_and_tells_overhead_and_shares():
    shown = str(tiny(name="a_network_with_a_rather_long_name"))
    assert max(map(len, shown.splitlines())) <= 80
    assert "overhead is +2.0 % [+0.0, +4.0]" in " ".join(shown.split())
    assert re.search(r"^  stem +3 ±5% +30\.0", shown, flags=re.M)


def test_two_tables_have_the_same_columns_and_fit():
    both = tiny(), tiny(name="a_network_with_a_rather_long_name")
    chosen = common_columns(both, None, 80)
    short, long = (one.table(None, columns=chosen) for one in both)
    assert short.splitlines()[0].split() == long.splitlines()[0].split()
    assert max(len(line) for table in (short, long) for line in table.splitlines()) <= 80


def test_operations_of_a_training_step_are_those_of_both_directions():
    network = tiny(mode="train_step", backward_flops_hardware=40_000_000)
    line = next(x for x in network.table(columns=["hardware"]).splitlines() if x.startswith("tiny"))
    assert line.split() == ["tiny", "60"], "20 million forward, 40 million backward"


def test_a_notebook_shows_bars_for_shares_and_escapes_names():
    shown = tiny(name="<b>")._repr_html_()
    assert "<b>" not in shown
    bars = re.findall(r">([\d.]+)</td>", "".join(re.findall(r"<td[^>]*gradient[^>]*70\.0%[^>]*>[\d.]+</td>", shown)))
    assert bars[0] == "70.0"
    (header,) = re.findall("<thead>.*</thead>", shown)
    assert re.findall("<th[^>]*>([^<]+)", header)[:3] == ["layer", "ms", "%"]


def test_parts_that_were_timed_apart_have_no_bar():
    (found,) = profiles([*made_up.profile_rows(), made_up.layer("body.2", 5, apart=True)])
    line = next(x for x in found._repr_html_().split("<tr>") if "2 *" in x)
    assert "gradient" not in line


def test_the_frame_has_a_line_per_row_and_no_samples():
    pytest.importorskip("pandas")
    frame = tiny().frame()
    assert len(frame) == len(made_up.profile_rows())
    assert "samples_s" not in frame
    assert frame.set_index(["layer", "operation"]).loc[("stem", "conv2d"), "latency_s"] == pytest.approx(0.003)


def test_each_row_of_a_network_begins_a_profile():
    found = profiles([*made_up.profile_rows(), *made_up.profile_rows(name="other"), made_up.network()])
    assert [one.network.name for one in found] == ["tiny", "other"], "a network without layers is no profile"


@pytest.mark.parametrize("depth", [-1, "2", 1.5, True])
def test_a_depth_that_is_no_number_of_levels_is_refused(depth):
    with pytest.raises(ValueError, match=r"depth is .*expected 0, a positive integer, or None"):
        tiny().table(depth)


def test_a_layer_without_its_network_is_refused():
    with pytest.raises(ValueError, match="a layer of tiny has no row of tiny before it; expected a whole profile"):
        profiles(made_up.profile_rows()[1:])
