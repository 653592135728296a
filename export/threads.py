"""What ONNX Runtime cuts among its threads in such a way that a row's last bits depend on its batch.

A build sees that only if it has as many threads as the machine that serves, and only in some of all batches.
"""

import math

import onnx

from export.sums import shapes_of

# Of ONNX Runtime 1.31. Threads get parts of a batch, and where a part ends is computed as in `packets`.
CUT = ("Celu", "Elu", "Log", "Mish", "Selu", "Softplus")
WHOLE = 4096  # values that one thread was seen to compute alone; of 7,168 two have parts
# Of convolutions, channels that do not fill blocks of four: of one picture threads get parts, whose sizes say how
# products are added up; of several they get whole ones. Below eight channels there is another kernel.
FEW, BLOCK = 8, 4


def are_cut(graph: onnx.ModelProto, most: int) -> bool:
    """Whether there is such an operator, where batches have up to ``most`` rows."""
    shapes = shapes_of(graph) | {weight.name: [*weight.dims] for weight in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type in CUT:
            shape = shapes.get(node.input[0])
            if shape is None or math.prod(shape[1:]) * most > WHOLE:
                return True
        if node.op_type == "Conv":
            weight = shapes.get(node.input[1])
            if weight is None or (weight[1] >= FEW and weight[1] % BLOCK):
                return True
    return False
