"""Writes a plan to a folder, whole or not at all. The manifest comes last: a folder with it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.weights_writer import TYPE_NAMES, WeightsWriter
from ..config.input_files import name_for_mlx
from ..errors import InputError, OutputError
from ..output import check_new_folder, reason, rename, unfinished, write_text
from ..version import __version__
from .function import MLX_VERSION, WEIGHTS, Arrays
from .plan import Plan

# Counts up when a reader of the older one would go wrong; unknown keys are ignored.
FORMAT = 1
MANIFEST, WEIGHTS_FILE = "manifest.json", "weights.safetensors"
# What the file format of MLX can hold of a path is one segment of plain letters.
_PLAIN = re.compile(r"[^A-Za-z0-9_-]+")


def check_destination(path: Path) -> None:
    """Refuse what would be overwritten, before any work is done."""
    check_new_folder(path)
    name_for_mlx(path.absolute(), OutputError)
    if not path.absolute().parent.is_dir():
        raise OutputError(f"the folder {path.absolute().parent} does not exist; make it first.")


def write(plan: Plan, path: Path) -> None:
    """Make the folder `path` of `plan`."""
    check_destination(path)
    whole = Path(os.path.realpath(path))
    part = unfinished.temporary_name(whole.parent, whole.name)
    try:
        part.mkdir()
        _fill(plan, part)
        rename(part, whole, path)
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {reason(e)}.") from None
    finally:
        unfinished.remove(part)


def _fill(plan: Plan, folder: Path) -> None:
    plan = _without_unread(plan)
    _write_arrays(folder / WEIGHTS_FILE, plan.fixed)
    starts: list[dict[str, Any]] = []
    for start in plan.starts:
        name = f"start{'.' + _PLAIN.sub('_', start.name) if start.name else ''}.safetensors"
        if any(s["file"] == name for s in starts):
            raise InputError(f"two voices would be called {name}; give their files different names.")
        _write_arrays(folder / name, start.state)
        starts.append({"name": start.name, "file": name, "capacity": start.capacity})
    for function in plan.functions:
        function.write(folder / f"{function.name}.mlxfn", plan.examples(function.begins))
    write_text(folder / "README.md", plan.about)
    files = {f.name: _fingerprint(f) for f in sorted(folder.iterdir())}
    rings = plan.rings
    manifest = {
        "format": FORMAT,
        "moshi_mlx": __version__,
        "mlx": MLX_VERSION,
        "device": mx.default_device().type.name,
        **plan.facts,
        "functions": {f.name: {"file": f"{f.name}.mlxfn", "results": list(f.results)} for f in plan.functions},
        "weights": WEIGHTS_FILE,
        "starts": starts,
        "rings": None if rings is None else _rings(plan),
        "memory": {
            "weights": sum(a.nbytes for a in plan.fixed.values()),
            "state": sum(a.nbytes for a in plan.states[-1].values()),
        },
        "files": files,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")


def _rings(plan: Plan) -> dict[str, Any]:
    assert plan.rings is not None
    return {
        "names": sorted(plan.rings.names),
        "axis": plan.rings.axis,
        "capacities": list(plan.rings.capacities),
    }


def _without_unread(plan: Plan) -> Plan:
    """The plan with only those weights that some graph looks at: of what was stacked, the parts are not read."""
    example = plan.examples()[0]
    read = set().union(*(f.reads(example) for f in plan.functions))
    fixed = {name: a for name, a in sorted(plan.fixed.items()) if name in read or not name.startswith(WEIGHTS)}
    return Plan(**{**vars(plan), "fixed": fixed})


def _write_arrays(path: Path, arrays: Mapping[str, mx.array]) -> None:
    specs = [(name, TYPE_NAMES[a.dtype], tuple(a.shape)) for name, a in arrays.items()]
    with WeightsWriter(path, specs) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
        writer.commit()


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def arrays_of(path: Path) -> Arrays:
    """The arrays of a file of such a folder."""
    return dict(mx.load(name_for_mlx(path), format="safetensors"))  # type: ignore[arg-type]
