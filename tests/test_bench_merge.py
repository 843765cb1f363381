"""A second bench of a run keeps what the first one measured and it did not. Takes 1 s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from image_folders import make_folder, open_folder
from made import made_bench, made_row

from wmlc import records
from wmlc.bench.choose import times
from wmlc.bench.merge import with_former
from wmlc.bench.rows import ACCURACY_OFF
from wmlc.records import Scenario
from wmlc.run import Run


def test_top1_and_scenarios_of_the_same_files_stay_where_they_are_not_measured_again(tmp_path: Path) -> None:
    run, served = Run(tmp_path), {"offline": Scenario(valid=True, samples_per_s=9.0)}
    old = made_bench([made_row(0, 9.0), made_row(1, 5.0, scenarios=served, top1=88.0, top1_drop=2.0)])
    records.write(run.bench, old)
    quick = made_row(1, 4.0, top1=None, top1_drop=None, notes=[ACCURACY_OFF, "another word"])
    _, kept = with_former(made_bench([made_row(0, 8.0), quick]), run.bench, run).rows
    assert (kept.top1, kept.top1_drop, kept.scenarios) == (88.0, 2.0, served) and times(kept).p50 == 4.0
    assert kept.notes == ["another word", f"of {old.environment.time}: top-1, offline"]
    for row in (replace(quick, file_sha256="b" * 64), replace(quick, notes=["top-1 not measured: it failed"])):
        *_, kept = with_former(made_bench([made_row(0, 8.0), row]), run.bench, run).rows
        assert kept.top1 is None, "another file, or a failure that is one now"


def test_other_test_images_of_the_same_number_are_told_by_their_digest(tmp_path: Path) -> None:
    run, old = Run(tmp_path), made_bench([made_row(0)])
    assert old.data is not None
    for former, now, apart in ((None, "a", False), ("a", "a", False), ("a", "b", True)):
        records.write(run.bench, replace(old, data=replace(old.data, digest=former)))
        with_former(replace(old, data=replace(old.data, digest=now)), run.bench, run)
        assert run.bench.exists() != apart


def test_rows_of_another_gpu_go_and_one_that_ran_on_none_leaves_them(tmp_path: Path) -> None:
    run, plain = Run(tmp_path), made_bench([made_row(0)])
    for then, now, apart in (("A", "A", False), ("A", "B", True), (None, "B", False), ("A", None, False)):
        old, new = (replace(plain, environment=replace(plain.environment, gpu=gpu)) for gpu in (then, now))
        records.write(run.bench, old)
        with_former(new, run.bench, run)
        assert run.bench.exists() != apart, (then, now)


def test_int8_plans_stand_beside_int8_onnx_files_of_a_gpu(tmp_path: Path) -> None:
    run, plain = Run(tmp_path), made_bench([made_row(0)])
    int8 = replace(plain.settings, precisions=("fp32", "int8"))
    for engine, target, apart in (("trt", None, False), ("ort", "gpu", False), ("ort", None, True)):
        records.write(run.bench, replace(plain, settings=replace(int8, target="gpu")))
        new = replace(plain, settings=replace(int8, engines=(engine,), target=target))
        with_former(new, run.bench, run)
        assert run.bench.exists() != apart, (engine, target)


def test_a_digest_is_of_labels_and_files_wherever_they_lie(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    before = open_folder(folder).test_digest()
    assert open_folder(folder.rename(tmp_path / "moved")).test_digest() == before
    test = tmp_path / "moved" / "test"
    (test / "cat" / "00.png").rename(test / "dog" / "99.png")  # whose label was wrong
    relabelled = open_folder(tmp_path / "moved").test_digest()
    with (test / "dog" / "99.png").open("ab") as picture:
        picture.write(bytes(1))
    assert len({before, relabelled, open_folder(tmp_path / "moved").test_digest()}) == 3
