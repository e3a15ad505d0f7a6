"""Words of the family `schedule`: activities one after another, with gaps and overlaps, in ten worlds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STORIES", "UNITS", "Story"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One phrasing. Numbers in slots are at least 2; in the domain's unit.

    Attributes:
        start: the setting, with the time of its start in {at} or {starting}, or without a time.
        run: the first activity takes {d}.
        both: two first activities begin together and take {d} and {e}.
        done: what "the end of" refers to after run, after both, and after the second activity.
        second: the next activity begins {when} and takes {d}.
        third: one more activity begins {when} and takes {d}.
        end: the question for the end.
        begin: the end is {x}, and the question for the start.
        left: a deadline {x}, and the question for the time between the end and the deadline.
    """

    start: str
    run: str
    both: str
    done: tuple[str, str, str]
    second: str
    third: str
    end: str
    begin: str
    left: str


UNITS: dict[str, str] = dict.fromkeys(("medicine", "science", "cooking", "sports"), "minute")
UNITS |= {"mathematics": "unit", "law": "day", "finance": "day", "gardening": "day"}
UNITS |= {"astronomy": "hour", "logistics": "hour"}

STORIES: dict[str, tuple[Story, ...]] = {
    "mathematics": (
        Story(
            start="Intervals are marked on the number line{starting}.",
            run="The first interval is {d} units long.",
            both="Two intervals begin together, one {d} units and one {e} units long.",
            done=("the first interval", "the longer interval", "that interval"),
            second="The next interval is {d} units long and begins {when}.",
            third="The last interval is {d} units long and begins {when}.",
            end="At which number does the last interval end?",
            begin="The last interval ends at {x}. At which number do the intervals begin?",
            left="The line stops at {x}. How many units are left after the last interval?",
        ),
        Story(
            start="Strokes are drawn from left to right along a number line{starting}.",
            run="The first stroke covers {d} units.",
            both="Two strokes begin at the same number and cover {d} units and {e} units.",
            done=("the first stroke", "the longer stroke", "the stroke before"),
            second="The next stroke begins {when} and covers {d} units.",
            third="The final stroke begins {when} and covers {d} units.",
            end="Which number do the strokes reach?",
            begin="The strokes reach the number {x}. At which number do they begin?",
            left="The line stops at {x}. How many units are left after the strokes?",
        ),
        Story(
            start="Bars are drawn above a scale{starting}.",
            run="The lowest bar is {d} units long.",
            both="The two lowest bars begin together; their lengths are {d} units and {e} units.",
            done=("the lowest bar", "the longer bar", "the blue bar"),
            second="A blue bar of {d} units begins {when}.",
            third="A green bar of {d} units begins {when}.",
            end="At which number do the bars end?",
            begin="The bars end at {x}. At which number do they begin?",
            left="The scale goes up to {x}. How many units are left after the bars?",
        ),
    ),
    "medicine": (
        Story(
            start="A patient comes for a check-up{at}.",
            run="First there is a blood test of {d} minutes.",
            both="A blood test of {d} minutes and a heart test of {e} minutes begin together.",
            done=("the blood test", "the longer test", "the scan"),
            second="A scan of {d} minutes begins {when}.",
            third="A talk with the doctor, which takes {d} minutes, begins {when}.",
            end="At which minute is the patient free to go?",
            begin="The patient is free to go at minute {x}. At which minute does the check-up begin?",
            left="The clinic closes at minute {x}. How many minutes are left after the check-up?",
        ),
        Story(
            start="A patient's knee is operated on{starting}.",
            run="The anaesthetic takes {d} minutes.",
            both="The anaesthetic takes {d} minutes; in parallel, an X-ray takes {e} minutes.",
            done=("the anaesthetic", "the longer of the two", "the cleaning"),
            second="Cleaning the knee begins {when} and takes {d} minutes.",
            third="The surgery begins {when} and lasts {d} minutes.",
            end="At which minute is the surgeon done?",
            begin="The surgeon is done at minute {x}. At which minute does all of this begin?",
            left="The next patient comes at minute {x}. How many minutes are left once the surgeon is done?",
        ),
        Story(
            start="A nurse begins a round through the ward{at}.",
            run="Giving out tablets takes {d} minutes.",
            both="The nurse gives out tablets for {d} minutes while a doctor changes bandages for {e} minutes.",
            done=("that task", "the longer task", "the fever check"),
            second="Beginning {when}, a fever check lasts {d} minutes.",
            third="Beginning {when}, a talk with the patients lasts {d} minutes.",
            end="At which minute is the round over?",
            begin="The round is over at minute {x}. At which minute does it begin?",
            left="The night shift arrives at minute {x}. How many minutes are left after the round?",
        ),
    ),
    "law": (
        Story(
            start="A lawsuit about a broken contract begins{at}.",
            run="The written stage takes {d} days.",
            both="The written stage takes {d} days; in parallel, an expert report takes {e} days.",
            done=("the written stage", "the longer of the two", "the hearings"),
            second="The hearings begin {when} and take {d} days.",
            third="Talks among the judges begin {when} and take {d} days.",
            end="On which day is the court ready for the verdict?",
            begin="The court is ready for the verdict on day {x}. On which day does the lawsuit begin?",
            left="The verdict is due on day {x}. How many days are left once the court is ready?",
        ),
        Story(
            start="Two law firms work out a contract{starting}.",
            run="The lawyers write a draft for {d} days.",
            both="The lawyers write a draft for {d} days while a notary checks the titles for {e} days.",
            done=("the writing", "the longer task", "the talks"),
            second="Talks of {d} days begin {when}.",
            third="A legal review of {d} days begins {when}.",
            end="On which day is the contract finished?",
            begin="The contract is finished on day {x}. On which day does the work begin?",
            left="The parties sign on day {x}. How many days are left once the contract is finished?",
        ),
        Story(
            start="A prosecutor opens an investigation into a fraud{at}.",
            run="Witnesses are questioned for {d} days.",
            both="Witnesses are questioned for {d} days while the police search offices for {e} days.",
            done=("this step", "the longer step", "the reading"),
            second="Beginning {when}, files are read for {d} days.",
            third="Beginning {when}, the charges are written for {d} days.",
            end="On which day is the investigation over?",
            begin="The investigation is over on day {x}. On which day does it begin?",
            left="The trial opens on day {x}. How many days are left after the investigation?",
        ),
    ),
    "science": (
        Story(
            start="A chemist begins an experiment{at}.",
            run="A solution is heated for {d} minutes.",
            both="A solution is heated for {d} minutes while a filter dries for {e} minutes.",
            done=("this step", "the longer step", "the stirring"),
            second="Stirring begins {when} and takes {d} minutes.",
            third="Filtering begins {when} and takes {d} minutes.",
            end="At which minute is the experiment over?",
            begin="The experiment is over at minute {x}. At which minute does it begin?",
            left="The laboratory closes at minute {x}. How many minutes are left after the experiment?",
        ),
        Story(
            start="A physicist switches on several sensors{starting}.",
            run="The first sensor runs for {d} minutes.",
            both="The first two sensors begin together; one runs for {d} minutes, the other for {e} minutes.",
            done=("the first run", "the longer run", "the run before"),
            second="The next sensor begins {when} and runs for {d} minutes.",
            third="The last sensor begins {when} and runs for {d} minutes.",
            end="At which minute are all runs over?",
            begin="All runs are over at minute {x}. At which minute do they begin?",
            left="The data must be read at minute {x}. How many minutes are left after the runs?",
        ),
        Story(
            start="A biologist shines lamps on algae{starting}.",
            run="A red lamp shines for {d} minutes.",
            both="A red lamp shines for {d} minutes while a white lamp shines for {e} minutes.",
            done=("the red light", "the longer light", "the green light"),
            second="Beginning {when}, a green lamp shines for {d} minutes.",
            third="Beginning {when}, a blue lamp shines for {d} minutes.",
            end="At which minute does the last lamp go out?",
            begin="The last lamp goes out at minute {x}. At which minute does the test begin?",
            left="The algae are examined at minute {x}. How many minutes are left after the last lamp?",
        ),
    ),
    "cooking": (
        Story(
            start="A cook begins to make a festive dinner{at}.",
            run="Roasting a duck takes {d} minutes.",
            both="Roasting a duck takes {d} minutes; in parallel, boiling potatoes takes {e} minutes.",
            done=("the roasting", "the longer step", "the simmering"),
            second="Simmering a sauce begins {when} and takes {d} minutes.",
            third="Frying vegetables begins {when} and takes {d} minutes.",
            end="At which minute is the dinner ready?",
            begin="The dinner is ready at minute {x}. At which minute does the cook begin?",
            left="The guests sit down at minute {x}. How many minutes are left once the dinner is ready?",
        ),
        Story(
            start="A baker makes raisin bread{starting}.",
            run="Warming the milk takes {d} minutes.",
            both="Warming the milk takes {d} minutes; in parallel, heating the oven takes {e} minutes.",
            done=("the warming", "the longer step", "the kneading"),
            second="Kneading the dough begins {when} and takes {d} minutes.",
            third="The baking begins {when} and lasts {d} minutes.",
            end="At which minute is the baker done?",
            begin="The baker is done at minute {x}. At which minute does the baker begin?",
            left="The bakery opens at minute {x}. How many minutes are left once the baker is done?",
        ),
        Story(
            start="In a restaurant kitchen, work on a stew begins{at}.",
            run="Chopping vegetables keeps a cook busy for {d} minutes.",
            both="Chopping of {d} minutes and frying of {e} minutes begin together.",
            done=("the chopping", "the longer step", "the stewing"),
            second="Beginning {when}, the stew cooks for {d} minutes.",
            third="Beginning {when}, the stew cools for {d} minutes.",
            end="At which minute can the stew be served?",
            begin="The stew can be served at minute {x}. At which minute does the work begin?",
            left="Lunch is at minute {x}. How many minutes are left once the stew can be served?",
        ),
    ),
    "sports": (
        Story(
            start="A football team begins its training{at}.",
            run="First there is a run of {d} minutes.",
            both="The keepers stretch for {d} minutes while the other players run for {e} minutes.",
            done=("the run", "the longer exercise", "the passing drill"),
            second="A passing drill of {d} minutes begins {when}.",
            third="A practice match of {d} minutes begins {when}.",
            end="At which minute is the training over?",
            begin="The training is over at minute {x}. At which minute does it begin?",
            left="The stadium closes at minute {x}. How many minutes are left after the training?",
        ),
        Story(
            start="Several races are rowed on a lake{starting}.",
            run="The first race takes {d} minutes.",
            both="The first two races begin together; one takes {d} minutes, the other {e} minutes.",
            done=("the first race", "the longer race", "the race before"),
            second="The next race begins {when} and takes {d} minutes.",
            third="The final race begins {when} and takes {d} minutes.",
            end="At which minute are all the races over?",
            begin="All the races are over at minute {x}. At which minute do they begin?",
            left="The medals are handed out at minute {x}. How many minutes are left after the races?",
        ),
        Story(
            start="A tournament in a sports hall begins{at}.",
            run="The judo fights last {d} minutes.",
            both="The judo fights last {d} minutes; in parallel, the fencing bouts last {e} minutes.",
            done=("the judo fights", "the longer of the two", "the volleyball"),
            second="Beginning {when}, volleyball is played for {d} minutes.",
            third="Beginning {when}, handball is played for {d} minutes.",
            end="At which minute is the tournament over?",
            begin="The tournament is over at minute {x}. At which minute does it begin?",
            left="The sports hall closes at minute {x}. How many minutes are left after the tournament?",
        ),
    ),
    "finance": (
        Story(
            start="A company prepares a sale of bonds{starting}.",
            run="Rating the bonds takes {d} days.",
            both="Rating the bonds takes {d} days; in parallel, printing the offer takes {e} days.",
            done=("the rating", "the longer task", "the roadshow"),
            second="A roadshow of {d} days begins {when}.",
            third="An order period of {d} days begins {when}.",
            end="On which day is the sale closed?",
            begin="The sale is closed on day {x}. On which day does the preparation begin?",
            left="A big debt is due on day {x}. How many days are left after the sale?",
        ),
        Story(
            start="A bank begins to work on a loan request{at}.",
            run="The credit check takes {d} days.",
            both="A credit check of {d} days and a valuation of {e} days begin together.",
            done=("the credit check", "the longer check", "the approval"),
            second="The approval begins {when} and takes {d} days.",
            third="The transfer begins {when} and takes {d} days.",
            end="On which day is the bank done with the loan?",
            begin="The bank is done with the loan on day {x}. On which day does the bank begin?",
            left="The borrower needs the money on day {x}. How many days are left once the bank is done?",
        ),
        Story(
            start="An auditor begins to audit a savings bank{at}.",
            run="The deposits are audited for {d} days.",
            both="The deposits are audited for {d} days while a colleague audits the taxes for {e} days.",
            done=("this step", "the longer step", "the payroll audit"),
            second="Beginning {when}, the payroll is audited for {d} days.",
            third="Beginning {when}, the balance sheet is audited for {d} days.",
            end="On which day is the audit over?",
            begin="The audit is over on day {x}. On which day does it begin?",
            left="The shareholders meet on day {x}. How many days are left after the audit?",
        ),
    ),
    "astronomy": (
        Story(
            start="A space probe visits a moon of Saturn{starting}.",
            run="Mapping the craters takes {d} hours.",
            both="Mapping the craters takes {d} hours; in parallel, a radar scan takes {e} hours.",
            done=("the mapping", "the longer task", "the radio contact"),
            second="Radio contact with Earth begins {when} and takes {d} hours.",
            third="A search for ice begins {when} and takes {d} hours.",
            end="At which hour is the visit over?",
            begin="The visit is over at hour {x}. At which hour does it begin?",
            left="Contact is lost at hour {x}. How many hours are left after the visit?",
        ),
        Story(
            start="An observatory begins its work{at}.",
            run="A comet is observed for {d} hours.",
            both="A comet is observed for {d} hours while a second telescope observes a nova for {e} hours.",
            done=("this observation", "the longer observation", "the galaxy observation"),
            second="Beginning {when}, a galaxy is observed for {d} hours.",
            third="Beginning {when}, a pulsar is observed for {d} hours.",
            end="At which hour are all the observations over?",
            begin="All the observations are over at hour {x}. At which hour does the work begin?",
            left="The data are sent off at hour {x}. How many hours are left after the observations?",
        ),
        Story(
            start="Engineers begin the tests of a new space telescope{at}.",
            run="The mirror test lasts {d} hours.",
            both="The mirror test of {d} hours and the antenna test of {e} hours begin together.",
            done=("the mirror test", "the longer test", "the camera test"),
            second="The camera test, which lasts {d} hours, begins {when}.",
            third="The fuel test, which lasts {d} hours, begins {when}.",
            end="At which hour are the tests complete?",
            begin="The tests are complete at hour {x}. At which hour do they begin?",
            left="The rocket lifts off at hour {x}. How many hours are left after the tests?",
        ),
    ),
    "gardening": (
        Story(
            start="A gardener sows lettuce in small pots{at}.",
            run="Sprouting takes {d} days.",
            both="Sprouting takes {d} days; in parallel, digging a new bed takes {e} days.",
            done=("the sprouting", "the longer of the two", "the growth under glass"),
            second="Growth under glass begins {when} and takes {d} days.",
            third="Growth in the open bed begins {when} and takes {d} days.",
            end="On which day is the lettuce ready to pick?",
            begin="The lettuce is ready to pick on day {x}. On which day does the gardener begin?",
            left="The first frost comes on day {x}. How many days are left once the lettuce is ready?",
        ),
        Story(
            start="An old garden is redesigned{starting}.",
            run="Clearing the weeds takes {d} days.",
            both="Clearing the weeds takes {d} days; in parallel, building a fence takes {e} days.",
            done=("the clearing", "the longer job", "the digging"),
            second="Digging a pond begins {when} and takes {d} days.",
            third="Planting a hedge begins {when} and takes {d} days.",
            end="On which day is the garden ready?",
            begin="The garden is ready on day {x}. On which day does the work begin?",
            left="A garden party is held on day {x}. How many days are left once the garden is ready?",
        ),
        Story(
            start="In a greenhouse, the growing season begins{at}.",
            run="A radish crop of {d} days comes first.",
            both="A radish crop of {d} days and a spinach crop of {e} days begin together.",
            done=("the radish crop", "the longer crop", "the bean crop"),
            second="A bean crop, which takes {d} days, begins {when}.",
            third="A pea crop, which takes {d} days, begins {when}.",
            end="On which day are all the crops harvested?",
            begin="All the crops are harvested on day {x}. On which day does the season begin?",
            left="The greenhouse is pulled down on day {x}. How many days are left after the crops?",
        ),
    ),
    "logistics": (
        Story(
            start="Work on a freight train begins{at}.",
            run="Loading the wagons takes {d} hours.",
            both="Loading the wagons takes {d} hours; in parallel, the customs papers take {e} hours.",
            done=("the loading", "the longer of the two", "the engine check"),
            second="An engine check begins {when} and takes {d} hours.",
            third="The trip to the border begins {when} and takes {d} hours.",
            end="At which hour is all of this done?",
            begin="All of this is done at hour {x}. At which hour does the work begin?",
            left="The customer is called at hour {x}. How many hours are left once the work is done?",
        ),
        Story(
            start="Cargo is handled in a busy port{starting}.",
            run="A crane moves containers for {d} hours.",
            both="One crane moves containers for {d} hours while a second crane moves crates for {e} hours.",
            done=("this job", "the longer job", "the refuelling"),
            second="Refuelling the ship begins {when} and takes {d} hours.",
            third="Loading the ship begins {when} and takes {d} hours.",
            end="At which hour is the ship ready to sail?",
            begin="The ship is ready to sail at hour {x}. At which hour does the work begin?",
            left="The ship sails at hour {x}. How many hours are left once it is ready?",
        ),
        Story(
            start="A warehouse begins to process an order{at}.",
            run="Picking the goods takes {d} hours.",
            both="Picking goods for {d} hours and printing labels for {e} hours begin together.",
            done=("the picking", "the longer step", "the packing"),
            second="Beginning {when}, the goods are packed for {d} hours.",
            third="Beginning {when}, a van is on the road for {d} hours.",
            end="At which hour is the order complete?",
            begin="The order is complete at hour {x}. At which hour does the warehouse begin?",
            left="The order is promised for hour {x}. How many hours are left once it is complete?",
        ),
    ),
}
