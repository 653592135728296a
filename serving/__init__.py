"""Serves what ``export`` built."""

import os

# ONNX Runtime 1.29 and newer else tell Microsoft of the models that they load; it is read when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
