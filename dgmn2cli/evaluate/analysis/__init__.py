"""What an evaluation tells beyond its mean IoU: images, boundaries, calibration, instances, confusions, intervals."""
