"""Words for the propositional family: events that bring each other about in each domain."""

from __future__ import annotations

from dataclasses import dataclass

from isodistill.isomers.stories.sentences import Event

__all__ = ["SCENES", "Scene"]


@dataclass(frozen=True)
class Scene:
    """One way to tell rules about events.

    Attributes:
        events: eight events.
        intro: opening sentence.
        rules: sentences for "if p, then q"; ``{np}`` is the opposite of p, for "unless".
        either: sentence for "p or q".
        fact: sentence for the one event that is known.
        ask: the question; ``{question}`` is such as "is the gate open".
    """

    events: tuple[Event, ...]
    intro: str
    rules: tuple[str, ...]
    either: str
    fact: str
    ask: str


def _events(text: str) -> tuple[Event, ...]:
    """Events written as "subject: predicate" between semicolons."""
    return tuple(Event(*event.split(": ")) for event in text.split("; "))


IF_FIRST = ("If {p}, {q}.", "When {p}, {q}.", "Unless {np}, {q}.")
IF_LAST = ("{q} if {p}.", "{p} only if {q}.", "{q} unless {np}.")
WHENEVER = ("Whenever {p}, {q}.", "{q} whenever {p}.", "{q} unless {np}.")

SCENES: dict[str, tuple[Scene, ...]] = {
    "mathematics": (
        Scene(
            _events(
                "graph G: be connected; set S: be finite; map F: be even; series T: converge; "
                "matrix M: be square; curve C: be closed; group H: be cyclic; field K: be ordered"
            ),
            "A proof relies on these lemmas.",
            IF_FIRST,
            "Either {p} or {q}.",
            "It is known that {p}.",
            "Given all this, {question}?",
        ),
        Scene(
            _events(
                "K: be prime; L: be even; M: be negative; N: be rational; "
                "P: be perfect; Q: be square; R: be odd; S: be irrational"
            ),
            "Several integers are linked in a puzzle.",
            IF_LAST,
            "{p}, or {q}.",
            "A hint says that {p}.",
            "According to the puzzle, {question}?",
        ),
        Scene(
            _events(
                "the limit: exist; the root: be real; the sequence: converge; the remainder: be zero; "
                "the line: be vertical; the sum: be odd; the equation: factor; the angle: be acute"
            ),
            "A student collects facts about an exercise.",
            WHENEVER,
            "Either {p}, or {q}.",
            "By calculation, {p}.",
            "From this, {question}?",
        ),
    ),
    "medicine": (
        Scene(
            _events(
                "the fever: rise; the rash: spread; the pulse: be fast; the wound: be clean; "
                "the cough: return; the scan: be clear; the swelling: be red; the patient: sleep"
            ),
            "A rare illness follows these rules.",
            IF_FIRST,
            "Either {p} or {q}.",
            "This morning {p}.",
            "In this case, {question}?",
        ),
        Scene(
            _events(
                "Doctor Hale: operate; Nurse Amir: stay late; the ward: be full; the clinic: be closed; "
                "the surgeon: be away; the pharmacy: be open; the ambulance: leave; the matron: be busy"
            ),
            "A hospital plans its evenings by fixed rules.",
            IF_LAST,
            "Either {p} or {q}.",
            "Tonight {p}.",
            "Tonight, {question}?",
        ),
        Scene(
            _events(
                "the enzyme: be active; the hormone: be low; the vaccine: work; the infection: spread; "
                "the biopsy: be clear; the antibody: be present; the marker: be high; the gland: be swollen"
            ),
            "A blood specialist follows these guidelines.",
            WHENEVER,
            "{p}, or {q}.",
            "The results show that {p}.",
            "For this patient, {question}?",
        ),
    ),
    "law": (
        Scene(
            _events(
                "the witness: appear; the jury: be seated; the judge: adjourn; the appeal: fail; "
                "the verdict: stand; the defendant: testify; bail: be granted; the plea: be accepted"
            ),
            "A trial follows strict rules.",
            IF_FIRST,
            "Either {p} or {q}.",
            "Today {p}.",
            "According to the rules, {question}?",
        ),
        Scene(
            _events(
                "the lease: be valid; the deposit: be due; the clause: apply; the tenant: sign; "
                "the landlord: object; the deed: be sealed; the permit: expire; the notice: be late"
            ),
            "These are the terms of a rental agreement.",
            IF_LAST,
            "Either {p} or {q}.",
            "This time {p}.",
            "Under the agreement, {question}?",
        ),
        Scene(
            _events(
                "Ames: sue; Bligh: settle; Cobb: object; Dace: confess; "
                "Eddy: plead guilty; Foy: appeal; Gale: withdraw; Hurd: be acquitted"
            ),
            "The outcome of a lawsuit hangs on several parties.",
            WHENEVER,
            "{p}, or {q}.",
            "In court, {p}.",
            "In the end, {question}?",
        ),
    ),
    "science": (
        Scene(
            _events(
                "the lamp: glow; the coil: be warm; the crystal: dissolve; the gas: expand; "
                "the magnet: be on; the liquid: freeze; the sensor: beep; the mixture: be blue"
            ),
            "An experiment obeys these rules.",
            IF_FIRST,
            "Either {p} or {q}.",
            "This time {p}.",
            "In this run, {question}?",
        ),
        Scene(
            _events(
                "the lake: freeze; the heron: nest; the reed: grow; the frog: spawn; "
                "the otter: be awake; the moss: spread; the beetle: hatch; the marsh: be dry"
            ),
            "A biologist describes a small wetland.",
            IF_LAST,
            "Either {p} or {q}.",
            "This year {p}.",
            "This year, {question}?",
        ),
        Scene(
            _events(
                "the protein: fold; the virus: mutate; the cell: divide; the membrane: leak; "
                "the signal: fade; the tissue: grow; the spore: germinate; the plasmid: be present"
            ),
            "Under the microscope, events depend on one another.",
            WHENEVER,
            "{p}, or {q}.",
            "Right now {p}.",
            "Then, {question}?",
        ),
    ),
    "cooking": (
        Scene(
            _events(
                "the dough: rise; the oven: be hot; the cream: curdle; the sauce: thicken; "
                "the butter: melt; the crust: be crisp; the custard: set; the pot: boil"
            ),
            "A cook trusts these kitchen rules.",
            IF_FIRST,
            "Either {p} or {q}.",
            "At noon {p}.",
            "In this kitchen, {question}?",
        ),
        Scene(
            _events(
                "Marta: bake; Niko: fry; Odile: chop; Pierre: whisk; "
                "Quinn: stir; Remy: wash up; Suki: grill; Tomas: knead"
            ),
            "A team of cooks shares the work by agreement.",
            IF_LAST,
            "Either {p} or {q}.",
            "This evening {p}.",
            "This evening, {question}?",
        ),
        Scene(
            _events(
                "the menu: change; the waiter: be late; the fish: be fresh; the chef: be away; "
                "the soup: be salty; the bread: run out; the dessert: be ready; the terrace: be open"
            ),
            "At a small restaurant, one thing leads to another.",
            WHENEVER,
            "{p}, or {q}.",
            "On Sunday {p}.",
            "On Sunday, {question}?",
        ),
    ),
    "sports": (
        Scene(
            _events(
                "Alba: start; Boris: play; Celia: sprint; Denis: train; "
                "Eliza: swim; Frida: score; Georg: rest; Hedda: compete"
            ),
            "A coach picks her athletes by these rules.",
            IF_FIRST,
            "Either {p} or {q}.",
            "This time {p}.",
            "In that case, {question}?",
        ),
        Scene(
            _events(
                "the referee: whistle; the pitch: be wet; the match: be cancelled; the keeper: be injured; "
                "the striker: score; the crowd: cheer; the captain: shout; the stadium: be full"
            ),
            "Fans know how game day goes.",
            IF_LAST,
            "Either {p} or {q}.",
            "On Saturday {p}.",
            "On Saturday, {question}?",
        ),
        Scene(
            _events(
                "the relay: be run; the track: be dry; the hurdler: compete; the medal: be awarded; "
                "the record: fall; the final: be delayed; the flag: be raised; the marathon: begin"
            ),
            "An athletics meeting follows a rule book.",
            WHENEVER,
            "{p}, or {q}.",
            "This afternoon {p}.",
            "Under the rule book, {question}?",
        ),
    ),
    "finance": (
        Scene(
            _events(
                "the bond: mature; the market: rally; the fund: close; the rate: rise; "
                "the loan: be repaid; the dividend: be paid; the index: drop; the merger: fail"
            ),
            "An analyst believes these rules.",
            IF_FIRST,
            "Either {p} or {q}.",
            "This quarter {p}.",
            "On that view, {question}?",
        ),
        Scene(
            _events(
                "Axton: default; Burrell: invest; Calder: borrow; Drexel: merge; "
                "Elkin: expand; Forsyth: sell; Garner: be audited; Hadley: pay"
            ),
            "Rival firms watch one another closely.",
            IF_LAST,
            "Either {p} or {q}.",
            "In May {p}.",
            "In May, {question}?",
        ),
        Scene(
            _events(
                "the auditor: sign; the broker: call; the cheque: clear; the invoice: be paid; "
                "the budget: be approved; the treasurer: resign; the account: be overdrawn; the bank: lend"
            ),
            "At an investment office, one event brings another.",
            WHENEVER,
            "{p}, or {q}.",
            "This week {p}.",
            "This week, {question}?",
        ),
    ),
    "astronomy": (
        Scene(
            _events(
                "the comet: be visible; the moon: be full; the dome: open; the telescope: move; "
                "the mirror: be cold; the sky: be cloudy; the planet: rise; the aurora: appear"
            ),
            "An observatory works by these rules.",
            IF_FIRST,
            "Either {p} or {q}.",
            "At midnight {p}.",
            "That night, {question}?",
        ),
        Scene(
            _events(
                "the probe: land; the antenna: turn; the battery: be charged; the rover: wake; "
                "the orbiter: transmit; the camera: be on; the shield: be down; the thruster: fire"
            ),
            "Mission control programmed a spacecraft like this.",
            IF_LAST,
            "Either {p} or {q}.",
            "During this orbit {p}.",
            "During this orbit, {question}?",
        ),
        Scene(
            _events(
                "Altan: flare; Berul: be dim; Cirra: pulse; Dessa: be eclipsed; "
                "Erkan: fade; Fumal: flicker; Gordia: set; Hatsya: be bright"
            ),
            "A catalogue says how certain stars behave.",
            WHENEVER,
            "{p}, or {q}.",
            "Just now {p}.",
            "By the catalogue, {question}?",
        ),
    ),
    "gardening": (
        Scene(
            _events(
                "the soil: be moist; the fern: wilt; the sprinkler: run; the rose: bloom; "
                "the gate: be open; the snail: hide; the seed: sprout; the pond: be full"
            ),
            "A gardener goes by these rules of thumb.",
            IF_FIRST,
            "Either {p} or {q}.",
            "At dawn {p}.",
            "In the garden, {question}?",
        ),
        Scene(
            _events(
                "Anselm: mow; Bettina: prune; Cedric: dig; Dulcie: plant; "
                "Elspeth: rake; Felix: sow; Gwen: weed; Hetty: mulch"
            ),
            "Neighbours work on an allotment by turns.",
            IF_LAST,
            "Either {p} or {q}.",
            "Next spring {p}.",
            "Next spring, {question}?",
        ),
        Scene(
            _events(
                "the greenhouse: be warm; the vent: open; the vine: climb; the tomato: ripen; "
                "the fan: run; the melon: grow; the basil: be dry; the compost: steam"
            ),
            "Under glass, one thing brings another.",
            WHENEVER,
            "{p}, or {q}.",
            "In July {p}.",
            "In July, {question}?",
        ),
    ),
    "logistics": (
        Scene(
            _events(
                "the truck: be loaded; the ferry: sail; the dock: be free; the crane: work; "
                "the convoy: stop; the border: be open; the cargo: arrive; the barge: be late"
            ),
            "A port runs by these rules.",
            IF_FIRST,
            "Either {p} or {q}.",
            "On Tuesday {p}.",
            "On that day, {question}?",
        ),
        Scene(
            _events(
                "the pallet: be heavy; the scanner: beep; the forklift: move; the conveyor: stop; "
                "the shelf: be empty; the parcel: be damaged; the label: print; the shift: end"
            ),
            "The workings of a warehouse are linked.",
            IF_LAST,
            "Either {p} or {q}.",
            "In this hour {p}.",
            "In this hour, {question}?",
        ),
        Scene(
            _events(
                "Lars: drive; Mabel: deliver; Nuno: refuel; Otto: unload; "
                "Priya: call; Ravi: wait; Stig: depart; Tilda: return"
            ),
            "Drivers at a haulage firm depend on each other.",
            WHENEVER,
            "{p}, or {q}.",
            "On this trip {p}.",
            "On this trip, {question}?",
        ),
    ),
}
