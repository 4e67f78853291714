"""The layers of the papers: attention modules, the self-attention block, the transition, the stems; and the layer that
takes the place of a convolution.

Where the authors' released code and SAN's text differ, saprof follows the code, so that the authors' checkpoints load:

- Departure: γ begins with batch norm and ReLU, and every ReLU in it follows a batch norm (SAN Sec. 3.1 writes L→R→L).
- Departure: pairwise weights pass a softmax over the footprint (Eq. 2 has none); patchwise weights do not.
- Departure: channel c of β takes weight channel c mod g, so the channels that share a weight are interleaved.
- Departure: a transition is pool → linear; its batch norm and ReLU are at the end of the stage before it (Sec. 3.4).

Where SASA's text and its printed counts differ, saprof follows the counts. We chose what neither specifies:

- Departure: queries, keys and values are whole matrices; the text has one matrix per head (`projection_groups`).
- Departure: heads are interleaved over the channels, like SAN's groups; the text has them side by side.
- Chosen: at a border the neighbourhood is clipped (`boundary="exclude"`), absolute positions are sinusoids, added to
  the input, embeddings are initialised from a normal distribution, and no ReLU follows the attention of the stem.

`LocalAttention2d` takes the place of a convolution, and the papers do not say how widths change there:

- Chosen: all reductions divide `out_channels`, since a convolution's width is that of its output.
- Chosen: a stride is an average pool of that size after the attention, as in SASA, in every family. A footprint with a
  stride ("square:7 stride=2") leaves out centres instead, which is cheaper; both together multiply.
- Chosen: the linear layer follows the pool. The two commute, and there are fewer positions after the pool.

Under `boundary="exclude"` the softmax runs over the taps inside the map; the input of batch norm still includes the
dropped taps, with ψ = 0.
"""

from saprof.layers.block import ATTENTION, SelfAttentionBlock, Transition, pool
from saprof.layers.config import TRANSFORMATIONS, AttentionConfig
from saprof.layers.exactly import rectified
from saprof.layers.local import LocalAttention
from saprof.layers.local2d import LocalAttention2d
from saprof.layers.parts import coordinates, divide, expect, linear
from saprof.layers.stand_alone import StandAloneAttention
from saprof.layers.stem import STEMS, AttentionStem
from saprof.layers.vector import PairwiseAttention, PatchwiseAttention, VectorAttention

__all__ = [
    "ATTENTION",
    "STEMS",
    "TRANSFORMATIONS",
    "AttentionConfig",
    "AttentionStem",
    "LocalAttention",
    "LocalAttention2d",
    "PairwiseAttention",
    "PatchwiseAttention",
    "SelfAttentionBlock",
    "StandAloneAttention",
    "Transition",
    "VectorAttention",
    "coordinates",
    "divide",
    "expect",
    "linear",
    "pool",
    "rectified",
]
