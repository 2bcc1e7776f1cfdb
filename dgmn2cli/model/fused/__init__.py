"""The same network rewritten for inference."""
