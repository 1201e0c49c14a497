"""The stages of a song: decode, separate, segment, encode, one a file."""
