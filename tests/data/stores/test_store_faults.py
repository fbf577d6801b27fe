"""What an object store and the way to it can do to a publication, and what must have become of it then."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from data.bucket import Bucket, Refused, StoreError
from data.destination import destination
from data.errors import Held, InputError, RunError
from data.publish import prepare_output, verify_published

from .store_bench import ROWS, Bench
from .test_store_publish import changes, other_run, parts

PUTS = ["part-00001", "_manifest.json"]


@pytest.mark.parametrize("name", PUTS)
@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_a_storm_that_ends_is_waited_out(bench: Bench, done: Any, name: str, status: int, code: str) -> None:
    fault = bench.store.plant("PUT", name, "refuse", times=2, status=status, code=code)
    done.publish()
    assert fault.met == 2
    assert verify_published(bench.url).complete


@pytest.mark.parametrize("name", PUTS)
def test_a_storm_that_does_not_end_is_a_named_error_soon_and_can_be_resumed(bench: Bench, done: Any, name: str) -> None:
    fault = bench.store.plant("PUT", name, "refuse", times=1000)
    started = time.monotonic()
    with pytest.raises(StoreError, match=rf"s3://.*{name}.*the store keeps failing \(503 SlowDown\)"):
        done.publish()
    assert time.monotonic() - started < 30
    assert fault.met == 3
    assert "_manifest.json" not in bench.names()
    sent = len(parts(bench))
    bench.store.heal()
    done.publish()
    assert len(changes(bench)) == 4 - sent
    assert verify_published(bench.url).complete


@pytest.mark.parametrize("attempts", ["1", "3"])
@pytest.mark.parametrize("name", PUTS)
def test_a_put_whose_answer_was_lost_is_recognised(
    bench: Bench, done: Any, name: str, attempts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    fault = bench.store.plant("PUT", name, "late")
    manifest = done.publish()
    assert fault.met == 1
    assert verify_published(bench.url) == manifest


def test_a_refused_conditional_put_with_other_content_fails_and_names_it(bench: Bench, done: Any) -> None:
    bench.store.plant("PUT", "part-00001", "before", hook=lambda: bench.put(expected[1], b"other"))
    expected = _names(done, bench)
    with pytest.raises(Refused, match=rf"{expected[1]} holds other content"):
        done.publish()
    assert bench.get(expected[1]) == b"other"
    assert "_manifest.json" not in bench.names()
    with pytest.raises(RunError, match=rf"{expected[1]}"):
        done.publish()
    bench.direct.delete_object(Bucket=bench.bucket, Key=f"team/result/{expected[1]}")
    assert done.publish().complete


def _names(done: Any, bench: Bench) -> list[str]:
    """The names that the parts will have: those of an attempt that was allowed to send none."""
    bench.store.faults, kept = [], bench.store.faults
    bench.store.plant("PUT", "part-", "refuse", times=1000, status=403, code="AccessDenied")
    with pytest.raises(StoreError, match="no permission"):
        done.publish()
    bench.store.faults = kept
    (record,) = done.run.publications.glob("*.json")
    return [part["name"] for part in json.loads(json.loads(record.read_bytes())["manifest"])["files"]]


def test_a_manifest_that_another_run_wrote_meanwhile_stays(
    bench: Bench, done: Any, new_lab: Any, tmp_path: Any
) -> None:
    other = other_run(done, tmp_path, new_lab)
    done.publish()
    theirs = bench.get("_manifest.json")
    content = {name: bench.get(name) for name in parts(bench)}
    for name in bench.names():
        bench.direct.delete_object(Bucket=bench.bucket, Key=f"team/result/{name}")

    def arrive() -> None:
        for name in content:
            bench.put(name, content[name])
        bench.put("_manifest.json", theirs)

    bench.store.plant("PUT", "_manifest.json", "before", hook=arrive)
    with pytest.raises(RunError, match=r"_manifest\.json was written by another run"):
        other.publish()
    assert bench.get("_manifest.json") == theirs


def test_a_manifest_that_changes_while_it_is_replaced_stays(
    bench: Bench, done: Any, new_lab: Any, tmp_path: Any
) -> None:
    done.publish()
    other = other_run(done, tmp_path, new_lab)
    bench.store.plant("PUT", "_manifest.json", "before", hook=lambda: bench.put("_manifest.json", b"newer"))
    with pytest.raises(RunError, match=r"_manifest\.json was written by another run"):
        other.publish(fresh=True)
    assert bench.get("_manifest.json") == b"newer"


def test_credentials_that_expire_midway_fail_at_once_and_are_resumed(bench: Bench, done: Any) -> None:
    fault = bench.store.plant("PUT", "part-00002", "refuse", times=1000, status=400, code="ExpiredToken")
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"credentials have expired \(ExpiredToken\): renew them and run again"):
        done.publish()
    assert time.monotonic() - started < 10
    assert fault.met == 1
    assert "_manifest.json" not in bench.names()
    assert len(list((done.run.path / "staged").iterdir())) == 1
    bench.store.heal()
    done.publish()
    assert [line.rpartition("/")[2][:10] for line in changes(bench)] == ["part-00002", "_manifest."]


def test_a_byte_that_changed_on_the_way_is_refused_by_the_store(bench: Bench, done: Any) -> None:
    bench.store.plant("PUT", "part-00000", "flip")
    with pytest.raises(StoreError, match=r"part-00000-\w+\.parquet: the store answered 400 BadDigest"):
        done.publish()
    assert "_manifest.json" not in bench.names()
    assert done.publish().complete


def test_where_the_store_computes_no_checksum_the_bytes_are_read_back(bench: Bench, done: Any) -> None:
    bench.store.mute = True
    assert done.publish().complete
    done.output = done.output.model_copy(update={"path": bench.url + "-again"})
    for shard in done.run.commits.iterdir():
        shard.unlink()
    done.run.publications.joinpath("replace.json").unlink(missing_ok=True)
    for record in done.run.publications.glob("*.json"):
        record.unlink()
    done.compute()
    bench.store.plant("PUT", "part-00000", "flip")
    with pytest.raises(RunError, match=r"part-00000-\w+\.parquet holds other content"):
        done.publish()
    assert not [name for name in bench.names() if name.endswith("result-again/_manifest.json")]


@pytest.mark.parametrize("cut", range(5))
def test_cut_off_after_any_change_it_resumes_to_the_same_bytes(bench: Bench, done: Any, cut: int) -> None:
    bench.store.cut_after = cut
    if cut < 4:
        with pytest.raises(StoreError, match="the store keeps failing"):
            done.publish()
        assert "_manifest.json" not in bench.names()
    bench.store.cut_after, bench.store.cut = None, False
    done.run.sweep()
    manifest = done.publish()
    assert verify_published(bench.url) == manifest
    assert parts(bench) == [part.name for part in manifest.files]
    assert changes(bench)[-1].endswith("_manifest.json")
    assert len(changes(bench)) == 4


@pytest.mark.parametrize("cut", range(4))
def test_a_swap_that_is_cut_off_leaves_one_whole_result_at_any_time(
    bench: Bench, done: Any, new_lab: Any, tmp_path: Any, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    done.publish()
    other = other_run(done, tmp_path, new_lab)
    bench.store.heal()
    bench.store.cut_after = cut
    with pytest.raises(StoreError):
        other.publish(fresh=True)
    there = json.loads(bench.get("_manifest.json"))
    assert {part["name"] for part in there["files"]} <= set(parts(bench))
    assert there["run"] == (done.run.id if cut < 2 else other.run.id)  # they have the first part in common
    bench.store.heal()
    manifest = other.publish()
    assert verify_published(bench.url) == manifest
    assert manifest.run == other.run.id


def test_a_second_driver_is_told_who_publishes_there(
    bench: Bench, done: Any, new_lab: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_run(done, tmp_path, new_lab)
    mine, theirs = (destination(bench.url, run) for run in (done.run, other.run))
    with mine.lock():
        with pytest.raises(Held, match=r"the output s3://.* is in use by process \d+ on"), theirs.lock():
            pass
        with mine.lock():  # the driver of the same run died and was started again
            pass
    assert bench.names() == []
    with mine.lock():
        monkeypatch.setattr("data.lease.FREE_SECONDS", -10.0)
        with theirs.lock():
            assert json.loads(bench.get("_lease.json"))["owner"]
    assert bench.names() == []


def test_a_lease_is_renewed(bench: Bench, done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.lease.RENEW_SECONDS", 0.05)
    with destination(bench.url, done.run).lock():
        first = bench.get("_lease.json")
        deadline = time.monotonic() + 20
        while bench.get("_lease.json") == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert bench.names() == []


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_store_that_does_not_answer_holds_no_end_up(
    bench: Bench, done: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a renewal under way nor the deletion is waited for longer than a moment."""
    monkeypatch.setattr("data.lease.RENEW_SECONDS", 0.05)
    monkeypatch.setattr("data.lease.END_SECONDS", 0.3)
    healed, asked = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        healed.wait(20)

    with destination(bench.url, done.run).lock():
        bench.store.plant(method, "_lease", "before", times=100, hook=hang)
        assert method == "DELETE" or asked.wait(20)
        ended = time.monotonic()
    assert time.monotonic() - ended < 5
    assert asked.is_set()
    healed.set()


def test_two_drivers_at_once_leave_one_whole_result(bench: Bench, done: Any, new_lab: Any, tmp_path: Any) -> None:
    other = other_run(done, tmp_path, new_lab)
    outcomes: list[Any] = []

    def drive(lab: Any) -> None:
        try:
            outcomes.append(lab.publish())
        except (RunError, InputError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=drive, args=(lab,)) for lab in (done, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = json.loads(bench.get("_manifest.json"))
    assert {part["name"] for part in there["files"]} <= set(parts(bench))
    assert sum(isinstance(outcome, Exception) for outcome in outcomes) >= 1


def test_a_store_without_conditional_puts_is_refused_before_anything_is_started(bench: Bench, done: Any) -> None:
    destination(bench.url, done.run).preflight()
    assert bench.names() == []
    bench.store.plant("PUT", "_probe", "deaf", times=100)
    with pytest.raises(InputError, match="ignores the conditions of a put"):
        destination(bench.url, done.run).preflight()
    assert bench.names() == []


def test_a_store_that_cannot_be_used_is_told_before_anything_is_started(
    bench: Bench, done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"s3://no-such-bucket/x cannot be used: .*does not exist \(NoSuchBucket\)"):
        destination("s3://no-such-bucket/x", done.run).preflight()
    bench.store.plant("PUT", "_probe", "refuse", times=100, status=403, code="AccessDenied")
    with pytest.raises(InputError, match=r"no permission \(AccessDenied\)"):
        destination(bench.url, done.run).preflight()
    bench.store.heal()
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(InputError, match="Unable to locate credentials"):
        destination(bench.url, done.run).preflight()


@pytest.mark.parametrize("attempts", ["many", "0", "-1", ""])
def test_a_number_of_attempts_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, attempts: str) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    with pytest.raises(InputError, match="AWS_MAX_ATTEMPTS"):
        Bucket("some-bucket").read("key")


def test_a_store_that_is_down_at_the_start_is_no_wrong_setting(
    bench: Bench, done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another try may find in order is for a scheduler to try again."""
    for status, code in ((503, "SlowDown"), (400, "ExpiredToken")):
        bench.store.plant("PUT", "_probe", "refuse", times=3, status=status, code=code)
        with pytest.raises(StoreError, match=code):
            destination(bench.url, done.run).preflight()
        bench.store.heal()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="run again to resume"):
        destination(bench.url, done.run).preflight()


def test_probes_that_a_killed_start_has_left_are_deleted_by_the_next_one(bench: Bench, done: Any) -> None:
    bench.put("_probe-of-another", b"probe")
    bench.store.plant("DELETE", "_probe", "refuse", times=3)
    with pytest.raises(StoreError):
        destination(bench.url, done.run).preflight()
    assert len(bench.names()) == 2
    bench.store.heal()
    destination(bench.url, done.run).preflight()
    assert bench.names() == ["_probe-of-another"]


def test_a_store_that_fails_while_it_is_looked_at_replaces_nothing(bench: Bench, done: Any) -> None:
    done.publish()
    bench.store.plant("GET", "_manifest.json", "refuse", times=3)  # every try of the first look
    with pytest.raises(StoreError, match="the store keeps failing"):
        prepare_output(done.run, done.output, fresh=True)
    assert len(ROWS) == 300
