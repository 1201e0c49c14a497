"""Sound of a demo song: its voice, its instruments and its mix."""
