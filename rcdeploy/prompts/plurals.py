"""English plurals: one for prompts that templates write, all accepted ones for words that captions are searched for."""

from __future__ import annotations

import re

IRREGULAR = {
    "child": "children", "person": "people", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
    "louse": "lice", "ox": "oxen", "die": "dice", "sheep": "sheep", "deer": "deer", "aircraft": "aircraft",
    "series": "series", "species": "species", "cactus": "cacti",
}  # fmt: skip
"""last words whose plural no rule makes, as templates write them"""
NOT_MEN = ("human", "german", "roman", "norman", "ottoman", "shaman", "talisman", "caiman", "cayman")


def plural(noun: str) -> str:
    """A plural of a noun or phrase, made of its last word.

    Templates write it into prompts, so that any change of it is one of templates.VERSION.
    """
    last = re.split("[ -]", noun)[-1]
    if last in IRREGULAR:
        return noun.removesuffix(last) + IRREGULAR[last]
    if last.endswith("man") and last not in NOT_MEN:
        return noun[:-2] + "en"
    if last.endswith("fish"):
        return noun
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    if re.search(r"(?:[lr]f|[nw]ife|life|eaf|oaf)$", noun):  # wolf, knife, loaf; roof and cliff take an s
        return re.sub(r"fe?$", "ves", noun)
    return noun + "s"


_OTHERS = {
    "child": "children", "person": "people persons", "foot": "feet", "tooth": "teeth", "goose": "geese", "ox": "oxen",
    "die": "dice", "mongoose": "mongooses", "quiz": "quizzes", "fez": "fezzes", "genus": "genera", "corpus": "corpora",
    "wildlife": "", "cherub": "cherubs cherubim", "chrysalis": "chrysalises chrysalides", "sphinx": "sphinxes sphinges",
    "passerby": "passersby", "beef": "beefs beeves", "axis": "axes",
}  # fmt: skip
"""plurals that no rule below makes"""
_UNCHANGED = """
sheep deer moose bison swine cattle livestock poultry offspring aircraft spacecraft hovercraft series species means
scissors trousers pants jeans glasses sunglasses spectacles binoculars tongs pliers tights shorts pajamas pyjamas
headquarters barracks chassis rendezvous kudos people police wildfowl waterfowl
"""
_MEN = re.compile(r"(?:man|woman)$")
_F_TO_VES = re.compile(r"(?:calf|half|elf|wolf|leaf|sheaf|loaf|thief|knife|wife|life|dwarf|scarf|wharf|hoof)$")
_F_EITHER = re.compile(r"(?:dwarf|scarf|wharf|hoof)$")
_O_TO_OES = """
buffalo cargo dingo dodo domino echo flamingo fresco go grotto halo hero mango mosquito motto potato tomato tornado
torpedo veto volcano zero
"""
_CH_AS_K = re.compile(r"(?:stomach|monarch|patriarch|matriarch|eunuch|epoch|loch)$")
_LATIN = {
    "us": ("i", "cactus fungus octopus hippopotamus platypus nucleus radius stimulus bacillus alumnus locus narcissus"),
    "um": ("a", "aquarium terrarium bacterium ovum stratum spectrum memorandum medium stadium gymnasium symposium"),
    "on": ("a", "phenomenon criterion automaton"),
    "a": ("ae", "alga larva pupa antenna vertebra amoeba medusa nebula formula hydra mamma"),
    "ex": ("ices", "index vertex vortex apex"),
    "ix": ("ices", "matrix appendix helix"),
}
"""endings with a second plural, for the words that have it"""
_OF = re.compile(r"(.+?)([ -](?:of|in|on|de|la|and|the)[ -].+)").fullmatch


def plurals(noun: str) -> list[str]:
    """Every accepted plural of a singular noun or phrase; none for words that have no other form.

    The last word takes it, or that before a preposition: "harbor seals", "birds of prey".
    """
    if split := _OF(noun):
        return [f"{form}{split[2]}" for form in plurals(split[1])]
    start, last = re.fullmatch(r"(.*[ -])?(.*)", noun).groups(default="")  # type: ignore[union-attr]
    return [start + form for form in _of_word(last)]


def _of_word(word: str) -> list[str]:
    if word in _OTHERS:
        return _OTHERS[word].split()
    if word in _UNCHANGED.split():
        return []
    if word.endswith("mouse") or (word.endswith("louse") and word != "blouse"):
        return [word[:-4] + "ice"]
    if _MEN.search(word) and word not in NOT_MEN:
        return [word[:-2] + "en"]
    if word.endswith("fish"):
        return [word + "es"]  # and unchanged
    if _F_TO_VES.search(word):
        ves = re.sub(r"fe?$", "ves", word)
        return [ves, word + "s"] if _F_EITHER.search(word) else [ves]
    forms = [_regular(word)]
    if word in _O_TO_OES.split():
        forms.append(word + "es")
    if word.endswith("eau"):
        forms.append(word + "x")
    for ending, (other, words) in _LATIN.items():
        if word in words.split():
            forms.append(word.removesuffix(ending) + other)
    return forms


def _regular(word: str) -> str:
    if word.endswith("sis") and len(word) > 4:
        return word[:-2] + "es"
    if re.search(r"(?:s|x|z|ch|sh)$", word) and not _CH_AS_K.search(word):
        return word + "es"
    if re.search(r"(?:[^aeiou]|qu)y$", word):
        return word[:-1] + "ies"
    return word + "s"
