"""A network as the graph of one window, with all that is needed to run it elsewhere."""
