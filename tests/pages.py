"""The pages of the documentation as data: their blocks of code, and the commands in them.

A block is fenced, or indented by four spaces as this project shows what is typed into a terminal.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
# Programs of others, and of the shell.
FOREIGN = {"aplay", "apt", "arecord", "curl", "ffmpeg", "ffplay", "mkcert", "open", "player", "source"}
# What is indented and no command: listings and samples. Each of them is checked where the name says.
SAMPLES = {
    ("docs/native.md", "manifest.json "): "tests/test_export.py",
    ("docs/web.md", "2026-"): "tests/test_web_chat.py",
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Every block of code of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        start = at
        if lines[at].startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            yield Block(name_of(page), at + 2, lines[at][3:].strip() or "sh", "\n".join(lines[at + 1 : end]))
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and lines[at].startswith("    "):
                at += 1
            yield Block(name_of(page), start + 1, "indented", "\n".join(line[4:] for line in lines[start:at]))
        else:
            at += 1


@dataclass(frozen=True)
class Command:
    """A simple command: what stands between pipes and `&&`. `reads` and `writes` are files of `<` and `>`."""

    words: tuple[str, ...]
    piped_in: bool = False
    piped_out: bool = False
    reads: str | None = None
    writes: str | None = None

    @property
    def ours(self) -> str | None:
        """`local` of `python -m moshi_mlx.local ...`."""
        is_ours = self.words[1:2] == ("-m",) and self.words[2].startswith("moshi_mlx.")
        return self.words[2].removeprefix("moshi_mlx.") if is_ours else None

    @property
    def arguments(self) -> list[str]:
        return list(self.words[3:])


def commands(line: str) -> list[Command]:
    """The simple commands of a line as a shell reads it, without what it sets in the environment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&<>;")
    lexer.whitespace_split = True
    found: list[Command] = []
    words: list[str] = []
    ends: dict[str, str | None] = {"<": None, ">": None}
    piped = False

    def finish(pipe: bool) -> None:
        nonlocal words, piped, ends
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        # MLX's launcher runs what follows its own options.
        if words[:1] == ["mlx.launch"]:
            words = words[words.index("python") :]
        found.append(Command(tuple(words), piped, pipe, ends["<"], ends[">"]))
        words, piped, ends = [], pipe, {"<": None, ">": None}

    tokens = iter(lexer)
    for token in tokens:
        if token in ends:
            ends[token] = next(tokens)
        elif token in ("|", "&&", ";"):
            finish(token == "|")
        else:
            words.append(token)
    finish(False)
    return found


def lines(block: Block) -> list[str]:
    """What is typed, one command line each; an empty list for a sample of something else."""
    if block.language not in ("sh", "indented"):
        return []
    if block.language == "indented" and (is_json(block.text) or sample(block)):
        return []
    joined = block.text.replace("\\\n", " ")
    # A usage that goes on in the next line is indented there.
    joined = re.sub(r"\n +", " ", joined)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def is_json(text: str) -> bool:
    text = text.strip().replace("...]", "null]").replace(", ...", "")
    for candidate in (text, f"{{{text}}}"):
        try:
            json.loads(candidate)
            return True
        except ValueError:
            pass
    return False


def sample(block: Block) -> bool:
    return any(block.page == page and block.text.startswith(start) for page, start in SAMPLES)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of `python -m moshi_mlx.COMMAND`."""
    module = importlib.import_module(f"moshi_mlx.{command}")
    if not hasattr(module, "main"):
        module = importlib.import_module(f"moshi_mlx.{command}.__main__")
    return module.parser()


def main_of(command: str):
    module = importlib.import_module(f"moshi_mlx.{command}")
    if not hasattr(module, "main"):
        module = importlib.import_module(f"moshi_mlx.{command}.__main__")
    return module.main
