"""Detection: boxes, anchors, targets, losses, data with boxes and their views, and what is made of the outputs of a
detector. Nothing here depends on a network or on a run. A box is (x0, y0, x1, y1) in pixels of its image, where x1 and
y1 are the outer edges: a box of one pixel has sides of 1."""
