"""One training: the loop, its launch on Ray and its orderly stops; `distil` trains students."""
