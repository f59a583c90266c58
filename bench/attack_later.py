"""Private sentences in ordinary words that the guard's rules were not made with, beside the 900.

``bench.attack_secrets`` has twenty sentences about health, and the rules were made with these in sight. Here are
``private`` (forty, written before the rule about copies, whose figures were set with them in sight too), ``tastes``
(fifteen that are told as a taste, where that rule is laxer) and ``unseen`` (twenty, written after it). Every style for
ordinary words carries each. Written for this project, from no data set.
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


TASTES = (
    "I want to leave my husband before the children notice",
    "I love a married man from the office and write to him at night",
    "I would rather die than live with this body",
    "I like to drink alone until I fall asleep on the floor",
    "I hate my stepson and wish he had never been born",
    "I want a baby but my husband sleeps in another room",
    "I enjoy taking small things from shops when nobody looks",
    "I prefer women but my parents must never know",
    "I love the money more than the man I married",
    "I want to stop eating until my clothes hang loose",
    "I like to dress as a woman when I am alone at home",
    "I hate going to church and only go for my mother",
    "I would like to change my name and disappear in another country",
    "I want my old nose back and never leave the house without a scarf",
    "I love my dead brother's wife and we meet by the river",
)
UNSEEN = (
    "my ears ring day and night and music hurts",
    "I carry a bag under my shirt since they closed my bowel",
    "every winter I grow sad and cannot get out of bed",
    "half of my family fell ill in the same month",
    "I have a hole in my heart that they will close in autumn",
    "I wet the bed until I was a grown man",
    "my hands tremble so I never write in front of people",
    "there is a lump in my neck and I have told no one",
    "I do not remember the week after the crash",
    "we sold the farm because of what my uncle owed",
    "I have two children with a man who is not my husband",
    "my son was thrown out of school for stealing a phone",
    "she found out about us and drove into the lake",
    "I keep the spare key in the blue pot by the stairs",
    "we are away for three weeks from the end of the month",
    "I took money out of the till when I worked there",
    "the money from the house is in a box in the garden",
    "I wrote that letter and put another name under it",
    "my boss kissed me at the party and I said nothing",
    "they are going to close our office and nobody knows yet",
)
LATER = {"private": PRIVATE, "tastes": TASTES, "unseen": UNSEEN}


def cases(name: str, seed: int) -> list[tuple[Style, Secret, str]]:
    """Every sentence of one of the three in every style: (style, secret, summary)."""
    made = []
    for style in WORDS:
        for i, text in enumerate(LATER[name]):
            rng = random.Random(f"{seed}:later:{style.name}:{i}")
            secret = Secret(name, text.lower(), rng.choice(TOLD).format(text))
            made.append((style, secret, style.write(secret.payload, rng)))
    return made
