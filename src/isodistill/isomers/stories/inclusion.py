"""Words for the inclusion family: what is sorted into kinds in each domain."""

from __future__ import annotations

from dataclasses import dataclass

from isodistill.isomers.stories.sentences import article, with_s

__all__ = ["SCENES", "Kind", "Scene"]


@dataclass(frozen=True)
class Kind:
    """A kind of thing: "juror" or "brittle crystal".

    Attributes:
        name: the bare noun phrase.
        adjective: the word that says the same after "is", for kinds that are made by an adjective.
    """

    name: str
    adjective: str | None = None

    @property
    def one(self) -> str:
        """What stands after "it is": "a juror", "brittle"."""
        return self.adjective or article(self.name)

    @property
    def all(self) -> str:
        """What stands after "they are": "jurors", "brittle"."""
        return self.adjective or self.many

    @property
    def many(self) -> str:
        """The plural noun phrase; the lexicons hold no irregular one."""
        return with_s(self.name)


@dataclass(frozen=True)
class Scene:
    """One way to tell what lies inside what.

    Templates use ``{x}`` and ``{y}``, which are kinds, by ``.name``, ``.one``, ``.all`` and ``.many``.

    Attributes:
        kinds: eight kinds.
        members: names of individuals.
        intro: opening sentence.
        every: sentences for "every x is a y".
        none: sentences for "no x is a y".
        member: sentences for "the individual m is a y".
        ask: the question; ``{claim}`` is a clause such as "every x is a y".
    """

    kinds: tuple[Kind, ...]
    members: tuple[str, ...]
    intro: str
    every: tuple[str, ...]
    none: tuple[str, ...]
    member: tuple[str, ...]
    ask: str


def _nouns(words: str, head: str = "") -> tuple[Kind, ...]:
    return tuple(Kind(f"{word} {head}".strip()) for word in words.split())


def _adjectives(words: str, head: str) -> tuple[Kind, ...]:
    return tuple(Kind(f"{word} {head}", word) for word in words.split())


SCENES: dict[str, tuple[Scene, ...]] = {
    "mathematics": (
        Scene(
            _nouns("Torvan Kelm Ostry Brask Dullin Quent Marvic Iltis", "number"),
            ("K", "M", "P", "Q"),
            "A number theorist proved the following lemmas.",
            ("Every {x.name} is {y.one}.", "All {x.many} are {y.many}."),
            ("No {x.name} is {y.one}.", "No {x.many} are {y.many}."),
            ("{m} is {y.one}.",),
            "Does it follow that {claim}?",
        ),
        Scene(
            _adjectives("woven knotted folded twisted looping jagged mirrored nested", "curve"),
            ("curve Gamma", "curve Delta", "curve Sigma", "curve Omega"),
            "A geometer sorts the curves on her blackboard.",
            ("The {x.many} are all {y.all}.", "Any {x.name} is {y.one}."),
            ("None of the {x.many} are {y.all}.",),
            ("{m} is {y.one}.",),
            "Can she deduce that {claim}?",
        ),
        Scene(
            _nouns("velt dorim sarn obrel tavit ulmar prenk astin"),
            ("Alpha", "Beta", "Kappa", "Theta"),
            "These are the axioms of a made-up algebra.",
            ("Whatever is {x.one} is also {y.one}.", "Each {x.name} is {y.one}."),
            ("Nothing that is {x.one} is {y.one}.",),
            ("The element {m} is {y.one}.",),
            "Is it a theorem that {claim}?",
        ),
    ),
    "medicine": (
        Scene(
            _adjectives("fasting monitored isolated bedbound allergic anaemic feverish sedated", "patient"),
            ("Rosa", "Tariq", "Ursula", "Viktor"),
            "On a hospital ward, these facts hold today.",
            ("Every {x.name} is {y.one}.", "Each {x.name} is also {y.one}."),
            ("No {x.name} is {y.one}.",),
            ("{m} is {y.one}.", "The newcomer {m} is {y.one}."),
            "Does it follow that {claim}?",
        ),
        Scene(
            _nouns("mendrine taxolide corvane pelazine doxitone umbrasol vantine strobal"),
            ("Ibrexin", "Jovanal", "Kestrin", "Lorpax"),
            "A guide to new medicines says the following.",
            ("All {x.many} are {y.many}.", "Any {x.name} counts as {y.one}."),
            ("No {x.many} are {y.many}.", "No {x.name} counts as {y.one}."),
            ("The tablet {m} is {y.one}.", "{m} counts as {y.one}."),
            "Can a pharmacist be sure that {claim}?",
        ),
        Scene(
            _adjectives("quarantined ventilated disinfected staffed renovated shaded locked carpeted", "clinic"),
            ("the Aldermoor clinic", "the Brightwell clinic", "the Copsehill clinic", "the Elmstead clinic"),
            "Health inspectors report on the clinics of a county.",
            ("Only {y.many} are {x.all}.", "If a clinic is {x.one}, it is {y.one}."),
            ("If a clinic is {x.one}, it is not {y.one}.",),
            ("{m} is {y.one}.",),
            "Is it certain that {claim}?",
        ),
    ),
    "law": (
        Scene(
            _adjectives("sealed private urgent archived redacted stamped appealed numbered", "file"),
            ("file Ashdown", "file Belgrave", "file Coburn", "file Daventry"),
            "The registry of a court follows these rules.",
            ("Every {x.name} is {y.one}.", "Each {x.name} is classed as {y.one}."),
            ("No {x.name} is {y.one}.", "No {x.name} is classed as {y.one}."),
            ("{m} is {y.one}.",),
            "Must the registrar accept that {claim}?",
        ),
        Scene(
            _nouns("notary bailiff juror arbiter solicitor clerk magistrate trustee"),
            ("Prentiss", "Radley", "Selwyn", "Thorne"),
            "In the town of Orlen, legal offices overlap.",
            ("Anyone who is {x.one} is also {y.one}.", "All {x.many} are {y.many}."),
            ("Nobody who is {x.one} is {y.one}.", "None of the {x.many} are {y.many}."),
            ("{m} is {y.one}.", "{m} is one of the {y.many}."),
            "Can a lawyer conclude that {claim}?",
        ),
        Scene(
            _adjectives("binding typed sworn witnessed dated standard renewable disputed", "contract"),
            ("the Emberly contract", "the Foxcroft contract", "the Gainsford contract", "the Hartwell contract"),
            "A statute sorts agreements as follows.",
            ("If a contract is {x.one}, it is {y.one}.", "Only {y.many} can be {x.all}."),
            ("If a contract is {x.one}, it is not {y.one}.",),
            ("{m} is {y.one}.",),
            "Does the statute imply that {claim}?",
        ),
    ),
    "science": (
        Scene(
            _adjectives("brittle cloudy magnetic porous striped hollow glowing dense", "crystal"),
            ("Cryon", "Dravite", "Elbrite", "Fenite"),
            "A lab examined the minerals of one cave.",
            ("Every {x.name} is {y.one}.", "Each {x.name} turned out to be {y.one}."),
            ("No {x.name} is {y.one}.", "No {x.name} turned out to be {y.one}."),
            ("The specimen {m} is {y.one}.",),
            "Do the findings show that {claim}?",
        ),
        Scene(
            _nouns("morfin quellet trasp bindle yarrick snoad pellik gorm"),
            ("Rusty", "Smudge", "Tiptoe", "Whisker"),
            "A zoologist classifies the animals of an island.",
            ("All {x.many} are {y.many}.", "Any {x.name} is a kind of {y.name}."),
            ("No {x.many} are {y.many}.", "No {x.name} is a kind of {y.name}."),
            ("The animal called {m} is {y.one}.",),
            "Does it follow that {claim}?",
        ),
        Scene(
            _adjectives("coiled spotted gliding armoured tailed dormant clustered luminous", "microbe"),
            ("Zetrin", "Yolax", "Xanor", "Wistra"),
            "Under the microscope, some patterns hold without exception.",
            ("Whatever is {x.one} is also {y.one}.", "The {x.many} are all {y.all}."),
            ("Nothing that is {x.one} is {y.one}.", "None of the {x.many} are {y.all}."),
            ("The strain {m} is {y.one}.",),
            "Can a biologist infer that {claim}?",
        ),
    ),
    "cooking": (
        Scene(
            _adjectives("smoky creamy tangy chunky minty whisked buttery peppery", "sauce"),
            ("Bellino", "Cremosa", "Dolcetta", "Fiorina"),
            "A cookbook describes its sauces like this.",
            ("Every {x.name} is {y.one}.", "Any {x.name} must also be {y.one}."),
            ("No {x.name} is {y.one}.",),
            ("{m} is {y.one}.", "The sauce called {m} is {y.one}."),
            "Does it follow that {claim}?",
        ),
        Scene(
            _nouns("marlo pintette sorvel caddle brunnock tesselle garbolo fennade"),
            ("Lunetta", "Mirabel", "Nonnina", "Ottavia"),
            "The kitchens of Corrava name dishes by old rules.",
            ("All {x.many} are {y.many}.", "Each {x.name} counts as {y.one}."),
            ("No {x.many} are {y.many}.", "No {x.name} counts as {y.one}."),
            ("The house special {m} is {y.one}.",),
            "Can the chef be sure that {claim}?",
        ),
        Scene(
            _adjectives("frosted layered nutty sticky braided glazed spiced marbled", "cake"),
            ("Pavoletta", "Rosalba", "Sachina", "Tortino"),
            "A pastry shop writes its rules on the wall.",
            ("If a cake is {x.one}, it is {y.one}.", "Only {y.many} can be {x.all}."),
            ("If a cake is {x.one}, it is not {y.one}.",),
            ("Today's treat, {m}, is {y.one}.",),
            "Do the rules guarantee that {claim}?",
        ),
    ),
    "sports": (
        Scene(
            _adjectives("rested touring sponsored unbeaten masked bearded barefoot seasoned", "player"),
            ("Akira", "Bodhi", "Carlos", "Dagny"),
            "A reporter notes facts about the players of a league.",
            ("Every {x.name} is {y.one}.", "Each {x.name} is listed as {y.one}."),
            ("No {x.name} is {y.one}.", "No {x.name} is listed as {y.one}."),
            ("The captain {m} is {y.one}.",),
            "Does it follow that {claim}?",
        ),
        Scene(
            _nouns("sprinter hurdler rower diver fencer wrestler skater archer"),
            ("Ewan", "Freya", "Gunnar", "Heidi"),
            "At the Larkhill club, athletes train for several events.",
            ("Anyone who is {x.one} is also {y.one}.", "All the {x.many} are {y.many}."),
            ("Nobody who is {x.one} is {y.one}.", "None of the {x.many} are {y.many}."),
            ("{m} is {y.one}.", "{m} is one of the {y.many}."),
            "Can the coach be certain that {claim}?",
        ),
        Scene(
            _adjectives("coastal seeded visiting promoted amateur youthful invited undefeated", "team"),
            ("the Arrow team", "the Bandit team", "the Cyclone team", "the Dynamo team"),
            "A tournament has a few fixed rules.",
            ("Only {y.many} can be {x.all}.", "If a team is {x.one}, then it is {y.one}."),
            ("If a team is {x.one}, then it is not {y.one}.",),
            ("{m} is {y.one}.",),
            "Do the rules mean that {claim}?",
        ),
    ),
    "finance": (
        Scene(
            _adjectives("callable green rated insured foreign hedged listed indexed", "bond"),
            ("Altus", "Brevix", "Cordia", "Delmar"),
            "A broker notes some facts about the market.",
            ("Every {x.name} is {y.one}.", "Any {x.name} is also {y.one}."),
            ("No {x.name} is {y.one}.",),
            ("The security {m} is {y.one}.",),
            "Can an investor conclude that {claim}?",
        ),
        Scene(
            _nouns("broker auditor lender investor trader insurer actuary banker"),
            ("Ingram", "Jacobs", "Kendrick", "Lowell"),
            "In one trading house, jobs overlap.",
            ("All {x.many} are {y.many}.", "Anyone who is {x.one} is also {y.one}."),
            ("No {x.many} are {y.many}.", "Nobody who is {x.one} is {y.one}."),
            ("{m} is {y.one}.", "{m} is one of the {y.many}."),
            "Does it follow that {claim}?",
        ),
        Scene(
            _adjectives("verified shared taxable overdrawn protected linked corporate frozen", "account"),
            ("account Meridian", "account Northgate", "account Orchid", "account Pinnacle"),
            "A bank sorts accounts by these rules.",
            ("If an account is {x.one}, it is {y.one}.", "Each {x.name} is treated as {y.one}."),
            ("If an account is {x.one}, it is not {y.one}.", "No {x.name} is treated as {y.one}."),
            ("{m} is {y.one}.",),
            "Is it certain that {claim}?",
        ),
    ),
    "astronomy": (
        Scene(
            _adjectives("icy ringed cratered tilted volcanic dusty captured rocky", "moon"),
            ("Ceryn", "Doreth", "Eliso", "Faran"),
            "A probe surveyed the moons of a distant planet.",
            ("Every {x.name} is {y.one}.", "Each {x.name} proved to be {y.one}."),
            ("No {x.name} is {y.one}.", "No {x.name} proved to be {y.one}."),
            ("The moon {m} is {y.one}.",),
            "Does the survey show that {claim}?",
        ),
        Scene(
            _nouns("nebron dravar pelstar quorl lumid tessar vorin halion"),
            ("Ixion", "Jandar", "Korvath", "Lethos"),
            "A star atlas uses its own classes for objects in the sky.",
            ("All {x.many} are {y.many}.", "Any {x.name} counts as {y.one}."),
            ("No {x.many} are {y.many}.", "No {x.name} counts as {y.one}."),
            ("The object {m} is {y.one}.",),
            "Does it follow that {claim}?",
        ),
        Scene(
            _adjectives("pulsing ancient faint crimson drifting flaring remote rapid", "star"),
            ("Mavros", "Nerith", "Orsana", "Pelior"),
            "Through the telescope, a few patterns hold without exception.",
            ("Whatever is {x.one} is also {y.one}.", "The {x.many} are all {y.all}."),
            ("Nothing that is {x.one} is {y.one}.", "None of the {x.many} are {y.all}."),
            ("{m} is {y.one}.", "{m} is one of the {y.many}."),
            "Can an astronomer infer that {claim}?",
        ),
    ),
    "gardening": (
        Scene(
            _adjectives("hardy fragrant creeping thorny evergreen dwarf potted grafted", "shrub"),
            ("Blossom", "Clover", "Daphne", "Fernie"),
            "A nursery sorts its shrubs as follows.",
            ("Every {x.name} is {y.one}.", "Each {x.name} is listed as {y.one}."),
            ("No {x.name} is {y.one}.", "No {x.name} is listed as {y.one}."),
            ("The shrub named {m} is {y.one}.",),
            "Does it follow that {claim}?",
        ),
        Scene(
            _nouns("sennet tolwort brimble ladbush hemmock wispel yelloway duskbell"),
            ("Gilda", "Hyacinth", "Junia", "Linnet"),
            "An old herbal groups plants by the shape of their leaves.",
            ("All {x.many} are {y.many}.", "Any {x.name} is a kind of {y.name}."),
            ("No {x.many} are {y.many}.", "No {x.name} is a kind of {y.name}."),
            ("The plant {m} is {y.one}.",),
            "Can a gardener be sure that {claim}?",
        ),
        Scene(
            _adjectives("climbing scented pruned rambling pale double prized mulched", "rose"),
            ("Marigold", "Narcissa", "Oleander", "Primrose"),
            "In the walled garden, the roses follow fixed rules.",
            ("Only {y.many} are {x.all}.", "If a rose is {x.one}, it is {y.one}."),
            ("If a rose is {x.one}, it is not {y.one}.",),
            ("The variety {m} is {y.one}.",),
            "Do the rules guarantee that {claim}?",
        ),
    ),
    "logistics": (
        Scene(
            _adjectives("fragile tracked oversized prepaid wrapped express registered heavy", "parcel"),
            ("parcel Kilo", "parcel Lima", "parcel Tango", "parcel Zulu"),
            "A carrier handles its parcels by these rules.",
            ("Every {x.name} is {y.one}.", "Each {x.name} is shipped as {y.one}."),
            ("No {x.name} is {y.one}.", "No {x.name} is shipped as {y.one}."),
            ("{m} is {y.one}.",),
            "Does it follow that {claim}?",
        ),
        Scene(
            _nouns("courier loader packer dispatcher driver porter stevedore checker"),
            ("Marek", "Nikolai", "Oskar", "Paulo"),
            "At the Dunmoor depot, workers hold several posts.",
            ("Anyone who is {x.one} is also {y.one}.", "All the {x.many} are {y.many}."),
            ("Nobody who is {x.one} is {y.one}.", "None of the {x.many} are {y.many}."),
            ("{m} is {y.one}.", "{m} is one of the {y.many}."),
            "Can the manager conclude that {claim}?",
        ),
        Scene(
            _adjectives("leased electric articulated refrigerated retired rented unmarked repainted", "truck"),
            ("truck Bison", "truck Condor", "truck Jaguar", "truck Puma"),
            "A haulage firm describes its fleet.",
            ("If a truck is {x.one}, it is {y.one}.", "Only {y.many} are {x.all}."),
            ("If a truck is {x.one}, it is not {y.one}.",),
            ("{m} is {y.one}.",),
            "Is it certain that {claim}?",
        ),
    ),
}
