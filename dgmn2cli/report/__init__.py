"""HTML pages, charts and contact sheets that show results."""
