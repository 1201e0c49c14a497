"""Banks of recorded instruments: soundfonts and folders of samples."""
