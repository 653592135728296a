"""The field for files of one's own."""

from pathlib import Path
from typing import Any

import gradio as gr

from serving.page.settings import Upload

class Uploads(gr.File):
    """Gradio's own, but for the names: Gradio leaves out what a shell might take for something else."""

    is_template = True  # for the browser it is Gradio's

    def preprocess(self, payload: Any) -> Any:
        given = super().preprocess(payload)
        return given and [
            Upload(Path(place), called(file.orig_name) or Path(place).name)
            for place, file in zip(given, payload, strict=True)
        ]
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

def called(name: str | None) -> str:
    """What a visitor calls a file, "" if no file can be called that."""
    told = Path(name or "").name
    return told if told.isprintable() and len(told.encode()) <= 255 else ""
