"""A driver that is killed at a chosen system call, and what a power cut would leave of its files.

Run as a program: `crash_driver.py ROOT SCENARIO MODE SHARE OFFSET [PLANT]`. It prints one JSON line a point, for every
SHARE-th point from OFFSET on. Every run happens in a forked child, so that a hundred of them cost one import. In mode
"kill" the child kills itself before the N-th call that changes files. In mode "power" everything that was not synced is
undone as well: contents, names, renames and removals.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from data.answer_cache import AnswerCache  # noqa: E402
from data.attempts import attempts  # noqa: E402
from data.audit import audit  # noqa: E402
from data.errors import InputError  # noqa: E402
from data.job_answers import JobAnswers  # noqa: E402
from data.ledger import Ledger  # noqa: E402
from data.plan import load_windows  # noqa: E402
from data.publish import prepare_output, published_base, verify_published  # noqa: E402
from data.results import result_schema  # noqa: E402
from data.retry import plan_retry  # noqa: E402
from data.settings import OutputSettings  # noqa: E402
from data.shards import ShardPrompts, sequence_key  # noqa: E402
from data.target import Target  # noqa: E402

_spec = importlib.util.spec_from_file_location("laboratory", HERE / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
laboratory = importlib.util.module_from_spec(_spec)
sys.modules["laboratory"] = laboratory
_spec.loader.exec_module(laboratory)

CALLS = ("fsync", "link", "rename", "unlink", "mkdir", "rmdir")


def make(root: Path, scenario: str) -> Any:
    rows: list[Any] = [{"id": number, "text": f"text {number % 90}"} for number in range(130)]
    output = OutputSettings(path=str(root / "out"), error_budget=1)
    if scenario == "file":
        rows = [json.dumps(row) for row in rows]
        output = OutputSettings(path=str(root / "out.jsonl"), error_budget=1)
    lab = laboratory.make_lab(root, rows, output=output)
    if scenario == "cached":
        lab.options = replace(lab.options, answers=answers_in(root))
    return lab


def answers_in(root: Path) -> JobAnswers:
    return JobAnswers(AnswerCache.create(root / "cache", 1 << 30), "a" * 32, {}, result_schema("generate"))


def prepare(root: Path, scenario: str) -> None:
    """What is there before the run that is disturbed."""
    lab = make(root, scenario)
    if scenario == "fresh":
        lab.identity = {"sampling": {"seed": 99}}
        lab.compute(lambda text, _: text == "text 5")
        lab.publish()
        shutil.rmtree(root / "run")
    if scenario == "cached":
        # Most texts of the first window, some of the second.
        encoded = laboratory.BytePrompter().encode([{"text": f"text {number}"} for number in range(60)])
        keys = [sequence_key(ids.astype("<u4").tobytes()) for ids in encoded.ids]
        prompts = ShardPrompts(encoded.ids, keys, [0] * len(keys), None)
        table = laboratory.answer(prompts, laboratory.never).sort_by("slot")
        answers_in(root).add(keys, prompts.occurrences, table)


def drive(root: Path, scenario: str, fresh: bool) -> None:
    """A whole run, or what is left of it."""
    lab = make(root, scenario)
    run = lab.run
    with run.lock(), Target.at(lab.target).lock():
        run.sweep()
        current = prepare_output(run, lab.output, fresh=fresh)
        if scenario == "partial" and current is None:
            windows = lab.windows()
            lab.work(windows[0].shards)
            lab.publish(partial=True)
        fails: Callable[[str, int], bool] = laboratory.never
        if scenario == "retry":
            fails = lambda text, _: text in ("text 3", "text 77")  # noqa: E731
        if current is None or not current.complete:
            lab.compute(fails)
        lab.publish(fresh=fresh)
        if scenario == "retry":
            base = published_base(run, lab.output)
            window = plan_retry(run, lab.dataset, lab.prompter, run.id, lab.options, load_windows(run), base)
            if window is not None:
                lab.work(window.shards)
            lab.publish()


def check(root: Path, scenario: str) -> dict[str, Any]:
    """After the resumed run: the published digests, and that nothing is left behind."""
    lab = make(root, scenario)
    report = audit(lab.target)
    manifest = verify_published(lab.target)
    rows = lab.rows()
    right = [row["output"] == f"{row['text'].upper()}#0" for row in rows]
    hidden = sorted(name for name in os.listdir(root) if name.startswith("."))
    problems = report.problems + [f"left behind: {name}" for name in hidden]
    if not manifest.complete or manifest.run != lab.run.id or len(rows) != 130 or not all(right):
        problems.append("the result is not the run's complete one")
    if list(lab.run.shards.iterdir()) or list(lab.run.tmp.iterdir()):
        problems.append("shard data or temporary files are left in the run folder")
    if scenario == "cached" and not any(window.cached for window in load_windows(lab.run)):
        problems.append("nothing was taken from the cache")
    return {"problems": problems, "digest": manifest.digest}


def after_crash(root: Path, scenario: str) -> dict[str, Any]:
    """Before resuming: a manifest tells the truth, the replaced result exists, commits have their data."""
    lab = make(root, scenario)
    target = Target.at(lab.target, lab.run)
    problems = []
    manifest = target.read_manifest()
    if manifest is not None:
        verify_published(lab.target)
    if scenario == "fresh" and manifest is None:
        old = [path for path in target.siblings("old") if (path / "_manifest.json").exists()]
        if not old:
            problems.append("the older result is gone before the new one is complete")
    ledger = Ledger(lab.run)
    ledger.verify()
    journal = map(json.loads, root.with_suffix(".journal").read_text().splitlines())
    promised = {record["committed"] for record in journal if "committed" in record}
    problems += [f"a commit is lost: {shard}" for shard in promised - ledger.commits().keys()]
    done = {shard: attempts(lab.run, shard) for shard in ledger.commits()}
    return {"problems": problems, "done": done}


def recomputed(root: Path, scenario: str, done: dict[str, int]) -> list[str]:
    run = make(root, scenario).run
    return [shard for shard, count in done.items() if attempts(run, shard) != count]


def forked(function: Callable[[], Any]) -> Any:
    """The function's JSON value from a child, "killed" if it was, or an error text."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        try:
            value = {"value": function()}
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the parent judges
            value = {"error": "".join(traceback.format_exception(error))}
        os.write(sender, json.dumps(value).encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return json.loads(content) if content else {"killed": True}


class Disk:
    """Counts calls that change files, dies at one of them, and keeps a journal of what was synced."""

    def __init__(self, root: Path, point: int, plant: str = "") -> None:
        """`plant` is a bug to find: "no file sync" or "no folder sync"."""
        self.plant = plant
        self.root, self.point, self.count = root, point, 0
        self.journal = open(root.with_suffix(".journal"), "a", buffering=1)  # noqa: SIM115
        self.graves = root.with_suffix(".graves")
        shutil.rmtree(self.graves, ignore_errors=True)
        self.graves.mkdir()
        for folder, _, _ in os.walk(root):
            self._synced(folder)
        for folder, _, files in os.walk(root):
            for name in files:
                self._note({"file": os.lstat(os.path.join(folder, name)).st_ino})
        self.real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, self._wrapped(name))
        laboratory.commit_shard = self._acknowledged(laboratory.commit_shard)

    def _acknowledged(self, commit: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = commit(*args, **options)
            self._note({"committed": result.shard})
            return result

        return call

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.point:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "unlink":
                self._bury(args[0], options.get("dir_fd"))
            result = self.real[name](*args, **options)
            if name == "fsync":
                status = os.fstat(args[0])
                if self.plant == ("no folder sync" if stat.S_ISDIR(status.st_mode) else "no file sync"):
                    return result
                if stat.S_ISDIR(status.st_mode):
                    self._synced(os.readlink(f"/proc/self/fd/{args[0]}"))
                else:
                    self._note({"file": status.st_ino})
            return result

        return call

    def _bury(self, path: Any, folder: int | None) -> None:
        grave = self.graves / str(os.stat(path, dir_fd=folder, follow_symlinks=False).st_ino)
        if not grave.exists():
            self.real["link"](path, grave, src_dir_fd=folder)

    def _synced(self, folder: str) -> None:
        names = {entry.name: entry.inode() for entry in os.scandir(folder)}
        self._note({"folder": os.stat(folder).st_ino, "names": names})

    def _note(self, record: dict[str, Any]) -> None:
        self.journal.write(json.dumps(record) + "\n")


def cut_power(root: Path) -> None:
    """Undo what the journal does not show as synced."""
    files: set[int] = set()
    listings: dict[int, dict[str, int]] = {}
    for line in root.with_suffix(".journal").read_text().splitlines():
        record = json.loads(line)
        if "committed" in record:
            continue
        if "file" in record:
            files.add(record["file"])
        else:
            listings[record["folder"]] = record["names"]
    _restore(root, files, listings, root.with_suffix(".graves"))


def _restore(folder: Path, files: set[int], listings: dict[int, dict[str, int]], graves: Path) -> None:
    durable = listings.get(folder.stat().st_ino, {})
    current = {entry.name: entry.inode() for entry in os.scandir(folder)}
    by_inode = {inode: name for name, inode in current.items()}
    lost = folder / ".lost"
    lost.mkdir()
    for name in current:
        os.rename(folder / name, lost / name)
    for name, inode in durable.items():
        if inode in by_inode:
            held = lost / by_inode[inode]
            if held.is_dir() or list(durable.values()).count(inode) == 1:
                os.rename(held, folder / name)
            else:
                os.link(held, folder / name)
        elif (graves / str(inode)).exists():
            os.link(graves / str(inode), folder / name)
    shutil.rmtree(lost)
    for entry in os.scandir(folder):
        if entry.is_dir():
            _restore(Path(entry.path), files, listings, graves)
        elif entry.inode() not in files:
            os.truncate(entry.path, 0)


def disturbed(root: Path, scenario: str, point: int, plant: str) -> int:
    disk = Disk(root, point, plant)
    drive(root, scenario, scenario == "fresh")
    return disk.count


def resume(root: Path, scenario: str) -> None:
    try:
        drive(root, scenario, False)
    except InputError:
        # Killed before the permission to replace was recorded: the user repeats it.
        drive(root, scenario, True)


def main() -> None:
    root, scenario, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    root.mkdir(parents=True)
    print(json.dumps(forked(lambda: prepare(root, scenario))), flush=True)
    pristine = root.with_suffix(".pristine")
    shutil.copytree(root, pristine)
    plant = sys.argv[6] if len(sys.argv) > 6 else ""
    total = forked(lambda: disturbed(root, scenario, -1, plant))["value"]
    expected = forked(lambda: check(root, scenario))["value"]
    print(json.dumps({"total": total, **expected}), flush=True)
    share, offset = int(sys.argv[4]), int(sys.argv[5])
    for point in range(1 + offset, total + 1, share):
        shutil.rmtree(root)
        shutil.copytree(pristine, root)
        root.with_suffix(".journal").unlink(missing_ok=True)
        first = forked(lambda: disturbed(root, scenario, point, plant))  # noqa: B023
        if mode == "power":
            cut_power(root)
        seen = forked(lambda: after_crash(root, scenario))
        resumed = forked(lambda: resume(root, scenario))
        done = seen.get("value", {}).get("done", {})
        again = forked(lambda: recomputed(root, scenario, done))  # noqa: B023
        result = forked(lambda: check(root, scenario))
        outcome = {"point": point, "first": first, "seen": seen, "resumed": resumed, "again": again, "result": result}
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
