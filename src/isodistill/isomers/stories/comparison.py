"""Words of the family `comparison`: two totals side by side, or one total under a condition, in ten worlds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STORIES", "Story"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One phrasing. Numbers in slots are at least 2; in "[x|y]" x is told for the first case and y for the second.

    Attributes:
        mul: the one side, {a} groups of {b} each.
        change: this side [grows|shrinks] by {c}.
        num: the other side as a plain quantity {d}.
        other: the other side as {d} groups of {e} each.
        diff: the question for the difference.
        extreme: the question for the [larger|smaller] side.
        rule: if the total is {over}, {than} or {above} the threshold {t}, it [grows|shrinks] by {p}.
        ask: the question for the total after the rule.
    """

    mul: str
    change: str
    num: str
    other: str
    diff: str
    extreme: str
    rule: str
    ask: str


STORIES: dict[str, tuple[Story, ...]] = {
    "mathematics": (
        Story(
            mul="Let x be the product of {a} and {b}.",
            change="Then x is [increased|decreased] by {c}.",
            num="Let y be equal to {d}.",
            other="Let y be the product of {d} and {e}.",
            diff="What is the difference between the numbers x and y?",
            extreme="What is the [larger|smaller] of the two numbers x and y?",
            rule="If x is {above} {t}, it is [increased|decreased] by {p}.",
            ask="What is the value of x in the end?",
        ),
        Story(
            mul="A red segment is made of {a} pieces, each {b} units long.",
            change="Then [{c} units are attached to it|{c} units are cut off its end].",
            num="A blue segment is {d} units long.",
            other="A blue segment is made of {d} pieces, each {e} units long.",
            diff="By how many units do the two lengths differ?",
            extreme="How many units long is the [longer|shorter] of the two segments?",
            rule="If its length is {above} {t} units, {p} units are [attached to it|cut off].",
            ask="How long is the red segment in the end?",
        ),
        Story(
            mul="In the left grid, there are {a} rows of {b} dots each.",
            change="Then {c} dots are [added to|erased from] it.",
            num="In the right grid, there are {d} dots.",
            other="In the right grid, there are {d} rows of {e} dots each.",
            diff="How many more dots does one grid contain than the other?",
            extreme="How many dots are there in the grid with [more|fewer] dots?",
            rule="If the grid contains {over} {t} dots, {p} dots are [added|erased].",
            ask="How many dots are in the left grid in the end?",
        ),
    ),
    "medicine": (
        Story(
            mul="The day shift plans {b} injections for each of {a} patients.",
            change="Afterwards, {c} injections are [added to|deleted from] its plan.",
            num="The night shift plans {d} injections.",
            other="The night shift plans {e} injections for each of {d} patients.",
            diff="By how many injections do the two shifts differ?",
            extreme="How many injections does the shift with the [larger|smaller] number plan?",
            rule="If it plans {over} {t} injections, {p} injections are [added|cancelled] by the doctor.",
            ask="How many injections does the day shift give in the end?",
        ),
        Story(
            mul="A heart patient takes {b} tablets a day for {a} days.",
            change="The doctor then [adds {c} tablets to|strikes {c} tablets from] the prescription.",
            num="A kidney patient takes {d} tablets.",
            other="A kidney patient takes {e} tablets a day for {d} days.",
            diff="How many more tablets does one patient take than the other?",
            extreme="How many tablets does the patient with [more|fewer] tablets take?",
            rule="If that makes {over} {t} tablets, the doctor [adds {p} tablets|takes {p} tablets off].",
            ask="How many tablets does the heart patient take in the end?",
        ),
        Story(
            mul="The blood bank of a city hospital has {a} shelves with {b} bags on each.",
            change="Today it [receives {c} bags from donors|uses up {c} bags in surgery].",
            num="The blood bank in the next town has {d} bags.",
            other="The blood bank in the next town has {d} shelves with {e} bags on each.",
            diff="What is the difference between the two stocks?",
            extreme="How many bags are there in the blood bank with the [larger|smaller] stock?",
            rule="If its stock is {above} {t} bags, it [receives {p} bags from|gives away {p} bags to] a clinic.",
            ask="How many bags of blood does the city hospital have then?",
        ),
    ),
    "law": (
        Story(
            mul="A lawyer works {b} hours a day for {a} days on a case.",
            change="For the hearing, {c} hours are [added to|struck from] the time sheet.",
            num="The opposing lawyer works {d} hours.",
            other="The opposing lawyer works {e} hours a day for {d} days.",
            diff="What is the difference in hours between the two lawyers?",
            extreme="How many hours does the lawyer with the [larger|smaller] time sheet work?",
            rule="If this makes {over} {t} hours, the court [adds|deducts] {p} hours.",
            ask="How many hours does the lawyer write on the bill?",
        ),
        Story(
            mul="The plaintiff files {a} motions with {b} pages each.",
            change="Before the deadline, the plaintiff [adds|withdraws] {c} pages.",
            num="The defendant files {d} pages.",
            other="The defendant files {d} motions with {e} pages each.",
            diff="By how many pages do the plaintiff and the defendant differ?",
            extreme="How many pages does the side with [more|fewer] pages file?",
            rule="If there are {over} {t} pages, the judge [requests another {p} pages|removes {p} pages].",
            ask="How many of the plaintiff's pages does the judge read?",
        ),
        Story(
            mul="A housing statute has {a} chapters, and each chapter has {b} articles.",
            change="Parliament then [inserts|repeals] {c} articles.",
            num="A labour statute has {d} articles.",
            other="A labour statute has {d} chapters, and each chapter has {e} articles.",
            diff="How many more articles does one statute have than the other?",
            extreme="How many articles does the [longer|shorter] of the two statutes have?",
            rule="If the statute has {over} {t} articles, Parliament [inserts|repeals] {p} articles.",
            ask="How many articles does the housing statute have in the end?",
        ),
    ),
    "science": (
        Story(
            mul="A chemist empties {a} flasks of acid with {b} millilitres each into a beaker.",
            change="Then {c} millilitres [are added|evaporate].",
            num="A student's beaker holds {d} millilitres.",
            other="A student empties {d} flasks with {e} millilitres each into a second beaker.",
            diff="What is the difference between the two volumes?",
            extreme="How many millilitres are in the beaker with the [larger|smaller] volume?",
            rule="If the volume is {above} {t} millilitres, {p} millilitres are [added|drained].",
            ask="How many millilitres are in the chemist's beaker in the end?",
        ),
        Story(
            mul="A wind sensor on a roof stores {b} readings per hour for {a} hours.",
            change="Afterwards, {c} readings are [added by hand|deleted as noise].",
            num="A wind sensor in a valley stores {d} readings.",
            other="A wind sensor in a valley stores {e} readings per hour for {d} hours.",
            diff="By how many readings do the two sensors differ?",
            extreme="How many readings are stored by the sensor with [more|fewer] readings?",
            rule="If there are {over} {t} readings, the software [adds|discards] {p} readings.",
            ask="How many readings from the roof are there in the end?",
        ),
        Story(
            mul="In a red dish, a biologist counts {a} colonies of {b} bacteria each.",
            change="Within an hour, {c} bacteria [are born|die].",
            num="In a green dish, there are {d} bacteria.",
            other="In a green dish, there are {d} colonies of {e} bacteria each.",
            diff="How many more bacteria live in one dish than in the other?",
            extreme="How many bacteria live in the dish with [more|fewer] bacteria?",
            rule="If the dish contains {over} {t} bacteria, the biologist [adds|removes] {p} bacteria.",
            ask="How many bacteria live in the red dish in the end?",
        ),
    ),
    "cooking": (
        Story(
            mul="A baker fills {a} trays with {b} muffins each.",
            change="Then [{c} more muffins are baked|{c} muffins are eaten].",
            num="A second baker bakes {d} muffins.",
            other="A second baker fills {d} trays with {e} muffins each.",
            diff="By how many muffins do the two bakers differ?",
            extreme="How many muffins does the baker with [more|fewer] muffins have?",
            rule="If there are {over} {t} muffins, the baker [bakes another {p}|gives away {p}].",
            ask="How many muffins does the baker have in the end?",
        ),
        Story(
            mul="For a cake, a chef takes {a} spoons of flour, each weighing {b} grams.",
            change="The chef then [adds|removes] {c} grams.",
            num="For a pie, the chef takes {d} grams of flour.",
            other="For a pie, the chef takes {d} spoons of flour, each weighing {e} grams.",
            diff="What is the difference between the two amounts of flour?",
            extreme="How many grams of flour go into the recipe with the [larger|smaller] amount?",
            rule="If the amount is {above} {t} grams, the chef [adds|removes] {p} grams.",
            ask="How many grams of flour go into the cake?",
        ),
        Story(
            mul="On Friday, a cook ladles out {b} bowls of soup from each of {a} pots.",
            change="The cook then [adds another {c} bowls|takes back {c} bowls].",
            num="On Saturday, the cook ladles out {d} bowls.",
            other="On Saturday, the cook ladles out {e} bowls from each of {d} pots.",
            diff="How many more bowls are served on one day than on the other?",
            extreme="How many bowls of soup are served on the day with [more|fewer] bowls?",
            rule="If that makes {over} {t} bowls, the cook [adds another {p} bowls|takes back {p} bowls].",
            ask="How many bowls of soup are served on Friday?",
        ),
    ),
    "sports": (
        Story(
            mul="The Lions score {b} points in each of {a} games.",
            change="The referee then [adds {c} points to|takes {c} points off] their score.",
            num="The Bears score {d} points.",
            other="The Bears score {e} points in each of {d} games.",
            diff="By how many points do the two teams differ?",
            extreme="How many points does the team with the [higher|lower] score have?",
            rule="If their score is {above} {t} points, the league [adds|deducts] {p} points.",
            ask="How many points do the Lions have at the end of the season?",
        ),
        Story(
            mul="A swimmer trains on {a} days and swims {b} laps each day.",
            change="The coach then [adds {c} laps to|strikes {c} laps from] the count.",
            num="Her rival swims {d} laps.",
            other="Her rival trains on {d} days and swims {e} laps each day.",
            diff="How many more laps does one swimmer have than the other?",
            extreme="How many laps does the swimmer with [more|fewer] laps have?",
            rule="If this makes {over} {t} laps, the coach [adds|deducts] {p} laps.",
            ask="How many laps does the coach write down for her?",
        ),
        Story(
            mul="A cyclist rides {a} stages of {b} kilometres each.",
            change="Because of a storm, the route is [lengthened|shortened] by {c} kilometres.",
            num="A second cyclist rides {d} kilometres.",
            other="A second cyclist rides {d} stages of {e} kilometres each.",
            diff="What is the difference between the two distances?",
            extreme="How many kilometres does the cyclist with the [longer|shorter] route ride?",
            rule="If the route is {than} {t} kilometres long, it is [lengthened|shortened] by {p} kilometres.",
            ask="How many kilometres does the cyclist ride in the end?",
        ),
    ),
    "finance": (
        Story(
            mul="A saver puts aside {b} dollars a week for {a} weeks.",
            change="The bank then [credits {c} dollars of interest|charges a fee of {c} dollars].",
            num="A second saver puts aside {d} dollars.",
            other="A second saver puts aside {e} dollars a week for {d} weeks.",
            diff="What is the difference between the two balances?",
            extreme="How many dollars does the saver with the [larger|smaller] balance have?",
            rule="If the balance is {above} {t} dollars, the bank [credits|charges] {p} dollars.",
            ask="How many dollars does the saver have in the end?",
        ),
        Story(
            mul="Fund Alpha holds {a} bonds worth {b} dollars each.",
            change="During the year, it [gains|loses] {c} dollars in value.",
            num="Fund Beta is worth {d} dollars.",
            other="Fund Beta holds {d} bonds worth {e} dollars each.",
            diff="By how many dollars do the two funds differ?",
            extreme="How many dollars is the fund with the [higher|lower] value worth?",
            rule="If the fund is worth {than} {t} dollars, it [gains|loses] {p} dollars in January.",
            ask="How many dollars is Fund Alpha worth in the end?",
        ),
        Story(
            mul="In spring, a shop sends out {a} invoices of {b} dollars each.",
            change="Then {c} dollars are [added for postage|subtracted as a discount].",
            num="In autumn, its invoices come to {d} dollars.",
            other="In autumn, it sends out {d} invoices of {e} dollars each.",
            diff="How many more dollars does the shop charge in one season than in the other?",
            extreme="How many dollars does the shop charge in the [better|worse] season?",
            rule="If the total is {above} {t} dollars, {p} dollars are [added as tax|subtracted as a discount].",
            ask="How many dollars does the shop charge for spring in the end?",
        ),
    ),
    "astronomy": (
        Story(
            mul="A telescope in Chile takes {b} pictures of the sky a night for {a} nights.",
            change="Afterwards, {c} pictures are [added from the archive|deleted because of clouds].",
            num="A telescope in Spain takes {d} pictures.",
            other="A telescope in Spain takes {e} pictures a night for {d} nights.",
            diff="By how many pictures do the two telescopes differ?",
            extreme="How many pictures does the telescope with [more|fewer] pictures contribute?",
            rule="If there are {over} {t} pictures, the astronomer [adds|deletes] {p} pictures.",
            ask="How many pictures from Chile are there in the end?",
        ),
        Story(
            mul="At the north pole of a moon, a probe maps {a} valleys with {b} craters each.",
            change="A second look [adds {c} craters to|removes {c} craters from] the map.",
            num="At the south pole, it maps {d} craters.",
            other="At the south pole, it maps {d} valleys with {e} craters each.",
            diff="What is the difference in craters between the two poles?",
            extreme="How many craters are on the map of the pole with [more|fewer] craters?",
            rule="If that makes {over} {t} craters, the astronomers [add|erase] {p} craters.",
            ask="How many craters are on the map of the north pole?",
        ),
        Story(
            mul="An observer watches the night sky for {a} hours and sees {b} meteors per hour.",
            change="Later, {c} meteors are [added to|crossed off] this observer's list.",
            num="A second observer sees {d} meteors.",
            other="A second observer watches for {d} hours and sees {e} meteors per hour.",
            diff="How many more meteors does one observer list than the other?",
            extreme="How many meteors does the observer with [more|fewer] meteors list?",
            rule="If the observer's list has {over} {t} meteors, {p} meteors are [added|crossed off].",
            ask="How many meteors does the observer list in the end?",
        ),
    ),
    "gardening": (
        Story(
            mul="The front bed of a garden has {a} rows of {b} tulips each.",
            change="In April, [{c} more tulips come up|snails destroy {c} tulips] there.",
            num="The rear bed has {d} tulips.",
            other="The rear bed has {d} rows of {e} tulips each.",
            diff="By how many tulips do the two beds differ?",
            extreme="How many tulips are growing in the bed with [more|fewer] tulips?",
            rule="If it has {over} {t} tulips, the gardener [plants another {p}|digs up {p}].",
            ask="How many tulips are growing in the front bed in the end?",
        ),
        Story(
            mul="An old orchard has {a} trees, and every tree bears {b} pears.",
            change="At harvest time, the gardener [finds another {c} pears|throws away {c} pears].",
            num="A young orchard bears {d} pears.",
            other="A young orchard has {d} trees, and every tree bears {e} pears.",
            diff="What is the difference between the two harvests?",
            extreme="How many pears come from the orchard with the [larger|smaller] harvest?",
            rule="If the harvest is {above} {t} pears, the gardener [receives another {p}|gives away {p}].",
            ask="How many pears does the gardener have in the end?",
        ),
        Story(
            mul="A gardener fills the rain barrel with {a} cans of {b} litres each.",
            change="Then the barrel [gains|loses] {c} litres overnight.",
            num="The tank behind the shed holds {d} litres.",
            other="The tank behind the shed is filled with {d} cans of {e} litres each.",
            diff="How many more litres does one of them hold than the other?",
            extreme="How many litres are in the vessel with [more|less] water?",
            rule="If the barrel holds {than} {t} litres, the gardener [adds|removes] {p} litres.",
            ask="How many litres are in the rain barrel in the end?",
        ),
    ),
    "logistics": (
        Story(
            mul="A red truck carries {a} pallets with {b} boxes each.",
            change="At the first stop, {c} boxes are [loaded|unloaded].",
            num="A white truck carries {d} boxes.",
            other="A white truck carries {d} pallets with {e} boxes each.",
            diff="By how many boxes do the two trucks differ?",
            extreme="How many boxes are on the truck with the [larger|smaller] load?",
            rule="If it carries {over} {t} boxes, {p} boxes are [loaded|unloaded] at the border.",
            ask="How many boxes are on the red truck in the end?",
        ),
        Story(
            mul="A courier makes {a} trips and delivers {b} parcels per trip.",
            change="Later, {c} parcels are [added to|cancelled from] the tour.",
            num="A second courier delivers {d} parcels.",
            other="A second courier makes {d} trips and delivers {e} parcels per trip.",
            diff="How many more parcels does one courier deliver than the other?",
            extreme="How many parcels does the courier with [more|fewer] parcels deliver?",
            rule="If that makes {over} {t} parcels, the office [adds|cancels] {p} parcels.",
            ask="How many parcels does the courier deliver in the end?",
        ),
        Story(
            mul="In Rotterdam, each of {a} cargo ships unloads {b} containers.",
            change="Overnight, {c} containers [arrive|leave] by rail.",
            num="In Antwerp, {d} containers are unloaded.",
            other="In Antwerp, each of {d} cargo ships unloads {e} containers.",
            diff="What is the difference in containers between the two ports?",
            extreme="How many containers are there in the port with [more|fewer] containers?",
            rule="If the port then has {over} {t} containers, {p} containers [arrive|leave] by rail.",
            ask="How many containers are there in Rotterdam in the end?",
        ),
    ),
}
