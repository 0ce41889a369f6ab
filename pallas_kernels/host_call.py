"""Functions compiled by Numba as operations of XLA programs on CPU, on all threads of XLA's pool.

XLA has no kernel language for CPUs, but it calls foreign functions through an interface with a
stable binary layout (`xla/ffi/api/c_api.h`, which jaxlib ships). Numba compiles Python functions
that use it, so nobody needs a C compiler.

A kernel is a number of independent items. XLA's threads take one item after the other until none is
left, so a long item does not hold up the others.
"""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from emsjax.pallas_kernels import kept_functions
from emsjax.pallas_kernels.foreign import kept_in
from emsjax.pallas_kernels.kept_functions import Kept, compile_for_c, with_unique_name

# Where the fields that are used here lie in the interface's structures, in words of 64 bits.
_SIZE, _EXTENSION, _API, _CONTEXT, _STAGE = range(5)
_ARGUMENTS, _RESULTS = 9, 14
_BUFFER_DATA, _BUFFER_SIZES = 3, 5
_API_VERSION, _SCHEDULE, _NUM_THREADS = 4, 17, 18
_METADATA, _METADATA_VERSION = 3, 3
_EXECUTE = 3  # the stage in which a handler computes
# Words of the work that threads share: 0 in place of a size, the frame of the call, the next item,
# the number of finished items and of all items, and how many threads may still read these words.
_FRAME, _NEXT, _FINISHED, _ITEMS, _READERS, _WORDS = range(1, 7)
_TASK_WORDS = 5  # of the structure that asks XLA for a thread
_HANDLER, _COUNT, _RUN = range(3)  # the addresses of a kernel's functions

_Function = TypeVar("_Function", bound=Callable[..., Any])

_malloc = types.ExternalFunction("malloc", types.int64(types.int64))
_free = types.ExternalFunction("free", types.void(types.int64))


def compiled(function: _Function) -> _Function:
    """Compiles a function for calls from other compiled ones, not from Python.

    What Python needs to call a function takes Numba a third of its time. The function must not
    raise. Its floating-point operations are those that it states, in that order.
    """
    return numba.njit(
        nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(with_unique_name(function))


def _pointer_of(kind: Any, element: int) -> Any:
    """Returns a compiled function that turns an address into a pointer of a type."""

    @intrinsic
    def point(typing: Any, address: Any) -> Any:
        del typing, address

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del context, signature
            return builder.inttoptr(args[0], ir.IntType(element).as_pointer())

        return kind(types.int64), generate

    return point


pointer = _pointer_of(types.voidptr, 8)  # what `carray` takes
_words = _pointer_of(types.CPointer(types.int64), 64)


def generate_prefetch(builder: Any, address: Any) -> None:
    """Generates the instruction that starts to load the cache line at an address.

    It goes into the second cache. The first one is small, and holds what is worked on.
    """
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    reads, second_cache, data = number(0), number(2), number(1)
    builder.call(function, [builder.inttoptr(address, byte), reads, second_cache, data])


@intrinsic
def _add(typing: Any, address: Any, amount: Any) -> Any:
    """Adds to the word at an address in one step, and returns what was there before."""
    del typing, address, amount

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


def _generate_call(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    word = ir.IntType(64)
    returned = context.get_value_type(signature.return_type)
    if signature.return_type == types.void:
        returned = ir.VoidType()
    kind = ir.FunctionType(returned, [word] * len(args[1:]))
    called = builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
    return context.get_dummy_value() if signature.return_type == types.void else called


@intrinsic
def _call(typing: Any, function: Any, argument: Any) -> Any:
    """Calls the function at an address with one address, and returns a word."""
    del typing, function, argument
    return types.int64(types.int64, types.int64), _generate_call


@intrinsic
def _call_for_item(typing: Any, function: Any, frame: Any, item: Any) -> Any:
    """Calls the function at an address with a frame and an item."""
    del typing, function, frame, item
    return types.void(types.int64, types.int64, types.int64), _generate_call


def _address_of(symbol: str) -> Any:
    """Returns a compiled function that returns the address of a symbol."""

    @intrinsic
    def find(typing: Any) -> Any:
        del typing

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del context, signature, args
            word = builder.module.globals.get(symbol)
            word = word or ir.GlobalVariable(builder.module, ir.IntType(64), symbol)
            return builder.ptrtoint(word, ir.IntType(64))

        return types.int64(), generate

    return find


def _load(*path: int | str) -> Any:
    """Returns a compiled function that follows addresses, and returns the word that it finds.

    It is a few instructions at the place of the call, which takes less time to compile than a
    function. Its first argument is an address; the others are for the names in the path.

    Args:
      *path: which word to read at each address; a name stands for an argument.
    """
    names = [step for step in path if isinstance(step, str)]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        word, given = ir.IntType(64), dict(zip(names, args[1:], strict=True))
        found = args[0]
        for step in path:
            number = given[step] if isinstance(step, str) else word(step)
            place = builder.inttoptr(found, word.as_pointer())
            found = builder.load(builder.gep(place, [number]))
        return found

    def signed() -> Any:
        return types.int64(*[types.int64] * (1 + len(names)))

    @intrinsic
    def one(typing: Any, frame: Any, index: Any) -> Any:
        del typing, frame, index
        return signed(), generate

    @intrinsic
    def two(typing: Any, frame: Any, index: Any, axis: Any) -> Any:
        del typing, frame, index, axis
        return signed(), generate

    return two if names[1:] else one


argument = _load(_ARGUMENTS, "index", _BUFFER_DATA)  # the address of an operand's elements
result = _load(_RESULTS, "index", _BUFFER_DATA)  # the address of a result's elements
size = _load(_ARGUMENTS, "index", _BUFFER_SIZES, "axis")  # an operand's size along an axis


@compiled
def _num_threads(api: int, context: int) -> int:
    """Returns the threads of XLA's pool; 1 if there is no pool."""
    given = _malloc(8 * _TASK_WORDS)
    words = _words(given)
    words[0], words[1], words[2], words[3], words[4] = 32, 0, context, given + 32, 1
    error = _call(_words(api)[_NUM_THREADS], given)
    threads = 1 if error else max(words[4], 1)
    _free(given)
    return threads


def _sharing(table: Callable[[], int]) -> tuple[Callable, Callable, Callable]:
    """Returns compiled functions that share the items of a call among threads.

    Args:
      table: compiled; returns the address of the kernel's addresses.

    Returns:
      One that takes items until none is left, one that gives up the words of the work, and one that
      starts the other threads and waits until all items are finished.
    """

    @compiled
    def take_items(work: int) -> None:
        words, run_item = _words(work), _words(table())[_RUN]
        while True:
            item = _add(work + 8 * _NEXT, 1)
            if item >= words[_ITEMS]:
                return
            _call_for_item(run_item, words[_FRAME], item)
            _add(work + 8 * _FINISHED, 1)

    @compiled
    def leave(work: int) -> None:
        if _add(work + 8 * _READERS, -1) == 1:
            _free(work)

    @compiled
    def share(frame: int, items: int) -> None:
        api, context = _words(frame)[_API], _words(frame)[_CONTEXT]
        helpers = max(min(_num_threads(api, context), items) - 1, 0)
        work = _malloc(8 * _WORDS)
        words = _words(work)
        words[_SIZE], words[_FRAME], words[_NEXT], words[_FINISHED] = 0, frame, 0, 0
        words[_ITEMS], words[_READERS] = items, helpers + 1
        task = _malloc(8 * _TASK_WORDS)
        given = _words(task)
        given[0], given[1], given[2] = 8 * _TASK_WORDS, 0, context
        given[3], given[4] = _words(table())[_HANDLER], work
        for _ in range(helpers):
            if _call(_words(api)[_SCHEDULE], task):
                leave(work)
        _free(task)
        take_items(work)
        # The frame ends with this call. All items are taken, and none of them takes long.
        while _add(work + 8 * _FINISHED, 0) < items:
            pass
        leave(work)

    return take_items, leave, share


def register(
    name: str,
    count: Callable[[int], int],
    run: Callable[[int, int], None],
    sources: Sequence[str],
    before_run: Callable[[], None] = lambda: None,
) -> None:
    """Makes a kernel available to XLA programs as the foreign function `name`.

    Args:
      name: unique among all foreign functions of the process.
      count: returns the number of items of a call, given its frame; compiled by Numba.
      run: computes an item, given the frame and the item's number; compiled by Numba. It must not
        raise.
      sources: the files with all code of these two.
      before_run: called when all but `run` is compiled, which takes the longest.
    """
    # Called by address, because Numba compiles a function again with every function that calls it.
    one_word = types.int64(types.int64)
    counting = _compile_part(f"{name}.count", vars(count)["py_func"], one_word, sources)
    addresses = (ctypes.c_int64 * 3)()
    symbol = f"{name}.addresses"
    binding.add_symbol(symbol, ctypes.addressof(addresses))
    table = _address_of(symbol)

    take_items, leave, share = _sharing(table)

    def handle(address: int) -> int:
        words = _words(address)
        if words[_SIZE] == 0:  # not a call of XLA's, but a thread that helps
            take_items(address)
            leave(address)
        elif words[_EXTENSION]:
            # XLA asks for the version of its interface that the handler was made for. That is major
            # version 0, in the lower half of the word; its minor versions are compatible.
            version = _words(_words(words[_EXTENSION])[_METADATA])
            version[_METADATA_VERSION] = _words(words[_API])[_API_VERSION] >> 32 << 32
        elif words[_STAGE] & 0xFFFFFFFF == _EXECUTE:
            share(address, _call(_words(table())[_COUNT], address))
        return 0

    # One function has both duties, because a helping thread calls a handler as XLA does.
    handling = _compile_part(f"{name}.handle", handle, one_word, sources)
    before_run()
    running = compile_run(name, count, run, sources)
    for place, part in {_HANDLER: handling, _COUNT: counting, _RUN: running}.items():
        addresses[place] = part.address or 0
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handling.ctypes), platform="cpu")
    _ALIVE[name] = alive = (addresses, handling, counting, running)
    # Threads of XLA may still run a program while Python ends, which empties its modules. Nothing
    # gives this reference back, so what the threads use stays in memory until the process ends.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(alive))


def compile_run(
    name: str, count: Callable[[int], int], run: Callable[[int, int], None], sources: Sequence[str]
) -> CFunc:
    """Compiles and keeps the part of a kernel that takes longest; arguments as of `register`."""
    del count
    signature = types.void(types.int64, types.int64)
    return _compile_part(f"{name}.run", vars(run)["py_func"], signature, sources)


def _compile_part(name: str, function: Callable, signature: Any, sources: Sequence[str]) -> CFunc:
    # `kept_functions` chooses the options of the compilation.
    files = [Path(each) for each in (__file__, str(kept_functions.__file__), *sources)]
    return compile_for_c(function, signature, Kept(name, files, kept_in()))


# Compiled functions and their addresses, which must live as long as programs may call them.
_ALIVE: dict[str, tuple[Any, ...]] = {}
