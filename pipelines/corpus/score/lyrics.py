"""Words to sing: a small lexicon in an ARPAbet-like spelling, and lines of a wanted number of syllables."""

from dataclasses import dataclass

from pipelines.chance import Chance

# part of speech: words, each `text phones`; '.' parts phones, '-' parts syllables.
_LEXICON = {
    "start": "and AE.N.D|oh OW|when W.EH.N|so S.OW|but B.AH.T|if IH.F|hey HH.EY",
    "who": "I AY|you Y.UW|we W.IY|they DH.EY",
    "may": "will W.IH.L|can K.AE.N|could K.UH.D|would W.UH.D|never N.EH-V.ER|always AO.L-W.EY.Z|only OW.N-L.IY",
    "verb": "run R.AH.N|fall F.AO.L|know N.OW|feel F.IY.L|see S.IY|sing S.IH.NG|wait W.EY.T|dream D.R.IY.M|follow F.AA-L.OW|need N.IY.D"
    "|hold HH.OW.L.D|leave L.IY.V|remember R.IY-M.EH.M-B.ER|believe B.IY-L.IY.V|find F.AY.N.D|carry K.AE-R.IY|love L.AH.V|call K.AO.L",
    "prep": "in IH.N|to T.UW|for F.AO.R|with W.IH.TH|under AH.N-D.ER|over OW-V.ER|through TH.R.UW|into IH.N-T.UW|beyond B.IY-Y.AA.N.D",
    "the": "the DH.AH|my M.AY|your Y.AO.R|our AA.R|a AH|this DH.IH.S|every EH.V-R.IY|another AH-N.AH-DH.ER",
    "kind": "long L.AO.NG|blue B.L.UW|golden G.OW.L-D.AH.N|lonely L.OW.N-L.IY|summer S.AH-M.ER|silver S.IH.L-V.ER|old OW.L.D|new N.UW"
    "|broken B.R.OW-K.AH.N|quiet K.W.AY-AH.T|morning M.AO.R-N.IH.NG|wild W.AY.L.D",
    "noun": "night N.AY.T|light L.AY.T|day D.EY|way W.EY|heart HH.AA.R.T|fire F.AY-ER|road R.OW.D|rain R.EY.N|river R.IH-V.ER|sky S.K.AY"
    "|name N.EY.M|window W.IH.N-D.OW|moon M.UW.N|sea S.IY|home HH.OW.M|water W.AO-T.ER|city S.IH-T.IY|song S.AO.NG|memory M.EH-M.ER-IY"
    "|sound S.AW.N.D|stars S.T.AA.R.Z|town T.AW.N|dawn D.AO.N",
    "last": "tonight T.UW-N.AY.T|again AH-G.EH.N|away AH-W.EY|forever F.AO.R-EH-V.ER|now N.AW|alone AH-L.OW.N|below B.IY-L.OW"
    "|today T.UW-D.EY",
    "cry": "oh OW|ooh UW|ah AA|yeah Y.EH|la L.AA|hey HH.EY",
}
_NEXT = {
    "begin": ("who", "start", "the", "cry"),
    "start": ("who",),
    "who": ("verb", "may"),
    "may": ("verb",),
    "verb": ("the", "prep", "last"),
    "prep": ("the",),
    "the": ("noun", "kind"),
    "kind": ("noun",),
    "noun": ("prep", "start", "last"),
    "last": ("start", "cry"),
    "cry": ("who", "cry"),
}
_MAY_END = ("noun", "last", "cry", "verb")


@dataclass(frozen=True)
class Syllable:
    text: str
    phones: tuple[str, ...]


@dataclass(frozen=True)
class Word:
    text: str
    syllables: tuple[Syllable, ...]


def _parse(entry: str) -> Word:
    text, phones = entry.split(" ")
    parts = [tuple(part.split(".")) for part in phones.split("-")]
    size = len(text) / len(parts)
    cuts = [text[round(i * size) : round((i + 1) * size)] for i in range(len(parts))]
    marks = [cut + ("-" if i < len(parts) - 1 else "") for i, cut in enumerate(cuts)]
    return Word(text, tuple(Syllable(mark, part) for mark, part in zip(marks, parts, strict=True)))


WORDS: dict[str, tuple[Word, ...]] = {kind: tuple(_parse(entry) for entry in line.split("|")) for kind, line in _LEXICON.items()}


def line(syllables: int, chance: Chance) -> tuple[Word, ...]:
    """A line of exactly that many syllables, by a random walk over parts of speech that steps back from dead ends."""

    def extend(kind: str, left: int, used: tuple[str, ...]) -> tuple[Word, ...] | None:
        if left == 0:
            return () if kind in _MAY_END else None
        kinds = sorted(_NEXT[kind], key=lambda _: chance.uniform())
        for following in kinds:
            for word in sorted(WORDS[following], key=lambda _: chance.uniform())[:6]:
                if word.text not in used and len(word.syllables) <= left:
                    rest = extend(following, left - len(word.syllables), (*used, word.text))
                    if rest is not None:
                        return (word, *rest)
        return None

    found = extend("begin", syllables, ())
    return found if found is not None else tuple(chance.choice(WORDS["cry"]) for _ in range(syllables))


def title(words: tuple[Word, ...]) -> str:
    """A song's title: the end of its hook, from the last short word that can open a title."""
    cries = {word.text for word in WORDS["cry"]}
    texts = [word.text for word in words]
    while len(texts) > 1 and texts[-1] in cries:
        texts.pop()
    opening = [word.text for kind in ("the", "kind", "prep", "who") for word in WORDS[kind]]
    starts = [i for i, text in enumerate(texts[:-1]) if text in opening]
    begin = starts[-2] if len(starts) > 1 else (starts[0] if starts else 0)
    return " ".join(text.capitalize() for text in texts[begin:])
