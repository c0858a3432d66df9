"""onnxruntime sessions, the processes they live in, and their timing."""
