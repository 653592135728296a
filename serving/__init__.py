"""Serves what ``export`` built."""

import os
import sys

# ONNX Runtime 1.29 and newer else tell Microsoft of the models that they load; it is read when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO else tells Google Analytics that it was imported; where this module is missing it does without.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python takes None for "not there"
