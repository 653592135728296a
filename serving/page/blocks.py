"""The page: its fields, and what happens when they are used."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from serving.client import Description, SamplingError
from serving.page.command_line import command_of
from serving.page.downloads import FORMATS, pack
from serving.page.drawing import FAILURES, CancelledError, Drawing, Drawn
from serving.page.pictures import tiles, what_is_seen
from serving.page.settings import LAST_SEED, MOST, Server, WrongSettingError, read_seed, read_settings, whole
from serving.picture_files import ARRAYS, SUFFIXES
from serving.writers.layout import LayoutError
from serving.writers.npz import NameClashError

WARNING = (
    '<p class="synthetic"><strong>Synthetic.</strong> Every picture here is drawn by a network, or found again by one. '
    "Not for diagnosis.</p>"
)
AT_ONCE = 8  # visitors for whom the page draws at the same time; the server queues too


def build(server: Server, url: str, folder: Path) -> gr.Blocks:
    """url: what the server is called in commands. folder: where downloads lie."""
    under_way: dict[str, Drawing] = {}

    def look(request: gr.Request) -> dict[Any, Any]:
        try:
            with server.client() as client:
                names = client.models()
        except SamplingError as error:
            return {model: gr.Dropdown(choices=[], value=None), about: refused(error)}
        wanted = request.query_params.get("model")
        chosen = wanted if wanted in names else next(iter(names), None)
        return {model: gr.Dropdown(choices=names, value=chosen)}

    def choose(name: str | None) -> Any:
        if not name:
            return gr.skip()
        try:
            with server.client() as client:
                described = client.describe(name)
        except SamplingError as error:
            return {about: refused(error)}
        *first, last = described.stages.values()
        condition = described.condition
        takes_files = condition is not None and not condition.is_label
        return {
            solver: _solvers(last),
            steps: _steps(last),
            mask_solver: _solvers(first[0] if first else None),
            mask_steps: _steps(first[0] if first else None),
            files: gr.File(value=None, visible=takes_files, label=_wanted(described)),
            labels: _labels(described),
            count: gr.Number(visible=not takes_files),
            about: _about(described),
        }

    def draw(request: gr.Request, *fields: Any) -> Iterator[dict[Any, Any]]:
        *asked, strength = fields
        session = str(request.session_hash)
        stop_drawing(request)
        try:
            drawing = Drawing(server, read_settings(*asked))
        except (WrongSettingError, SamplingError) as error:
            yield {status: refused(error)}
            return
        under_way[session] = drawing
        yield {stop: gr.Button(interactive=True), status: said("Asking the server")}
        try:
            for text in drawing.progress():
                yield {status: said(text)}
            drawn = drawing.result()
        except CancelledError as error:
            yield {status: said(str(error)), stop: gr.Button(interactive=False)}
            return
        except FAILURES as error:
            yield {status: refused(error), stop: gr.Button(interactive=False)}
            return
        finally:
            drawing.cancel()
            if under_way.get(session) is drawing:
                del under_way[session]
        yield {
            stop: gr.Button(interactive=False),
            state: drawn,
            gallery: gr.Gallery(value=tiles(drawn.samples, strength), selected_index=None),
            legend: what_is_seen(drawn.samples),
            status: said("\n".join([f"{len(drawn.samples)} samples are drawn", *drawn.notes])),
            command: command_of(drawn, url),
            **_provenance(drawn, 0),
            file: None,
        }

    def stop_drawing(request: gr.Request) -> None:
        if drawing := under_way.get(str(request.session_hash)):
            drawing.cancel()

    def advance(first: str, many: float | None, drawn: Drawn | None) -> dict[Any, Any]:
        """The first seed after those that are shown, or after those that would be."""
        try:
            after = len(drawn.samples) if drawn is not None else whole("samples", many) or 1
            return {seed: str(min(read_seed(first) + after, LAST_SEED))}
        except WrongSettingError as error:
            return {status: refused(error)}

    def paint(drawn: Drawn | None, strength: float) -> Any:
        return [] if drawn is None else tiles(drawn.samples, strength)

    def show(drawn: Drawn | None, chosen: gr.SelectData) -> Any:
        return gr.skip() if drawn is None else _provenance(drawn, chosen.index)

    def _provenance(drawn: Drawn, row: int) -> dict[Any, Any]:
        return {provenance: gr.JSON(value=drawn.samples.provenance[row], label=f"What made {drawn.samples.names[row]}")}

    def save(drawn: Drawn | None, kind: str) -> dict[Any, Any]:
        if drawn is None:
            return {status: refused("nothing is drawn yet")}
        try:
            return {file: str(pack(drawn, kind, folder))}
        except (LayoutError, NameClashError, OSError) as error:
            return {status: refused(error)}

    with gr.Blocks(title="medgen", analytics_enabled=False) as page:
        state = gr.State(None, time_to_live=3600)
        gr.Markdown("# medgen")
        gr.HTML(WARNING)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                model = gr.Dropdown([], label="Model", elem_id="model")
                about = gr.HTML(elem_id="about")
                files = gr.File(
                    visible=False, file_count="multiple", file_types=[*ARRAYS, *SUFFIXES], height=140, elem_id="files"
                )
                labels = gr.Dropdown(
                    [], label="Labels, which samples have in turn", multiselect=True, visible=False, elem_id="labels"
                )
                count = gr.Number(4, label=f"Samples, 1 to {MOST}", elem_id="count")
                seed = gr.Textbox("0", label="First seed", max_lines=1, elem_id="seed")
                with gr.Row():
                    mask_solver = gr.Dropdown([], label="Solver of the mask", visible=False, elem_id="mask_solver")
                    mask_steps = gr.Number(label="Steps of the mask", visible=False, elem_id="mask_steps")
                with gr.Row():
                    solver = gr.Dropdown([], label="Solver", visible=False, elem_id="solver")
                    steps = gr.Number(label="Steps", visible=False, elem_id="steps")
                with gr.Row():
                    go = gr.Button("Draw", variant="primary", elem_id="go", min_width=80)
                    onward = gr.Button("Next", elem_id="next", min_width=80)
                    stop = gr.Button("Cancel", interactive=False, elem_id="stop", min_width=80)
                again = gr.Button("Look for models again", size="sm", elem_id="again")
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(said(""), elem_id="status")
                gallery = gr.Gallery(
                    label="Samples", columns=4, format="png", object_fit="contain", elem_id="samples", height="auto",
                    buttons=["fullscreen"], interactive=False,
                )  # fmt: skip
                legend = gr.HTML(elem_id="legend")
                opacity = gr.Slider(0, 1, 0.4, label="Opacity of the mask over the image", elem_id="opacity")
                command = gr.Code(
                    label="The same again", language="shell", elem_id="command", interactive=False, wrap_lines=True
                )
                with gr.Row():
                    kind = gr.Dropdown(list(FORMATS), value="NPZ", label="Format", elem_id="kind", min_width=120)
                    pack_it = gr.Button("Make a file", elem_id="save", min_width=120)
                file = gr.File(label="Download", interactive=False, height=90, elem_id="file")
                provenance = gr.JSON(label="What made it", elem_id="provenance")

        asked = [model, count, seed, solver, steps, mask_solver, mask_steps, files, labels, opacity]
        drawing = {
            "fn": draw, "inputs": asked, "outputs": [state, gallery, legend, status, command, provenance, file, stop],
            "show_progress": "hidden", "concurrency_limit": AT_ONCE, "concurrency_id": "draw",
        }  # fmt: skip
        quiet = {"show_progress": "hidden", "queue": False}
        fields = [solver, steps, mask_solver, mask_steps, files, labels, count, about]
        page.load(look, None, [model, about])
        again.click(look, None, [model, about])
        model.change(choose, model, fields, show_progress="hidden", concurrency_limit=AT_ONCE)
        go.click(**drawing)
        seed.submit(**drawing)
        onward.click(advance, [seed, count, state], [seed, status], **quiet).success(**drawing)
        stop.click(stop_drawing, None, None, **quiet)
        opacity.release(paint, [state, opacity], gallery, show_progress="hidden")
        opacity.input(paint, [state, opacity], gallery, show_progress="hidden", trigger_mode="always_last")
        gallery.select(show, state, provenance, show_progress="hidden")
        pack_it.click(save, [state, kind], [file, status])
        page.unload(stop_drawing)
    for event in page.fns.values():
        event.api_visibility = "private"
    return page.queue()


def said(text: str) -> str:
    return f'<p role="status" aria-live="polite" style="white-space: pre-line">{html.escape(text)}</p>'


def refused(error: Exception | str) -> str:
    return f'<p role="alert" class="refused">{html.escape(str(error))}</p>'


def _solvers(ways: Any) -> Any:
    if ways is None:
        return gr.Dropdown(choices=[], value=None, visible=False)
    return gr.Dropdown(choices=list(ways.solvers), value=ways.solver, visible=True)


def _steps(ways: Any) -> Any:
    if ways is None:
        return gr.Number(value=None, visible=False)
    return gr.Number(value=ways.steps, visible=True, info=f"1 to {ways.most_steps}")


def _labels(described: Description) -> Any:
    condition = described.condition
    if condition is None or not condition.is_label:
        return gr.Dropdown(choices=[], value=[], visible=False)
    names = list(condition.labels) or [str(index) for index in range(condition.classes or 0)]
    return gr.Dropdown(choices=names, value=names[:1], visible=True)


def _wanted(described: Description) -> str:
    condition = described.condition
    if condition is None or condition.is_label:
        return "Files"
    size = " x ".join(map(str, condition.shape[1:]))
    if condition.classes is None:
        return f"Pictures of {size}: grey PNG or PGM, or an NPZ or NPY"
    return f"Masks of {size}, {condition.classes} classes: the pairs.npz of other samples, or an NPY"


def _about(described: Description) -> str:
    names = list(described.stages)
    stages = f"A chain: {' draws the mask, '.join(map(html.escape, names))} the image under it." if names[1:] else ""
    one_pass = "Draws in one pass: there are no steps." if set(described.stages.values()) == {None} else ""
    told = " ".join(filter(None, (stages, one_pass)))
    return f"<p>{told}</p>" if told else ""
