"""Pickles that would harm whoever opened them with Python's own unpickler, and broken ones."""

from __future__ import annotations

import struct

CANARY = "canary"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(full: str) -> bytes:
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value.encode())]) + value.encode()


def storage(kind: str = "Half", key: str = "0", count: bytes = b"K\x06") -> bytes:
    """A persistent id for a storage of 6 elements."""
    return (
        b"(" + text("storage") + name(f"torch.{kind}Storage") + text(key) + text("cpu") + count
    ) + b"tQ"


def tensor(
    shape: bytes = b"K\x02K\x03\x86",
    strides: bytes = b"K\x03K\x01\x86",
    offset: bytes = b"K\x00",
    block: bytes | None = None,
) -> bytes:
    end = b"\x89" + name("collections.OrderedDict") + b")RtR"
    call = name("torch._utils._rebuild_tensor_v2") + b"("
    return call + (storage() if block is None else block) + offset + shape + strides + end


REBUILD = name("torch._utils._rebuild_tensor_v2")
HPARAMS = name("utils.HParams")
TOUCH = text(f"touch {CANARY}")
WRITE = text(f"open({CANARY!r}, 'w')")
LONG_1E9 = b"J" + struct.pack("<i", 10**9)
MINUS_1 = b"J" + struct.pack("<i", -1)

# Pickles that ask for a name; the refusal has to say which.
NAMED = {
    "posix.system": name("posix.system") + TOUCH + b"\x85R.",
    "nt.system": name("nt.system") + TOUCH + b"\x85R.",
    "os.system": b"\x80\x02" + name("os.system") + TOUCH + b"\x85R.",
    "builtins.eval": name("builtins.eval") + WRITE + b"\x85R.",
    "__builtin__.exec": b"\x80\x02" + name("__builtin__.exec") + WRITE + b"\x85R.",
    "subprocess.Popen": b"(" + name("subprocess.Popen") + TOUCH + b"o.",
    "subprocess.run": b"(" + TOUCH + b"isubprocess\nrun\n.",
    "pathlib.Path": b"\x80\x02" + name("pathlib.Path") + text(CANARY) + b"\x85\x81.",
    "runpy.run_path": b"\x80\x04"
    + short("runpy")
    + short("run_path")
    + b"\x93"
    + TOUCH
    + b"\x85R.",
    "shutil.copy": b"\x80\x05" + short("shutil") + short("copy") + b"\x93)}\x92.",
    "torch.load": name("torch.load") + TOUCH + b"\x85R.",
    "torch.hub.load": name("torch.hub.load") + TOUCH + b"\x85R.",
    "torch.serialization._load": name("torch.serialization._load") + b")R.",
    "torch.storage._load_from_bytes": name("torch.storage._load_from_bytes")
    + b"C\x08cos\nget."
    + b"\x85R.",
    "torch._utils._rebuild_sparse_tensor": name("torch._utils._rebuild_sparse_tensor") + b")R.",
    "torch.jit._pickle.restore_type_tag": name("torch.jit._pickle.restore_type_tag") + b")R.",
    "torch.ComplexFloatStorage": storage("ComplexFloat") + b".",
    "torch.UntypedStorage": name("torch.UntypedStorage") + b")R.",
    "numpy.load": name("numpy.load") + TOUCH + b"\x85R.",
    "numpy.core.multiarray._reconstruct": name("numpy.core.multiarray._reconstruct") + b")R.",
    "pickle.loads": name("pickle.loads") + b"C\x02N.\x85R.",
    "marshal.loads": name("marshal.loads") + b"C\x01N\x85R.",
    "types.FunctionType": name("types.FunctionType") + b")R.",
    "codecs.decode": name("codecs.decode") + text("uryyb") + text("rot13") + b"\x86R.",
    "builtins.__import__": b"\x80\x04" + short("builtins") + short("__import__") + b"\x93.",
    "webbrowser.open": name("webbrowser.open") + text("file:///") + b"\x85R.",
    "importlib.import_module": name("importlib.import_module") + text("antigravity") + b"\x85R.",
    "operator.attrgetter": name("operator.attrgetter") + text("x") + b"\x85R.",
    "functools.partial": name("functools.partial") + name("posix.system") + b"\x85R.",
    "builtins.getattr": name("builtins.getattr") + HPARAMS + text("__init__") + b"\x86R.",
    "copyreg._reconstructor": name("copyreg._reconstructor") + HPARAMS + b"\x85R.",
    "_codecs.encode": name("_codecs.encode") + text("a") + text("latin1") + b"\x86R.",
    "utils.HParams.from_json": name("utils.HParams.from_json") + b")R.",
    "utils.os": name("utils.os") + b".",
    "utils.HParams.__init__": name("utils.HParams.__init__") + b".",
    "utils.HParams.__class__": b"\x80\x04" + short("utils") + short("HParams.__class__") + b"\x93.",
    "collections.OrderedDict.fromkeys": name("collections.OrderedDict.fromkeys") + b".",
    "collections.defaultdict": name("collections.defaultdict") + b")R.",
    "__main__.HParams": name("__main__.HParams") + b")\x81.",
    # Accepted names, but loose in the tree.
    "utils.HParams": HPARAMS + b".",
    "torch.HalfStorage": b"]" + name("torch.HalfStorage") + b"a.",
}


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + closing * depth + b"."


def doubling(start: bytes, step: bytes, levels: int = 60) -> bytes:
    """Each level holds the one below twice."""
    steps = (step.replace(b"A", bytes([i])).replace(b"B", bytes([i + 1])) for i in range(levels))
    return start + b"".join(steps) + b"."


# Pickles that misuse what is accepted, or what is not; each is refused in general terms.
MISUSED = {
    "empty": b"",
    "only stop": b".",
    "no stop": b"}",
    "data after stop": b"}.}",
    "two results": b"}}.",
    "mark left": b"(}.",
    "reduce of nothing": b"R.",
    "append through mark": b"](K\x01a.",
    "pop": b"}0.",
    "pop mark": b"}(}1.",
    "dup": b"}2.",
    "unknown memo": b"h\x07.",
    "unknown long memo": b"j\xff\xff\xff\xff.",
    "put on nothing": b"q\x00.",
    "memoize on nothing": b"\x94.",
    "no such instruction": b"\xff.",
    "protocol 0": b"\x80\x00}.",
    "protocol 99": b"\x80\x63}.",
    "protocol 0 string": b"S'x'\n.",
    "protocol 0 integer": b"I" + b"9" * 100_000 + b"\n.",
    "protocol 0 get": b"g0\n.",
    "long4": b"\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "text longer than file": b"X\xff\xff\xff\xffabc.",
    "bytes longer than file": b"B\xff\xff\xff\xffabc.",
    "bytearray8": b"\x96" + struct.pack("<Q", 2**63) + b".",
    "frame cut": b"\x80\x04\x95\x00.",
    "text not utf-8": b"X\x02\x00\x00\x00\xff\xfe.",
    "name without end": b"cposix",
    "name of bytes": b"\x80\x04C\x05posixC\x06system\x93.",
    "extension 1": b"\x82\xf0" + TOUCH + b"\x85R.",
    "extension 2": b"\x83\xf0\x00" + TOUCH + b"\x85R.",
    "extension 4": b"\x84\xf0\x00\x00\x00" + TOUCH + b"\x85R.",
    "set": b"\x8f.",
    "frozenset": b"(\x91.",
    "new object with keywords": b"\x80\x04" + HPARAMS + b")}\x92.",
    "object": b"(" + HPARAMS + b"o.",
    "next buffer": b"\x97.",
    "text persistent id": b"Pposix.system\n.",
    "persistent id of text": text("storage") + b"Q.",
    "persistent id of list": b"]Q.",
    "persistent id too short": b"(" + text("storage") + b"tQ.",
    "persistent id too long": storage()[:-2] + b"K\x01tQ.",
    "persistent id of a module": b"("
    + text("module")
    + name("torch.HalfStorage")
    + text("0")
    + text("cpu")
    + b"K\x06tQ.",
    "persistent id with a function": b"("
    + text("storage")
    + REBUILD
    + text("0")
    + text("cpu")
    + b"K\x06tQ.",
    "persistent id with text kind": b"("
    + text("storage")
    + text("torch.HalfStorage")
    + text("0")
    + text("cpu")
    + b"K\x06tQ.",
    "persistent id with nested key": b"("
    + text("storage")
    + name("torch.HalfStorage")
    + b")"
    + text("cpu")
    + b"K\x06tQ.",
    "negative length": storage(count=MINUS_1) + b".",
    "boolean length": storage(count=b"\x88") + b".",
    "loose storage": storage() + b".",
    "call of class": HPARAMS + b")R.",
    "call of storage": name("torch.HalfStorage") + b"K\x01\x85R.",
    "call of text": text("posix.system") + TOUCH + b"\x85R.",
    "call of dict": b"})R.",
    "call of result": tensor() + b")R.",
    "call with list": REBUILD + b"]R.",
    "call with dict": REBUILD + b"}R.",
    "call with nothing": REBUILD + b")R.",
    "call with text": REBUILD + b"(" + text("x") * 6 + b"tR.",
    "parameter of text": name("torch._utils._rebuild_parameter") + text("x") + b"\x88}\x87R.",
    "dictionary of items": name("collections.OrderedDict") + b"]\x85R.",
    "new object of dictionary": name("collections.OrderedDict") + b")\x81.",
    "new object of function": REBUILD + b")\x81.",
    "new object with arguments": HPARAMS + text("x") + b"\x85\x81.",
    "build on class": HPARAMS + b"}" + text("__init__") + REBUILD + b"sb.",
    "build on function": REBUILD + b"}" + text("__code__") + b"Nsb.",
    "build on tensor": tensor() + b"}" + text("__class__") + HPARAMS + b"sb.",
    "build on text": text("x") + b"}b.",
    "build with slots": HPARAMS + b")\x81N}\x86b.",
    "build with list": HPARAMS + b")\x81]b.",
    "object filled and built": HPARAMS + b")\x81" + text("a") + b"Ns}b.",
    "append to a tuple": b")K\x01a.",
    "append to an object": HPARAMS + b")\x81K\x01a.",
    "fill of a list": b"]K\x01K\x01s.",
    "odd number of items": b"}(K\x01u.",
    "key is a list": b"}]K\x01s.",
    "key is a float": b"}G" + struct.pack(">d", 1.5) + b"Ns.",
    "key is a tensor": b"}" + tensor() + b"Ns.",
    "key is a deep tuple": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "key is a doubled tuple": b"}" + b")" + b"q\x00h\x00\x86" * 100 + b"Ns.",
    "key is negative": b"}" + MINUS_1 + b"Ns.",
    "deep lists": nested(b"]", b"a", 100_000).replace(b"]a", b"]", 1),
    "deep tuples": b")" + b"\x85" * 150_000 + b".",
    "deep objects": b"N"
    + (b"q\x00" + HPARAMS + b")\x81}X\x01\x00\x00\x00ah\x00sb") * 20_000
    + b".",
    "list in itself": b"]q\x00h\x00a.",
    "dictionary in itself": b"}q\x00K\x01h\x00s.",
    "object in itself": HPARAMS + b")\x81q\x00}K\x01h\x00sb.",
    "doubled lists": doubling(b"]q\x00", b"](hAhAeqB"),
    "doubled tuples": doubling(b")q\x00", b"hAhA\x86qB"),
    "doubled dictionaries": doubling(b"}q\x00", b"}(K\x01hAK\x02hAuqB"),
    "endless": b"N" * 1_000_000 + b".",
    "many marks": b"(" * 1_000_000,
    "negative size": tensor(shape=MINUS_1 + b"K\x03\x86") + b".",
    "negative stride": tensor(strides=MINUS_1 + b"K\x01\x86") + b".",
    "negative offset": tensor(offset=MINUS_1) + b".",
    "huge offset": tensor(offset=LONG_1E9) + b".",
    "offset beyond by one": tensor(offset=b"K\x01") + b".",
    "huge shape": tensor(shape=LONG_1E9 + LONG_1E9 + b"\x86") + b".",
    "huge repeated shape": tensor(shape=LONG_1E9 + b"K\x03\x86", strides=b"K\x00K\x01\x86") + b".",
    "huge empty shape": tensor(shape=b"K\x00" + LONG_1E9 + LONG_1E9 + b"\x87") + b".",
    "stride beyond": tensor(strides=b"K\x04K\x01\x86") + b".",
    "shape and strides differ": tensor(shape=b"K\x06\x85") + b".",
    "shape is a list": tensor(shape=b"](K\x02K\x03e") + b".",
    "shape of booleans": tensor(shape=b"\x88\x88\x86") + b".",
    "shape of floats": tensor(shape=b"G" + bytes(8) + b"K\x03\x86") + b".",
    "shape of hundreds": tensor(shape=b"(" + b"K\x01" * 300 + b"t") + b".",
    "storage of another length": tensor(block=storage(count=b"K\x07")) + b".",
    "storages that differ in length": b"("
    + tensor()
    + tensor(block=storage(count=b"K\x05"))
    + b"t.",
    "bfloat16 of another length": tensor(block=storage("BFloat16", count=b"K\x05")) + b".",
    "bfloat16 and half": b"(" + tensor() + tensor(block=storage("BFloat16")) + b"t.",
    "metadata that calls": name("collections.OrderedDict") + b")R}K\x00" + REBUILD + b")Rsb.",
    "metadata that is a list": name("collections.OrderedDict") + b")R]b.",
    "storage of another kind": b"(" + tensor() + tensor(block=storage("Short")) + b"t.",
    "huge storage": tensor(block=storage(count=LONG_1E9)) + b".",
    "storage that is not there": tensor(block=storage(key="9")) + b".",
    "storage elsewhere": tensor(block=storage(key="../data.pkl")) + b".",
    "storage by path": tensor(block=storage(key="/etc/passwd")) + b".",
}
