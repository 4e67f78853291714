"""Studies: what trains and judges the models of the papers."""
