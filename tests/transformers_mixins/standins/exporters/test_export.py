"""Stand-in: transformers does not ship the tests of its ONNX and ExecuTorch exporters."""


class ExportTesterMixin:
    """Has no tests."""
