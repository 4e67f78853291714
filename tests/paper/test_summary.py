"""The tables of a sweep's rows."""

import made_up

from saprof.paper.summary import tables


def test_the_columns_of_the_paper_are_shown_with_a_network_of_the_paper_only():
    own = made_up.network("nets:mine")
    title, header, body = tables([own])[0]
    assert title == "Networks"
    assert not {"paper", "top-1 in paper"} & set(header)
    assert body[0][:2] == ["nets:mine", "default"]
    assert len(body[0]) == len(header)
    beside, header, body = tables([own, made_up.network("san10_pairwise", "square:3", params=10531848)])[0]
    assert "tables of SAN and SASA" in beside
    assert header.count("paper") == 2
    assert {len(line) for line in body} == {len(header)}
