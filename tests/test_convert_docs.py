"""What the pages about checkpoints say is true: commands parse, options exist, rules are a recipe, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from moshi_mlx.convert import __main__ as convert
from moshi_mlx.convert import config_file
from moshi_mlx.quantize import __main__ as quantize
from moshi_mlx.quantize import recipe_files

from moshi_mlx.checkpoint import packing, recipe_table, recipes
from moshi_mlx.checkpoint.packing import Quantization

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ["convert.md", "quantize.md"]
PARSERS = {"moshi_mlx.convert": convert.parser, "moshi_mlx.quantize": quantize.parser}


def text(page: str) -> str:
    return (DOCS / page).read_text()


def commands() -> list[str]:
    return re.findall(r"^    (python -m moshi_mlx\.(?:convert|quantize)\b.*)$", "".join(map(text, PAGES)), re.MULTILINE)


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    words = shlex.split(line, comments=True)
    args = PARSERS[words[2]]().parse_args(words[3:])
    if words[2] == "moshi_mlx.quantize":
        assert recipes.base(args.bits, args.group_size, args.mode)
        assert args.recipe is None or args.recipe in recipe_table.RECIPES


def test_options_exist():
    known = {o for parser in PARSERS.values() for action in parser()._actions for o in action.option_strings}
    for page in PAGES:
        for option in re.findall(r"`(--[a-z-]+)", text(page)):
            assert option in known, f"{page}: {option}"


def test_kinds_are_as_told():
    """Bits, group, bits per weight and file name of every row."""
    rows = re.findall(r"^\| (`-.*?) \| ([\d, ]+) \| (\d+) \| ([\d., ]+) \| `(\S+)`", text("quantize.md"), re.MULTILINE)
    assert len(rows) == 7
    for flags, bits, group, per_weight, name in rows:
        for flag, b, cost in zip(flags.split(", "), bits.split(", "), per_weight.split(", "), strict=True):
            args = quantize.parser().parse_args(["a", "b", *flag.strip("`").split()])
            q = recipes.base(args.bits, args.group_size, args.mode)
            assert (q.bits, q.group_size) == (int(b), int(group))
            assert 8 * packing.packed_bytes((1, 1024), q) / 1024 == float(cost)
            expected = name.replace("q2", f"q{b}").replace("q5", f"q{b}")
            assert recipe_files.file_name(recipes.Packing({"x": q}), "uniform") == expected


def test_the_rules_are_a_recipe(tmp_path):
    (rules,) = re.findall(r"```json\n(.*?)```", text("quantize.md"), re.DOTALL)
    (tmp_path / "r.json").write_text(rules)
    layers = {
        "text_emb": (64, 64), "depformer.slices.3.linear_out": (64, 64), "transformer.layers.0.gating.linear_in": (64, 64),
        "depformer.slices.3.transformer.layers.0.gating.linear_in": (64, 64),
    }  # fmt: skip
    found = recipes.by_rules(layers, recipe_files.read_recipe(str(tmp_path / "r.json")), Quantization(32, 4))
    assert found.dense == ["text_emb"]
    assert [str(q) for q in found.layers.values()] == [
        "affine 8 bit, group 64", "mxfp4 4 bit, group 32", "affine 4 bit, group 32",
    ]  # fmt: skip


def test_the_record_is_as_shown():
    (shown,) = re.findall(r'^    "quantization": (.*)$', text("quantize.md"), re.MULTILINE)
    four, eight = Quantization(32, 4), Quantization(64, 8)
    assert json.loads(shown) == config_file.recorded({"a": four, "b": four, "text_linear": eight}, ["text_emb"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text(page)):
        assert (DOCS / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_files_named_are_there(page):
    for name in re.findall(r"`(tests/\S+?)`", text(page)):
        assert (DOCS.parent / name).exists(), name
