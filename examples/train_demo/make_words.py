"""The word list and what follows what, from the language model that ships with pocketsphinx (BSD licence).

python -m examples.train_demo.make_words: writes `words.txt` and `followers.npy` again; only needed to change them.
"""

import re
from pathlib import Path

import numpy as np
from pocketsphinx import Config, LogMath, NGramModel, get_model_path

from . import domain
from .sentences import FOLLOWERS, WORDS

COUNT, FOLLOWING = 1900, 32
# Letters, abbreviations, names of people and places, and what nobody wants to hear from a demo.
LEFT_OUT = frozenset(
    """
    b c d e f g h j k l m n o p q r s t u v w x y z al ad am app cd co com dc de dr dvd ed el em en eu fl gonna gotta hd hi ii
    iii im inc internet iq jr kinda la le los lotta mr mrs ms mid mph nfl ny pc pm pro re san se shall sr st tv tech uh uk um un
    us usa vs wanna york john david michael james paul tom joe mark george mccain bush obama clinton romney trump jesus christ
    christian christians muslim muslims islam islamic jewish jews catholic god gods israel iraq iran afghanistan china chinese
    japan japanese germany german russia russian mexico mexican canada canadian india indian africa african europe european
    france french england english british america american americans australia california texas florida ohio chicago boston
    washington philadelphia pennsylvania virginia francisco angeles carolina korea syria facebook google twitter youtube
    microsoft apple's shit shitty bullshit fuck fucked fucking bitch dick damn ass hell sex sexual sexy gay porn rape raped
    abortion suicide kill killed killing kills murder murdered drunk drug drugs weed gun guns terrorist terrorists terrorism
    bomb bombs racist racism hitler nazi dumb idiot idiots stupid sucks suck crap bastard black white whites blacks naked
    pregnant abuse abused victim victims dead death deaths die died dies dying war wars shoot shooting shot blood divorce
    lol aww yep nope ya yo huh ok okay hmm mm ah oh wow hey fb nba mlb cnn fbi cia gop republican republicans democrat
    democrats democratic congress senate
    """.split()
)


def main() -> None:
    folder = Path(get_model_path("en-us"))
    model = NGramModel(Config(), LogMath(), str(folder / "en-us.lm.bin"))
    spoken = {line.split()[0] for line in (folder / "cmudict-en-us.dict").read_text().splitlines()}
    plain = [w for w in spoken if re.fullmatch("[a-z]+", w) and w not in LEFT_OUT]
    common = sorted(plain, key=lambda w: (-model.prob([w]), w))[:COUNT]
    own = domain.vocabulary()
    words = [*common, *sorted(own - set(common))]
    WORDS.write_text("".join(w + "\n" for w in words))
    # Newest word first, as the model wants its history.
    likely = np.array([[model.prob([after, word]) for after in words] for word in words])
    np.save(FOLLOWERS, np.argsort(-likely, 1)[:, :FOLLOWING].astype(np.uint16))
    print(f"{len(words)} words, {FOLLOWING} followers of each")


if __name__ == "__main__":
    main()
