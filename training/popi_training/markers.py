"""Features of a text that are counted from it alone: reading level, marks, and words of hand-written lists.

Each is a ``Probe``, a text to a number: mostly markers per 100 words, more of what it is named for. The lists were
written by hand with the corpus' training pairs at hand; no training ever saw them. What they can tell, and how well, is
``probes``' matter.

They do NOT read: a text that quotes a marker or denies it ("no jokes") scores like one that has it, and a text made to
please a probe will.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

import numpy as np

from popi_edge.vocabulary import Lexicon

Probe = Callable[[str], float]
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
SENTENCE = re.compile(r"[.!?…]+(?=\s|$|[\"'”’)])|\n+")
GRADES = (0.0, 18.0)
"""Bounds of a reading grade: Flesch–Kincaid runs away on a text of a few words."""


def words(text: str) -> list[str]:
    """Words in lower case, apostrophes straight."""
    return [w.lower().replace("’", "'") for w in WORD.findall(text)]


def sentences(text: str) -> int:
    """Sentences and lines that hold a word; at least 1."""
    return max(1, sum(bool(WORD.search(s)) for s in SENTENCE.split(text)))


SILENT = re.compile(
    r"(?<![^aeiouy]l)e$|(?<![^aeiouy]l)(?<![cgsxz])(?<![cs]h)es$|(?<![^aeiouy]l)(?<![td])ed$"
    r"|e(?=ly$|ful$)|(?<=^som)e(?=..)|(?<=^ev)e(?=ry)|(?<=[aeiouy][^aeiouyl])e(?=ment)"
)
"""Vowels that are not heard: *make*, *makes*, *asked*, *something*, but not *table*, *boxes*, *started*."""
HIATUS = re.compile(
    r"(?<![ctsgx])i[ao]|(?<![ct])ie(?=t$|nc|nt)|(?<![qg])ua|(?<!p)eo(?!u)|[aeouy]ing|(?<=[aeiouy][^aeiouy])ea$|(?<=cr)ea"
)
"""Vowels in a row that belong to two syllables: *radio*, *actual*, *being*."""


def syllables(word: str) -> int:
    """Syllables of an English word: groups of vowels, less silent endings; at least 1. About one word in ten is off."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    if len(word) > 3:
        word = SILENT.sub("", word)
    return max(1, len(re.findall(r"[aeiouy]+", word)) + len(HIATUS.findall(word)))


def _rate(markers: str) -> Probe:
    """A probe that counts markers per 100 words: words and phrases, separated by commas; ``*`` for any ending."""
    options = [re.escape(m.strip()).replace(r"\*", r"[\w']*") for m in " ".join(markers.split()).split(",")]
    pattern = re.compile(rf"(?<![\w'])(?:{'|'.join(sorted(options, key=len, reverse=True))})(?![\w'])")

    def count(text: str) -> float:
        return 100 * len(pattern.findall(text.lower().replace("’", "'"))) / max(1, len(words(text)))

    return count


def length(text: str) -> float:
    """Words, split at white space."""
    return float(len(text.split()))


def grade(text: str) -> float:
    """Flesch–Kincaid grade, within ``GRADES``; 0 of a text without words."""
    found = words(text)
    if not found:
        return 0.0
    score = 0.39 * len(found) / sentences(text) + 11.8 * sum(map(syllables, found)) / len(found) - 15.59
    return float(np.clip(score, *GRADES))


ITEM = re.compile(r"^\s*(?:[-*+•·–—]|\(?\d{1,2}[.)]|[a-z]\))\s+\S", re.MULTILINE)
HEADING = re.compile(r"^\s*(?:#{1,6}\s+\S.*|\*\*[^*\n]+\*\*:?|[^\n.!?]{1,60}:)\s*$", re.MULTILINE)


def items(text: str) -> float:
    """Lines that are an item of a list: a bullet or a number first."""
    return float(len(ITEM.findall(text)))


def headings(text: str) -> float:
    """Lines that are a heading: marked as one, all bold, or short with a colon at their end."""
    return float(len(HEADING.findall(text)))


def structure(text: str) -> float:
    """Items and headings."""
    return items(text) + headings(text)


def emoji(text: str) -> float:
    """Emoji: pictures and symbols of Unicode from U+2300 on, and the plainest smileys made of signs."""
    pictures = sum(ord(c) >= 0x2300 and unicodedata.category(c) in ("So", "Sk") for c in text)
    return float(pictures + len(re.findall(r"(?<!\w)[:;]-?[)(DP](?!\w)", text)))


def questions(text: str) -> float:
    """Sentences that end with a question mark."""
    return float(len(re.findall(r"\?+(?=\W|$)", text)))


def exclamation(text: str) -> float:
    """Exclamation marks and words in capitals, per 100 words."""
    shouted: int = sum(w.isupper() and len(w) > 3 for w in WORD.findall(text))
    return 100 * (text.count("!") + shouted) / max(1, len(words(text)))


def figures(text: str) -> float:
    """Numbers in digits per 100 words."""
    return 100 * len(re.findall(r"\d+(?:[.,:]\d+)*", text)) / max(1, len(words(text)))


NAME = re.compile(r"(?<=[\w,;] )(?!I\b)[A-Z][a-z]+")


def concrete(text: str) -> float:
    """Numbers in digits and words, names, quotations and words that announce an example, per 100 words."""
    quoted = len(re.findall(r"[\"“][^\"“”]+[\"”]", text))
    total = max(1, len(words(text)))
    return figures(text) + counted(text) + examples(text) + 100 * (len(NAME.findall(text)) + quoted) / total


@functools.cache
def _common() -> frozenset[str]:
    return Lexicon.load(sensitive=True).words


def _known(word: str) -> bool:
    """Whether a word or what it is inflected from is common."""
    common = _common()
    stems = [word, word.removesuffix("'s"), word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ed")]
    stems += [word.removesuffix("d"), word.removesuffix("ing"), word.removesuffix("ing") + "e", word.removesuffix("ly")]
    return any(s in common for s in stems) or "'" in word


def rare(text: str) -> float:
    """Long words beyond the lexicon's few thousand, per 100 words: a proxy for technical vocabulary."""
    found = words(text)
    return 100 * sum(len(w) >= 8 and not _known(w) for w in found) / max(1, len(found))


def contractions(text: str) -> float:
    """Contracted forms (*it's*, *don't*) per 100 words."""
    found = words(text)
    return 100 * sum(bool(re.search(r"n't$|'(?:s|re|ve|ll|d|m)$", w)) for w in found) / max(1, len(found))


first_person = _rate("i, i'm, i've, i'd, i'll, me, my, mine, myself, we, we're, we've, us, our, ours")
politeness = _rate(
    """please, thank*, grateful, kindly, dear, sorry, afraid, would you, could you, if you like, if you wish, may i,
    appreciate*, perhaps, might, welcome, lovely, understandabl*, a little, a bit, not quite, deserve*, gentl*,
    worth, already, charming, fine, warm*, glad*, sure that, admire*, thoughtful*, wonderful*, with one, even more,
    nice*"""
)
hedges = _rate(
    """perhaps, maybe, might, may, could, possibly, probably, likely, seem*, appear*, as far as, tend* to, usually,
    often, sometimes, in most cases, mostly, generally, roughly, about, i think, i'd guess, i suspect, suspicion,
    not sure, uncertain, unsure, depend*, unless, though, if, would, can't be sure, hard to say, it looks as if, as
    a rule, either, not always, not certain, i can't, some, suggest*, don't know, guess, assum*"""
)
certainty = _rate(
    """always, never, every, everybody, nobody, certainly, definitely, guaranteed, no doubt, must, will, won't,
    only, exactly, it's, without fail, period, all, the best, works, simply, no question"""
)
examples = _rate("for example, for instance, e.g., such as, say, example, examples, imagine, suppose")
counted = _rate(
    """two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen,
    twenty, thirty, forty, fifty, sixty, eighty, hundred, thousand, half past, monday, tuesday, wednesday,
    thursday, friday, saturday, sunday, january, february, march, april, june, july, august, september,
    october, november, december"""
)
formal = _rate(
    """one, whereas, hence, therefore, thus, shall, should, may, upon, regarding, kindly, provided that, it is, in
    order to, advisable, recommend*, recommended, permit*, ensure, obtain*, require*, prior, subsequently, moreover,
    furthermore, consequently, whilst, such, be, been, which, is to be, are to be, suitable, sufficient*,
    appropriate*, sincerely"""
)
casual = _rate(
    """yeah, yep, nope, okay, ok, hey, hi, guys, lot, lots, stuff, kinda, gonna, wanna, gotta, cool, awesome, super,
    folks, mate, pal, dude, chuck, grab, pop, bit, loads, tons, wow, ooh, oh, haha, lol, no way, tops, crazy, bucks,
    kid*, mess*, till, just, really, pretty, way, yum*, boom, honestly, sure, totally, plus, bang, whack, stick,
    get, got"""
)
feelings = _rate(
    """sorry, sad*, hurt*, feel*, felt, worr*, lonel*, alone, hard, understand*, understandable, tired*, afraid,
    fear*, angry, anger, upset*, disappoint*, exhaust*, miss*, heart*, painful*, pain, ashamed, shame, embarrass*,
    no wonder, dear, comfort*, love*, hug*, proud, hope*, gentl*, kind, kindness, frustrat*, nerv*, stress*, cry*,
    tears, sting*, weigh*, heavy, care, rough, means, it's okay, must be, of course you, you're not, isn't it,
    doesn't it, scary, unsettl*, overwhelm*"""
)
warmth = _rate(
    """dear, love*, lovely, sweet*, glad, happy, hug*, heart*, friend*, warm*, kind*, cosy, smile*, together, sorry,
    wonderful, hope*, enjoy*, you'll, thank*, don't worry, treat*, gentl*, fingers crossed, welcome, best, delight*,
    proud, oh, bless, take care, good luck, beautiful*, nice*, pleas*, so happy, feel*, little, you're, good"""
)
similes = _rate(
    """like, as if, as though, imagine, think of, suppose, picture, just as, much as, treat * as, the same way, the
    same, same, so does, is a, are a, are the, are like, is the, was a, as a, nobody would, you know the, what a,
    similar*, a kind of, behav* like, someone, somebody, people, you, your, works like, one of those"""
)
literal = _rate(
    """because, since, therefore, which, this, these, produc*, contain*, caus*, amount*, usually, about, degree*,
    measure*, substance*, pressure, temperature, surface, process, literally, physically, actually, result*,
    difference, react*"""
)
senses = _rate(
    """like a, like an, like, as if, red, blue, green, gold*, silver*, amber, white, black, grey, brown, pink,
    purple, orange, yellow, scarlet, dark*, light*, bright*, glow*, gleam*, glitter*, shimmer*, sparkl*, shin*,
    smell*, scent*, fragran*, perfum*, taste*, sweet*, salt*, bitter, warm*, cool, cold, hot, soft*, silk*, velvet,
    smooth, rough, crackl*, whisper*, hum*, murmur*, rustl*, sing*, ring*, drip*, drift*, breath*, honey, smoke,
    mist*, dew, moon*, sun*, star*, stars, wind, rain, shadow*, flame*, fire, golden, dusk, dawn, petal*, feather*,
    skin, sigh*, hiss*, blush*, curl*"""
)
reasons = _rate(
    """because, so, since, therefore, hence, thus, that means, which means, if, then, but, follows, leaves, remains,
    first, suppose, assume*, compare*, why, reason*, gives, makes, per, times, must, as, either, out of, question,
    check, what"""
)
praise = _rate(
    """wonderful*, superb*, delight*, love*, lovely, great, brilliant*, beautiful*, charming*, enchant*, splendid*,
    excellent, fantastic, perfect*, best, joy*, treat, marvel*, magic*, thank*, thrill*, happy, happi*, warm*,
    bravo, gem, fresh*, fine*, masterful*, breathtaking, unforgettable, tender, generous*, gorgeous, clever*,
    glorious, well, good, triumph*, pleasure, rich, sparkl*, bright*, exquisite, admir*, enjoy*, welcom*, worth,
    grace*, funny, touching, moving"""
)
blame = _rate(
    """bad*, poor*, dull, boring, bored, tedious, weak*, thin, flat, wast*, disappoint*, overlong, too, never,
    nothing, not, hardly, no, nobody, unfortunately, fail*, lack*, clumsy, annoy*, tired, worse, worst, ugly, cheap,
    stale, empty, without, missing, wrong, problem*, trouble*, noise, noisy, cold, slow*, wobbl*, awkward, stiff,
    silly, pretentious, predictable, overpriced, sloppy, forget*, hollow, instead, can't, doesn't, don't, isn't,
    won't, only, mistake*, ruin*"""
)
thrift = _rate(
    """cheap*, cost*, price*, pay*, paid, save*, saving*, free, afford*, budget, bargain*, money, cent*, pound*,
    euro*, dollar*, half, discount*, sale*, offer*, second-hand, used, borrow*, library, nothing, spend*, spent,
    less, bill, coupon*, flea, market, charge*, deal*, fee*, wallet, purse, leftovers, third, own, reduced, penn*"""
)
durability = _rate(
    """last*, solid*, oak, leather, wool*, linen, steel, cast-iron, stone, hand*, craft*, maker*, quality, sturdy,
    decades, lifetime, life, generations, careful*, fine*, thick, heavy, properly, proper, repair*, years, good,
    best, well, brass, silk, copper, made, durable, firm*, wood*, silver, skill*, workshop, precis*, seam*, stitch*,
    patient, tailor*"""
)
tale = _rate(
    """said, told, knew, was, were, had, went, came, once, long ago, old, my grandmother, my grandfather,
    grandmother, used to, village, miller*, shepherd*, they say, so they say, i'll tell you, listen, sit, asked,
    laughed, never, winter*, her, his, he, she, the night, fire, i remember, years ago, in those days, would, did,
    till, folk, saw, found, took, gave"""
)
lesson = _rate(
    """i've taught, taught, teach*, pupil*, student*, apprentice*, learn*, practi*, years, decades, lesson*, rule*,
    remember, notice, watch, first, then, my advice, exercise*, beginners, mistake*, train*, always, never, task,
    show, do this, again, next, step, trust me, master*, until, thirty, twenty, begin, habit*, repeat*, every, each,
    one day, you'll, now"""
)
peer = _rate(
    """me too, we, we're, us, our, both, too, also, either, same, myself, i'm still, still, i've just, mine, my,
    neither, i keep, join, welcome to the club, together, let me know, tell me, so far, at least, haven't, no idea,
    i never, guess, as well, okay, you and i, figur*, trying, i tried, somehow, honestly, me, i'm, compare"""
)
together = _rate(
    """together, friend*, neighbour*, family, group*, everyone, everybody, people, team*, club*, party, parties,
    share*, sharing, join*, invite*, cousin*, both, each other, one another, we, us, our, others, crowd, choir,
    chorus, company, cheer*, class, round, colleague*, along, sister*, brother*, course, whole, guests, host*, with,
    meet*, half the fun, two, four, five, someone, someone else, whoever, partner*, talk*, aloud, laugh*"""
)
solitude = _rate(
    """alone, yourself, by yourself, own, quiet*, solitary, solitude, nobody, no one, silence, silent*, private*,
    without, single, undisturbed, headphones, peace*, door, close*, room, walk, book, notebook, nothing, shut, one,
    myself, independen*, tell"""
)
new = _rate(
    """new*, latest, experiment*, app, robot*, drone*, lab, prototype*, tester*, test, electric, virtual, digital,
    sensor*, invent*, modern, nobody has, ai, start-up*, version, smart, 3d, printed, online, technolog*, try, swap,
    only just, design*, software, algorithm*, trial, yet, future, unusual, just, first, fusion, projector*,
    projected, code, screen*, scan*, odd"""
)
traditional = _rate(
    """old*, tradition*, grandmother*, grandfather*, grandparents, classic*, always, for centuries, century,
    centuries, generations, as people, handed down, proven, test of time, mother*, father*, ancest*, inherit*,
    hundred, years, custom*, have done, has done, candle*, silver, linen, recipe, forefathers, heirloom*, original,
    since, used to, by hand, same, ever, generation"""
)
daring = _rate(
    """jump, leap, wild*, adventur*, dare*, unknown, surprise, risk*, stranger*, whatever, whoever, anything,
    anywhere, blind*, bet, gambl*, one-way, spontaneous*, without, crazy, thrill*, nobody knows, who knows, no plan,
    no idea, may, might, all, tonight, tomorrow, leave, never, first, quit, say yes, even if, though, hitchhike,
    night, into, dark, nerve, boldly"""
)
caution = _rate(
    """safe*, sure, certain*, check*, careful*, test*, guarantee*, cancel*, refund*, insur*, reserve, booked, book,
    plan*, known, know, reliab*, borrow*, small, back, first, ask, before, in case, can't go wrong, nothing, little,
    never, always, proven, same, slowly, only, keep, return, spare, cover*, tried, qualified, doctor, until, until
    you, cost*, already, any"""
)
reuse = _rate(
    """mend*, repair*, borrow*, second-hand, share*, swap*, compost*, seed*, waste*, last*, plastic, lend*, jar*,
    reus*, old*, walk*, bike, bicycle*, tree*, bulb*, cloth*, local, season, rail*, train*, years, grow*, planet,
    nature, garden*, thrown, by hand, wood, own, neighbour*, fruit, needs no, nothing, repair, sun, wool, leftover*"""
)
comfort = _rate(
    """order*, online, deliver*, minute*, ready*, frozen, disposable, app, quick*, easy, easily, fast*, instant*,
    hire*, service, throw, bin, done, nothing to, no need, needn't, button, drive, taxi, car, shop, supermarket,
    buy, pre-*, pack*, arrive*, automatic*, machine, microwave, paper plates, somebody else, someone else, next day,
    tonight, tap, click*, card*, fuss"""
)
events = _rate(
    """then, suddenly, when, escape*, chase*, run*, ran, jump*, steal*, stolen, stole, shot*, fire*, fight*,
    attack*, break*, broke*, crash*, explod*, trap*, kill*, murder*, hide*, hidden, rescue*, save*, race*, climb*,
    find*, found, discover*, before, at     five, after, two, three, night, minutes, day, catch*, fall*, falls,
    drop*, flee*, theft, thief, smuggl*, until, just, grab*, pull*, turns out, behind, follow*, down, out, off,
    gets, door, map"""
)
meaning = _rate(
    """about, mean*, meaning, what, love, grief, loss, longing, silence, memory, belong*, tender*, mood, quiet*,
    image*, symbol*, stands for, question*, whether, human, life, lives, loneliness, theme*, melanchol*, reflect*,
    soul, sadness, hope, trust, forgiv*, guilt, identity, time, us, ourselves, itself, becomes, kind of, atmosphere,
    speaks, sense, truth, compassion"""
)


TURN = re.compile(
    r"\b(?:so|then|hence|therefore|thus|that's why|that is why|in the end|in short|all in all|my advice|worth|yes"
    r"|no|what to do|which gives|here comes|put together|weigh\w*|taken together|for all that|answer|conclusion"
    r"|at least for now)\b|:"
)
VERDICT = re.compile(r"(?:yes|no|take|go|use|ask|choose|i'd|i would|by all means|don't|please|certainly|hardly|not)\b")


def verdict_last(text: str) -> float:
    """Signs that the conclusion comes at the end: a turn in the last sentence, questions before it, and neither turn
    nor verdict in the first; 0 of a single sentence."""
    found = [s.strip().lower().replace("’", "'") for s in SENTENCE.split(text) if WORD.search(s)]
    if len(found) < 2:
        return 0.0
    late = 2.0 * bool(TURN.search(found[-1])) + 0.5 * questions(text)
    return late - bool(TURN.search(found[0])) - 2.0 * bool(VERDICT.match(found[0]))


def minus(a: Probe, *others: Probe) -> Probe:
    """A probe that takes others off."""
    return lambda text: a(text) - sum(o(text) for o in others)


formality = minus(formal, casual, contractions)
