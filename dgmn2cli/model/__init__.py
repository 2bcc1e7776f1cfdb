"""The networks: attention, backbone, heads, segmentor, and the safe way from a file to weights."""
