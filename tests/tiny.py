"""A bundle small enough to build in every test: two convolutions that know t, inside the step contract; no torch."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from serving.bundle import MANIFEST, Condition, EngineFile, Manifest, Output, file_digest, seal
from serving.engines.onnxruntime import machine
from serving.sampling.solvers import COLUMNS, Schedule

OPSET = 18
HIDDEN = 8
LABELS = ("background", "LV", "MYO", "RV")
LINEAR = Schedule(kind="linear", num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction="epsilon")
DESCENT = Schedule(kind="descent", num_train_timesteps=1000, beta_start=0.0, beta_end=0.0, prediction="gradient")
FLOW = Schedule(kind="flow", num_train_timesteps=1000, beta_start=0.0, beta_end=0.0, prediction="velocity")

STEP = """
<ir_version: 9, opset_import: ["": {opset}]>
step ({state} sample, {state} history_1, {state} history_2, {state} history_3,
      {state} noise, float[B,12] coeffs{condition}) => ({state} sample_next, {state} prediction) {{
  columns = Reshape(coeffs, column_shape)
  {columns} = Split <axis = 1, num_outputs = 12> (columns)
  t_row = Reshape(t, t_shape)
  angle = Mul(t_row, frequencies)
  sine = Sin(angle)
  cosine = Cos(angle)
  embedding = Concat <axis = 1> (sine, cosine)
  shift = Gemm <transB = 1> (embedding, time_weight, time_bias)
  shift_column = Reshape(shift, shift_shape)
  {see}
  first = Conv <pads = [1, 1, 1, 1]> (seen, first_weight, first_bias)
  normal = InstanceNormalization (first, norm_scale, norm_bias)
  shifted = Add(normal, shift_column)
  hidden = Tanh(shifted)
  out = Conv <pads = [1, 1, 1, 1]> (hidden, last_weight, last_bias)

  px = Mul(p, sample)
  qout = Mul(q, out)
  estimate = Add(px, qout)
  x0 = Clip(estimate, minus_one, one)
  mx0 = Mul(m, x0)
  nout = Mul(n, out)
  prediction = Add(mx0, nout)
  ax = Mul(a, sample)
  bx0 = Mul(b, x0)
  cout = Mul(c, out)
  d1h1 = Mul(d1, history_1)
  d2h2 = Mul(d2, history_2)
  d3h3 = Mul(d3, history_3)
  snoise = Mul(s, noise)
  sample_next = Sum(ax, bx0, cout, d1h1, d2h2, d3h3, snoise)
}}
"""

FINISH = """
<ir_version: 9, opset_import: ["": {opset}]>
finish ({state} sample) => (uint8[B,1,{size}] mask, float[B,1,{size}] image) {{
  first, last = Split <axis = 1> (sample, halves)
  is_lesion = Greater(first, zero)
  mask = Cast <to = 2> (is_lesion)
  half = Div(last, two)
  shifted = Add(half, a_half)
  image = Clip(shifted, zero, one)
}}
"""

FINISH_IMAGE = """
<ir_version: 9, opset_import: ["": {opset}]>
finish ({state} sample) => (float[B,1,{size}] image) {{
  half = Div(sample, two)
  shifted = Add(half, a_half)
  image = Clip(shifted, zero, one)
}}
"""

FINISH_LATENT = """
<ir_version: 9, opset_import: ["": {opset}]>
finish ({state} sample) => (float[B,1,{size}] image) {{
  larger = ConvTranspose <strides = [{factor}, {factor}]> (sample, decoder_weight)
  half = Div(larger, two)
  shifted = Add(half, a_half)
  image = Clip(shifted, zero, one)
}}
"""

FINISH_MASK = """
<ir_version: 9, opset_import: ["": {opset}]>
finish ({state} sample) => (uint8[B,1,{size}] mask) {{
  largest = ArgMax <axis = 1> (sample)
  mask = Cast <to = 2> (largest)
}}
"""


def write_tiny_bundle(
    folder: Path,
    *,
    model: str = "tiny",
    sample_shape: tuple[int, int, int] = (2, 16, 16),
    condition: Condition | None = None,
    noise_channels: int | None = None,
    notices: tuple[str, ...] = (),
    max_batch: int = 8,
    schedule: Schedule | None = LINEAR,
    spacing: tuple[float, float] | None = None,
) -> Path:
    """Write a bundle into ``folder`` (the bundle's own, made if need be) and return it.

    Two channels give the outputs "mask" and "image", one channel "image" alone, more a "mask" of as many classes
    alone; under a condition that is so many times larger than the state, it is an "image" of the condition's size.
    Without a schedule there is no step. A label is added to what the step's convolutions see.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = condition.shape[1:] if condition and not condition.is_label else sample_shape[1:]
    factor = height // sample_shape[1]
    graphs = {"finish": _finish(sample_shape, factor)}
    if schedule is not None:
        graphs["step"] = _step(sample_shape, factor, condition)
    for name, graph in graphs.items():
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, folder / f"{name}.onnx")
    shape = (1, height, width)
    labels = LABELS[: sample_shape[0]] if sample_shape[0] > 2 else ("background", "lesion")
    mask = Output("mask", "uint8", shape, low=0, high=len(labels) - 1, labels=labels, spacing=spacing)
    image = Output("image", "float32", shape, low=0.0, high=1.0, labels=(), spacing=spacing)
    defaults = {"flow": "euler", "descent": "heavy_ball", "diffusion": "dpmpp_2m"}
    solver = None if schedule is None else defaults[schedule.process]
    manifest = Manifest(
        model=model,
        preset="tiny",
        sample_shape=sample_shape,
        noise_channels=sample_shape[0] if noise_channels is None else noise_channels,
        condition=condition,
        outputs=(image,) if factor > 1 else {1: (image,), 2: (mask, image)}.get(sample_shape[0], (mask,)),
        schedule=schedule,
        default_solver=solver,
        default_steps=0 if schedule is None else 4,
        notices=notices,
        max_batch=max_batch,
        precision="fp32",
        engines={name: EngineFile(f"{name}.onnx", file_digest(folder / f"{name}.onnx")) for name in graphs},
        target={"name": "onnx", "opset": OPSET, "rows_are_independent": True, "seen_on": machine()},
        parity={},
        checkpoint={},
        tools={},
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    seal(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _step(shape: tuple[int, int, int], factor: int, condition: Condition | None) -> onnx.ModelProto:
    channels, height, width = shape
    sides = f"[{factor}, {factor}]"
    kind = "uint8" if condition is None or condition.classes else "float"
    given = f", {kind}[B,1,{factor * height},{factor * width}] condition" if condition else ""
    see = f"""mask = Cast <to = 1> (condition)
  small = AveragePool <kernel_shape = {sides}, strides = {sides}> (mask)
  seen = Concat <axis = 1> (sample, small)"""
    if condition is None:
        see = "seen = Identity(sample)"
    elif condition.is_label:
        given = ", int64[B,1] condition"
        see = """label = Cast <to = 1> (condition)
  level = Reshape(label, label_shape)
  seen = Add(sample, level)"""
    text = STEP.format(
        opset=OPSET,
        state=f"float[B,{channels},{height},{width}]",
        columns=", ".join(COLUMNS),
        condition=given,
        see=see,
    )
    random = np.random.default_rng(20)
    is_label = condition is not None and condition.is_label
    seen = channels + (condition is not None and not is_label)
    return _with_constants(
        text,
        **({"label_shape": np.array([0, 1, 1, 1])} if is_label else {}),
        column_shape=np.array([0, 12, 1, 1]),
        t_shape=np.array([0, 1]),
        shift_shape=np.array([0, HIDDEN, 1, 1]),
        frequencies=np.geomspace(1, 1e-3, 4)[None],
        time_weight=random.normal(size=(HIDDEN, 8)),
        time_bias=random.normal(size=HIDDEN),
        first_weight=random.normal(size=(HIDDEN, seen, 3, 3)),
        first_bias=random.normal(size=HIDDEN),
        norm_scale=random.normal(size=HIDDEN),
        norm_bias=random.normal(size=HIDDEN),
        last_weight=random.normal(size=(channels, HIDDEN, 3, 3)) / 6,
        last_bias=random.normal(size=channels) / 6,
        minus_one=np.array(-1.0),
        one=np.array(1.0),
    )


def _finish(shape: tuple[int, int, int], factor: int) -> onnx.ModelProto:
    channels, height, width = shape
    finish = FINISH_LATENT if factor > 1 else {1: FINISH_IMAGE, 2: FINISH}.get(channels, FINISH_MASK)
    size = f"{factor * height},{factor * width}"
    text = finish.format(opset=OPSET, state=f"float[B,{channels},{height},{width}]", size=size, factor=factor)
    if finish is FINISH_MASK:
        return _with_constants(text)
    constants = {"zero": np.array(0.0), "one": np.array(1.0), "two": np.array(2.0), "a_half": np.array(0.5)}
    if finish is FINISH_LATENT:
        weight = np.random.default_rng(21).normal(size=(channels, 1, factor, factor))
        constants["decoder_weight"] = weight
    elif channels == 2:
        constants["halves"] = np.array([1, 1])
    return _with_constants(text, **constants)


def _with_constants(text: str, **constants: NDArray) -> onnx.ModelProto:
    graph = onnx.parser.parse_model(text)
    for name, value in constants.items():
        kept = value if value.dtype == np.int64 else value.astype(np.float32)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(kept, name))
    return graph
