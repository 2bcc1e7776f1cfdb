"""What an evaluation tells beyond its mean IoU: images, outlines, calibration, instances, confusions, intervals."""
