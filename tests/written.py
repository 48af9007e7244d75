"""Which calls in a piece of Python open a file for writing, or give a file another name."""

from __future__ import annotations

import ast
import re

_WRITES = re.compile(r"(?=.*[wax+])[rwxabtU+]{1,4}|[wx]:\w*")
_FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_EXCL", "O_TMPFILE"}
# Of any object: what they do has one meaning.
_METHODS = {
    "write_text", "write_bytes", "touch", "rename", "save_safetensors", "save_gguf", "savez", "savez_compressed", "savetxt",
    "tofile", "memmap", "copyfile", "copytree", "mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile",
    "SpooledTemporaryFile", "TemporaryDirectory", "FileHandler", "mkfifo", "mknod", "hardlink_to",
}  # fmt: skip
# Of these modules only.
_FUNCTIONS = {
    "os": {"replace", "renames", "link", "creat", "truncate"},
    "shutil": {"copy", "copy2", "move", "make_archive"},
    "mx": {"save"}, "np": {"save"}, "numpy": {"save"}, "torch": {"save"}, "soundfile": {"write"}, "wave": {"open"},
}  # fmt: skip
# Take a mode: first or second argument, or `mode=`.
_OPENERS = {"open", "fdopen", "SoundFile", "ZipFile", "GzipFile", "TarFile"}


def writers(source: str) -> list[str]:
    """Offending calls as `line: code`."""
    tree = ast.parse(source)
    in_memory = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _name(getattr(node.value, "func", None)) in ("BytesIO", "StringIO")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _writes(node, in_memory)
    ]


def _name(func: ast.expr | None) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _writes(call: ast.Call, in_memory: set[str]) -> bool:
    name = _name(call.func)
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    module = owner.id if isinstance(owner, ast.Name) else ""
    first = call.args[0] if call.args else None
    if isinstance(first, ast.Name) and first.id in in_memory:
        return False
    if name in _FUNCTIONS.get(module, ()):
        return True
    # Of a string or a list of values, `replace` has two arguments; of a path, one.
    if name == "replace" and owner is not None and len(call.args) == 1 and not call.keywords:
        return True
    if owner is not None and (name in _METHODS or name == "savefig"):
        return True
    if name in _METHODS - {"write_text", "write_bytes", "rename"} and owner is None:
        return True
    if module == "os" and name == "open":
        return bool(_FLAGS & {n.attr for n in ast.walk(call) if isinstance(n, ast.Attribute)}) or len(call.args) < 2
    if name not in _OPENERS:
        return False
    # libsndfile may write to what was opened where everything is, and to memory.
    if name == "SoundFile" and isinstance(first, ast.Attribute) and first.attr in ("fd", "_sink"):
        return False
    modes = [k.value for k in call.keywords if k.arg == "mode"] + list(call.args[:2])
    return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and _WRITES.fullmatch(m.value) for m in modes)
