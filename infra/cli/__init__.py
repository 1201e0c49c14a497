"""The command line: `main`, what all rooms' commands share, and the commands that belong to no room."""
