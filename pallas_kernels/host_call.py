"""Functions compiled by Numba as operations of XLA programs on CPU, on all threads of XLA's pool.

XLA has no kernel language for CPUs, but it calls foreign functions through an interface with a
stable binary layout (`xla/ffi/api/c_api.h`, which jaxlib ships). Numba compiles Python functions
that use it, so nobody needs a C compiler.

A kernel is a number of independent items. XLA's threads take one item after the other until none is
left, so a long item does not hold up the others.
"""

import ctypes
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.monitoring
import llvmlite
import numba
import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.extending import intrinsic

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

_Function = TypeVar("_Function", bound=Callable[..., Any])

_malloc = types.ExternalFunction("malloc", types.int64(types.int64))
_free = types.ExternalFunction("free", types.void(types.int64))


def compiled(function: _Function) -> _Function:
    """Compiles a function for calls from other compiled ones.

    It must not raise. Floating-point terms may be added in any order, but always in the same; NaN
    and infinity keep their meaning.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    return numba.njit(**options)(function)


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


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Starts to load the cache line at an address."""
    del typing, address

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del signature
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        name = "llvm.prefetch.p0i8"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        place = builder.inttoptr(args[0], byte)
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _add(typing: Any, address: Any, amount: Any) -> Any:
    """Adds to the word at an address in one step, and returns what was there before."""
    del typing, address, amount

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _call(typing: Any, function: Any, argument: Any) -> Any:
    """Calls the function at an address with one address, and returns a word."""
    del typing, function, argument

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        word = ir.IntType(64)
        place = builder.inttoptr(args[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(place, [args[1]])

    return types.int64(types.int64, types.int64), generate


def _word_at(symbol: str) -> Any:
    """Returns a compiled function that reads the word at a symbol."""

    @intrinsic
    def read(typing: Any) -> Any:
        del typing

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del context, signature, args
            word = builder.module.globals.get(symbol)
            word = word or ir.GlobalVariable(builder.module, ir.IntType(64), symbol)
            return builder.load(word)

        return types.int64(), generate

    return read


@compiled
def _buffer(buffers: int, index: int) -> Any:
    return _words(_words(buffers)[index])


@compiled
def argument(frame: int, index: int) -> int:
    """Returns the address of an operand's elements."""
    return _buffer(_words(frame)[_ARGUMENTS], index)[_BUFFER_DATA]


@compiled
def result(frame: int, index: int) -> int:
    """Returns the address of a result's elements."""
    return _buffer(_words(frame)[_RESULTS], index)[_BUFFER_DATA]


@compiled
def size(frame: int, index: int, axis: int) -> int:
    """Returns an operand's size along an axis."""
    return _words(_buffer(_words(frame)[_ARGUMENTS], index)[_BUFFER_SIZES])[axis]


@compiled
def _num_threads(api: int, context: int) -> int:
    """Returns the threads of XLA's pool; 1 if there is no pool."""
    words = np.zeros(5, np.int64)
    words[0], words[2], words[3] = 32, context, words.ctypes.data + 32
    error = _call(_words(api)[_NUM_THREADS], words.ctypes.data)
    return 1 if error else max(words[4], 1)


class _Kept:
    """Keeps a compiled function in a file, so that later processes do not compile it.

    Numba has a cache too, but that one does not notice changes in the functions that a function
    calls. This file's name depends on all of them.
    """

    def __init__(self, name: str, sources: list[Path], directory: str | None):
        """Chooses the file.

        Args:
          name: the function's.
          sources: files with all code that it consists of.
          directory: where to keep it; None does not keep it.
        """
        machine = repr(cpu_target.target_context.codegen().magic_tuple())
        texts = [source.read_text(encoding="utf-8") for source in sources]
        parts = [numba.__version__, llvmlite.__version__, machine, *texts]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        self._file = Path(directory) / f"{name}-{digest}.numba" if directory else None

    def load_overload(self, signature: Any, target_context: Any) -> CompileResult | None:
        """Returns the compiled function, or None if the file does not exist or is damaged."""
        del signature
        try:
            kept = self._file.read_bytes() if self._file else b""
            return CompileResult._rebuild(target_context, *pickle.loads(kept))
        except Exception:
            # Compiling takes seconds, so whoever shows the progress may want to know.
            jax.monitoring.record_event("/emsjax/kernel/compile")
            return None

    def save_overload(self, signature: Any, compiled: CompileResult) -> None:
        """Writes the compiled function; a directory that cannot be written is no error."""
        del signature
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._file.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(dumps(compiled._reduce()))
            os.replace(temporary, self._file)
        except OSError:
            return


def _compile(function: Callable, signature: Any, kept: _Kept) -> CFunc:
    """Compiles a function that C can call, or finds it compiled."""
    rtsys.initialize(cpu_target.target_context)  # for functions that were found compiled
    types_of = (signature.args, signature.return_type)
    found = CFunc(function, types_of, {}, {"error_model": "numpy"})
    vars(found)["_cache"] = kept
    found.compile()
    return found


def register(
    name: str,
    count: Callable[[int], int],
    run: Callable[[int, int], None],
    sources: Sequence[str],
) -> None:
    """Makes a kernel available to XLA programs as the foreign function `name`.

    Args:
      name: unique among all foreign functions of the process.
      count: returns the number of items of a call, given its frame; compiled by Numba.
      run: computes an item, given the frame and the item's number; compiled by Numba. It must not
        raise.
      sources: the files with all code of these two.
    """

    @compiled
    def take_items(work: int) -> None:
        words = _words(work)
        while True:
            item = _add(work + 8 * _NEXT, 1)
            if item >= words[_ITEMS]:
                return
            run(words[_FRAME], item)
            _add(work + 8 * _FINISHED, 1)

    @compiled
    def leave(work: int) -> None:
        if _add(work + 8 * _READERS, -1) == 1:
            _free(work)

    own_address, symbol = ctypes.c_int64(), f"{name}.address"
    binding.add_symbol(symbol, ctypes.addressof(own_address))
    handler = _word_at(symbol)

    @compiled
    def share(frame: int, items: int) -> None:
        api, context = _words(frame)[_API], _words(frame)[_CONTEXT]
        helpers = max(min(_num_threads(api, context), items) - 1, 0)
        work = _malloc(8 * _WORDS)
        words = carray(pointer(work), (_WORDS,), np.int64)
        words[_SIZE], words[_FRAME], words[_NEXT], words[_FINISHED] = 0, frame, 0, 0
        words[_ITEMS], words[_READERS] = items, helpers + 1
        task = np.zeros(5, np.int64)
        task[0], task[2], task[3], task[4] = 40, context, handler(), work
        for _ in range(helpers):
            if _call(_words(api)[_SCHEDULE], task.ctypes.data):
                leave(work)
        take_items(work)
        # The frame ends with this call. All items are taken, and none of them takes long.
        while _add(work + 8 * _FINISHED, 0) < items:
            pass
        leave(work)

    def handle(address: int) -> int:
        words = _words(address)
        if words[_SIZE] == 0:  # not a call of XLA's, but a thread that helps
            take_items(address)
            leave(address)
        elif words[_EXTENSION]:
            # XLA asks for the version of its interface that the handler was made for.
            version = _words(_words(words[_EXTENSION])[_METADATA])
            version[_METADATA_VERSION] = _words(words[_API])[_API_VERSION]
        elif words[_STAGE] & 0xFFFFFFFF == _EXECUTE:
            share(address, count(address))
        return 0

    # One function has both duties because compiling the kernel takes seconds.
    directory = jax.config.values["jax_compilation_cache_dir"]  # where jax keeps its programs
    kept = _Kept(name, [Path(each) for each in (__file__, *sources)], directory)
    found = _compile(handle, types.int64(types.int64), kept)
    own_address.value = found.address or 0
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(found.ctypes), platform="cpu")
    _ALIVE[name] = (own_address, found)


# Compiled functions, which must live as long as programs may call them.
_ALIVE: dict[str, tuple[Any, Any]] = {}
