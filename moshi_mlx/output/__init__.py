"""Everything the package writes is opened here, and nowhere else.

A file that is named as an output is replaced, in one moment, when the new one is whole; a folder that is made as a whole
(a checkpoint, a recording of a talk) has to be new or empty. Links are followed. What is there and is no regular file (a named
pipe, a device, a terminal) is written straight into, as it is made; `-` is standard output. Whatever ends a command, nothing
unfinished is left; messages tell the name that was given.
"""

from .files import (
    OutputFile,
    ScratchFolder,
    copy_file,
    open_growing,
    open_lock,
    open_nowhere,
    rename,
    write_bytes,
    write_text,
)
from .parts import PartOutput
from .places import (
    check_folder,
    check_new_folder,
    check_writable,
    is_standard_output,
    make_folder,
    reason,
    refuse_inputs,
    refuse_terminal,
)
from .unfinished import remove_unfinished

__all__ = [
    "OutputFile",
    "PartOutput",
    "ScratchFolder",
    "check_folder",
    "check_new_folder",
    "check_writable",
    "copy_file",
    "is_standard_output",
    "make_folder",
    "open_growing",
    "open_lock",
    "open_nowhere",
    "reason",
    "refuse_inputs",
    "refuse_terminal",
    "remove_unfinished",
    "rename",
    "write_bytes",
    "write_text",
]
