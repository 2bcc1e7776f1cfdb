"""Images and data sets: found, decoded, checked, transformed."""
