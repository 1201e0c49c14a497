"""Demo vocals as they are recorded in rooms and by phones, and the listening set made of them."""
