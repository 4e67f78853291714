"""Which formula counts an aten operator, and which operators are free.

An operator is counted by its name, or else by its category: what torch tags as pointwise is one operation per element,
and a reduction is one per element that it removes. Operators in place, and those with `out=`, follow the operator that
returns a new tensor. Views are known from the schema. An operator that fits none of these has no rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from saprof.models import formulas as f
from saprof.models.formulas import Call, Formula, Work


class Rule(NamedTuple):
    """How one operator is counted."""

    name: str
    """The operator's name, without the underscores of private operators and of those in place."""
    formula: Formula | None
    """None if the operator is free."""

    def kind(self, call: Call) -> str:
        """The name under which a call is added up."""
        if self.name.startswith(("convolution", "cudnn_convolution")):
            return _convolution(self.name, call["weight"], call["transposed"])
        if self.name == "mean" and f.is_pool(call):
            return "adaptive_avg_pool2d"
        return _KINDS.get(self.name) or self.name.removeprefix("native_").replace("_with_indices", "").replace(
            "_data", ""
        )

    @property
    def saves(self) -> bool:
        """Whether all outputs but the first are for the backward, such as the statistics of a norm."""
        return self.name.startswith(_SAVING) or "_with_indices" in self.name


def rule_of(operator: OpOverload) -> Rule | None:
    """The rule of an operator, or None if there is none."""
    return _rule(operator)


@lru_cache(maxsize=4096)
def _rule(operator: OpOverload) -> Rule | None:
    name, tags = _name(operator), _tags(operator)
    if name in _FORMULAS:
        return Rule(name, _FORMULAS[name])
    if operator.is_view or name in FREE or not tags.isdisjoint((torch.Tag.view_copy, torch.Tag.inplace_view)):
        return Rule(name, None)
    if operator.overloadpacket in flop_registry:
        return Rule(name, _registered(operator))
    if name.startswith("foreach_"):
        return _each(name.removeprefix("foreach_"), operator)
    if torch.Tag.reduction in tags:
        return Rule(name, f.reduction())
    if torch.Tag.pointwise in tags or name in _POINTWISE:
        return Rule(name, f.elementwise(2 if name.endswith("_backward") else 1))
    return None


def bound(operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the schema. Defaults are left out."""
    return {**dict(zip(_argument_names(operator), args, strict=False)), **kwargs}


@lru_cache(maxsize=4096)
def _argument_names(operator: OpOverload) -> Sequence[str]:
    return [argument.name for argument in operator._schema.arguments]


def _name(operator: OpOverload) -> str:
    return operator._schema.name.partition("::")[2].strip("_")


def _tags(operator: OpOverload) -> set[torch.Tag]:
    """The tags of an operator. Where they do not say what it computes, as those of operators in place, the tags of its
    other forms."""
    tags = set(operator.tags)
    if tags.isdisjoint((torch.Tag.pointwise, torch.Tag.reduction)):
        names = {operator._schema.name.partition("::")[2], operator._schema.name.partition("::")[2].rstrip("_")}
        packets = (getattr(getattr(torch.ops, operator.namespace), name, None) for name in sorted(names))
        forms = (getattr(packet, form) for packet in packets if packet is not None for form in packet.overloads())
        tags |= {tag for form in forms for tag in form.tags if tag in (torch.Tag.pointwise, torch.Tag.reduction)}
    return tags


def _each(name: str, operator: OpOverload) -> Rule | None:
    """The rule of an operator that does the same on every tensor of a list, such as those of optimizers."""
    one = getattr(torch.ops.aten, name, None)
    rule = _rule(getattr(one, one.overloads()[0])) if one is not None else None
    if rule is None or rule.formula is None:
        return rule
    return Rule(f"foreach_{name}", f.each(rule.formula))


def _registered(operator: OpOverload) -> Formula:
    """The formula that torch or the author of an operator registered for FlopCounterMode, which counts two operations
    per multiply-add."""

    def count(call: Call) -> Work:
        names = {argument.name for argument in operator._schema.arguments if argument.kwarg_only}
        keywords = {name: x for name, x in call.arguments.items() if name in names}
        positional = [x for name, x in call.arguments.items() if name not in names]
        return Work(registered_macs(operator.overloadpacket, positional, keywords, call.output) or 0)

    return count


def registered_macs(operator: object, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int | None:
    """The multiply-adds by the formula that is registered for an operator, or None if there is none."""
    formula = flop_registry.get(operator)
    return None if formula is None else formula(*args, **kwargs, out_val=output) // 2


def _convolution(name: str, weight: Any, transposed: object) -> str:
    backward = "_backward" if name.endswith("_backward") else ""
    return f"conv{'_transpose' if transposed else ''}{weight.dim() - 2}d{backward}"


_CREATE = """arange bartlett_window blackman_window efficientzerotensor empty empty_like empty_permuted empty_strided
eye full full_like hamming_window hann_window kaiser_window linspace logspace new_empty new_empty_strided new_full
new_ones new_zeros ones ones_like range scalar_tensor tril_indices triu_indices zeros zeros_like"""
_DRAW = """bernoulli cauchy exponential geometric log_normal normal normal_functional rand rand_like randint
randint_like randn randn_like random randperm uniform"""
_MOVE = """as_strided_scatter block_diag cat channel_shuffle chunk_cat clone complex constant_pad_nd copy copy_from
diag_embed diagonal_scatter embedding fill flip foreach_clone foreach_copy foreach_zero gather im2col index index_copy
index_fill index_select lazy_clone masked_fill masked_scatter masked_select max_unpool2d max_unpool3d nonzero
nonzero_static pin_memory pixel_shuffle pixel_unshuffle positive reflection_pad1d reflection_pad2d reflection_pad3d
repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape_alias reshape_copy resize
resize_as roll rot90 select_scatter set slice_scatter stack take to_copy tril triu unsafe_index unsafe_masked_index
unsafe_split unsafe_split_with_sizes unsafe_view upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d where zero diagonal_backward
masked_scatter_backward select_backward slice_backward"""
_ASK = """allclose equal assert_async assert_scalar assert_tensor_metadata cudnn_init_dropout_state
functional_assert_async functional_assert_scalar fused_sdp_choice has_same_storage_numel is_pinned is_same_size
is_set_to linalg_check_errors local_scalar_dense print record_stream sym_constrain_range sym_constrain_range_for_size
use_cudnn_ctc_loss"""

FREE = frozenset(" ".join((_CREATE, _DRAW, _MOVE, _ASK)).split())
"""Operators that create, draw, move, choose or mask numbers without arithmetic on them."""

_UNTAGGED = """copysign elu_backward floor_divide hardshrink_backward hardsigmoid_backward hardswish hardswish_backward
hardtanh_backward leaky_relu_backward log_sigmoid_backward log_sigmoid_forward mish_backward native_dropout_backward
polar prelu_kernel rrelu_with_noise rrelu_with_noise_backward softplus_backward softshrink_backward threshold"""
_POINTWISE = frozenset(_UNTAGGED.split())
"""Pointwise operators without the tag."""

_KINDS = {"addmm": "linear", "threshold_backward": "relu_backward"}
_KINDS |= dict.fromkeys(("mm", "bmm", "baddbmm", "int_mm"), "matmul")

_SAVING = ("native_", "cudnn_", "miopen_", "batch_norm", "fused_rms_norm", "scaled_dot_product", "fractional_max_pool")

_TABLE: Mapping[str, Formula] = {
    # products
    "convolution convolution_overrideable": f.convolution,
    "convolution_backward": f.convolution_backward,
    "addmm": f.linear,
    "mm bmm mv dot vdot int_mm": f.matmul(),
    "baddbmm addmv": f.matmul(added=True),
    "addr": f.elementwise(2),
    "addbmm": f.addbmm,
    "scaled_dot_product_flash_attention scaled_dot_product_flash_attention_for_cpu": f.scaled_dot_product,
    "scaled_dot_product_efficient_attention scaled_dot_product_cudnn_attention": f.scaled_dot_product,
    "scaled_dot_product_flash_attention_backward": f.scaled_dot_product_backward,
    "scaled_dot_product_flash_attention_for_cpu_backward": f.scaled_dot_product_backward,
    "scaled_dot_product_efficient_attention_backward": f.scaled_dot_product_backward,
    "scaled_dot_product_cudnn_attention_backward": f.scaled_dot_product_backward,
    "mkldnn_rnn_layer": f.recurrent_layer,
    "mkldnn_rnn_layer_backward": f.recurrent_layer_backward,
    "cdist_forward": f.distances,
    "trilinear": f.trilinear,
    "affine_grid_generator": f.affine_grid,
    "embedding_bag embedding_bag_forward_only": f.bags,
    "embedding_bag_backward embedding_bag_dense_backward": f.bags_backward(1),
    "embedding_bag_per_sample_weights_backward": f.bags_backward(2),
    "fft_r2c fft_c2r fft_c2c": f.fourier,
    # norms
    "native_batch_norm cudnn_batch_norm miopen_batch_norm native_batch_norm_legit batch_norm_no_update": f.batch_norm,
    "native_batch_norm_legit_functional native_batch_norm_legit_no_training": f.batch_norm,
    "batch_norm_with_update batch_norm_with_update_functional": f.batch_statistics_norm,
    "native_layer_norm native_group_norm": f.layer_norm,
    "fused_rms_norm": f.rms_norm,
    "native_batch_norm_backward cudnn_batch_norm_backward miopen_batch_norm_backward": f.norm_backward,
    "batch_norm_backward native_layer_norm_backward native_group_norm_backward": f.norm_backward,
    "fused_rms_norm_backward": f.norm_backward,
    "weight_norm_interface": f.per("v", 3),
    # pools
    "max_pool2d_with_indices fractional_max_pool2d": f.max_pool(2),
    "max_pool3d_with_indices fractional_max_pool3d": f.max_pool(3),
    "avg_pool2d": f.average_pool(2),
    "avg_pool3d": f.average_pool(3),
    "avg_pool2d_backward": f.average_pool_backward(2),
    "avg_pool3d_backward": f.average_pool_backward(3),
    "adaptive_avg_pool2d adaptive_avg_pool3d": f.adaptive_pool,
    "adaptive_max_pool2d adaptive_max_pool3d": f.adaptive_max_pool,
    "adaptive_avg_pool2d_backward adaptive_avg_pool3d_backward": f.elementwise(2),
    "max_pool2d_with_indices_backward max_pool3d_with_indices_backward": f.per("grad_output"),
    "adaptive_max_pool2d_backward adaptive_max_pool3d_backward": f.per("grad_output"),
    "fractional_max_pool2d_backward fractional_max_pool3d_backward": f.per("grad_output"),
    # reductions, in other words what torch tags as such and needs more than one operation per element; sorts and scans
    "mean": f.mean,
    "amax amin": f.reduction(paper=1),
    "aminmax": f.reduction(2),
    "var var_mean": f.per_input(4),
    "std std_mean": f.reduction(4, divides=2),
    "linalg_vector_norm norm": f.reduction(2, divides=1),
    "logsumexp": f.reduction(4, divides=2),
    "cumsum cumprod cummax cummin cummax_helper cummin_helper": f.elementwise(),
    "trace": f.diagonal,
    "logcumsumexp": f.elementwise(3),
    "sort": f.sorting,
    "topk kthvalue median nanmedian mode": f.choosing,
    "bucketize searchsorted": f.searching,
    # 5 per element: maximum, difference, exponential, sum, and quotient or second difference
    "softmax log_softmax safe_softmax masked_softmax": f.elementwise(5),
    "softmax_backward_data log_softmax_backward_data masked_softmax_backward": f.elementwise(4),
    # functions of an element
    "relu": f.elementwise(1, paper=1),
    "threshold_backward": f.elementwise(),
    "addcmul addcdiv glu native_dropout fused_dropout masked_scale": f.elementwise(2),
    "lerp linalg_cross": f.elementwise(3),
    "glu_backward": f.elementwise(4),
    "prelu_kernel_backward": f.per("grad_output", 3),
    # interpolation
    "upsample_linear1d": f.interpolation(2),
    "upsample_bilinear2d": f.interpolation(4),
    "upsample_trilinear3d": f.interpolation(8),
    "upsample_bicubic2d": f.interpolation(16),
    "upsample_linear1d_backward": f.interpolation_backward(2),
    "upsample_bilinear2d_backward": f.interpolation_backward(4),
    "upsample_trilinear3d_backward": f.interpolation_backward(8),
    "upsample_bicubic2d_backward": f.interpolation_backward(16),
    "upsample_bilinear2d_aa": f.antialiased(2),
    "upsample_bicubic2d_aa": f.antialiased(4),
    "upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward": f.per("grad_output"),
    "upsample_nearest_exact1d_backward upsample_nearest_exact2d_backward": f.per("grad_output"),
    "upsample_nearest_exact3d_backward": f.per("grad_output"),
    "grid_sampler_2d grid_sampler_3d": f.grid_sample,
    # sums into places
    "col2im": f.per_input(),
    "embedding_dense_backward": f.per("grad_output"),
    "unfold_backward": f.per("grad_in"),
    "index_add index_reduce": f.per("source"),
    "scatter_add scatter_reduce": f.per("src"),
    "scatter": f.scatter,
    "put": f.put,
    "index_put index_put_impl unsafe_index_put": f.index_put,
    "unsafe_masked_index_put_accumulate": f.per("values"),
    "reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward": f.per("grad_output"),
    "replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward": f.per("grad_output"),
    # losses and optimizers
    "nll_loss_forward nll_loss2d_forward": f.per("target", 2),
    "nll_loss_backward nll_loss2d_backward": f.per("target"),
    "mse_loss smooth_l1_loss huber_loss soft_margin_loss dist": f.per_input(3),
    "mse_loss_backward smooth_l1_loss_backward huber_loss_backward": f.elementwise(3),
    "binary_cross_entropy binary_cross_entropy_with_logits": f.per_input(6),
    "binary_cross_entropy_backward": f.elementwise(5),
    "fused_adam fused_adamw": f.each(f.elementwise(15)),
    "fused_sgd": f.each(f.elementwise(6)),
}
"""The formulas of operators whose category does not say enough, by their names."""

_FORMULAS = {name: formula for names, formula in _TABLE.items() for name in names.split()}
