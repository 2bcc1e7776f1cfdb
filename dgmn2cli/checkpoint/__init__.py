"""Model files: formats, safe reading, strict loading, conversion."""
