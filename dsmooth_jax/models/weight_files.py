"""Files of weights, read without running what is in them.

`read_tensors` takes safetensors files and what `torch.save` writes, the zip archives of
today and the plain files of before 2020, and returns NumPy arrays by name. A PyTorch
file is a pickle, and a pickle is a program: Python's own reader would run it. The
reader here knows plain containers and tensors, calls nothing, and refuses everything
else by name; PyTorch itself is not needed. What a file says of sizes is believed only
where the file is as long as that.

Formats: safetensors' README; `torch/serialization.py` (the layout of both files) and
Python's `pickletools` (the opcodes).
"""

import io
import math
import pathlib
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors

from dsmooth_jax.checks import user_path

MAX_STEPS = 2**18
"""The longest pickle that is read; 1,000 tensors take some 30,000 steps."""

_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "net"),
)
"""Where training scripts put the weights; moving averages are preferred."""

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, whatever it wraps them in.

    Args:
      path: a safetensors file (by its ending, .safetensors), or what `torch.save` wrote
        of a state dict, or of a dict with one under "state_dict", "model", "net" or the
        like (of several, a moving average is preferred).

    Returns:
      NumPy arrays by name; bfloat16 comes as float32, all else as it is.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, of another format, or holds anything besides
        tensors and plain containers.
    """
    path = user_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; weights are read from one file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_legacy(path)
    except (
        *(ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError),
        *(RuntimeError, zipfile.BadZipFile, safetensors.SafetensorError),
    ) as error:
        raise ValueError(
            f"{path} cannot be read as weights: {error}; it must be a safetensors file "
            "or a state dict that torch.save wrote"
        ) from error


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name!r} has dtype {entry['dtype']}")
        flat = _decode(entry["data"], entry["dtype"])
        found[name] = flat.reshape(entry["shape"])
    return found


def _read_zip(path: pathlib.Path) -> dict[str, np.ndarray]:
    """`torch.save` since 1.6: NAME/data.pkl, and NAME/data/KEY for each storage."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # PyTorch compresses nothing: a file that unpacks to more than it holds is none.
        is_stored = all(
            entry.compress_type == zipfile.ZIP_STORED
            and entry.compress_size == entry.file_size
            for entry in entries
        )
        if not is_stored or sum(e.file_size for e in entries) > path.stat().st_size:
            raise ValueError("it is a zip file with compressed entries")
        roots = [e.filename for e in entries if e.filename.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"it is a zip file with {len(roots)} data.pkl, not one")
        folder = roots[0].removesuffix("data.pkl")
        names = {entry.filename for entry in entries}
        order = f"{folder}byteorder"
        if order in names and archive.read(order) != b"little":
            raise ValueError("it was written by a big-endian machine")
        content = _run(io.BytesIO(archive.read(roots[0])))
        return _arrays(content, lambda key: archive.read(f"{folder}data/{key}"))


def _read_legacy(path: pathlib.Path) -> dict[str, np.ndarray]:
    """`torch.save` before 1.6: five pickles, then each storage with its length."""
    data = path.read_bytes()
    stream = io.BytesIO(data)
    if _run(stream) != _LEGACY_MAGIC:
        raise ValueError("it is none of the formats known here")
    _, system, content, keys = (_run(stream) for _ in range(4))
    if _dict(system).get("little_endian") is not True:
        raise ValueError("it was written by a big-endian machine")
    storages = _storages(content)
    places = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        start = stream.tell()
        end = start + count * np.dtype(_DTYPES[storages[key].dtype]).itemsize
        if end > len(data):
            raise ValueError(f"it ends within storage {key!r}")
        places[key] = data[start:end]
        stream.seek(end)
    return _arrays(content, places.__getitem__)


# What a pickle of tensors is made of. None of these does anything.


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _run(stream: io.BytesIO) -> Any:
    """What the pickle at this place of the stream makes, of the types above alone."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def items() -> list[Any]:
        """What was pushed since the last mark."""
        nonlocal stack
        pushed, stack = stack, marks.pop()
        return pushed

    argument: Any
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step == MAX_STEPS:
            raise ValueError(f"its pickle has more than {MAX_STEPS:,} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "MARK":
                marks.append(stack)
                stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True}.get(opcode.name, False))
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                values = tuple(items())
                stack.append(values)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                value = stack.pop()
                _list(stack[-1]).append(value)
            case "APPENDS":
                pushed = items()
                _list(stack[-1]).extend(pushed)
            case "SETITEM":
                pair = stack[-2:]
                del stack[-2:]
                _set(stack[-1], pair)
            case "SETITEMS":
                pairs = items()
                _set(stack[-1], pairs)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, name = stack[-2:]
                stack[-2:] = [_known(f"{module}.{name}")]
            case "BINPERSID":
                stack[-1] = _storage(stack[-1])
            case "REDUCE" | "NEWOBJ":
                callee, arguments = stack[-2:]
                stack[-2:] = [_made(callee, arguments)]
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case other:
                raise ValueError(f"its pickle has the opcode {other}")
    (value,) = stack
    return value


def _known(name: str) -> _Global:
    """The globals that a pickle may name; they stay names."""
    module, _, last = name.rpartition(".")
    is_storage = module == "torch" and last in _STORAGES
    if not is_storage and name not in _MAKERS:
        raise ValueError(
            f"it asks for {name!r}, which is neither a tensor nor a plain container (a "
            "pickle can run any code; save a state dict of tensors alone)"
        )
    return _Global(name)


def _storage(identity: Any) -> _Storage:
    kind, cls, key, _, _, *view = identity
    is_storage = kind == "storage" and type(cls) is _Global and type(key) is str
    if not is_storage or view not in ([], [None]):
        raise ValueError(f"it refers to {identity!r}, which is no storage")
    return _Storage(key, _STORAGES[cls.name.removeprefix("torch.")])


def _made(callee: Any, arguments: Any) -> Any:
    if type(callee) is not _Global or callee.name not in _MAKERS:
        raise ValueError(f"it calls {callee!r}")
    return _MAKERS[callee.name](*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    numbers = (offset, *shape, *strides)
    if type(storage) is not _Storage or len(shape) != len(strides):
        raise ValueError(f"a tensor of {storage!r}, {shape!r}, {strides!r}")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"a tensor of shape {shape!r} and strides {strides!r}")
    return _Tensor(storage, offset, shape, strides)


_MAKERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},
    "argparse.Namespace": lambda: {},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}


def _build(made: Any, state: Any) -> None:
    """Attributes of a container, such as the versions of a state dict: not needed."""
    if type(made) is not dict or type(state) is not dict:
        raise ValueError(f"it sets the state of {type(made).__name__}")


def _list(value: Any) -> list:
    if type(value) is not list:
        raise ValueError(f"it appends to {type(value).__name__}")
    return value


def _dict(value: Any) -> dict:
    if type(value) is not dict:
        raise ValueError(f"it has {type(value).__name__} where a dict belongs")
    return value


def _set(value: Any, pairs: list[Any]) -> None:
    """Sets items, of plain keys: to hash a tuple of tuples may exhaust the stack."""
    for key, item in zip(pairs[::2], pairs[1::2], strict=True):
        if type(key) not in (str, int):
            raise ValueError(f"it has a key of type {type(key).__name__}")
        _dict(value)[key] = item


# From records to arrays.


def _arrays(content: Any, read: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    """The arrays of the state dict in there; `read` gives the bytes of a storage."""
    tensors = _state_dict(content)
    storages = {tensor.storage for tensor in tensors.values()}
    flat = {storage: _decode(read(storage.key), storage.dtype) for storage in storages}
    return {name: _strided(flat[t.storage], t) for name, t in tensors.items()}


def _state_dict(content: Any) -> dict[str, _Tensor]:
    """The dict of tensors that a checkpoint is, or that it wraps."""
    inside = content
    for _ in range(4):
        if type(inside) is not dict:
            break
        wrapped = [key for key in _WRAPPERS if type(inside.get(key)) is dict]
        if wrapped:
            inside = inside[wrapped[0]]
            continue
        tensors = {k: v for k, v in inside.items() if type(v) is _Tensor}
        if tensors and all(type(name) is str for name in tensors):
            return tensors
        break
    keys = list(content)[:10] if type(content) is dict else type(content).__name__
    raise ValueError(f"there are no tensors by name in it (found: {keys})")


def _storages(content: Any) -> dict[str, _Storage]:
    """Every storage of a checkpoint, by its key; looks at each container once."""
    seen: set[int] = set()
    todo = [content]
    found = {}
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) is _Tensor:
            found[value.storage.key] = value.storage
        elif type(value) is dict:
            todo.extend(value.values())
        elif type(value) in (list, tuple):
            todo.extend(value)
    return found


def _decode(data: bytes | bytearray, dtype: str) -> np.ndarray:
    """Little-endian bytes as a flat array; bfloat16 is the upper half of a float32."""
    flat = np.frombuffer(data, _DTYPES[dtype])
    if dtype == "BF16":
        return (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return flat


def _strided(flat: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """A tensor's view of its storage, inside of it, and not larger."""
    last = tensor.offset + sum(
        (length - 1) * stride
        for length, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    count = math.prod(tensor.shape)
    if count > len(flat) or (count and last >= len(flat)):
        raise ValueError(
            f"a tensor of shape {list(tensor.shape)} reaches beyond its storage of "
            f"{len(flat)} numbers"
        )
    strides = tuple(stride * flat.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.shape, strides, writeable=False
    )
