"""Words of the family `rates`: stocks and products that grow, shrink, are weighed or shared, in ten worlds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STORIES", "Story"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One phrasing. Every number put into a slot is at least 2, so that the plural is always right.

    Attributes:
        stock: opens with a quantity {a}.
        groups: opens with {a} groups of {b} each.
        add: {c} more.
        sub: {c} fewer.
        addmul: {c} more groups of {d} each.
        submul: {c} times {d} fewer.
        ask: the question for the quantity itself.
        mul: every one counts {k}, with the question for the total.
        div: all are split into {k} equal parts, with the question for one part.
    """

    stock: str
    groups: str
    add: str
    sub: str
    addmul: str
    submul: str
    ask: str
    mul: str
    div: str


STORIES: dict[str, tuple[Story, ...]] = {
    "mathematics": (
        Story(
            stock="Write down the number {a} on a blank line.",
            groups="Write down the product of {a} and {b}.",
            add="Increase the number by {c}.",
            sub="Decrease the number by {c}.",
            addmul="Add the product of {c} and {d}.",
            submul="Subtract the product of {c} and {d}.",
            ask="Which number do you have at the end?",
            mul="Then multiply the number by {k}. Which number do you have at the end?",
            div="Then divide the number by {k}. Which number do you have at the end?",
        ),
        Story(
            stock="A marker stands at {a} on the number line.",
            groups="From zero on the number line, a marker makes {a} jumps to the right, each {b} units long.",
            add="Then it slides {c} units further to the right.",
            sub="Then it slides back {c} units to the left.",
            addmul="Then it makes {c} further jumps to the right of {d} units each.",
            submul="Then it makes {c} jumps back to the left of {d} units each.",
            ask="At which number does the marker stand now?",
            mul="The number that it has reached is multiplied by {k}. What is the product?",
            div="The way from zero to the marker is divided into {k} equal parts. How long is each part?",
        ),
        Story(
            stock="A flat figure is made of {a} unit squares.",
            groups="A rectangle is {a} unit squares wide and {b} unit squares high.",
            add="Another {c} unit squares are attached to the figure.",
            sub="Then {c} unit squares are cut off.",
            addmul="Another {c} rows of {d} unit squares each are attached to the figure.",
            submul="Then {c} pieces of {d} unit squares each are cut off.",
            ask="How many unit squares does the figure have in the end?",
            mul="In each unit square, {k} dots are drawn. How many dots does the figure contain?",
            div="The figure is divided into {k} parts of equal area. How many unit squares are in each part?",
        ),
    ),
    "medicine": (
        Story(
            stock="A hospital ward has {a} doses of a vaccine in stock.",
            groups="A nurse fills {a} trays with {b} doses of a vaccine each.",
            add="The pharmacy sends up another {c} doses.",
            sub="Then {c} doses are injected.",
            addmul="The pharmacy sends up another {c} boxes with {d} doses each.",
            submul="Then {d} doses are injected in each of {c} consultations.",
            ask="How many doses are there in the ward now?",
            mul="It takes {k} minutes to check each dose. How many minutes does it take to check them all?",
            div="All doses are shared equally among {k} clinics. How many doses does each clinic receive?",
        ),
        Story(
            stock="A doctor prescribes a patient {a} tablets for the first week.",
            groups="A doctor prescribes a patient {b} tablets a day for {a} days.",
            add="As a reserve, the doctor adds {c} tablets.",
            sub="At the patient's request, the doctor takes {c} tablets off the prescription.",
            addmul="For the time after that, the doctor adds {d} tablets a day for {c} days.",
            submul="Because of side effects, the doctor cancels {c} packs of {d} tablets each.",
            ask="How many tablets does the patient get in the end?",
            mul="Every tablet contains {k} milligrams of the drug. How many milligrams does the patient get?",
            div="The pharmacist packs the tablets equally into {k} pill boxes. How many tablets go into each box?",
        ),
        Story(
            stock="The emergency room of a hospital has {a} bandages.",
            groups="Each of the {a} ambulances of a hospital carries {b} bandages.",
            add="A second hospital lends {c} extra bandages.",
            sub="During the night shift, {c} bandages are used up.",
            addmul="A second hospital lends {c} extra first-aid kits with {d} bandages each.",
            submul="During the night shift, {d} bandages are used up on each of {c} injured people.",
            ask="How many bandages does the hospital have after that?",
            mul="Each bandage is sterilised for {k} minutes. How many minutes does that take altogether?",
            div="The bandages are split evenly between {k} treatment rooms. How many bandages does each room get?",
        ),
    ),
    "law": (
        Story(
            stock="A court clerk finds {a} briefs on the desk.",
            groups="A court clerk registers {b} briefs a day for {a} days.",
            add="Then a law firm submits another {c} briefs.",
            sub="Later, {c} briefs are withdrawn by the parties.",
            addmul="Then {c} law firms submit another {d} briefs each.",
            submul="Later, {c} of the parties withdraw {d} briefs each.",
            ask="How many briefs are there for the judges to read?",
            mul="A judge needs {k} minutes to read each brief. How many minutes does it take to read them all?",
            div="The briefs are divided equally among {k} judges. How many briefs does each judge read?",
        ),
        Story(
            stock="A draft contract contains {a} clauses.",
            groups="A draft contract has {a} sections, and every section contains {b} clauses.",
            add="The tenant's lawyer inserts {c} new clauses.",
            sub="The landlord's lawyer strikes out {c} clauses.",
            addmul="The tenant's lawyer inserts {c} new sections of {d} clauses each.",
            submul="On the landlord's side, {c} lawyers strike out {d} clauses each.",
            ask="How many clauses does the contract contain in the end?",
            mul="Each clause is negotiated for {k} minutes. How many minutes do the negotiations take?",
            div="For review, the clauses are split equally between {k} lawyers. How many does each lawyer review?",
        ),
        Story(
            stock="In a criminal trial, the prosecutor lists {a} exhibits.",
            groups="In a criminal trial, {a} witnesses hand over {b} exhibits each.",
            add="The prosecutor introduces {c} further exhibits.",
            sub="The judge excludes {c} exhibits as inadmissible.",
            addmul="The prosecutor introduces {c} further folders with {d} exhibits each.",
            submul="The judge issues {c} rulings and excludes {d} exhibits in each of them.",
            ask="How many exhibits may the jury look at?",
            mul="The jury looks at each exhibit for {k} minutes. How many minutes does the jury need?",
            div="The exhibits are spread evenly over {k} hearings. How many exhibits are shown in each hearing?",
        ),
    ),
    "science": (
        Story(
            stock="A chemist has collected {a} water samples.",
            groups="A chemist collects {b} water samples from each of {a} lakes.",
            add="A colleague contributes {c} additional samples.",
            sub="Because of dirt, {c} samples are discarded.",
            addmul="A colleague contributes {d} additional samples from each of {c} rivers.",
            submul="Then {c} test runs use up {d} samples each.",
            ask="How many samples can the chemist analyse after that?",
            mul="The analysis of each sample takes {k} minutes. How many minutes does the whole series take?",
            div="The samples are distributed equally over {k} racks. How many samples stand in each rack?",
        ),
        Story(
            stock="A physicist has recorded {a} readings of the air pressure.",
            groups="A sensor records {b} readings of the air pressure per hour for {a} hours.",
            add="A second sensor supplies {c} more readings.",
            sub="A filter removes {c} faulty readings.",
            addmul="A second sensor supplies {d} more readings per hour for {c} hours.",
            submul="A filter removes {d} faulty readings from each of {c} data files.",
            ask="How many readings does the data set contain now?",
            mul="Each reading is stored in {k} bytes. How many bytes does the data set take up?",
            div="The readings are grouped into {k} blocks of equal size. How many readings are in each block?",
        ),
        Story(
            stock="A biologist keeps {a} beetles in a glass tank.",
            groups="A biologist sets up {a} glass tanks and puts {b} beetles into each one.",
            add="In the laboratory, {c} beetles hatch.",
            sub="Because of a fungus, {c} beetles die.",
            addmul="From {c} egg clusters, {d} beetles each hatch.",
            submul="The biologist then releases {d} beetles in each of {c} forests.",
            ask="How many beetles does the biologist have in the end?",
            mul="Each beetle has {k} spots on its wings. How many spots are there altogether?",
            div="The beetles are spread evenly over {k} new tanks. How many beetles live in each new tank?",
        ),
    ),
    "cooking": (
        Story(
            stock="A baker has {a} rolls in a basket.",
            groups="A baker bakes {a} trays of rolls with {b} rolls on each tray.",
            add="The baker's apprentice makes {c} more rolls.",
            sub="In the oven, {c} rolls are burnt and thrown away.",
            addmul="The baker's apprentice makes {c} more trays of {d} rolls each.",
            submul="Then {c} hungry guests eat {d} rolls each.",
            ask="How many rolls are there in the bakery at the end?",
            mul="Each roll is topped with {k} slices of cheese. How many slices of cheese does the baker need?",
            div="The rolls are arranged equally in {k} baskets. How many rolls are in each basket?",
        ),
        Story(
            stock="For a big soup, a cook washes {a} carrots.",
            groups="A cook makes soup in {a} pots and puts {b} carrots into every pot.",
            add="To make it thicker, the cook adds {c} carrots.",
            sub="For a salad, the cook takes out {c} carrots.",
            addmul="To make it thicker, the cook adds {c} bags of {d} carrots each.",
            submul="For each of {c} salads, the cook takes out {d} carrots.",
            ask="How many carrots does the cook have for the soup?",
            mul="Peeling takes the cook {k} seconds for each carrot. How many seconds does all the peeling take?",
            div="The cook divides the carrots equally among {k} bowls. How many carrots go into each bowl?",
        ),
        Story(
            stock="For a brunch, a cook fries {a} pancakes.",
            groups="For a brunch, each of {a} cooks fries {b} pancakes.",
            add="A kitchen help fries another {c} pancakes.",
            sub="The children eat {c} pancakes straight from the pan.",
            addmul="After that, each of {c} kitchen helps fries another {d} pancakes.",
            submul="In the kitchen, {c} children eat {d} pancakes each.",
            ask="How many pancakes can be served at the brunch?",
            mul="With each pancake, {k} spoons of jam are served. How many spoons of jam are served?",
            div="The pancakes are served in equal portions on {k} plates. How many pancakes are on each plate?",
        ),
    ),
    "sports": (
        Story(
            stock="Since Monday, a runner has completed {a} laps.",
            groups="Getting ready for a race, a runner completes {b} laps a day for {a} days.",
            add="At the weekend, the runner adds {c} laps.",
            sub="The coach does not count {c} slow laps.",
            addmul="In a training camp, the runner adds {d} laps a day for {c} days.",
            submul="The coach does not count {d} slow laps from each of {c} runs.",
            ask="How many laps are in the coach's notebook?",
            mul="Each lap takes the runner {k} minutes. How many minutes of running are in the coach's notebook?",
            div="The runner wants to split the same number of laps equally over {k} days. How many is that each day?",
        ),
        Story(
            stock="A football club owns {a} balls.",
            groups="A football club owns {a} nets with {b} balls in each of them.",
            add="A fan donates {c} new balls.",
            sub="On the pitch, the club loses {c} balls.",
            addmul="A fan donates {c} new nets with {d} balls each.",
            submul="On the pitch, {c} teams lose {d} balls each.",
            ask="How many balls does the football club own now?",
            mul="Pumping up each ball takes {k} pushes. How many pushes does it take for all the balls?",
            div="The coach divides the balls equally among {k} teams. How many balls does each team get?",
        ),
        Story(
            stock="Before kick-off, {a} fans sit in the stadium.",
            groups="Before kick-off, {a} buses bring {b} fans each to the stadium.",
            add="In the first half, {c} fans arrive late.",
            sub="At half-time, {c} fans go home.",
            addmul="In the first half, {c} groups of {d} fans each arrive late.",
            submul="At half-time, {c} groups of {d} fans each go home.",
            ask="How many fans watch the second half in the stadium?",
            mul="In the second half, each fan waves {k} flags. How many flags are being waved?",
            div="The fans sit in {k} blocks of equal size. How many fans sit in each block?",
        ),
    ),
    "finance": (
        Story(
            stock="A savings account holds {a} dollars.",
            groups="A saver pays {b} dollars a week into an account for {a} weeks.",
            add="The bank credits {c} dollars of interest.",
            sub="The bank charges a fee of {c} dollars.",
            addmul="In the spring, the bank credits another {d} dollars a week for {c} weeks.",
            submul="The bank charges a fee of {d} dollars for each of {c} transfers.",
            ask="How many dollars are there in the account now?",
            mul="The bank changes each dollar into {k} crowns. How many crowns are in the account?",
            div="The money is split equally between {k} funds. How many dollars does each fund receive?",
        ),
        Story(
            stock="An investor owns {a} shares of a company.",
            groups="An investor buys {b} shares of each of {a} companies.",
            add="In May, the investor buys {c} more shares.",
            sub="In June, the investor sells {c} shares.",
            addmul="In May, the investor buys {d} more shares of each of {c} companies.",
            submul="In June, the investor sells {d} shares to each of {c} funds.",
            ask="How many shares does the investor own after that?",
            mul="Each share pays a dividend of {k} dollars. How many dollars does the investor earn?",
            div="The shares are spread evenly over {k} portfolios. How many shares are in each portfolio?",
        ),
        Story(
            stock="An online shop opens the month with {a} dollars.",
            groups="An online shop has {a} customers, and every customer pays {b} dollars.",
            add="A public grant brings in {c} extra dollars.",
            sub="Advertising costs the shop {c} dollars.",
            addmul="Soon {c} new customers pay {d} dollars each.",
            submul="Advertising costs the shop {d} dollars for each of {c} banners.",
            ask="How many dollars does the shop have in the end?",
            mul="Each dollar buys {k} pesos on the market. How many pesos can the shop buy?",
            div="The {k} owners share the money equally. How many dollars does each owner get?",
        ),
    ),
    "astronomy": (
        Story(
            stock="A space telescope has taken {a} pictures of a comet.",
            groups="A space telescope takes {b} pictures of a comet a night for {a} nights.",
            add="A second telescope takes {c} additional pictures.",
            sub="Because of stray light, {c} pictures are deleted.",
            addmul="A second telescope takes {d} additional pictures a night for {c} nights.",
            submul="Because of stray light, {d} pictures are deleted from each of {c} folders.",
            ask="How many pictures of the comet are in the archive?",
            mul="An astronomer marks {k} stars in every picture. How many stars are marked?",
            div="Then {k} astronomers share the pictures equally. How many pictures does each of them study?",
        ),
        Story(
            stock="An observer of the night sky lists {a} meteors.",
            groups="An observer of the night sky lists {b} meteors per hour for {a} hours.",
            add="Towards dawn, {c} more meteors appear.",
            sub="Then {c} meteors turn out to be satellites and are crossed out.",
            addmul="After moonset, {d} more meteors per hour appear for {c} hours.",
            submul="Then {d} meteors are crossed out on each of {c} pages.",
            ask="How many meteors does the final list contain?",
            mul="Each meteor is described in {k} words. How many words does the list contain?",
            div="The list is divided into {k} tables of equal length. How many meteors are in each table?",
        ),
        Story(
            stock="A rover on Mars has {a} stones on board.",
            groups="A rover on Mars stops at {a} craters and collects {b} stones at every crater.",
            add="On a plain, it collects {c} further stones.",
            sub="On a slope, it drops {c} stones.",
            addmul="It drives on to {c} further craters and collects {d} stones at each.",
            submul="It drops {d} stones on each of {c} slopes.",
            ask="How many stones does the rover have on board now?",
            mul="Its camera scans each stone {k} times. How many scans does the rover make?",
            div="The rover packs the stones evenly into {k} capsules. How many stones are in each capsule?",
        ),
    ),
    "gardening": (
        Story(
            stock="In a flower bed, there are {a} tulips.",
            groups="A gardener plants {a} rows of tulips with {b} tulips in every row.",
            add="Along the fence, {c} more tulips come up.",
            sub="At night, snails destroy {c} tulips.",
            addmul="Along the fence, {c} more rows of {d} tulips each come up.",
            submul="Snails destroy {d} tulips on each of {c} nights.",
            ask="How many tulips are growing in the garden now?",
            mul="Each tulip gets {k} cups of water. How many cups of water does the gardener carry?",
            div="The tulips are tied into {k} bunches of equal size. How many tulips are in each bunch?",
        ),
        Story(
            stock="A gardener picks {a} tomatoes in a greenhouse.",
            groups="Each of the {a} tomato plants in a greenhouse bears {b} ripe tomatoes.",
            add="A second greenhouse brings {c} extra tomatoes.",
            sub="In the heat, {c} tomatoes rot.",
            addmul="A second greenhouse brings {c} extra baskets with {d} tomatoes each.",
            submul="The gardener gives away {d} tomatoes to each of {c} neighbours.",
            ask="How many tomatoes does the gardener have in the end?",
            mul="From every tomato, {k} seeds are saved. How many seeds does the gardener save?",
            div="The tomatoes are laid out evenly in {k} boxes. How many tomatoes lie in each box?",
        ),
        Story(
            stock="In a cold frame, {a} seedlings are growing.",
            groups="A gardener raises {b} seedlings a week for {a} weeks.",
            add="A tree nursery supplies {c} new seedlings.",
            sub="A late frost kills {c} seedlings.",
            addmul="A tree nursery supplies {c} new trays with {d} seedlings each.",
            submul="A late frost kills {d} seedlings in each of {c} trays.",
            ask="How many seedlings can the gardener plant out in May?",
            mul="Each seedling is fed {k} spoons of compost. How many spoons of compost does the gardener need?",
            div="The seedlings are set out evenly in {k} rows. How many seedlings stand in each row?",
        ),
    ),
    "logistics": (
        Story(
            stock="A warehouse holds {a} parcels for the evening tour.",
            groups="At a warehouse, {a} trucks deliver {b} parcels each.",
            add="A van brings another {c} parcels.",
            sub="A courier takes away {c} parcels.",
            addmul="Later, {c} vans bring another {d} parcels each.",
            submul="Then {c} couriers take away {d} parcels each.",
            ask="How many parcels are there in the warehouse now?",
            mul="It takes {k} seconds to scan each parcel. How many seconds does it take to scan them all?",
            div="The parcels are divided equally among {k} routes. How many parcels are on each route?",
        ),
        Story(
            stock="A cargo ship sets sail with {a} containers.",
            groups="A cargo ship carries {a} stacks of containers, and every stack consists of {b} containers.",
            add="In Lisbon, {c} more containers are loaded.",
            sub="In Oslo, {c} containers are unloaded.",
            addmul="In Lisbon, {c} more stacks of {d} containers each are loaded.",
            submul="In Oslo, {c} cranes unload {d} containers each.",
            ask="How many containers are there on the ship now?",
            mul="Each container weighs {k} tonnes. How many tonnes does the ship carry?",
            div="In the last port, they are put equally onto {k} trains. How many containers are on each train?",
        ),
        Story(
            stock="A railway depot has {a} crates in store.",
            groups="A forklift moves {b} crates per trip and makes {a} trips to the depot.",
            add="Another {c} crates come in by rail.",
            sub="By evening, {c} crates are shipped out.",
            addmul="Another {c} wagons come in with {d} crates each.",
            submul="By evening, {c} lorries with {d} crates each are sent off.",
            ask="How many crates are in the depot after that?",
            mul="Each crate contains {k} bottles. How many bottles are in the depot?",
            div="The crates are stacked in {k} piles of equal height. How many crates are in each pile?",
        ),
    ),
}
