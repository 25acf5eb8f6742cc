"""Words for animals that captions are searched for (the paper's sec. J), in animals.txt beside this file.

The list was made from WordNet 3.0 by `python -m rcdeploy.prompts.animals`, and holds

- every noun whose most frequent meaning is an animal (animal.n.01 and what is below it, people left out): "bat" and
  "mouse" are in, "crane" (a man's name first) and "seal" (a closure) are not, but "harbor seal" is;
- every noun that means a food first and an animal second (salmon, chicken, lobster);
- EVERYDAY: animals that WordNet puts behind another meaning, though captions seldom mean the other (tiger: a bold man);
- not NO_ANIMALS: animals to WordNet, something else in captions (male, mount, drone);
- as exceptions, phrases with a word of the list in them that never mean an animal: those that WordNet knows as plants
  alone (tiger lily), and NO_ANIMAL_PHRASES (hot dog).

Left out are phrases with a word of the list in them ("persian cat"), as that word finds them. In doubt a phrase is no
exception ("dog collar", "teddy bear"): a caption too many costs the paired prompts little, one too few shows the
student what it must not see. The words left out for their other meanings are for the language model to find.
"""

from __future__ import annotations

from pathlib import Path

from rcdeploy_runtime.files import replacing

from .keywords import Keywords
from .plurals import plurals
from .wordnet import WordNet

FILE = Path(__file__).with_suffix(".txt")
EVERYDAY = """
adder albatross alligator alpaca amphibian badger beaver bighorn boa bobtail bunny canary canine caribou chameleon
chihuahua chinchilla cod coon cub cuckoo dalmatian dodo doe donkey emu ewe fauna fawn gibbon gopher grub guinea_pig gull
hammerhead heron herring hippo hog humpback jackass kitty leopard livestock loon lynx manta mink mite mole mongrel
muskrat onager orangutan ostrich otter piranha primate pussycat quail raccoon roach roundworm samoyed scallop scorpion
shrew shrimp skunk sloth slug sparrow thoroughbred thrush tiger tuna turtle vicuna vixen warbler wasp watchdog weasel
whale wildcat wildlife wolverine wren yak yellow_jacket
"""
NO_ANIMALS = """
abortus allice allis billy brant brent buckskin by-catch bycatch charger cob cochin cooter cotswold dominick dorking
drone dun egger embryo entire exmoor feeder female fetus foetus giant grubby hind launce liza lookdown lotte male
margate mate mina mollie molly mount mudder pacer pembroke poler prancer purebred queen rasher remount ridley slater
spawner stayer steamer stocker stray tusseh tusser tussah tussore tussur young
"""
MISSPELT = "araglis cercariiae gemboks gembucks"
"""plurals in WordNet's list"""
NO_ANIMAL_PHRASES = (
    "hot dog", "chili dog", "chilli dog", "corn dog", "hush puppy", "welsh rabbit", "ants on a log", "cold duck",
    "bear claw", "monkey bread", "goose bump", "goose pimple", "computer mouse", "wireless mouse", "optical mouse",
    "gaming mouse", "bluetooth mouse", "usb mouse", "mouse pad", "mouse mat", "mouse button", "mouse cursor",
    "mouse and keyboard", "keyboard and mouse", "monkey wrench", "monkey bar", "alligator clip", "crocodile clip",
    "bulldog clip", "butterfly valve", "butterfly knife", "butterfly stroke", "butterfly chair", "crow's nest",
    "bull's eye", "bull market", "bear market", "pig iron", "fly ash", "swan song", "fly fishing", "bird's eye view",
    "volkswagen beetle", "vw beetle", "vw bug", "ford mustang", "dodge viper", "shelby cobra", "ac cobra",
    "fiat panda", "chevrolet impala", "chevy impala", "sunbeam tiger",
)  # fmt: skip


def animal_words(wordnet: WordNet) -> list[str]:
    """Singulars in lower case, sorted."""
    animals = wordnet.hyponyms("animal") - wordnet.hyponyms("hominid")
    words = {word.replace("_", " ") for word in EVERYDAY.split()}
    for word, offsets in wordnet.senses.items():
        first = wordnet.synsets[offsets[0]]
        is_animal = offsets[0] in animals and not first.is_instance
        if is_animal or (first.kind == "food" and any(offset in animals for offset in offsets)):
            words.add(word)
    words -= set(NO_ANIMALS.split())
    single = Keywords(word for word in words if " " not in word and "-" not in word)
    return sorted(word for word in words if word in single.forms or single.find(word) is None)


def animal_exceptions(wordnet: WordNet, words: list[str]) -> list[str]:
    """Phrases that contain one of the words but mean no animal, sorted."""
    keywords = Keywords(words)
    plants = (
        word
        for word, offsets in wordnet.senses.items()
        if len(word.replace("-", " ").split()) > 1
        and word.replace("-", " ") not in keywords.forms
        and {wordnet.synsets[offset].kind for offset in offsets} in ({"plant"}, {"plant", "food"})
    )
    return sorted(phrase for phrase in {*plants, *NO_ANIMAL_PHRASES} if keywords.find(phrase))


def animal_entries(wordnet: WordNet) -> list[str]:
    """The lines of animals.txt: words, then exceptions.

    Plurals follow a word where WordNet knows some that no rule makes; a comma alone says that it has none.
    """
    words = animal_words(wordnet)
    irregular = wordnet.irregular_plurals()
    spellings = {word for synset in wordnet.synsets.values() for word in synset.words}
    entries = []
    for word in words:
        forms = plurals(word)
        more = [p for p in irregular.get(word, []) if p not in (word, *forms) and p not in MISSPELT.split()]
        if _is_scientific(word, spellings):
            entries.append(f"{word},")
        else:
            entries.append(", ".join([word, *forms, *more]) if more else word)
    return [*entries, *(f"!{phrase}" for phrase in animal_exceptions(wordnet, words))]


def _is_scientific(word: str, spellings: set[str]) -> bool:
    """Whether a phrase is a binomial: "Tinca tinca", but not "Persian cat", whose last word is a noun by itself."""
    last = word.split(" ")[-1]
    return last != word and word not in spellings and last not in spellings


def animals() -> Keywords:
    """The shipped list."""
    return Keywords.read(FILE)


def write_list(wordnet: WordNet, file: Path = FILE) -> None:
    """Writes animals.txt: WordNet's licence and the entries."""
    head = "# Words for animals, made from WordNet by `python -m rcdeploy.prompts.animals`. WordNet's licence:\n#\n"
    with replacing(file) as beside:
        beside.write_text(head + "\n".join([*wordnet.licence(), *animal_entries(wordnet)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_list(WordNet.open())
