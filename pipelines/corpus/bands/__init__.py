"""Other bands for a vocal: another style, another harmony that carries the same melody."""
