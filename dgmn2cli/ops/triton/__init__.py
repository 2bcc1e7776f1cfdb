"""The deformable operators as Triton kernels."""
