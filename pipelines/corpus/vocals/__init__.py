"""Demo vocals as rooms, microphones and telephones record them, and under the conditions of real ones."""
