"""A runtime for MLServer: models over HTTP and gRPC by the Open Inference Protocol, version 2.

    pip install 'hashinfer[serve]'
    mlserver start FOLDER

where FOLDER/model-settings.json is

    {"name": "digits", "implementation": "hashinfer.serving.HashinferModel",
     "parameters": {"uri": "./mnist-dyadic-64x.hnet", "extra": {"threads": 1}}}

`extra` holds the session's options: threads, max_memory, time_limit, memory_budget. The server, its batching, metrics
and health checks are MLServer's (https://mlserver.readthedocs.io).
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError, InvalidModelURI
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor
from mlserver.utils import get_model_uri

from hashinfer.errors import HashinferError
from hashinfer.session.choice import InferenceSession
from hashinfer.session.options import NodeArg

OPTIONS = ("threads", "max_memory", "time_limit", "memory_budget")
DATATYPES = {"bool": "BOOL", "float16": "FP16", "float": "FP32", "double": "FP64"} | {
    f"{kind}{bits}": f"{kind}{bits}".upper() for kind in ("uint", "int") for bits in (8, 16, 32, 64)
}
"""The protocol's names of ONNX's."""


class HashinferModel(MLModel):  # type: ignore[misc, unused-ignore]
    """One model file in one session, which all requests share; each runs in a thread of its own.

    Requests that do not fit the model are answered with status 400 and what was wrong.
    """

    async def load(self) -> bool:
        """Open the session. Raises InvalidModelURI where the settings name an option or a file that is none."""
        uri = await get_model_uri(self._settings, wellknown_filenames=["model.hnet", "model.onnx"])
        parameters = self._settings.parameters
        extra: dict[str, Any] = dict((parameters.extra if parameters else None) or {})
        unknown = set(extra) - set(OPTIONS)
        if unknown:
            raise InvalidModelURI(self.name, f"extra has {', '.join(sorted(unknown))}; known are {', '.join(OPTIONS)}")
        opened: Any = InferenceSession
        self._session = await asyncio.to_thread(lambda: opened(uri, **extra))
        self.inputs = [_metadata(value) for value in self._session.get_inputs()]
        self.outputs = [_metadata(value) for value in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the session on a request's inputs. Raises InferenceError for what does not fit."""
        names = [output.name for output in payload.outputs] if payload.outputs else None
        try:
            feed = {value.name: self._decoded(value) for value in payload.inputs}
            outputs = await asyncio.to_thread(self._session.run, names, feed)
        except HashinferError as error:
            raise InferenceError(str(error)) from None
        wanted = names or [value.name for value in self._session.get_outputs()]
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(n, np.asarray(v)) for n, v in zip(wanted, outputs, strict=True)],
        )

    async def unload(self) -> bool:
        """Close the session; requests that run end well."""
        self._session.close()
        return True

    @staticmethod
    def _decoded(value: Any) -> Any:
        try:
            return NumpyCodec.decode_input(value)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            text = f"input {value.name!r} is no {value.datatype} array of shape {value.shape}: {error}"
            raise InferenceError(text) from None


def _metadata(value: NodeArg) -> MetadataTensor:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = [d if isinstance(d, int) else -1 for d in value.shape]
    return MetadataTensor(name=value.name, datatype=DATATYPES.get(kind, "BYTES"), shape=shape)
