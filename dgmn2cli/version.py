"""The version, for whatever is below the package's own front door."""

__version__ = "0.1.0"
