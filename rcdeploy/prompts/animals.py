"""The words for animals that captions are searched for (the paper's sec. J), in animals.txt beside this file.

The list was made from WordNet 3.0 by `python -m rcdeploy.prompts.animals`, and holds

- every noun whose most frequent meaning is an animal (animal.n.01 and what is below it, people left out): "bat" and
  "mouse" are in, "crane" (a man's name first) and "seal" (a closure) are not, but "harbor seal" is;
- every noun that means a food first and an animal second (salmon, chicken, lobster);
- EVERYDAY: animals that WordNet puts behind another meaning, though captions seldom mean the other (tiger: a bold man);
- not NO_ANIMALS: animals to WordNet, something else in captions (male, mount, drone).

Left out are phrases with a word of the list in them ("persian cat"), as they are found anyway. So "hot dog" is found
too: a caption too many costs the paired prompts little, one too few shows the student what it must not see. The words
left out for their other meanings are for the language model to find.
"""

from __future__ import annotations

from pathlib import Path

from rcdeploy_runtime.files import replacing

from .keywords import Keywords
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


def animal_words(wordnet: WordNet) -> list[str]:
    """Singulars and irregular plurals, in lower case, sorted: what animals.txt holds."""
    animals = wordnet.hyponyms("animal") - wordnet.hyponyms("hominid")
    found = {word.replace("_", " ") for word in EVERYDAY.split()}
    for word, offsets in wordnet.senses.items():
        first = wordnet.synsets[offsets[0]]
        is_animal = offsets[0] in animals and not first.is_instance
        if is_animal or (first.kind == "food" and any(offset in animals for offset in offsets)):
            found.add(word)
    found -= set(NO_ANIMALS.split())
    single = Keywords(word for word in found if " " not in word and "-" not in word)
    found = {word for word in found if word in single.words or single.find(word) is None}
    irregular = wordnet.irregular_plurals()
    return sorted(found | {form for word in found for form in irregular.get(word, [])})


def animals() -> Keywords:
    """The shipped list."""
    return Keywords.read(FILE)


def write_list(wordnet: WordNet, file: Path = FILE) -> None:
    """Writes animals.txt: WordNet's licence and the words."""
    head = "# Words for animals, made from WordNet by `python -m rcdeploy.prompts.animals`. WordNet's licence:\n#\n"
    with replacing(file) as beside:
        beside.write_text(head + "\n".join([*wordnet.licence(), *animal_words(wordnet)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_list(WordNet.open())
