from serving.triton.model import BundleModel


class TritonPythonModel(BundleModel):
    """Serves the bundle beside this file."""
