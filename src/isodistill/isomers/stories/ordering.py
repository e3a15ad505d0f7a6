"""Words for the ordering family: what is put in order in each domain."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCENES", "Scene"]


@dataclass(frozen=True)
class Scene:
    """One way to tell an order.

    Attributes:
        names: eight things, with "the" in front where English wants it.
        intro: opening sentence; ``{names}`` lists the things, ``{count}`` is how many.
        before: sentence for "a is lower than b", told from a.
        after: the same fact told from b.
        first: sentence for "a is at the low end".
        last: sentence for "a is at the high end".
        ask: the question; ``{rank}`` is a place such as "second lightest" or "third".
        ends: the superlatives of the low and the high end.
    """

    names: tuple[str, ...]
    intro: str
    before: str
    after: str
    first: str
    last: str
    ask: str
    ends: tuple[str, str]


def _names(text: str, the: bool = False) -> tuple[str, ...]:
    return tuple(f"the {word}" if the else word for word in text.split())


SCENES: dict[str, tuple[Scene, ...]] = {
    "mathematics": (
        Scene(
            _names("AB CD EF GH JK LM NP RS"),
            "A figure contains {count} segments of different lengths: {names}.",
            "{a} is shorter than {b}.",
            "{b} is longer than {a}.",
            "{a} is the shortest segment.",
            "{a} is the longest segment.",
            "Ordered by length, which segment is the {rank}?",
            ("shortest", "longest"),
        ),
        Scene(
            _names("P Q R S T U V W"),
            "{names} stand for {count} different positive integers.",
            "{a} is less than {b}.",
            "{b} is greater than {a}.",
            "The smallest of the integers is {a}.",
            "The largest of the integers is {a}.",
            "Which integer is the {rank}?",
            ("smallest", "largest"),
        ),
        Scene(
            _names("kite rhombus trapezium pentagon hexagon octagon square triangle", the=True),
            "No two of these polygons have equal area: {names}.",
            "{a} has less area than {b}.",
            "{b} has more area than {a}.",
            "{a} has the least area.",
            "{a} has the greatest area.",
            "Which polygon has the {rank} area?",
            ("smallest", "largest"),
        ),
    ),
    "medicine": (
        Scene(
            _names("Ana Ben Cara Dev Elsa Finn Gita Hugo"),
            "{count} patients, {names}, waited at a clinic.",
            "{a} was examined before {b}.",
            "{b} was examined after {a}.",
            "The doctor examined {a} first.",
            "The doctor examined {a} last.",
            "Which patient was examined {rank}?",
            ("first", "last"),
        ),
        Scene(
            _names("Ines Jonah Kemal Lena Milo Nadia Oren Petra"),
            "After surgery, {names} each left the hospital on a different day.",
            "{a} went home earlier than {b}.",
            "{b} went home later than {a}.",
            "Of them all, {a} went home first.",
            "Of them all, {a} went home last.",
            "Who went home {rank}?",
            ("first", "last"),
        ),
        Scene(
            _names("Dalorin Vestim Pirazol Cantrix Lomedin Ruvasil Timoxan Zelpram"),
            "A nurse compares the doses of {count} tablets: {names}.",
            "{a} has a lower dose than {b}.",
            "The dose of {b} is higher than that of {a}.",
            "{a} has the lowest dose.",
            "The highest dose is that of {a}.",
            "Which tablet has the {rank} dose?",
            ("lowest", "highest"),
        ),
    ),
    "law": (
        Scene(
            _names("Harlow Reed Quill Marsden Tolley Brandt Osgood Finch"),
            "{count} lawsuits, known as {names}, came before one court.",
            "{a} was filed before {b}.",
            "{b} was filed after {a}.",
            "{a} was the first to be filed.",
            "{a} was the last to be filed.",
            "In the order of filing, which lawsuit was {rank}?",
            ("first", "last"),
        ),
        Scene(
            _names("Abbott Crane Doyle Egan Farrow Gibbs Hollis Ivers"),
            "On Monday a judge gave different prison sentences to {names}.",
            "{a} received a shorter sentence than {b}.",
            "The sentence of {b} was longer than that of {a}.",
            "{a} received the shortest sentence.",
            "The longest sentence was that of {a}.",
            "Who received the {rank} sentence?",
            ("shortest", "longest"),
        ),
        Scene(
            _names("Keller Lomax Mercer Nolan Ortega Pryce Rowan Stokes"),
            "{names} were witnesses at a trial, and each of them testified once.",
            "{a} testified ahead of {b}.",
            "{b} testified later than {a}.",
            "The first to testify was {a}.",
            "The last to testify was {a}.",
            "Which witness was {rank} to testify?",
            ("first", "last"),
        ),
    ),
    "science": (
        Scene(
            _names("Beta Gamma Delta Kappa Lambda Sigma Theta Omega"),
            "A chemist weighs {count} samples labelled {names}.",
            "{a} is lighter than {b}.",
            "{b} is heavier than {a}.",
            "The lightest sample is {a}.",
            "The heaviest sample is {a}.",
            "Which sample is the {rank}?",
            ("lightest", "heaviest"),
        ),
        Scene(
            _names("shale chalk basalt slate gneiss marl granite flint", the=True),
            "A geologist finds {count} layers in a cliff: {names}.",
            "{a} formed before {b}.",
            "{b} formed after {a}.",
            "The first layer to form was {a}.",
            "The last layer to form was {a}.",
            "Which layer formed {rank}?",
            ("first", "last"),
        ),
        Scene(
            _names("acetane borvin celdol dexane fluvin helmine norane pelidol"),
            "In a lab, {names} are liquids held at different temperatures.",
            "{a} is cooler than {b}.",
            "{b} is warmer than {a}.",
            "The coolest of the liquids is {a}.",
            "The warmest of the liquids is {a}.",
            "Comparing the liquids, which one is the {rank}?",
            ("coolest", "warmest"),
        ),
    ),
    "cooking": (
        Scene(
            _names("soup salad risotto curry stew omelette pie sorbet", the=True),
            "A chef served {count} dishes one by one: {names}.",
            "{a} was served before {b}.",
            "{b} was served after {a}.",
            "{a} was served first.",
            "{a} was served last.",
            "Which dish was served {rank}?",
            ("first", "last"),
        ),
        Scene(
            _names("Ember Zinger Paprito Tingle Blaze Scorcho Pepita Volcano"),
            "A cook tasted {count} chilli sauces called {names}.",
            "{a} is milder than {b}.",
            "{b} is hotter than {a}.",
            "Of these sauces, {a} is the mildest.",
            "Of these sauces, {a} is the hottest.",
            "Which sauce is the {rank} one?",
            ("mildest", "hottest"),
        ),
        Scene(
            _names("brioche focaccia sourdough ciabatta challah cornbread pumpernickel rye"),
            "A baker lists {count} breads by their time in the oven: {names}.",
            "{a} needs less time than {b}.",
            "{b} needs more time than {a}.",
            "The shortest baking time is that of {a}.",
            "The longest baking time is that of {a}.",
            "Which bread has the {rank} baking time?",
            ("shortest", "longest"),
        ),
    ),
    "sports": (
        Scene(
            _names("Asha Bruno Cleo Dario Erin Femi Greta Hana"),
            "{count} runners, {names}, ran a 400 metre race without a tie.",
            "{a} finished ahead of {b}.",
            "{b} finished behind {a}.",
            "{a} finished first.",
            "{a} finished last.",
            "Which runner finished {rank}?",
            ("first", "last"),
        ),
        Scene(
            _names("Imran Julia Kofi Luca Maren Nils Olga Pablo"),
            "In the final, {names} each made one long jump.",
            "{a} jumped a shorter distance than {b}.",
            "{b} jumped a longer distance than {a}.",
            "The shortest jump was made by {a}.",
            "The longest jump was made by {a}.",
            "Whose jump was the {rank}?",
            ("shortest", "longest"),
        ),
        Scene(
            _names("Rovers Titans Falcons Wolves Rangers Pirates Lions Royals"),
            "Over one season, {names} all scored different numbers of goals.",
            "{a} scored fewer goals than {b}.",
            "{b} scored more goals than {a}.",
            "The fewest goals were scored by {a}.",
            "The most goals were scored by {a}.",
            "Which team scored the {rank} goals?",
            ("fewest", "most"),
        ),
    ),
    "finance": (
        Scene(
            _names("Arbor Bastion Citadel Domus Everest Frontier Granary Harbor"),
            "An adviser compares the yearly fees of {count} funds: {names}.",
            "{a} is cheaper than {b}.",
            "{b} is more expensive than {a}.",
            "{a} is the cheapest fund.",
            "{a} is the most expensive fund.",
            "Which fund is the {rank}?",
            ("cheapest", "most expensive"),
        ),
        Scene(
            _names("Alden Birch Corbett Dunmore Ellery Fairfax Garrick Hobson"),
            "In June a bookkeeper paid one invoice each from {names}.",
            "{a} was paid before {b}.",
            "{b} was paid after {a}.",
            "{a} was the first to be paid.",
            "{a} was the last to be paid.",
            "Who was paid {rank}?",
            ("first", "last"),
        ),
        Scene(
            _names("Amber Cobalt Crimson Indigo Jade Maroon Teal Violet"),
            "A bank offers {count} savings accounts named {names}.",
            "{a} pays a lower interest rate than {b}.",
            "{b} pays a higher interest rate than {a}.",
            "{a} pays the lowest rate.",
            "{a} pays the highest rate.",
            "Which account pays the {rank} interest rate?",
            ("lowest", "highest"),
        ),
    ),
    "astronomy": (
        Scene(
            _names("Aruna Belis Cybra Drusa Elvia Fenra Gavra Hespa"),
            "{count} moons, {names}, circle the same planet.",
            "{a} orbits nearer than {b}.",
            "{b} orbits farther out than {a}.",
            "The nearest moon is {a}.",
            "The farthest moon is {a}.",
            "Measured from the planet, which moon is the {rank}?",
            ("nearest", "farthest"),
        ),
        Scene(
            _names("Ankar Bextor Corvane Dhuran Elnis Fomar Ghenib Hadora"),
            "Through a telescope, {names} are stars of different brightness.",
            "{a} is dimmer than {b}.",
            "{b} is brighter than {a}.",
            "{a} is the dimmest star.",
            "{a} is the brightest star.",
            "Which star is the {rank} of the group?",
            ("dimmest", "brightest"),
        ),
        Scene(
            _names("Ilmar Jorun Kelvar Lysia Mirak Nuvel Ostra Quenna"),
            "An observatory tracks {count} asteroids tonight: {names}.",
            "{a} rises before {b}.",
            "{b} rises after {a}.",
            "{a} rises first.",
            "{a} rises last.",
            "Which asteroid rises {rank} above the eastern horizon?",
            ("first", "last"),
        ),
    ),
    "gardening": (
        Scene(
            _names("dahlia lupin foxglove sunflower hollyhock iris peony lavender", the=True),
            "In a flower bed, {names} have grown to different heights.",
            "{a} is shorter than {b}.",
            "{b} is taller than {a}.",
            "{a} is the shortest flower.",
            "{a} is the tallest flower.",
            "By height, which flower is the {rank}?",
            ("shortest", "tallest"),
        ),
        Scene(
            _names("Bianca Celine Dorrit Fleur Ottoline Rosalind Sabrina Tamora"),
            "A gardener grows {count} kinds of tulip named {names}.",
            "{a} bloomed before {b}.",
            "{b} bloomed after {a}.",
            "{a} bloomed first.",
            "{a} bloomed last.",
            "Which tulip bloomed {rank} this spring?",
            ("first", "last"),
        ),
        Scene(
            _names("Agnes Barney Connie Desmond Edith Fergus Hilda Jasper"),
            "At the village show, {names} each entered one pumpkin.",
            "{a} grew a smaller pumpkin than {b}.",
            "{b} grew a bigger pumpkin than {a}.",
            "The smallest pumpkin was grown by {a}.",
            "The biggest pumpkin was grown by {a}.",
            "Who grew the {rank} pumpkin?",
            ("smallest", "biggest"),
        ),
    ),
    "logistics": (
        Scene(
            _names("Anton Bashir Carmen Dmitri Esther Farida Gustav Helmut"),
            "{count} drivers, {names}, took their vans out of the depot.",
            "{a} set off before {b}.",
            "{b} set off after {a}.",
            "{a} set off first.",
            "{a} set off last.",
            "Which driver set off {rank}?",
            ("first", "last"),
        ),
        Scene(
            _names("Ardley Bexhill Corby Dunster Epsom Fenwick Goole Hythe"),
            "A warehouse sends freight to {count} towns: {names}.",
            "{a} is closer than {b}.",
            "{b} is farther away than {a}.",
            "The closest town is {a}.",
            "The farthest town is {a}.",
            "Measured from the warehouse, which town is the {rank}?",
            ("closest", "farthest"),
        ),
        Scene(
            _names("Maris Nordal Oceana Portex Seaway Tradex Unimar Vantor"),
            "A port stacks {count} containers marked {names}.",
            "{a} sits lower than {b}.",
            "{b} sits higher than {a}.",
            "{a} is the lowest container.",
            "{a} is the highest container.",
            "Which container is the {rank} in the stack?",
            ("lowest", "highest"),
        ),
    ),
}
