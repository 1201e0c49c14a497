"""One training: config, loop, state, launch on Ray, ranks and orderly stops; `distil` trains students."""
