"""The SAN authors' released networks, written out again as functions over a state dict with their key names.

Plain torch and no saprof: what `load_official` and the layers are judged by. The released operators reflect once and
so need maps larger than the footprint's reach; `pad` goes on reflecting, as `numpy.pad` does.
"""

import torch
import torch.nn.functional as F

BLOCKS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
CHANNELS = (64, 256, 512, 1024, 2048)
SIZES = (3, 7, 7, 7, 7)
"""The side of the footprint in each stage."""


def shapes(family, blocks, channels=CHANNELS, sizes=SIZES, classes=1000):
    """Every entry of the state dict, and its shape."""

    def linear(key, inputs, outputs, bias=True):
        entries[f"{key}.weight"] = (outputs, inputs, 1, 1)
        if bias:
            entries[f"{key}.bias"] = (outputs,)

    def norm(key, width):
        for name in ("weight", "bias", "running_mean", "running_var"):
            entries[f"{key}.{name}"] = (width,)
        entries[f"{key}.num_batches_tracked"] = ()

    entries = {}
    linear("conv_in", 3, channels[0], bias=False)
    norm("bn_in", channels[0])
    before = channels[0]
    for s, (c, k) in enumerate(zip(channels, sizes, strict=True)):
        r, m, g, taps = c // 16, c // 4, c // 32, k * k
        linear(f"conv{s}", before, c, bias=False)
        norm(f"bn{s}", c)
        for b in range(blocks[s]):
            block = f"layer{s}.{b}"
            norm(f"{block}.bn1", c)
            linear(f"{block}.sam.conv1", c, r)
            linear(f"{block}.sam.conv2", c, r)
            linear(f"{block}.sam.conv3", c, m)
            if family == "pairwise":
                linear(f"{block}.sam.conv_p", 2, 2)
                d, hidden, last = r + 2, r, g
            else:
                d, hidden, last = r * (taps + 1), g, g * taps
            norm(f"{block}.sam.conv_w.0", d)
            linear(f"{block}.sam.conv_w.2", d, hidden, bias=False)
            norm(f"{block}.sam.conv_w.3", hidden)
            linear(f"{block}.sam.conv_w.5", hidden, last)
            norm(f"{block}.bn2", m)
            linear(f"{block}.conv", m, c)
        before = c
    entries["fc.weight"], entries["fc.bias"] = (classes, before), (classes,)
    return entries


def weights(family, blocks, seed=0, **sizes):
    """Random weights in float64 that keep activations near 1, so that nothing hides in saturation."""
    generator = torch.Generator().manual_seed(seed)
    entries = {}
    for key, shape in shapes(family, blocks, **sizes).items():
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        if key.endswith("num_batches_tracked"):
            entries[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            entries[key] = 1 + 0.5 * normal.tanh()
        elif len(shape) > 1:
            entries[key] = normal / shape[1] ** 0.5
        else:
            entries[key] = float(key.endswith("weight")) + 0.2 * normal
        if family == "patchwise" and ".conv_w.5." in key:  # no softmax: k² weights of size 1 would add up
            entries[key] = entries[key] / 10
    return entries


def network(w, x, sizes=SIZES, training=False):
    """Logits. In training mode the statistics in `w` move on, as those of a module do."""
    x = F.relu(norm(w, "bn_in", linear(w, "conv_in", x), training))
    for s, k in enumerate(sizes):
        x = linear(w, f"conv{s}", F.max_pool2d(x, 2, 2))
        b = 0
        while f"layer{s}.{b}.conv.weight" in w:
            x = block(w, f"layer{s}.{b}", x, k, training)
            b += 1
        x = F.relu(norm(w, f"bn{s}", x, training))
    return F.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"])


def block(w, key, x, k, training=False):
    y = F.relu(norm(w, f"{key}.bn1", x, training))
    attend = pairwise if f"{key}.sam.conv_p.weight" in w else patchwise
    y = attend(w, f"{key}.sam", y, k, training)
    return x + linear(w, f"{key}.conv", F.relu(norm(w, f"{key}.bn2", y, training)))


def pairwise(w, key, x, k, training=False):
    n, _, h, width = x.shape
    phi, psi, beta = (linear(w, f"{key}.conv{i}", x) for i in (1, 2, 3))
    across = torch.linspace(-1, 1, width, dtype=x.dtype)[None, :].expand(h, width)
    down = torch.linspace(-1, 1, h, dtype=x.dtype)[:, None].expand(h, width)
    p = linear(w, f"{key}.conv_p", torch.stack([across, down])[None])
    subtraction = phi.flatten(2)[:, :, None] - taps(psi, k)  # n r k² hw
    position = p.flatten(2)[:, :, None] - taps(p, k)  # 1 2 k² hw
    delta = torch.cat([subtraction, position.repeat(n, 1, 1, 1)], 1)
    alpha = F.softmax(conv_w(w, f"{key}.conv_w", delta, training), dim=-2)
    return aggregation(alpha, beta, k)


def patchwise(w, key, x, k, training=False):
    n, _, h, width = x.shape
    phi, psi, beta = (linear(w, f"{key}.conv{i}", x) for i in (1, 2, 3))
    patch = taps(psi, k).reshape(n, -1, 1, h * width)  # channel c·k² + j
    delta = torch.cat([phi.reshape(n, -1, 1, h * width), patch], 1)
    alpha = conv_w(w, f"{key}.conv_w", delta, training).reshape(n, -1, k * k, h * width)
    return aggregation(alpha, beta, k)


def conv_w(w, key, delta, training):
    hidden = linear(w, f"{key}.2", F.relu(norm(w, f"{key}.0", delta, training)))
    return linear(w, f"{key}.5", F.relu(norm(w, f"{key}.3", hidden, training)))


def aggregation(alpha, beta, k):
    """Channel c takes weight channel c mod G."""
    n, m, h, width = beta.shape
    groups = alpha.shape[1]
    shared = alpha[:, [c % groups for c in range(m)]]
    return (shared * taps(beta, k)).sum(2).reshape(n, m, h, width)


def taps(x, k):
    """n c k² hw: the k × k neighbours of every position, row-major."""
    n, c, h, width = x.shape
    return F.unfold(pad(x, k // 2), k).reshape(n, c, k * k, h * width)


def pad(x, reach):
    """Reflection, repeated where the map is smaller than the reach: each round mirrors the whole of it."""
    for axis, side in ((0, x.shape[3]), (2, x.shape[2])):
        left = reach
        while left and side > 1:
            step = min(left, side - 1)
            amounts = [0, 0, 0, 0]
            amounts[axis : axis + 2] = step, step
            x = F.pad(x, amounts, mode="reflect")
            left, side = left - step, side + 2 * step
        if left:  # a single row or column has only itself to show
            amounts = [0, 0, 0, 0]
            amounts[axis : axis + 2] = left, left
            x = F.pad(x, amounts, mode="replicate")
    return x


def linear(w, key, x):
    return F.conv2d(x, w[f"{key}.weight"], w.get(f"{key}.bias"))


def norm(w, key, x, training):
    mean, var, scale, shift = (w[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    if training:
        w[f"{key}.num_batches_tracked"] += 1
    return F.batch_norm(x, mean, var, scale, shift, training, momentum=0.1, eps=1e-5)
