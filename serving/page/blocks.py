"""The page: its fields, and what happens when they are used."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from serving.client import Description, SamplingError
from serving.page.command_line import command_of
from serving.page.downloads import FORMATS, pack
from serving.page.drawing import FAILURES, LOOK_SECONDS, CancelledError, Drawing, Drawn
from serving.page.pictures import has_mask_over, tiles, what_is_seen
from serving.page.settings import (
    KEPT_SECONDS,
    LAST_SEED,
    MOST,
    Limits,
    Server,
    WrongSettingError,
    read_seed,
    read_settings,
    whole,
)
from serving.picture_files import ARRAYS, SUFFIXES
from serving.sampling.ways import Ways
from serving.writers.layout import LayoutError
from serving.writers.npz import NameClashError

WARNING = (
    '<p class="synthetic"><strong>Synthetic.</strong> Every picture here is drawn by a network, or found again by one, '
    "but for those that you give. Not for diagnosis.</p>"
)
# What is read aloud is the change of an element that stays: Gradio replaces all inside of its own.
READ_ALOUD = "() => document.getElementById('status').setAttribute('role', 'status')"
HINT = "Draw shows samples here. A seed gives the same sample every time."
AGAIN_SECONDS = 2.0  # until a server is looked for that does not answer, or is loading
PASSING = (404, 502, 503, 504)  # states of a server that is being started, ended or asked too much
# Of what is asked for the last two; Gradio's server leaves out of names what a shell might take for something else.
NAMES_OF_FILES = "(...asked) => [...asked.slice(0, -1), (asked.at(-2) || []).map((file) => file.orig_name)]"
DISABLE_TWO = "() => [0, 1].map(() => ({__type__: 'update', interactive: false}))"


def build(server: Server, url: str, folder: Path) -> gr.Blocks:
    """url: what the server is called in commands. folder: where downloads lie."""
    under_way: dict[str, Drawing] = {}

    def look(request: gr.Request, current: str | None) -> dict[Any, Any]:
        try:
            with server.client() as client:
                names = client.models()
        except SamplingError as error:
            return {about: refused(error), anew: gr.Timer(active=True)}
        wanted = current or request.query_params.get("model")
        chosen = wanted if wanted in names else next(iter(names), None)
        return {model: gr.Dropdown(choices=names, value=chosen), **choose(request, chosen)}

    def choose(request: gr.Request, name: str | None) -> dict[Any, Any]:
        if not name:
            return {about: refused("the server has no model"), anew: gr.Timer(active=True)}
        try:
            with server.client() as client:
                described = client.describe(name)
        except SamplingError as error:
            return {about: refused(error), anew: gr.Timer(active=error.status in PASSING)}
        *first, last = described.stages.values()
        condition = described.condition
        takes_files = condition is not None and not condition.is_label
        may_draw = gr.Button(interactive=session_of(request) not in under_way)
        return {
            solver: _solvers(last, " of the image" if first else ""),
            steps: _steps(last, " of the image" if first else ""),
            mask_solver: _solvers(first[0] if first else None, " of the mask"),
            mask_steps: _steps(first[0] if first else None, " of the mask"),
            files: gr.File(value=None, visible=takes_files, label=_wanted(described)),
            labels: _labels(described),
            count: gr.Number(visible=not takes_files),
            about: _about(described),
            anew: gr.Timer(active=False),
            fields_of: Limits(name, last, first[0] if first else None),
            go: may_draw,
            onward: may_draw,
        }

    def begin(request: gr.Request, limits: Limits | None, *fields: Any) -> dict[Any, Any]:
        stop_drawing(request)
        try:
            settings = read_settings(*fields)
            (limits or Limits("", None, None)).check(settings)
            under_way[session_of(request)] = Drawing(server, settings)
        except (WrongSettingError, SamplingError) as error:
            return {status: refused(error)}
        return {status: said("Asking the server"), **_drawing(True)}

    def look_on(request: gr.Request, strength: float) -> dict[Any, Any]:
        drawing = under_way.get(session_of(request))
        if drawing is None:
            return _drawing(False)
        if not drawing.has_ended():
            return {status: said(drawing.so_far())}
        under_way.pop(session_of(request), None)
        try:
            drawn = drawing.result()
        except CancelledError as error:
            return {status: said(str(error)), **_drawing(False)}
        except FAILURES as error:
            return {status: refused(error), **_drawing(False)}
        return {
            state: drawn,
            shown: gr.Column(visible=True),
            gallery: gr.Gallery(value=tiles(drawn.samples, strength), selected_index=None),
            legend: what_is_seen(drawn.samples),
            opacity: gr.Slider(visible=has_mask_over(drawn.samples)),
            status: said(drawn.told()),
            command: command_of(drawn, url),
            **_provenance(drawn, 0),
            file: gr.File(value=None, visible=False),
            **_drawing(False),
        }

    def _drawing(goes_on: bool) -> dict[Any, Any]:
        may_draw, may_stop = gr.Button(interactive=not goes_on), gr.Button(interactive=goes_on)
        return {go: may_draw, onward: may_draw, stop: may_stop, clock: gr.Timer(active=goes_on)}

    def stop_drawing(request: gr.Request) -> None:
        if drawing := under_way.get(session_of(request)):
            drawing.cancel()

    def leave(request: gr.Request) -> None:
        stop_drawing(request)
        under_way.pop(session_of(request), None)

    def advance(first: str, many: float | None, drawn: Drawn | None) -> dict[Any, Any]:
        """The first seed after those that are shown, or after those that would be; others were asked for in vain, or
        typed, and are next.
        """
        try:
            begun = read_seed(first)
            if drawn is None:
                begun += whole("samples", many) or 1
            elif begun == drawn.settings.seed:
                begun += len(drawn.samples)
            return {seed: str(min(begun, LAST_SEED))}
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
            return {file: gr.File(value=str(pack(drawn, kind, folder)), visible=True)}
        except (LayoutError, NameClashError, OSError) as error:
            return {status: refused(error)}

    with gr.Blocks(title="medgen", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 6, KEPT_SECONDS)) as page:
        state = gr.State(None, time_to_live=KEPT_SECONDS)
        fields_of = gr.State(None)
        names = gr.JSON(visible=False)
        clock = gr.Timer(LOOK_SECONDS, active=False)
        anew = gr.Timer(AGAIN_SECONDS, active=False)
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
                    go = gr.Button("Draw", variant="primary", interactive=False, elem_id="go", min_width=80)
                    onward = gr.Button("Next", interactive=False, elem_id="next", min_width=80)
                    stop = gr.Button("Cancel", interactive=False, elem_id="stop", min_width=80)
                again = gr.Button("Look for models again", size="sm", elem_id="again")
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(said(HINT), elem_id="status")
                with gr.Column(visible=False) as shown:
                    gallery = gr.Gallery(
                        label="Samples", show_label=False, format="png", object_fit="contain", elem_id="samples",
                        height="auto", buttons=["fullscreen"], interactive=False,
                    )  # fmt: skip
                    legend = gr.HTML(elem_id="legend")
                    opacity = gr.Slider(0, 1, 0.4, label="Opacity of the mask over the image", elem_id="opacity")
                    command = gr.Code(
                        label="The command that draws the same again", elem_id="command", interactive=False,
                        wrap_lines=True, lines=1, show_line_numbers=False, buttons=["copy"],
                    )  # fmt: skip
                    with gr.Row():
                        kind = gr.Dropdown(list(FORMATS), value="NPZ", label="Format", elem_id="kind", min_width=120)
                        pack_it = gr.Button("Make a file", elem_id="save", min_width=120)
                    file = gr.File(label="Download", interactive=False, visible=False, elem_id="file")
                    provenance = gr.JSON(label="What made it", elem_id="provenance")

        # Nothing goes through Gradio's queue: its stream to the browser loses an event that begins as another ends.
        quiet = {"show_progress": "hidden", "queue": False}
        fields = [solver, steps, mask_solver, mask_steps, files, labels, count, about, anew, fields_of, go, onward]
        asked = [fields_of, model, count, seed, solver, steps, mask_solver, mask_steps, labels, files, names]
        busy = [status, go, onward, stop, clock]
        result = [state, shown, gallery, legend, opacity, command, provenance, file]
        page.load(None, js=READ_ALOUD)
        page.load(look, model, [model, *fields], **quiet)
        for looking in (again.click, anew.tick):
            looking(look, model, [model, *fields], **quiet)
        model.input(None, None, [go, onward], js=DISABLE_TWO)
        model.input(choose, model, fields, trigger_mode="always_last", **quiet)
        go.click(begin, asked, busy, js=NAMES_OF_FILES, **quiet)
        seed.submit(None, js="() => document.getElementById('go').click()")
        onward.click(advance, [seed, count, state], [seed, status], **quiet).success(
            begin, asked, busy, js=NAMES_OF_FILES, **quiet
        )
        clock.tick(look_on, opacity, [*busy, *result], **quiet)
        stop.click(stop_drawing, None, None, **quiet)
        opacity.release(paint, [state, opacity], gallery, **quiet)
        opacity.input(paint, [state, opacity], gallery, trigger_mode="always_last", **quiet)
        gallery.select(show, state, provenance, **quiet)
        pack_it.click(save, [state, kind], [file, status], queue=False)
        page.unload(leave)
    for event in page.fns.values():
        event.api_visibility = "private"
    return page


def session_of(request: gr.Request) -> str:
    return str(request.session_hash)


def said(text: str) -> str:
    return f'<p style="white-space: pre-line">{html.escape(text)}</p>'


def refused(error: Exception | str) -> str:
    return f'<p role="alert" class="refused">{html.escape(str(error))}</p>'


def _solvers(ways: Ways | None, whose: str) -> Any:
    if ways is None:
        return gr.Dropdown(choices=[], value=None, visible=False)
    return gr.Dropdown(choices=list(ways.solvers), value=ways.solver, label=f"Solver{whose}", visible=True)


def _steps(ways: Ways | None, whose: str) -> Any:
    if ways is None:
        return gr.Number(value=None, visible=False)
    return gr.Number(value=ways.steps, label=f"Steps{whose}", visible=True, info=ways.allowed_steps)


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
