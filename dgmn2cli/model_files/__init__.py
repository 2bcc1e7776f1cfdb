"""Owns what is done with model files as such: saying what one is, and converting it."""
