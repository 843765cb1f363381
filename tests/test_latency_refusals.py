"""What 'wmlc latency' cannot measure. Nothing is opened; takes a second."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from wmlc.bench.latency.config import LatencyConfig
from wmlc.bench.latency.files import Writers
from wmlc.bench.latency.session import LONGEST_NAME, EngineClock
from wmlc.cli import main
from wmlc.compress.config import settle
from wmlc.errors import InputError
from wmlc.files import write_json


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("--engine", "tflite", "--engine must be one of "),
        ("--precision", "fp8", "--precision must be one of fp32, fp16, int8, got 'fp8'"),
        ("--threads", "0", "--threads must be from 1 to the "),
        ("--threads", "100000", "--threads must be from 1 to the "),
        ("--batch", "0", "--batch must be from 1 to "),
        ("--seconds", "0", "--seconds must be above 0, got 0"),
        ("--seconds", "nan", "--seconds must be above 0, got nan"),
        ("--device", "tpu", "--device must be one of auto, cpu, cuda, got 'tpu'"),
        ("--image-size", "0", "--image-size must be at least 1, got 0"),
        ("--classes", "-1", "--classes must be at least 1, got -1"),
        ("--divisor", "0", "--divisor must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_one_line(option: str, value: str, said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["latency", option, value, "--out", str(tmp_path)])
    assert result.exit_code == 1, result.output
    assert result.output.startswith(f"Error: {said}") and result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_table_of_a_long_name_has_one_that_a_file_may_have(tmp_path: Path) -> None:
    def file_of(arch_args: str) -> Path:
        network: Any = SimpleNamespace(
            arch="net.py:make", arch_args=arch_args, input_shape=(3, 8, 8), classes=10, divisor=8
        )
        return clock.file_of(network)

    with EngineClock(LatencyConfig(), Writers(lambda *_: None, lambda file, _: file), tmp_path) as clock:
        assert file_of("depth=3").name == "net.py-make-depth-3-3x8x8-10-classes-multiples-of-8.json"
        long = [file_of(f"words={'ä' * 300}{k}") for k in range(2)]
        assert long[0] != long[1] and long[0] == file_of(f"words={'ä' * 300}0")
        for file in long:
            assert len(file.name.encode()) <= LONGEST_NAME + len(".json")
            write_json(file, {})  # and what is written beside it meanwhile


def test_torch_runs_what_was_trained() -> None:
    with pytest.raises(
        InputError, match="the engine torch runs networks as they are trained, in fp32, and not in int8"
    ):
        LatencyConfig(engine="torch", precision="int8")


@pytest.mark.parametrize("other", [{"batch": 64}, {"engine": "openvino", "threads": 2}, {"latency_precision": "int8"}])
def test_an_engine_that_nothing_is_measured_in_is_no_setting(other: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        settle(other)
    assert str(refused.value) == (
        f"{', '.join(other)}: of the engine that a latency is measured in, and no latency is asked for; leave it out, or "
        f"give max_latency_ms or ratio_of latency" + ("; images a step are batch_size" if "batch" in other else "")
    )
    assert settle({**other, "ratio_of": "latency"})


def test_what_is_paid_out_is_of_milliseconds() -> None:
    with pytest.raises(InputError) as refused:
        settle({"paid_out": 1.0})
    assert str(refused.value) == (
        "paid_out holds milliseconds against MACs, and no latency is asked for; leave it out, or give max_latency_ms or "
        "ratio_of latency"
    )
    with pytest.raises(InputError, match="paid_out must be above 0, got 0"):
        settle({"paid_out": 0, "ratio_of": "latency"})
    assert settle({"paid_out": 1, "max_latency_ms": [2.0]}).paid_out == 1.0


@pytest.mark.parametrize("other", [{}, {"ratio_of": "latency"}])
def test_sensitivity_is_of_a_start(other: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        settle({**other, "budget": "sensitivity"})
    assert str(refused.value) == (
        "budget sensitivity is by what the answers of a start lose; give a start, or another budget"
    )
    settle({**other, "start": "net.pt", "budget": "sensitivity"})
    with pytest.raises(InputError, match="trunk_ratio is cut before anything is measured; leave it out, or choose"):
        settle({"start": "net.pt", "budget": "sensitivity", "trunk_ratio": 0.1})
