"""Training: the published recipe, its state on disk, and several processes working as one."""
