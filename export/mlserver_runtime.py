"""An MLServer runtime for an ONNX classifier; `wmlc ship --to mlserver` puts it beside the file."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    """Answers with the outputs of the ONNX file that the settings' `uri` names."""

    async def load(self) -> bool:
        file = Path(self.settings.parameters.uri)
        if not file.is_absolute() and self.settings._source:
            file = Path(self.settings._source).parent / file
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = (self.settings.parameters.extra or {}).get("intra_op_threads", 0)
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        fed = {given.name: NumpyCodec.decode_input(given) for given in payload.inputs}
        expected = {value.name: value.type for value in self._session.get_inputs()}
        if fed.keys() != expected.keys():
            raise ValueError(f"expected the inputs {', '.join(expected)}, got {', '.join(fed)}")
        names = [value.name for value in self._session.get_outputs()]
        outputs = zip(names, self._session.run(names, fed), strict=True)
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(name, values) for name, values in outputs],
        )
