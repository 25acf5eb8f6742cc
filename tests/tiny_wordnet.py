"""A WordNet of twenty synsets, in WordNet's own file format."""

from __future__ import annotations

from pathlib import Path

from rcdeploy.prompts.wordnet import LEXICOGRAPHER_FILES

# words, lexicographer file, what it is, gloss; the order of a word's meanings is the order here
SYNSETS: list[tuple[list[str], str, list[str], str]] = [
    (["entity"], "Tops", [], "what exists"),
    (["thing"], "Tops", ["entity"], "a separate entity"),
    (["animal", "beast"], "Tops", ["thing"], "a living being that moves"),
    (["cat"], "animal", ["animal"], "a feline"),
    (["hominid"], "animal", ["animal"], "a primate"),
    (["human", "human_being"], "animal", ["hominid"], "us"),
    (["Persian_cat"], "animal", ["cat"], "a long-haired cat"),
    (["wolf"], "animal", ["animal"], "a wild canine"),
    (["male"], "animal", ["animal"], "one of a sex"),
    (["crane", "lifting_machine"], "artifact", ["thing"], "lifts"),
    (["sealing_wax", "seal"], "artifact", ["thing"], "closes letters"),
    (["crane"], "animal", ["animal"], "a large wader"),
    (["harbor_seal"], "animal", ["animal"], "a small seal"),
    (["teapot"], "artifact", ["thing"], "pours tea"),
    (["small_teapot"], "artifact", ["teapot", "thing"], "for one cup"),
    (["salmon"], "food", ["thing"], "flesh of the fish"),
    (["salmon"], "animal", ["animal"], "the fish"),
    (["justice"], "attribute", ["entity"], "being just"),
    (["oaf"], "person", ["thing"], "(offensive) a clumsy person"),
    (["baker"], "person", ["thing"], "bakes"),
    (["Baker"], "person", ["@i baker"], "a man of that name"),
]


def write_wordnet(folder: Path, synsets: list[tuple[list[str], str, list[str], str]] = SYNSETS) -> Path:
    """data.noun, index.noun and noun.exc as WordNet's: offsets are the places of the lines."""
    folder.mkdir(parents=True, exist_ok=True)
    licence = "  1 A licence in a few words.  \n  2 It says who may copy.  \n"
    offsets: list[int] = []
    for _ in range(2):  # the first time to learn how long the lines are
        at, lines, senses = len(licence), list[str](), dict[str, list[int]]()
        of = {words[0]: offset for (words, *_), offset in reversed(list(zip(synsets, offsets, strict=False)))}
        made: list[int] = []
        for words, kind, above, gloss in synsets:
            number = 3 if kind == "Tops" else 4 + LEXICOGRAPHER_FILES.index(kind)
            pointers = [("@i", name[3:]) if name.startswith("@i ") else ("@", name) for name in above]
            pointers.append(("~", "entity"))
            shown = " ".join(f"{symbol} {of.get(name, 0):08} n 0000" for symbol, name in pointers)
            spelt = " ".join(f"{word} 0" for word in words)
            made.append(at)
            line = f"{at:08} {number:02} n {len(words):02x} {spelt} {len(pointers):03} {shown} | {gloss}  \n"
            lines.append(line)
            at += len(line)
            for word in words:
                senses.setdefault(word.lower(), []).append(made[-1])
        offsets = made
    (folder / "data.noun").write_text(licence + "".join(lines))
    index = [
        f"{word} n {len(where)} 2 @ ~ {len(where)} 0 {' '.join(f'{o:08}' for o in where)}  \n"
        for word, where in sorted(senses.items())
    ]
    (folder / "index.noun").write_text(licence + "".join(index))
    (folder / "noun.exc").write_text("wolves wolf\ncranes_of_old crane_of_old\n")
    return folder
