"""Bars and loops that styles are made of: chord loops as numerals, and what bass and chords do in a bar (notation: styles.py)."""

Groove = dict[str, str]
BassPattern = tuple[tuple[int, int, str], ...]
ChordPattern = tuple[tuple[int, int, str], ...]

BACKBEAT = "0000900000009000"
CHORD_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I V vi IV", "vi IV I V", "I vi IV V", "I IV vi V", "I iii IV V", "IV V iii vi", "I ii vi IV"),
    "minor": ("i bVI bIII bVII", "i iv bVI V", "i bVII bVI bVII", "i bIII bVII iv", "bVI bVII i bIII", "i v bVI bVII"),
}
ROCK_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I bVII IV I", "I IV V IV", "I V IV IV", "vi IV I V", "I bIII IV I"),
    "minor": ("i bVII bVI bVII", "i bIII bVII iv", "i bVI bVII i", "i iv i bVII", "i bVI iv V"),
}
DANCE_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("vi IV I V", "IV I V vi", "I V vi iii", "ii IV vi V"),
    "minor": ("i bVI bIII bVII", "bVI bVII i i", "i bIII bVI bVII", "iv bVI i bVII"),
}
FOLK_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I IV I V", "I V vi IV", "I iii IV I", "I IVadd9 I Vsus4", "vi IV I V"),
    "minor": ("i bVII i v", "i bIII bVII i", "i iv bVII bIII", "i bVI bIII bVII"),
}
LATIN_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I IV V IV", "ii7 V7 I7 vi7", "I vi ii7 V7", "IV V I vi"),
    "minor": ("i bVII bVI V", "i iv V7 i", "iv7 bVII bIII V7", "i V7 i iv"),
}
SEVENTH_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I7 vi7 ii7 V", "IV7 iii7 vi7 V", "I7 IV7 vi7 V", "vi7 ii7 V I"),
    "minor": ("i7 iv7 bVI7 V", "i7 bVI7 bIII bVII", "i7 bVII bVI7 v7", "iv7 i7 bVI7 V"),
}
BLUES_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("Id7 IVd7 Id7 Vd7", "Id7 Id7 IVd7 Vd7", "Id7 vid7 iid7 Vd7", "IVd7 Id7 Vd7 Id7"),
    "minor": ("i7 iv7 i7 Vd7", "i7 i7 iv7 bVI7", "i7 bVI7 Vd7 i7", "iv7 i7 bVI7 Vd7"),
}
GOSPEL_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I Id7 IV iv", "I iii IV V", "I vi ii7 Vd7", "IV I ii7 Vd7", "I IIId7 vi IV"),
    "minor": ("i bVI bIII V", "i iv i Vd7", "i bVII bVI Vd7", "bVI bIII iv i"),
}
FUNK_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("Id7 Id7 IVd7 Id7", "ii7 Vd7 ii7 Vd7", "Id7 bVII IVd7 Id7", "I7 ii7 iii7 ii7"),
    "minor": ("i7 i7 iv7 i7", "i7 iv7 i7 iv7", "i7 bVII7 bVI7 Vd7", "i7 bIII iv7 i7"),
}
COUNTRY_LOOPS: dict[str, tuple[str, ...]] = {
    "major": ("I IV I V", "I I IV V", "I V IV I", "IV I V I", "I vi IV V"),
    "minor": ("i bVII bVI bVII", "i bIII bVII i", "i iv i V", "i bVI bIII bVII"),
}

HELD: ChordPattern = ((0, 16, "c"),)
HALVES: ChordPattern = ((0, 8, "c"), (8, 8, "c"))
QUARTERS: ChordPattern = ((0, 4, "c"), (4, 4, "c"), (8, 4, "c"), (12, 4, "c"))
PUSHED: ChordPattern = ((0, 6, "c"), (6, 6, "c"), (12, 4, "c"))
EIGHTHS: ChordPattern = tuple((step, 2, "c" if step % 4 == 0 else "t") for step in range(0, 16, 2))
STRUM: ChordPattern = ((0, 4, "d"), (4, 2, "d"), (6, 2, "u"), (8, 2, "d"), (10, 2, "u"), (12, 2, "d"), (14, 2, "u"))
ISLAND: ChordPattern = ((0, 4, "d"), (4, 2, "d"), (6, 4, "u"), (10, 2, "u"), (12, 2, "d"), (14, 2, "u"))
SKANK: ChordPattern = ((2, 2, "c"), (6, 2, "c"), (10, 2, "c"), (14, 2, "c"))
CHARLESTON: ChordPattern = ((0, 3, "c"), (6, 3, "c"), (10, 2, "t"))

HELD_3: ChordPattern = ((0, 12, "c"),)
WALTZ: ChordPattern = ((4, 4, "t"), (8, 4, "t"))
WALTZ_FULL: ChordPattern = ((0, 4, "c"), (4, 4, "t"), (8, 4, "t"))
ROLLED: ChordPattern = ((0, 12, "d"),)
SIX_STRUM: ChordPattern = ((0, 4, "d"), (4, 2, "u"), (6, 4, "d"), (10, 2, "u"))
SIX_TRIPLETS: ChordPattern = tuple((step, 2, "c" if step % 6 == 0 else "t") for step in range(0, 12, 2))
SCRATCH: ChordPattern = ((0, 1, "c"), (3, 1, "t"), (6, 1, "c"), (7, 1, "t"), (10, 1, "c"), (12, 1, "t"), (14, 1, "c"))
BOOM_CHICK: ChordPattern = ((4, 3, "t"), (12, 3, "t"))
TRAIN_STRUM: ChordPattern = ((0, 2, "d"), (2, 2, "u"), (4, 2, "d"), (6, 2, "u"), (8, 2, "d"), (10, 2, "u"), (12, 2, "d"), (14, 2, "u"))

# Steps a bar to patterns that any style may borrow.
COMMON_CHORDS: dict[int, tuple[ChordPattern, ...]] = {
    16: (HELD, HALVES, QUARTERS, PUSHED, EIGHTHS),
    12: (HELD_3, WALTZ_FULL, ROLLED),
}

B_HELD: BassPattern = ((0, 8, "R"), (8, 6, "R"), (14, 2, "A"))
B_EIGHTHS: BassPattern = (*((step, 2, "R") for step in range(0, 14, 2)), (14, 2, "A"))
B_POP: BassPattern = ((0, 3, "R"), (3, 3, "R"), (6, 2, "R"), (8, 4, "R"), (12, 2, "F"), (14, 2, "A"))
B_OCTAVES: BassPattern = tuple((step, 2, "R" if step % 4 == 0 else "O") for step in range(0, 16, 2))
B_SOUL: BassPattern = ((0, 3, "R"), (3, 1, "R"), (6, 2, "O"), (8, 2, "R"), (11, 1, "F"), (12, 2, "F"), (14, 2, "A"))
B_WALK: BassPattern = ((0, 4, "R"), (4, 4, "T"), (8, 4, "F"), (12, 4, "A"))
B_TWO: BassPattern = ((0, 7, "R"), (8, 6, "F"), (14, 2, "A"))
B_TUMBAO: BassPattern = ((0, 5, "R"), (6, 2, "F"), (8, 3, "R"), (12, 2, "O"), (14, 2, "A"))
B_WALTZ: BassPattern = ((0, 7, "R"), (8, 4, "F"))
B_WALTZ_WALK: BassPattern = ((0, 4, "R"), (4, 4, "T"), (8, 4, "A"))
B_SIX: BassPattern = ((0, 5, "R"), (6, 4, "R"), (10, 2, "A"))
B_SIX_HELD: BassPattern = ((0, 6, "R"), (6, 6, "F"))
B_FUNK: BassPattern = ((0, 2, "R"), (3, 1, "R"), (6, 1, "O"), (7, 1, "R"), (10, 1, "F"), (11, 1, "O"), (14, 1, "F"), (15, 1, "A"))
B_FUNK_ONE: BassPattern = ((0, 3, "R"), (4, 1, "O"), (7, 1, "F"), (8, 2, "R"), (11, 1, "R"), (13, 1, "F"), (14, 2, "A"))
B_BOOM: BassPattern = ((0, 6, "R"), (8, 6, "F"))
B_BOOM_WALK: BassPattern = ((0, 4, "R"), (4, 4, "R"), (8, 4, "F"), (12, 4, "A"))
