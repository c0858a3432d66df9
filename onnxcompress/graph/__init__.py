"""Queries and edits on onnx_ir graphs."""
