"""What onnxruntime runs on integers: small models with quantizers around one operator, and what becomes of them."""
