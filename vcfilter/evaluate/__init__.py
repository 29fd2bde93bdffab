"""Fair comparison with x264, x265 and SVT-AV1: real files, decoded planes, one report."""
