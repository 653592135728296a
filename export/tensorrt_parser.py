"""ONNX graphs as the parser of TensorRT reads them, which needs neither a plan nor, for RTX, a GPU."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import onnx

from export import BuildError
from export.tensorrt_callbacks import make_log
from export.tensorrt_libraries import LIBRARIES, Library

if TYPE_CHECKING:
    import tensorrt as trt

Made = TypeVar("Made")


class Reading:
    """A network that was read from a graph, and what it lives on."""

    def __init__(self, library: Library, name: str, graph: onnx.ModelProto) -> None:
        """Raises BuildError if the library cannot read the graph, called ``name``; it names the nodes.

        EngineError if it cannot start here.
        """
        module = library.load()
        library.check_host()
        self.log = make_log(module)
        module.init_libnvinfer_plugins(self.log, "")
        self.builder: trt.Builder = made(lambda: module.Builder(self.log), self.log, library)
        self.network = self.builder.create_network(library.network_flags())
        parser: trt.OnnxParser = made(lambda: module.OnnxParser(self.network, self.log), self.log, library)
        if not parser.parse(graph.SerializeToString()):
            raise BuildError(f"{library.title} cannot read the {name} graph: {parser_errors(parser)}")
        self._parser = parser  # the network reads its weights
        self.log.errors.clear()


def made(make: Callable[[], Made], log: Any, library: Library) -> Made:
    """What a constructor of the library gives; where it gives nothing, the bindings say TypeError and no more."""
    try:
        return make()
    except TypeError:
        why = "; ".join(log.errors) or "it does not say why"
        raise BuildError(f"{library.title} does not start here: {why}") from None


def parser_errors(parser: "trt.OnnxParser") -> str:
    errors = [parser.get_error(k) for k in range(parser.num_errors)]
    return "; ".join(f"node {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors)


def installed_library() -> Library:
    """One that reads graphs here: TensorRT for RTX if it is installed, which needs no GPU for it, else TensorRT.

    Raises BuildError if none is.
    """
    problems = []
    for library in reversed(LIBRARIES.values()):
        try:
            library.load()
        except BuildError as error:
            problems.append(str(error))
        else:
            return library
    raise BuildError("; ".join(problems))


def read(graph: onnx.ModelProto, name: str, library: Library) -> None:
    """Raise BuildError if the library does not read the graph as any of its users would: without our plugins."""
    Reading(library, name, graph)
