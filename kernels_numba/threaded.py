"""Kernels whose iterations are shared by Numba's threads, without the loops of `numba.prange`.

For a loop of `prange`, Numba analyses the kernel, compiles its body again as a function of its own, with other types of
integers and therefore with other instances of its parts, wraps this function twice, and optimises each of them. Here
the function is compiled once, and a call of Numba's thread pool runs it for a range of numbers per thread. Versions of
Numba whose internals are not known run it in a loop of `prange`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic


def threaded(function: Callable[..., Any], part: Callable[..., Any], *, pool: bool) -> Callable[..., Any]:
    """A function that Numba can compile: it runs `function` in threads.

    Its first argument is a count. `function` takes a range of numbers in its place: those that the thread computes.
    `part` compiles `function`. Without `pool`, the function has a loop of `prange`, for Numba's option `parallel`.
    """
    body = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_of_thread")
    body.__qualname__ = body.__name__
    names = ", ".join(inspect.signature(function).parameters)
    count, _, others = names.partition(", ")
    source = f"def kernel({names}):\n    "
    if pool:
        source += f"run(body, {count}, ({others},))\n"
    else:
        source += f"for number in prange({count}):\n        body(range(int(number), int(number) + 1), {others})\n"
    module = compile(source, function.__code__.co_filename, "exec")
    code = next(constant for constant in module.co_consts if isinstance(constant, CodeType))
    code = code.replace(co_name=function.__name__, co_firstlineno=function.__code__.co_firstlineno)
    kernel = FunctionType(code, {"run": _run, "prange": prange, "body": part(body)}, function.__name__)
    kernel.__module__, kernel.__qualname__ = function.__module__, function.__qualname__
    kernel.__doc__ = function.__doc__
    return kernel


@intrinsic
def _run(typing, body, count, arguments):
    """Call body(range(first, last), *arguments) in each thread, for consecutive parts of the numbers below `count`."""
    signature = typing.resolve_function_type(body, (types.range_state64_type, *arguments.types), {})
    if signature.return_type != types.none:
        raise TypeError("a function that runs in threads returns nothing")

    def codegen(context, builder, own, values):
        from numba.core.typed_passes import _reload_parfors
        from numba.np.ufunc.parallel import _launch_threads

        _launch_threads()
        context.active_code_library._reload_init.add(_reload_parfors)
        word, pointer = context.get_value_type(types.intp), cgutils.voidptr_t
        number = ir.FunctionType(ir.IntType(32), [])
        threads = builder.call(cgutils.get_or_insert_function(builder.module, number, "get_num_threads"), [])
        threads = builder.sext(threads, word)
        shared = cgutils.make_anonymous_struct(builder, [values[1], threads, cgutils.false_bit, values[2]])
        place = cgutils.alloca_once_value(builder, shared)
        worker = _worker(context, builder, body.dispatcher.get_compile_result(signature), shared.type, own.args[2])
        # The pool adds step · number to each address. So the only "address", which begins with 0, is the number.
        held = [cgutils.alloca_once_value(builder, value) for value in (pointer(None), threads, word(1))]
        kind = ir.FunctionType(ir.VoidType(), [pointer] * 5 + [word] * 3)
        pool = cgutils.get_or_insert_function(builder.module, kind, "numba_parallel_for")
        memory = [builder.bitcast(value, pointer) for value in (worker, *held, place)]
        builder.call(pool, [*memory, word(0), word(1), threads])
        with builder.if_then(builder.load(cgutils.gep_inbounds(builder, place, 0, 2)), likely=False):
            context.call_conv.return_user_exc(builder, RuntimeError, ("a thread of a kernel raised an error",))
        return context.get_dummy_value()

    return types.none(body, types.intp, arguments), codegen


def _worker(context, caller, compiled, shared, kind):
    """The function that the pool calls in a thread: its number and how many follow it, then the shared struct.

    The struct holds the count, the number of threads, whether one of them raised an error, and the arguments, a tuple
    of this kind.
    """
    pointer, words = cgutils.voidptr_t, context.get_value_type(types.intp).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [pointer.as_pointer(), words, words, pointer])
    worker = ir.Function(caller.module, signature, f"{compiled.fndesc.mangled_name}.worker")
    worker.linkage = "internal"
    context.active_code_library.add_linking_library(compiled.library)
    builder = ir.IRBuilder(worker.append_basic_block("entry"))
    place = builder.bitcast(worker.args[3], shared.as_pointer())
    count, threads = (builder.load(cgutils.gep_inbounds(builder, place, 0, field)) for field in range(2))
    arguments = cgutils.unpack_tuple(builder, builder.load(cgutils.gep_inbounds(builder, place, 0, 3)), len(kind))
    first = builder.ptrtoint(builder.load(worker.args[0]), count.type)
    behind = builder.add(first, builder.load(worker.args[1]))
    bounds = [builder.sdiv(builder.mul(count, number), threads) for number in (first, behind)]
    make = context.get_function(range, types.range_state64_type(types.intp, types.intp))
    numbers = make(builder, bounds)
    function = context.declare_function(builder.module, compiled.fndesc)
    status, _ = context.call_conv.call_function(
        builder, function, types.none, compiled.signature.args, [numbers, *arguments]
    )
    with builder.if_then(status.is_error, likely=False):
        builder.store(cgutils.true_bit, cgutils.gep_inbounds(builder, place, 0, 2))
    builder.ret_void()
    return worker
