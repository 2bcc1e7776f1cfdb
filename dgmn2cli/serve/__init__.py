"""One network behind HTTP: an API whose answers are the files that `infer` writes, and a page."""
