"""Words for the reachability family: what leads to what, or depends on what, in each domain."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCENES", "Scene"]


@dataclass(frozen=True)
class Scene:
    """One way to tell a directed graph; in every template an edge runs from ``{a}`` to ``{b}``.

    Attributes:
        nodes: eight places, things or people.
        intro: opening sentence; it says that no link is left out.
        edge: sentences for one edge; the first is also used in worked solutions.
        ask: the question whether a way leads from a to b.
        so: the clauses "a way leads from a to b" and "no way leads from a to b".
    """

    nodes: tuple[str, ...]
    intro: str
    edge: tuple[str, ...]
    ask: str
    so: tuple[str, str]


def _nodes(words: str, the: bool = False) -> tuple[str, ...]:
    return tuple(f"the {word}" if the else word for word in words.split())


SCENES: dict[str, tuple[Scene, ...]] = {
    "mathematics": (
        Scene(
            _nodes("P Q R S T U V W"),
            "A directed graph has only the arrows listed here.",
            ("An arrow goes from {a} to {b}.", "{a} has an arrow to {b}."),
            "By following arrows, is it possible to get from {a} to {b}?",
            ("the arrows lead from {a} to {b}", "no arrows lead from {a} to {b}"),
        ),
        Scene(
            _nodes("Arden Brill Cotter Dunne Esk Fane Gorse Hale"),
            "The lemmas in a textbook are named after their authors, and these are all their citations.",
            ("The proof of {b} uses {a}.", "{b} cites {a}."),
            "Does lemma {b} build on {a}, directly or through other lemmas?",
            ("{b} builds on {a}", "{b} does not build on {a}"),
        ),
        Scene(
            _nodes("cube cone prism sphere cylinder pyramid torus wedge", the=True),
            "A geometry puzzle allows only these moves between solids.",
            ("{a} turns into {b}.", "{b} comes from {a}."),
            "After any number of moves, can {a} become {b}?",
            ("{a} can become {b}", "{a} cannot become {b}"),
        ),
    ),
    "medicine": (
        Scene(
            _nodes("Cardiology Radiology Surgery Neurology Maternity Oncology Paediatrics Dermatology"),
            "In one hospital, patients are transferred only along these routes.",
            ("{a} sends patients to {b}.", "{b} takes patients from {a}."),
            "Can a patient in {a} be moved, step by step, to {b}?",
            ("a patient can move from {a} to {b}", "a patient cannot move from {a} to {b}"),
        ),
        Scene(
            _nodes("biopsy scan transfusion vaccination infusion bandage checkup injection", the=True),
            "A treatment plan says what each step requires, and there are no other requirements.",
            ("{b} requires {a}.", "{a} is required for {b}."),
            "Must {a} be done at some point before {b}?",
            ("{a} must come before {b}", "{a} need not come before {b}"),
        ),
        Scene(
            _nodes("rexin cortane melvin somarol thyrane lepticin gastrol renadin"),
            "The hormones in this table act on each other only as listed.",
            ("{a} triggers {b}.", "{b} is triggered by {a}."),
            "Can a rise of {a} set off {b} in the end?",
            ("{a} can set off {b}", "{a} cannot set off {b}"),
        ),
    ),
    "law": (
        Scene(
            _nodes("Alton Birkdale Chard Denby Elland Frome Garstang Hexham"),
            "Appeals move between the courts of a country only as follows.",
            ("Appeals from {a} go to {b}.", "{b} hears appeals from {a}."),
            "Can a case that begins in {a} be appealed all the way to {b}?",
            ("a case can go from {a} to {b}", "a case cannot go from {a} to {b}"),
        ),
        Scene(
            _nodes("Kellner Marsh Norris Oakham Pelham Quarles Rutland Sefton"),
            "A judge lists every precedent that certain rulings rely on, and there are no others.",
            ("{b} relies on {a}.", "{b} follows the ruling in {a}."),
            "Does {b} depend on {a}, directly or through other rulings?",
            ("{b} depends on {a}", "{b} does not depend on {a}"),
        ),
        Scene(
            _nodes("Aldous Beatrix Cosmo Delphine Everard Florian Gwendolen Horatio"),
            "A power of attorney may be handed on only in these ways.",
            ("{a} may pass it to {b}.", "{b} may receive it from {a}."),
            "Could the power of attorney get from {a} to {b}?",
            ("it could get from {a} to {b}", "it could not get from {a} to {b}"),
        ),
    ),
    "science": (
        Scene(
            _nodes("zelane botrine cuprex dimoxol ethrane ferroxin gallide hydrane"),
            "A chemist has only these reactions at hand.",
            ("{a} turns into {b}.", "{b} forms from {a}."),
            "Starting with {a} alone, can the chemist obtain {b}?",
            ("{a} can yield {b}", "{a} cannot yield {b}"),
        ),
        Scene(
            _nodes("skeeb mollin grout tarn pibble nuthook scarrel dunnit", the=True),
            "A biologist drew the whole food web of an island, and there are no other links.",
            ("{b} eats {a}.", "{a} is eaten by {b}."),
            "Can a toxin spread along the food web from {a} to {b}?",
            ("a toxin can spread from {a} to {b}", "a toxin cannot spread from {a} to {b}"),
        ),
        Scene(
            _nodes("luxa torb vimd kesp ranq misa dolf parn"),
            "In a yeast cell, genes switch each other on only as listed.",
            ("{a} activates {b}.", "{b} is activated by {a}."),
            "Does switching on {a} also activate {b} in the end?",
            ("activating {a} also activates {b}", "activating {a} does not activate {b}"),
        ),
    ),
    "cooking": (
        Scene(
            _nodes("glaze syrup filling dough custard stock gravy marinade", the=True),
            "A cook notes what each part of a banquet needs, and nothing else is needed.",
            ("{b} needs {a}.", "{a} is needed for {b}."),
            "Does {a} have to be ready before {b} can be finished?",
            ("{a} has to be ready before {b}", "{a} need not be ready before {b}"),
        ),
        Scene(
            _nodes("grill fryer oven sink pantry griddle steamer pass", the=True),
            "In a restaurant kitchen, plates are handed on only like this.",
            ("{a} hands plates to {b}.", "{b} gets plates from {a}."),
            "Can a plate travel from {a} to {b}?",
            ("a plate can travel from {a} to {b}", "a plate cannot travel from {a} to {b}"),
        ),
        Scene(
            _nodes("Beryl Coralie Dimitra Enzo Fabio Ginevra Hamza Ilse"),
            "These are all the bakers who shared sourdough starter with one another.",
            ("{a} gave starter to {b}.", "{b} got starter from {a}."),
            "Could starter from {a} have reached {b}?",
            ("starter from {a} could reach {b}", "starter from {a} could not reach {b}"),
        ),
    ),
    "sports": (
        Scene(
            _nodes("Adil Benny Chiara Diego Emeka Fatou Goran Hiro"),
            "In a training drill, the ball may be passed only like this.",
            ("{a} passes to {b}.", "{b} takes the ball from {a}."),
            "Can the ball get from {a} to {b} during the drill?",
            ("the ball can get from {a} to {b}", "the ball cannot get from {a} to {b}"),
        ),
        Scene(
            _nodes("Arlberg Brenner Corvatsch Davos Engelberg Fluela Gemmi Hochalm"),
            "A ski resort has only these runs between its stations.",
            ("A run goes from {a} to {b}.", "From {a}, skiers glide to {b}."),
            "Can a skier at {a} get to {b} on the runs alone?",
            ("the runs lead from {a} to {b}", "the runs do not lead from {a} to {b}"),
        ),
        Scene(
            _nodes("cartwheel handstand roundoff backflip headstand bridge somersault vault", the=True),
            "A gymnastics coach lists which skill builds on which, and there are no other conditions.",
            ("{b} builds on {a}.", "{a} is needed for {b}."),
            "Must a gymnast master {a} before {b}?",
            ("{a} must come before {b}", "{a} need not come before {b}"),
        ),
    ),
    "finance": (
        Scene(
            _nodes("Alcor Benmar Castell Dorvane Emporia Finley Grantham Holbeck"),
            "A group of firms moves money only along these channels.",
            ("{a} pays {b}.", "{b} collects money from {a}."),
            "Can money from {a} end up with {b}?",
            ("money from {a} can reach {b}", "money from {a} cannot reach {b}"),
        ),
        Scene(
            _nodes("Argent Bolton Cathay Dorado Equitas Fortis Globex Hanover"),
            "A register shows every shareholding in a group of companies, and there are no others.",
            ("{a} holds shares in {b}.", "{b} is partly owned by {a}."),
            "Does {a} have a stake in {b}, directly or through other companies?",
            ("{a} has a stake in {b}", "{a} has no stake in {b}"),
        ),
        Scene(
            _nodes("dorans kelts marits ondas piastols rintas talvers zecks"),
            "At an exchange office, currencies can be changed only in these ways.",
            ("{a} can be changed into {b}.", "{b} can be bought with {a}."),
            "Can a traveller who holds only {a} obtain {b} there?",
            ("{a} can become {b}", "{a} cannot become {b}"),
        ),
    ),
    "astronomy": (
        Scene(
            _nodes("Aether Boreas Calypso Demeter Electra Fornax Gaea Helios"),
            "Space probes forward radio data only along these links.",
            ("{a} transmits to {b}.", "{b} receives data from {a}."),
            "Can data recorded by {a} reach {b}?",
            ("data from {a} can reach {b}", "data from {a} cannot reach {b}"),
        ),
        Scene(
            _nodes("Amara Brontes Cilix Dione Enkar Febra Gyges Hyrax"),
            "Around a ringed planet, a lander flies between moons only along these orbits.",
            ("An orbit leads from {a} to {b}.", "{b} lies on an orbit from {a}."),
            "Can the lander on {a} get to {b}?",
            ("the lander can get from {a} to {b}", "the lander cannot get from {a} to {b}"),
        ),
        Scene(
            _nodes("Lyra Pavo Cygnus Draco Vela Hydra Corvus Aquila"),
            "Sky surveys reuse older star charts; every reuse is listed, and there are no others.",
            ("{b} builds on {a}.", "{b} reuses {a}."),
            "Does the chart of {b} depend on {a}, directly or indirectly?",
            ("{b} depends on {a}", "{b} does not depend on {a}"),
        ),
    ),
    "gardening": (
        Scene(
            _nodes("pond well fountain trough cistern rockery orchard greenhouse", the=True),
            "In a park, water runs downhill only through these channels.",
            ("Water runs from {a} to {b}.", "{b} is watered from {a}."),
            "Can water from {a} reach {b}?",
            ("water from {a} can reach {b}", "water from {a} cannot reach {b}"),
        ),
        Scene(
            _nodes("arbour pergola sundial hedge lawn terrace gazebo trellis", the=True),
            "The paths in a walled garden are one-way, and there are only these.",
            ("{a} leads to {b}.", "{b} is reached from {a}."),
            "Can a visitor walk from {a} to {b}?",
            ("the paths lead from {a} to {b}", "the paths do not lead from {a} to {b}"),
        ),
        Scene(
            _nodes("Alba Belinda Carmine Duchess Evelina Flamenco Gloriana Honeydew"),
            "A breeder records where her roses come from, and there are no other crossings.",
            ("{b} was bred from {a}.", "{a} is a parent of {b}."),
            "Is {a} an ancestor of {b}?",
            ("{a} is an ancestor of {b}", "{a} is not an ancestor of {b}"),
        ),
    ),
    "logistics": (
        Scene(
            _nodes("Ashby Brigg Crewe Diss Eccles Fleet Goxhill Holt"),
            "Delivery vans may use only these one-way roads.",
            ("A road leads from {a} to {b}.", "From {a}, a road leads to {b}."),
            "Can a van drive from {a} to {b}?",
            ("the roads lead from {a} to {b}", "the roads do not lead from {a} to {b}"),
        ),
        Scene(
            _nodes("unloading sorting labelling weighing inspection stacking scanning taping"),
            "At a depot, every task that has to wait for another is listed, and there are no others.",
            ("{b} waits for {a}.", "{b} cannot start before {a}."),
            "Does {a} have to be done before {b} can begin?",
            ("{a} must come before {b}", "{a} need not come before {b}"),
        ),
        Scene(
            _nodes("hopper scanner sorter scale wrapper chute stacker bay", the=True),
            "In a warehouse, boxes move only along these conveyor belts.",
            ("{a} feeds {b}.", "{b} is fed by {a}."),
            "Can a box that starts at {a} arrive at {b}?",
            ("a box can get from {a} to {b}", "a box cannot get from {a} to {b}"),
        ),
    ),
}
