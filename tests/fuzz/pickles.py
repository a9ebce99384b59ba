"""Pickles that would run something: every opcode that can call, look up or alter, with the same command.

A payload is harmless where it is refused and touches a file, ``CANARY``, where it is run.
"""

import pickle
import struct

from tests.data.python2_pickle import call, global_
from tests.fuzz.watch import PLACE

CANARY = PLACE.with_name(f"{PLACE.name}-canary")
COMMAND = f"touch {CANARY}".encode()
CODE = f"open({str(CANARY)!r}, 'w').close()".encode()


def _string(text: bytes) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text)) + text


_SYSTEM = global_("os", "system")
_STACKED = _string(b"os") + _string(b"system") + pickle.STACK_GLOBAL
_ARGUMENT = _string(COMMAND) + pickle.TUPLE1
_BUILD_CALLS = {  # BUILD calls __setstate__, sets attributes, or updates a __dict__
    f"build-{module}.{name}": global_(module, name) + state + pickle.BUILD
    for module, name in (
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("collections", "OrderedDict"),
    )
    for state in (b"}" + _string(b"_call") + _SYSTEM + b"s",)
}
_NESTED = b"".join(pickle.DUP + pickle.TUPLE2 for _ in range(60))  # a tuple of 2**60 leaves, in 121 bytes


def payloads() -> dict[str, bytes]:
    """Attacks by name, a whole pickle each."""
    code = {
        "reduce": _SYSTEM + _ARGUMENT + pickle.REDUCE,
        "stack-global": _STACKED + _ARGUMENT + pickle.REDUCE,
        "inst": pickle.MARK + _string(COMMAND) + b"ios\nsystem\n",
        "obj": pickle.MARK + _SYSTEM + _string(COMMAND) + pickle.OBJ,
        "newobj": global_("subprocess", "Popen")
        + pickle.MARK
        + _string(b"touch")
        + _string(bytes(CANARY))
        + b"l\x85\x81",
        "newobj-ex": global_("subprocess", "Popen") + b"(" + _string(b"touch") + b"l\x85}\x92",
        "eval": global_("builtins", "eval") + _string(CODE) + pickle.TUPLE1 + pickle.REDUCE,
        "exec": global_("builtins", "exec") + _string(CODE) + pickle.TUPLE1 + pickle.REDUCE,
        "python-2-eval": global_("__builtin__", "eval") + _string(CODE) + pickle.TUPLE1 + pickle.REDUCE,
        "getattr": global_("builtins", "getattr") + global_("os", "path") + _string(b"os") + b"\x86R",
        "dotted": _string(b"collections")
        + _string(b"OrderedDict.__init__.__globals__")
        + pickle.STACK_GLOBAL,
        "import": global_("antigravity", "fly"),
        "run-string": global_("numpy.testing._private.utils", "runstring") + _string(CODE) + b"}\x86R",
        "torch-load": global_("torch", "load") + _ARGUMENT + pickle.REDUCE,
        "pickle-loads": global_("pickle", "loads") + _string(b".") + pickle.TUPLE1 + pickle.REDUCE,
        "extension-1": pickle.EXT1 + b"\x01",
        "extension-2": pickle.EXT2 + b"\x01\x00",
        "extension-4": pickle.EXT4 + b"\x01\x00\x00\x00",
        "persistent": pickle.PERSID + b"os.system\n",
        "persistent-binary": _string(COMMAND) + pickle.BINPERSID,
        "buffer": pickle.NEXT_BUFFER + pickle.READONLY_BUFFER,
        "array-of-calls": global_("numpy.core.multiarray", "_reconstruct")
        + b"("
        + _SYSTEM
        + _ARGUMENT
        + b"RtR",
        "codec": global_("_codecs", "encode") + _string(b"x") + _string(b"os.system") + b"\x86R",
        **_BUILD_CALLS,
    }
    wrapped = {name: b"\x80\x04}" + _string(b"data") + body + b"s." for name, body in code.items()}
    return {
        **wrapped,
        "alone": call("os", "system", COMMAND.decode()),
        "key": b"\x80\x04}" + _SYSTEM + _ARGUMENT + b"RNs.",
        "framed": b"\x80\x04\x95" + struct.pack("<Q", len(wrapped["reduce"]) - 2) + wrapped["reduce"][2:],
    }


def bombs() -> dict[str, bytes]:
    """What runs nothing, and would take ages or all memory."""
    return {
        "key-of-2**60-leaves": b"\x80\x04}K\x01\x85" + _NESTED + b"Ns.",
        "set-of-2**60-leaves": b"\x80\x04}" + _string(b"x") + b"\x8f(K\x01\x85" + b"2\x86" * 60 + b"\x90s.",
        "frozen-set-of-2**60-leaves": b"\x80\x04}"
        + _string(b"x")
        + b"(K\x01\x85"
        + b"2\x86" * 60
        + b"\x91s.",
        "value-of-2**60-leaves": b"\x80\x04}" + _string(b"labels") + b"K\x01\x85" + b"2\x86" * 60 + b"s.",
        "list-of-2**60-leaves": b"\x80\x04}" + _string(b"data") + b"]" + b"2a" * 60 + b"s.",
        "memo-at-4e9": b"\x80\x04}r\xff\xff\xff\xff.",
        "bytes-of-8-GiB": b"\x80\x04}\x8e\xff\xff\xff\xff\x01\0\0\0.",
        "frame-of-8-GiB": b"\x80\x04\x95\xff\xff\xff\xff\x01\0\0\0}.",
        "number-of-16-digits-of-length": b"\x80\x04}\x8b\xff\xff\xff\x7f.",
        "index-of-5000-digits": b"\x80\x04}g" + b"9" * 5000 + b"\n.",
        "number-of-5000-digits": b"\x80\x04}" + b"I" + b"9" * 5000 + b"\nNs.",
        "number-of-300000-bits": b"\x80\x04}" + b"I0x" + b"f" * 75_000 + b"\nNs.",
        "global-of-a-line": b"\x80\x04" + _string(b"os\nsystem") + _string(b"a" * 100_000) + b"\x93.",
        "marks": b"\x80\x04" + b"(" * 300_000,
        "lists-in-lists": b"\x80\x04}" + _string(b"data") + b"](" * 100_000,
        "array-of-a-shape-of-100000": _array_of_shape(b"(" + b"J\xff\xff\xff\x7f" * 100_000 + b"t"),
        "array-of-2**60-leaves": _array_of_shape(b"K\x01\x85" + b"2\x86" * 60),
    }


def _array_of_shape(shape: bytes) -> bytes:
    array = (
        global_("numpy.core.multiarray", "_reconstruct")
        + b"("
        + global_("numpy", "ndarray")
        + b"K\0\x85C\x01btR"
    )
    dtype = (
        global_("numpy", "dtype")
        + b"(X\x02\0\0\0u1\x89\x88tR(K\x03X\x01\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    return b"\x80\x04}" + _string(b"data") + array + b"(K\x01" + shape + dtype + b"\x89C\x04abcdtbs."


TOKENS = (
    *(
        bytes([code])
        for code in b"().0123]}aebcdghijlopqrstu\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8f\x90\x91\x92\x93\x94\x97\x98"
    ),
    *(
        b"K\x01",
        b"J\xff\xff\xff\xff",
        b"M\x00\x10",
        b"C\x04abcd",
        b"X\x04\0\0\0data",
        b"\x95\x10\0\0\0\0\0\0\0",
        b"2\x86" * 8,
    ),
    *(
        _SYSTEM,
        _STACKED,
        _ARGUMENT,
        b"R",
        b"b",
        b"Q",
        b"\x82\x01",
        b"I1\n",
        b"L9L\n",
        b"F1e999\n",
        b"S'a'\n",
        b"V\\ud800\n",
    ),
    *(global_("numpy", "dtype"), global_("_codecs", "encode"), global_("numpy", "ndarray")),
    global_("numpy.core.multiarray", "_reconstruct"),
    global_("numpy.core.multiarray", "scalar"),
    global_("collections", "OrderedDict"),
    global_("builtins", "set"),
    global_("torch._utils", "_rebuild_tensor_v2"),
)
