"""The sliding-window procedure, and networks ready for images."""
