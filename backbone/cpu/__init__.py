"""What makes the encoder quick on a CPU: packed linear layers, models prepared for inference."""
