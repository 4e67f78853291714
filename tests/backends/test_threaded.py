"""Threads share the numbers below a kernel's first argument; each part of a kernel is compiled once."""

import numba
import numpy as np
import pytest

import kernels_numba
from kernels_numba import compiled
from kernels_numba.threaded import threaded
from saprof.backends.numba import threads_set_to, why_no_threads

pytestmark = pytest.mark.skipif(why_no_threads() is not None, reason=why_no_threads() or "")


@compiled.part
def _twice(value, times):
    return times * value


def _count(numbers, seen, factor):
    """Count each number, and keep a value for it."""
    for number in numbers:
        seen[0, number] += 1
        seen[1, number] = _twice(number, factor) + _twice(number, 0)


def _fail(numbers, seen):
    for number in numbers:
        if number == seen[0]:
            raise ValueError("no number")


@pytest.fixture
def kernel(monkeypatch):
    """Compile a function for threads, without the cache."""
    monkeypatch.setattr(kernels_numba, "announce", None)
    return lambda function: compiled.announced(numba.njit(nogil=True)(threaded(function, compiled.part, pool=True)))


@pytest.mark.parametrize("pool", [True, False], ids=["pool", "prange"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_number_is_computed_once(threads, pool):
    count = numba.njit(nogil=True, parallel=not pool)(threaded(_count, compiled.part, pool=pool))
    with threads_set_to(min(threads, numba.config.NUMBA_NUM_THREADS)):
        for numbers in (0, 1, 2, 3, 10):
            seen = np.zeros((2, 10), np.int64)
            count(numbers, seen, 2)
            assert seen[0].tolist() == [1] * numbers + [0] * (10 - numbers)
            assert seen[1, :numbers].tolist() == [2 * number for number in range(numbers)]


def test_a_part_is_compiled_once_for_constants_and_variables(kernel):
    _twice.overloads.clear()
    kernel(_count)(1, np.zeros((2, 1), np.int64), 2)
    assert len(_twice.overloads) == 1


def test_an_error_in_a_thread_is_an_error_of_the_kernel(kernel):
    fail = kernel(_fail)
    fail(3, np.array([5]))
    with pytest.raises(RuntimeError, match="a thread of a kernel raised an error"):
        fail(3, np.array([2]))


def test_a_kernel_has_the_name_and_the_place_of_its_function():
    made = threaded(_count, compiled.part, pool=True)
    assert (made.__module__, made.__qualname__, made.__doc__) == (__name__, "_count", _count.__doc__)
    assert made.__code__.co_filename == __file__
    assert made.__code__.co_firstlineno == _count.__code__.co_firstlineno


def test_a_function_for_threads_returns_nothing(kernel):
    with pytest.raises(TypeError, match="returns nothing"):
        kernel(lambda numbers, x: x.size)(1, np.zeros(1))
