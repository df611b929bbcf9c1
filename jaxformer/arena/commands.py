"""What `jaxformer arena` does."""

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxformer.arena.afterwards import Afterwards
from jaxformer.arena.announce import describe_match, predicted_seconds
from jaxformer.arena.cells import Cell, cells, without_result
from jaxformer.arena.config import ArenaConfig, load_arena
from jaxformer.arena.findings import findings_page
from jaxformer.arena.match import Matched, match
from jaxformer.arena.report import write_report
from jaxformer.arena.seconds import seconds_per_step
from jaxformer.errors import UserError
from jaxformer.parallel.mesh import find_devices
from jaxformer.paths import local_path, replace_text
from jaxformer.reading import read_json_object
from jaxformer.terminal import in_time, progress, say

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75
NAMED = 5  # cells in a message
DECIDE_CELLS = {"baseline", "base", "contestants", "tasks", "match"}  # keys of an arena's file


def arena(path: str, overrides: Sequence[str], *, dry_run: bool, workers: int) -> int:
    """Match the contestants, run all cells that have no result yet, and write the report.

    Returns:
        The exit code: 0 if done, 1 if cells failed for reasons unrelated to their contestants, 75
        if a signal stopped it or other processes are still running cells. The same command resumes.

    Raises:
        UserError: a mistake in the file, or a directory that holds another arena.
    """
    config, matched = prepare(path, overrides)
    every = cells(config, matched)
    print(describe_match(config, matched))
    left = without_result(every)
    seconds = predicted_seconds(config, left)
    print(
        f"{len(every)} cells, {len(left)} of them to run: about {in_time(seconds)} on this "
        f"machine, estimated from their FLOPs"
    )
    if dry_run:
        return DONE
    began = time.monotonic()
    command = ["arena", path, *overrides]
    for cell in left:
        cell.tried_file.unlink(missing_ok=True)
    code = _run(every, command, workers) if left else DONE
    if left := without_result(every):
        say(_unfinished(code, left, len(every)))
        return code or STOPPED
    after = Afterwards.of(config, matched, every)
    for file in write_report(config, matched, every, after, shlex.join(["jaxformer", *command])):
        print(f"wrote {file}")
    print(f"done in {in_time(time.monotonic() - began)}")
    return DONE


def _unfinished(code: int, left: Sequence[Cell], count: int) -> str:
    """Why cells have no result yet, and what to do about it."""
    some = f"{len(left)} of {count} cells"
    if code == STOPPED:
        return f"stopped: {some} have not ended; the same command resumes"
    if code == FAILED:
        names = ", ".join(cell.name for cell in left[:NAMED])
        more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
        return (
            f"{some} have no result: {names}{more}. They ended for reasons unrelated to their "
            f"contestants, given above and in their log.txt: fix these, and the same command tries "
            f"the cells again"
        )
    return f"other processes are running {some}; once they end, the same command writes the report"


def _run(every: Sequence[Cell], command: Sequence[str], workers: int) -> int:
    """Run all cells: with workers on the cores of a CPU, or in this process on an accelerator,
    which belongs to one process. Return the exit code of `run_cells`."""
    from jaxformer.arena.run import run_cells
    from jaxformer.arena.workers import run_workers

    if find_devices()[0].platform == "cpu":
        return run_workers(command, workers, every)
    with progress("cells", len(every)) as report:
        return run_cells(every, report=report)


def arenas(folder: str, overrides: Sequence[str], out: Path, *, dry_run: bool, workers: int) -> int:
    """Run every arena of a folder in turn, and write a page on which findings were reproduced.

    Arenas that are refused, such as those whose data are not there, are left out, and it is said
    why.

    Returns:
        The exit code of `arena`; the first that is not 0 ends the series. 2 if some were refused.

    Raises:
        UserError: the folder has no file.
    """
    files = sorted(local_path(folder).glob("*.yaml"))
    if not files:
        raise UserError(f"{folder} has no .yaml file; give a folder of arenas")
    ended = []
    for file in files:
        print(f"== {file}", flush=True)
        try:
            code = arena(str(file), overrides, dry_run=dry_run, workers=workers)
        except UserError as error:
            say(f"{file} is left out: {error}")
            continue
        if code != DONE:
            return code
        ended.append((file, load_arena(file, list(overrides))))
    if ended and not dry_run:
        replace_text(out, findings_page(ended))
        print(f"wrote {out}")
    return DONE if len(ended) == len(files) else BAD_INPUT


def work(path: str, overrides: Sequence[str], worker: int, workers: int) -> int:
    """Run one worker's cells: its share of the list, then what the others have left."""
    from jaxformer.arena.run import run_cells

    config, matched = prepare(path, overrides)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # an interrupted arena compiles nothing twice
        jax.config.update("jax_compilation_cache_dir", str(Path(config.dir).resolve() / "compiled"))
    every = cells(config, matched)
    return run_cells(every, worker * len(every) // workers)


def prepare(path: str, overrides: Sequence[str]) -> tuple[ArenaConfig, Matched]:
    """The arena and its matched sizes, which are solved for once and kept in its directory.

    Seeds, learning rates, contestants and tasks may be added to those already there.

    Raises:
        UserError: the directory holds another arena.
    """
    config = load_arena(path, list(overrides))
    file = Path(config.dir) / "arena.json"
    said = config.model_dump(mode="json", include=DECIDE_CELLS)
    known = Matched({}, {})
    if file.exists():
        kept = read_json_object(file.read_bytes(), str(file))
        if not {"arena", "matched"} <= kept.keys():
            raise UserError(f"{file} is not what an arena keeps there; give another dir")
        changed = _changed(kept["arena"], said)
        if changed:
            raise UserError(
                f"dir {config.dir} holds another arena: {', '.join(changed)} differ; give another "
                f"dir, or set them back"
            )
        known = Matched.from_json(kept["matched"])
        if said == kept["arena"]:
            return config, known
    matched = match(config, seconds_per_step, known)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps({"arena": said, "matched": matched.to_json()}, indent=1) + "\n")
    return config, matched


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys, such as base or contestants.mamba2, whose change affects existing cells."""
    changed = [key for key in ("baseline", "base", "match") if before[key] != now[key]]
    for section in ("contestants", "tasks"):
        changed += [
            f"{section}.{name}"
            for name, keys in before[section].items()
            if now[section].get(name) != keys
        ]
    return changed
