"""Models and weights for other programs: ONNX, safetensors."""
