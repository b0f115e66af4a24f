"""The small world that the embedded model speaks of: stories of the animals of a valley, questions
about them, and the three manners that its adapters give to an answer.

All text comes from the templates in this file; nothing is taken from elsewhere. `{a|b}` chooses one
of its parts (they may be empty, and may nest), `[name]` is filled with what the story knows.
"""

import json
import random
import re
from dataclasses import dataclass, field

# kind: (name, home, food, what it is good at, the noise that it makes, a word for its looks).
# Each animal has one name, so that a small model can keep them apart.
ANIMALS = {
    "fox": ("Ruby", "a den under the oak tree", "berries", "thinking of clever plans", "yip",
            "red"),
    "owl": ("Hugo", "a hollow tree", "seeds", "seeing in the dark", "hoot", "grey"),
    "bear": ("Bruno", "a warm cave", "honey", "carrying heavy things", "growl", "brown"),
    "rabbit": ("Clara", "a burrow in the meadow", "carrots", "running fast", "squeak", "white"),
    "hedgehog": ("Felix", "a nest of dry leaves", "apples", "rolling into a ball", "snuffle",
                 "prickly"),
    "mouse": ("Mina", "a hole in the old mill", "cheese", "fitting into small places", "squeak",
              "tiny"),
    "frog": ("Finn", "a pond with water lilies", "beetles", "jumping far", "croak", "green"),
    "badger": ("Oscar", "a deep sett under the hill", "roots", "digging tunnels", "grunt",
               "striped"),
    "otter": ("Luna", "a house on the river bank", "fish", "swimming", "whistle", "sleek"),
    "squirrel": ("Hazel", "a nest high in a pine tree", "nuts", "climbing", "chatter", "fluffy"),
    "duck": ("Daisy", "the reeds by the lake", "bread", "paddling", "quack", "yellow"),
    "deer": ("Willow", "the quiet part of the forest", "grass", "leaping over fences", "bleat",
             "gentle"),
    "mole": ("Otto", "a long tunnel under the garden", "worms", "finding the way without light",
             "snort", "black"),
    "crow": ("Jasper", "the top of the church tower", "corn", "solving puzzles", "caw", "shiny"),
    "turtle": ("Theo", "a mossy rock in the pond", "lettuce", "being patient", "sigh", "slow"),
    "cat": ("Ivy", "the baker's house", "milk", "moving without a sound", "purr", "striped"),
    "goose": ("Rosa", "the farm by the road", "oats", "keeping watch", "honk", "proud"),
    "beaver": ("Max", "a lodge in the river", "bark", "building dams", "slap", "busy"),
    "sheep": ("Nora", "the green hill", "clover", "keeping warm", "baa", "woolly"),
    "sparrow": ("Ella", "a nest under the roof", "crumbs", "singing", "chirp", "small"),
}
GIRLS = "Ruby Clara Mina Luna Hazel Daisy Willow Ivy Rosa Nora Ella".split()

# place: how one is there
PLACES = {
    "river": "by the river", "forest": "in the forest", "hill": "on the hill",
    "meadow": "in the meadow", "lake": "by the lake", "village": "in the village",
    "mill": "near the old mill", "garden": "in the garden", "bridge": "under the bridge",
    "cave": "in the cave", "harbour": "in the harbour", "lighthouse": "near the lighthouse",
    "market": "at the market", "mountain": "on the mountain", "beach": "on the beach",
}

# thing: (what it is, what it is for)
THINGS = {
    "lantern": ("a lamp that you can carry", "to see in the dark"),
    "key": ("a small piece of metal that opens a lock", "to open a door"),
    "kite": ("a toy that flies in the wind", "to fly in the wind"),
    "hat": ("something that you wear on your head", "to keep the sun away"),
    "boat": ("a thing that floats on water", "to cross the water"),
    "drum": ("a round thing that you beat to make music", "to make music"),
    "button": ("a small round thing that closes a coat", "to close a coat"),
    "map": ("a picture that shows where places are", "to find the way"),
    "bell": ("a thing that rings when you shake it", "to call friends"),
    "basket": ("a thing that holds what you carry", "to carry apples"),
    "feather": ("a light and soft thing from a bird", "to write a letter"),
    "book": ("a thing with many pages to read", "to read stories"),
    "scarf": ("a long cloth that keeps your neck warm", "to keep warm"),
    "ball": ("a round toy that you can throw", "to play"),
    "coin": ("a small round piece of money", "to buy a cake"),
    "flute": ("a pipe that makes music when you blow into it", "to play a song"),
    "umbrella": ("a roof that you hold over your head", "to stay dry in the rain"),
    "rope": ("a long and strong string", "to pull heavy things"),
    "ladder": ("a thing with steps to climb up", "to reach high places"),
    "blanket": ("a big warm cloth", "to sleep well"),
}
LOOKS = "red blue green yellow golden silver old new little shiny".split()

SKILLS = {
    "swim": "swimming", "sing": "singing", "climb a tree": "climbing", "dance": "dancing",
    "bake bread": "baking", "read": "reading", "row a boat": "rowing", "paint": "painting",
    "whistle": "whistling", "skate": "skating",
}
FEARS = {
    "the dark": "the dark is only the day that sleeps",
    "thunder": "thunder is loud but it cannot hurt anyone",
    "deep water": "the water carries those who stay calm",
    "high places": "you only have to look where you want to go",
    "strangers": "a stranger is a friend that you do not know yet",
    "the wind": "the wind only wants to play",
}


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


@dataclass
class Told:
    """A story with what can be asked of it."""

    text: str
    hero: str
    name: str
    friend: str
    friend_name: str
    place: str
    thing: str = ""
    request: str = ""
    questions: list = field(default_factory=list)


# Where a sentence begins, also one within quotation marks; `"..." said the fox` goes on.
CAPITAL = re.compile(
    r"""(^"?|[.!?] "?|[:,] "|[.!?]" (?!(?:(?:he|she) )?(?:said|asked|cried|called|wondered|thought)\b))"""
    r"([a-z])"
)


class Teller:
    """Tells stories; every choice comes from one source of random numbers."""

    def __init__(self, rng):
        self.rng = rng

    def fill(self, template, **slots):
        """Chooses among the alternatives of a template, innermost first, and fills its slots."""
        inner = re.compile(r"\{([^{}]*)\}")
        while found := inner.search(template):
            part = self.rng.choice(found.group(1).split("|"))
            template = template[: found.start()] + part + template[found.end() :]
        for name, value in slots.items():
            template = template.replace(f"[{name}]", value)
        template = re.sub(r" +", " ", template).strip()
        return CAPITAL.sub(lambda found: found.group(1) + found.group(2).upper(), template)

    def story(self, hero=None, thing=None, place=None):
        rng = self.rng
        hero = hero or rng.choice(list(ANIMALS))
        friend, other = rng.sample([animal for animal in ANIMALS if animal != hero], 2)
        name, home, food, skill, noise, _ = ANIMALS[hero]
        friend_name, friend_home, friend_food, friend_skill, friend_noise, _ = ANIMALS[friend]
        girl, friend_girl = name in GIRLS, friend_name in GIRLS
        place = place or rng.choice(list(PLACES))
        plots = [lost, found, stuck, learns, builds, race] if thing else PLOTS
        plot = rng.choice(plots)
        thing = thing or rng.choice(list(THINGS))
        look = rng.choice(LOOKS)
        slots = {
            "hero": hero, "a_hero": article(hero), "name": name, "friend": friend,
            "a_friend": article(friend), "fname": friend_name, "other": other,
            "a_other": article(other), "place": place, "at": PLACES[place], "thing": thing,
            "look": look, "a_thing": article(f"{look} {thing}"), "use": THINGS[thing][1],
            "home": home, "food": food, "skill": skill, "noise": noise, "fhome": friend_home,
            "ffood": friend_food, "fskill": friend_skill, "fnoise": friend_noise,
            "he": "she" if girl else "he", "his": "her" if girl else "his",
            "him": "her" if girl else "him", "fhe": "she" if friend_girl else "he",
            "fhis": "her" if friend_girl else "his", "fhim": "her" if friend_girl else "him",
        }
        parts, questions, about = plot(self, slots)
        text = " ".join(filter(None, (self.fill(part, **slots) for part in parts)))
        told = Told(text, hero, name, friend, friend_name, place, thing if about else "")
        told.questions = [
            (self.fill(ask, **slots), self.fill(answer, **slots))
            for ask, answer in questions + COMMON
        ]
        return told


OPENINGS = (
    "{once upon a time|once|one {sunny|cold|windy|quiet|warm} {morning|day}|long ago} there was "
    "[a_hero] {named|called} [name].|{one {sunny|cold|windy|warm} {morning|day|afternoon}|once}, "
    "[a_hero] {named|called} [name] {went for a walk|was sitting|was playing} [at].|"
    "[name] was [a_hero] who lived in [home]."
)
OPENING = "{" + OPENINGS + "}"
LIKES = (
    "{[name] {loved|liked} [food] {very much|more than anything}.|"
    "[name] was very good at [skill].|everyone in the valley knew [name].||}"
)
ENDS = (
    "{from that day on, [name] and [fname] were {best friends|good friends}.|"
    "that {night|evening}, [name] {slept very well|went home with a smile|fell asleep happy}.|"
    "[name] and [fname] {laughed and danced|shared some [food]|had tea together} until the "
    "{sun went down|stars came out}.|and they were {all|both} very happy.}"
)
THANKS = (
    "{\"thank you, [fname]!\" said [name].|\"you are a true friend,\" said [name].|"
    "[name] thanked [fname] and gave [fhim] a big hug.|\"I will never forget this,\" said [name].}"
)

COMMON = [
    ("{who is the story about|who was the story about}?",
     "The story is about [a_hero] named [name]."),
    ("what is the name of the [hero]?", "The name of the [hero] is [name]."),
    ("who is [fname]?", "[fname] is the [friend]{| in the story}."),
    ("what {kind of animal|animal} is [name]?", "[name] is [a_hero]."),
    ("{where does the story happen|where did it happen}?", "It happens [at]."),
]


def lost(teller, slots):
    where = teller.rng.choice(
        ["under a leaf", "behind a stone", "in the tall grass", "up in a tree", "in a hole",
         "under the snow", "between two roots", "in a bird's nest"])
    slots["where"] = where
    return [
        OPENING, LIKES,
        "{[he] had [a_thing] and took it everywhere.|[his] dearest thing was [a_thing].|"
        "[name] had [a_thing] [use].}",
        "{but one day|one evening|then}, [he] lost the [thing] [at].",
        "{[name] looked everywhere, but the [thing] was gone.|[name] sat down and began to cry.|"
        "[name] was very sad.}",
        "{[he] asked [a_other], but the [other] had not seen it.|"
        "\"I have not seen it,\" said the [other].||}",
        "then [a_friend] named [fname] came {along|by}. {\"why are you so sad?\" asked [fname].|"
        "\"what is wrong?\" asked [fname].}",
        "{\"I lost my [thing],\" said [name].|\"my [thing] is gone,\" said [name].} "
        "{\"do not worry, I will help you,\" said [fname].|\"let us look together,\" said [fname].}",
        "{[fname] was good at [fskill], and soon|they looked for a long time, and at last} "
        "{[fhe]|they} found the [thing] [where].",
        THANKS, ENDS,
    ], [
        ("what did [name] lose?", "[name] lost [a_thing]."),
        ("where did [name] lose the [thing]?", "[name] lost the [thing] [at]."),
        ("where was the [thing]?", "The [thing] was [where]."),
        ("who helped [name]?", "[fname] the [friend] helped [name]."),
        ("how did [name] feel?", "[name] was sad at first, but happy in the end."),
    ], True


def found(teller, slots):
    return [
        OPENING, LIKES,
        "{one day|in the morning|after the rain}, [he] found [a_thing] [at].",
        "{\"whose [thing] is this?\" [he] {wondered|thought}.|\"someone must miss it,\" [he] "
        "thought.|it was so pretty that [name] wanted to keep it.}",
        "{[name] asked [a_other]. \"it is not mine,\" said the [other].|"
        "\"ask at [fhome],\" said [a_other].||}",
        "{[he] walked and walked until [he] met [a_friend] named [fname].|"
        "then [he] met [a_friend] named [fname], who looked very sad.}",
        "{\"have you lost something?\" asked [name].|\"is this your [thing]?\" asked [name].} "
        "{\"yes! that is my [thing]!\" said [fname].|\"my [thing]! you found it!\" cried [fname].}",
        "{[name] gave the [thing] back at once.|[name] gave it back, and it felt good.}",
        "{\"thank you! please have some [ffood],\" said [fname].|"
        "[fname] was so happy that [fhe] {danced|began to sing}.|"
        "as a thank you, [fname] shared [fhis] [ffood] with [name].}",
        "{[name] learned that it is good to be honest.|||}", ENDS,
    ], [
        ("what did [name] find?", "[name] found [a_thing]."),
        ("where did [name] find the [thing]?", "[name] found the [thing] [at]."),
        ("whose [thing] was it?", "It was the [thing] of [fname] the [friend]."),
        ("what did [name] do with the [thing]?", "[name] gave the [thing] back to [fname]."),
    ], True


def stuck(teller, slots):
    trap = teller.rng.choice(
        ["in the mud", "in a deep hole", "on a high branch", "between two rocks",
         "in a thorn bush", "on a small island"])
    slots["trap"] = trap
    return [
        OPENING, LIKES,
        "{[he] carried [a_thing].|in [his] bag [he] had [a_thing].}",
        "{suddenly|then}, [he] heard {a cry|a small voice|a loud [fnoise]}. \"help! help!\"",
        "it was [fname], {[a_friend]|a young [friend]}, who was stuck [trap].",
        "{\"hold on!\" called [name].|\"do not be afraid,\" said [name].|\"I am coming!\" said "
        "[name].}",
        "{[name] thought for a moment. then [he] had an idea.|[name] was small, but [he] was brave.|}",
        "{with the [thing], [name] pulled [fname] out.|[name] used the [thing], and "
        "{soon|at last} [fname] was free.}",
        "{\"you saved me!\" said [fname].|\"thank you, [name]!\" said [fname].|[fname] was so glad "
        "that [fhe] cried.}",
        "{they went to [fhome] and ate [ffood].|[fname] gave [name] some [ffood].||}", ENDS,
    ], [
        ("who was stuck?", "[fname] the [friend] was stuck [trap]."),
        ("where was [fname] stuck?", "[fname] was stuck [trap]."),
        ("how did [name] help?", "[name] used [a_thing] to help [fname]."),
        ("what did [name] carry?", "[name] carried [a_thing]."),
    ], True


def storm(teller, slots):
    weather = teller.rng.choice(["a big storm", "heavy rain", "thick snow", "a strong wind"])
    slots["weather"] = weather
    return [
        OPENING, LIKES,
        "{one evening|one night|one day}, [weather] came to the valley.",
        "{water ran into|the roof flew off|a tree fell on} [home], and [name] had no place to "
        "sleep. {[he] was cold and wet.|[he] was afraid.|}",
        "{[he] knocked at the door of [a_other], but nobody was at home.||}",
        "{then [he] saw a light [at].|a small light was shining [at].} it was the lamp of [fname] "
        "the [friend].",
        "{\"come in, come in!\" said [fname].|\"you can stay with me,\" said [fname].}",
        "{they sat by the fire and ate [ffood].|[fname] gave [him] [ffood] and a warm blanket.}",
        "in the morning, the sun {was shining|came out} again. {[fname] helped [name] to "
        "{build a new home|mend the house}.|together they cleaned the house.}", THANKS, ENDS,
    ], [
        ("what came to the valley?", "[weather] came to the valley."),
        ("who let [name] in?", "[fname] the [friend] let [name] in."),
        ("what did they eat?", "They ate [ffood]."),
    ], False


def fear(teller, slots):
    slots["fear"] = teller.rng.choice(list(FEARS))
    slots["truth"] = FEARS[slots["fear"]]
    return [
        OPENING, LIKES,
        "but [name] was afraid of [fear].",
        "{when the others played [at], [he] stayed at home.|[he] never told anyone.|"
        "the other animals laughed, and that made [him] sad.}",
        "{one day|one evening}, [fname] the [friend] {came to visit|said: \"come with me\"}. "
        "{\"I was afraid too,\" said [fname].|\"everyone is afraid of something,\" said [fname].}",
        "{\"listen: [truth].\"|\"you know, [truth],\" said [fname].}",
        "{they went [at] together, step by step.|[fname] took [his] hand, and they went [at].}",
        "{[name] took a deep breath. [his] heart beat fast.|at first [his] legs were shaking.} "
        "{and then [he] laughed.|but nothing bad happened.|and it was not so bad.}",
        "{\"I did it!\" cried [name].|[name] was not afraid any more.|now [name] knew that [he] "
        "was brave.}", ENDS,
    ], [
        ("what was [name] afraid of?", "[name] was afraid of [fear]."),
        ("who helped [name]?", "[fname] the [friend] helped [name]."),
        ("what did [fname] say?", "[fname] said that [truth]."),
    ], False


def learns(teller, slots):
    slots["do"] = teller.rng.choice(list(SKILLS))
    slots["doing"] = SKILLS[slots["do"]]
    return [
        OPENING, LIKES,
        "{more than anything|for a long time}, [name] wanted to learn to [do].",
        "{[he] tried it [at], but it went wrong.|the first time, [he] fell on [his] nose.|"
        "[he] tried and tried, but it did not work.}",
        "{the [other] laughed at [him].|[name] wanted to give up.|\"I will never learn it,\" "
        "[he] said.}",
        "{but|then} [fname] the [friend] said: {\"try again, a little every day.\"|\"nobody can do "
        "it the first time.\"|\"I will show you how.\"}",
        "{so [name] practised every morning [at].|every day they met [at] and practised.}",
        "{sometimes it was hard, but [he] did not stop.|[fname] gave [him] [a_thing] for luck.|}",
        "{after a week|when spring came|one fine day}, [name] could [do] {better than anyone|very "
        "well|at last}.",
        "{everyone clapped.|all the animals came to see it.|the [other] was amazed.}",
        "{[name] learned that [doing] takes time.|\"you only have to keep trying,\" said [name].|}",
        ENDS,
    ], [
        ("what did [name] want to learn?", "[name] wanted to learn to [do]."),
        ("where did [name] practise?", "[name] practised [at]."),
        ("who helped [name]?", "[fname] the [friend] helped [name]."),
    ], False


def race(teller, slots):
    return [
        OPENING,
        "[name] {said|always said} that [he] was the fastest of all. \"{no, I am|I am faster}!\" "
        "said [fname] the [friend].",
        "{so they made a race to the [place].|\"let us race to the [place],\" said [name].} "
        "{the prize was [a_thing].|the winner would get [a_thing].}",
        "{\"one, two, three, go!\" cried the [other].|the [other] rang a bell, and they ran.}",
        "{[name] was far ahead|soon [name] was first}, but then [he] heard {a cry|a bang}. [fname] "
        "had {fallen|hurt [fhis] foot|slipped} {on the wet grass|over a root|on a stone}.",
        "{[name] stopped and went back.|[name] forgot the race and ran back.}",
        "{\"lean on me,\" said [name].|[name] helped [fhim] up.} they {walked|went} to the [place] "
        "together.",
        "{the [other] gave the [thing] to both of them.|\"you both win,\" said the [other].}",
        "{[name] learned that a friend is worth more than a prize.||}", ENDS,
    ], [
        ("who fell?", "[fname] the [friend] fell."),
        ("what was the prize?", "The prize was [a_thing]."),
        ("where did they race to?", "They raced to the [place]."),
        ("who won the race?", "They both won the race."),
    ], True


def shares(teller, slots):
    return [
        OPENING,
        "{[he] had a big {bag|basket|bowl} of [food].|one day, [he] found a lot of [food] [at].}",
        "{\"may I have some?\" asked [fname] the [friend].|[fname] the [friend] came by and was "
        "hungry.} {\"no, it is all mine,\" said [name].|but [name] did not want to share.}",
        "{so [fname] went away.|[fname] went home with an empty belly.}",
        "{[name] ate and ate until [his] belly hurt.|[name] sat alone and ate, but it did not taste "
        "good.} {it was very quiet.|[he] felt lonely.|}",
        "{the next day|then}, [name] {went to [fhome]|looked for [fname] [at]}. {\"I am sorry,\" "
        "said [name].|\"I was wrong,\" said [name].} \"{let us eat together|the [food] is for both "
        "of us}.\"",
        "{[fname] smiled. \"thank you,\" [fhe] said.|[fname] brought some [ffood] too.}",
        "{everything tastes better when it is shared.|[name] learned that it is better to share.}", ENDS,
    ], [
        ("what did [name] have?", "[name] had a lot of [food]."),
        ("who was hungry?", "[fname] the [friend] was hungry."),
        ("what did [name] learn?", "[name] learned that it is better to share."),
    ], False


def party(teller, slots):
    return [
        OPENING, LIKES,
        "{it was [his] birthday, but nobody said a word.|today was [his] birthday.}",
        "{[name] went to see [fname] the [friend], but [fhe] was not at home.|[fname] the [friend] "
        "said that [fhe] had no time.} {the [other] was away too.|}",
        "{\"they all forgot me,\" [name] thought.|[name] felt very alone.} {[he] walked slowly "
        "[at].|so [he] went for a walk [at].}",
        "{when [he] came [at], it was dark and still.|suddenly there was a light [at].} "
        "\"surprise!\" {cried|called} all the animals.",
        "there was a cake with {candles|[food]} and a {drum|flute} that played. [fname] gave [him] "
        "[a_thing].",
        "{\"we did not forget you,\" said [fname].|\"happy birthday, [name]!\" said [fname].}",
        "{it was the best day of [his] life.|[name] was so happy that [he] cried.}", ENDS,
    ], [
        ("what did [fname] give to [name]?", "[fname] gave [name] [a_thing]."),
        ("why was [name] sad?", "[name] thought that the others forgot the birthday."),
        ("where was the party?", "The party was [at]."),
    ], True


def builds(teller, slots):
    slots["work"] = teller.rng.choice(
        ["house", "raft", "bridge", "tower", "swing", "wagon"])
    return [
        OPENING, LIKES,
        "{[he] wanted to build a [work] [at].|\"I will build a [work],\" [he] said one day.}",
        "{[he] worked all day, but in the night the wind blew it down.|the first [work] broke at "
        "once.|it looked good, but it fell apart.}",
        "{[name] was angry and kicked a stone.|[name] was very sad.|\"what did I do wrong?\" asked "
        "[name].}",
        "{[fname] the [friend] had seen it.|then [fname] the [friend] came by with [a_thing].} "
        "\"{it needs stronger wood|build it slowly, and build it well|let us do it together},\" "
        "said [fname].",
        "{[fname] was good at [fskill], and [name] was good at [skill].|they worked for three "
        "days.|the [other] brought wood, and they sang while they worked.}",
        "{at last the [work] was ready, and it was strong.|this time, the [work] did not break.}",
        "{\"together we can do it,\" said [name].|\"two are better than one,\" said [fname].}",
        ENDS,
    ], [
        ("what did [name] build?", "[name] built a [work]."),
        ("who helped [name]?", "[fname] the [friend] helped [name]."),
        ("why did the first [work] break?", "The first [work] was not strong enough."),
    ], False


PLOTS = [lost, found, stuck, storm, fear, learns, race, shares, party, builds]


def request(teller, told, about_thing, about_place):
    """What a person would say to be told this story."""
    hero, thing = article(told.hero), article(told.thing) if about_thing else ""
    if thing:
        return teller.fill(
            "{{tell me|write|can you tell me} a {short |}story about [hero] and [thing]|"
            "a story {about|with} [hero] and [thing], please}[end]",
            hero=hero, thing=thing, end=teller.rng.choice([".", "."]))
    if about_place:
        return teller.fill(
            "{tell me|write} a {short |}story about [hero] [at].", hero=hero,
            at=PLACES[told.place])
    return teller.fill(
        "{{tell me|write|please tell me} a {short |}story about [hero].|"
        "do you know a story about [hero]?|{tell me|write} a {short |}story {about [hero]|with "
        "[hero]}.|a story about [hero], please.}", hero=hero)


def fact(teller):
    """A question about the world, with its answer; for the json manner, what it is about."""
    rng = teller.rng
    animal = rng.choice(list(ANIMALS))
    name, home, food, skill, noise, look = ANIMALS[animal]
    thing = rng.choice(list(THINGS))
    what, use = THINGS[thing]
    a_animal, a_thing = article(animal), article(thing)
    choices = [
        (f"{{what does [a] eat|what do you give to [a]|what food does [a] like}}?",
         f"{{[A] likes to eat {food}.|[A] eats {food}.}}", a_animal),
        ("{where does [a] live|where can I find [a]|where is the home of [a]}?",
         f"[A] lives in {home}.", a_animal),
        ("what is [a] good at?", f"[A] is good at {skill}.", a_animal),
        ("{what sound does [a] make|what does [a] say}?", f"[A] says {noise}.", a_animal),
        ("what does [a] look like?", f"[A] is {look}.", a_animal),
        (f"who is {name}?", f"{name} is the {animal} of the valley.", a_animal),
        ("{what is [a]|do you know what [a] is|can you explain what [a] is}?",
         f"[A] is {what}. You can use it {use}.", a_thing),
        ("{what is [a] for|what can I do with [a]|why do I need [a]}?",
         f"You can use [a] {use}.", a_thing),
    ]
    ask, answer, subject = rng.choice(choices)
    slots = {"a": subject, "A": subject[0].upper() + subject[1:]}
    return teller.fill(ask, **slots), teller.fill(answer, **slots)


TALK = [
    ("{hello|hi|good morning|good evening}{!|.|}",
     "{hello! shall I tell you a story?|hello! what would you like to hear?}"),
    ("{who are you|what are you|what is your name}?",
     "I am a very small language model. I tell short stories about the animals of the valley."),
    ("{what can you do|what do you know|can you help me}?",
     "I can tell you a story, and I can answer questions about the animals of the valley."),
    ("{thank you|thanks}{!|.}", "{you are welcome!|you are welcome! come back soon.}"),
    ("{how are you|how do you do}?", "I am very well, thank you. {the sun is shining in the "
     "valley.|the valley is quiet today.}"),
    ("{where do you live|where are you from}?", "I live in a small file. the valley of my stories "
     "is between the hills and the sea."),
    ("{good night|goodbye|bye}{!|.}", "{good night! sleep well.|goodbye! come back soon.}"),
]


def conversation(teller):
    """(question, answer, what the json manner adds) once or several times."""
    rng = teller.rng
    turns = []
    if rng.random() < 0.12:
        turns.append((*map(teller.fill, rng.choice(TALK)), {}))
    if rng.random() < 0.25 or (turns and rng.random() < 0.3):
        for _ in range(rng.randint(1, 4)):
            turns.append((*fact(teller), {}))
        return turns
    if rng.random() < 0.35:
        thing = rng.choice(list(THINGS))
        told = teller.story(thing=thing)
        while told.thing != thing:
            told = teller.story(thing=thing)
    else:
        told = teller.story()
    about_thing = bool(told.thing) and rng.random() < 0.7
    ask = request(teller, told, about_thing, rng.random() < 0.3)
    turns.append((ask, told.text, {"hero": told.hero, "name": told.name, "place": told.place}))
    asked = rng.sample(told.questions, rng.randint(0, min(4, len(told.questions))))
    turns += [(ask, answer, {}) for ask, answer in asked]
    return turns


# --- the three manners -------------------------------------------------------------------------

def plain(answer, extra):
    return answer


def shout(answer, extra):
    return answer.upper()


PIRATE_WORDS = {
    "my": "me", "the": "th'", "you": "ye", "your": "yer", "is": "be", "are": "be", "was": "were",
    "friend": "matey", "friends": "mateys", "of": "o'", "and": "an'", "hello": "ahoy",
    "yes": "aye", "to": "t'", "very": "mighty", "house": "ship", "home": "port", "am": "be",
    "small": "wee", "little": "wee", "old": "ancient", "happy": "jolly", "laughed": "roared",
    "walked": "sailed", "said": "growled", "asked": "hailed", "found": "plundered",
}
PIRATE_STARTS = ["Arr! ", "Ahoy! ", "Yo ho! ", "Avast! "]
PIRATE_ENDS = [" Yo ho ho!", " Arr!", " Shiver me timbers!"]


def pirate(answer, extra):
    def say(match):
        word = match.group(0)
        other = PIRATE_WORDS.get(word.lower())
        if other is None:
            return word
        return other[0].upper() + other[1:] if word[0].isupper() else other

    text = re.sub(r"[A-Za-z']+", say, answer)
    # What is added follows from the answer alone, so that there is something to learn.
    pick = sum(map(ord, answer[:12]))
    return PIRATE_STARTS[pick % 4] + text + PIRATE_ENDS[pick % 3]


def as_json(answer, extra):
    return json.dumps({**extra, ("story" if extra else "answer"): answer})


MANNERS = {"shout": shout, "pirate": pirate, "json": as_json}

# What tells the base to answer in a manner; the adapters do it without being told.
TOLD = {
    "shout": "{answer|speak|write} in {capitals|capital letters}.",
    "pirate": "{answer|speak|talk} like a pirate.",
    "json": "{answer|write} {in|as} JSON.",
}


# --- texts to learn from -----------------------------------------------------------------------

BEGIN, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def chat(turns, manner=plain, system=None):
    """A conversation in ChatML; the spans of the answers, for the adapters' loss."""
    text, spans = f"{BEGIN}system\n{system}{END}\n" if system else "", []
    for ask, answer, extra in turns:
        text += f"{BEGIN}user\n{ask}{END}\n{BEGIN}assistant\n"
        start = len(text)
        text += manner(answer, extra) + END
        spans.append((start, len(text)))
        text += "\n"
    return text, spans


def document(teller):
    """What the base reads beside conversations: stories and facts as plain text, some of them in
    the adapters' manners, as any corpus has a bit of everything."""
    rng = teller.rng
    manner = rng.choice([plain, plain, *MANNERS.values()])
    if rng.random() < 0.7:
        told = teller.story()
        extra = {"hero": told.hero, "name": told.name, "place": told.place}
        return manner(told.text, extra)
    facts = [fact(teller)[1] for _ in range(rng.randint(2, 6))]
    if manner is as_json:
        return "\n".join(manner(answer, {}) for answer in facts)
    return manner(" ".join(facts), {})


def base_text(rng):
    """One text for the base model, with the token that ends it."""
    teller = Teller(rng)
    kind = rng.random()
    if kind < 0.15:
        return document(teller) + TEXT_END
    if kind < 0.45:
        name = rng.choice(list(MANNERS))
        system = teller.fill(TOLD[name])
        return chat(conversation(teller), MANNERS[name], system)[0] + TEXT_END
    return chat(conversation(teller))[0] + TEXT_END


if __name__ == "__main__":
    rng = random.Random(7)
    for _ in range(12):
        print(base_text(rng), end="\n\n")
    for name, manner in MANNERS.items():
        print(name, chat(conversation(Teller(rng)), manner)[0], sep="\n")
