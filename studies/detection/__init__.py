"""Detection: boxes, anchors, targets, losses, and what is made of the outputs of a detector. These are functions of
tensors and frozen settings; nothing here depends on a network, on a data set or on a run. A box is (x0, y0, x1, y1) in
pixels of its image, where x1 and y1 are the outer edges: a box of one pixel has sides of 1."""
