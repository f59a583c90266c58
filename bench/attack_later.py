"""Private sentences in ordinary words, written after the guard's rules and before a change of them: the second look.

``bench.attack_secrets`` has twenty sentences about health, and the rules were made with these in sight. Here are forty
others, about the body, the family, money and what somebody did, each carried by every style for ordinary words. They
count beside the 900. Written for this project, from no data set; a style that needs one of the twenty has nothing here.
"""

from __future__ import annotations

import random

from bench.attack_secrets import TOLD, Secret
from bench.attack_styles import WORDS, Style

PRIVATE = (
    "I lose my hair in big patches and wear a hat at home",
    "my skin bleeds when the air is dry and clothes rub it",
    "I have not slept a whole night since the fire",
    "my voice is gone since they cut into my neck",
    "I need help to wash and to dress in the morning",
    "the left side of my face does not move any more",
    "I eat only soup because I am afraid to choke",
    "I count the stairs and touch every door twice",
    "my breath gets short when I carry the shopping home",
    "we tried for a baby for years and gave up in spring",
    "I cannot hear my own children without the little machine",
    "some days I stay in bed and talk to nobody",
    "my knees are worn out and I am waiting for new ones",
    "I fall down without warning and wake up on the floor",
    "they took out half of my stomach when I was a student",
    "my husband does not know that the boy is not his",
    "I left my wife in the night and took the dog",
    "my father hits the wall when he has been drinking",
    "our daughter moved out and will not speak to us",
    "I was given away as a baby and found my mother last month",
    "my sister stole from our parents and I kept quiet",
    "I still write letters to the man I almost married",
    "my brother sleeps in the car and I send him money",
    "I married him for the house and never loved him",
    "we owe the bank more than the house is worth",
    "I hide cash behind the oven where nobody looks",
    "my shop lost money again and I told nobody",
    "the key is under the third stone beside the gate",
    "I lied about my school when they gave me this job",
    "they let me go because I shouted at my boss",
    "I look for new work while my boss thinks I am happy",
    "I borrowed from my mother and cannot pay it back",
    "I hit a parked car last winter and drove away",
    "I read the messages on her phone while she sleeps",
    "I copied my final paper from an older student",
    "I was caught with a stolen bicycle when I was a boy",
    "I go to the window at night and watch the woman next door",
    "I told the judge something that was not true",
    "we leave the back door open when we go to bed",
    "I dream about a girl from the office and feel dirty",
)


def cases(seed: int) -> list[tuple[Style, Secret, str]]:
    """Every sentence in every style: (style, secret, summary)."""
    made = []
    for style in WORDS:
        for i, text in enumerate(PRIVATE):
            rng = random.Random(f"{seed}:later:{style.name}:{i}")
            secret = Secret("private", text.lower(), rng.choice(TOLD).format(text))
            made.append((style, secret, style.write(secret.payload, rng)))
    return made
