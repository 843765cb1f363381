"""A stand-in for Triton's ONNX Runtime backend, for tests only: the wheel that tests can install comes without the real one.

Triton calls it through its Python backend for every model whose platform is `onnxruntime_onnx`, so what is served is the
shipped directory itself. Triton's own core reads the configuration, schedules, batches, keeps versions and
speaks the protocols; only this file stands where C++ code stands in a real deployment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

ONNX_TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_FP16": "tensor(float16)", "TYPE_UINT8": "tensor(uint8)"}


class TritonPythonModel:
    """One instance of one version of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open `VERSION/model.onnx`; raises, so that Triton refuses the version, where it is not what the config says."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], config["default_model_filename"] or "model.onnx")
        options = onnxruntime.SessionOptions()
        threads = config["parameters"].get("intra_op_thread_count", {"string_value": "1"})
        options.intra_op_num_threads = int(threads["string_value"])
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's classes have no common ancestor below this
            raise triton.TritonModelException(f"{path} is not a readable model: {error}") from error
        self.outputs = [tensor["name"] for tensor in config["output"]]
        check(config["input"], self.session.get_inputs(), config["max_batch_size"])
        check(config["output"], self.session.get_outputs(), config["max_batch_size"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests that Triton's dynamic batcher put together as one batch, and share out the answer."""
        names = [tensor.name() for tensor in requests[0].inputs()]
        fed = {
            name: [triton.get_input_tensor_by_name(request, name).as_numpy() for request in requests] for name in names
        }
        sizes = [len(array) for array in fed[names[0]]]
        answers = self.session.run(self.outputs, {name: np.concatenate(arrays) for name, arrays in fed.items()})
        shares = [np.split(answer, np.cumsum(sizes)[:-1]) for answer in answers]
        return [
            triton.InferenceResponse(
                [triton.Tensor(name, share[i]) for name, share in zip(self.outputs, shares, strict=True)]
            )
            for i in range(len(requests))
        ]


def check(configured: list[dict[str, Any]], found: list[Any], max_batch_size: int) -> None:
    """Raise where names, types or shapes of the config are not the file's, as the real backend does."""
    in_file = {tensor.name: tensor for tensor in found}
    for tensor in configured:
        name, shape = tensor["name"], [int(size) for size in tensor["dims"]]
        if name not in in_file:
            raise triton.TritonModelException(f"the config has {name!r}, the file has {sorted(in_file)}")
        if ONNX_TYPES.get(tensor["data_type"]) != in_file[name].type:
            raise triton.TritonModelException(f"{name} is {in_file[name].type} in the file, not {tensor['data_type']}")
        shape_in_file = in_file[name].shape[1:] if max_batch_size else in_file[name].shape
        if shape != [size if isinstance(size, int) else -1 for size in shape_in_file]:
            raise triton.TritonModelException(f"{name} is {shape_in_file} in the file, not {shape}")
        if max_batch_size and isinstance(in_file[name].shape[0], int):
            raise triton.TritonModelException(f"the first dimension of {name} is fixed in the file")
