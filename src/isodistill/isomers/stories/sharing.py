"""Words of the family `sharing`: a whole that is divided in a ratio, in ten worlds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STORIES", "Story"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One phrasing. Numbers in slots are at least 2; in "[x|y]" x is told for two parts and y for three.

    Attributes:
        names: the parts; the third is only used with three parts.
        split: {who} are "x and y", {ratio} is "3 to 5", {among} is between or among, {pairs} is "3 to x and 5 to y".
        total: the whole is {t}.
        rest: the whole is {t}, but {r} of it is not divided.
        part: the part {name} is {v}.
        gap: a noun phrase for the difference between the largest and the smallest part.
        ask_part: the question for {name}.
        ask_size: the question for the part that is {size}: larger, smaller, largest or smallest.
        ask_total: the question for the sum of the parts.
    """

    names: tuple[str, str, str]
    split: str
    total: str
    rest: str
    part: str
    gap: str
    ask_part: str
    ask_size: str
    ask_total: str


STORIES: dict[str, tuple[Story, ...]] = {
    "mathematics": (
        Story(
            names=("x", "y", "z"),
            split="The numbers {who} are in the ratio {ratio}.",
            total="The sum of the numbers is {t}.",
            rest="Adding {r} to the sum of the numbers gives {t}.",
            part="It is known that {name} is equal to {v}.",
            gap="difference between the [two numbers|largest and the smallest number]",
            ask_part="What is the value of {name}?",
            ask_size="What is the {size} of these numbers?",
            ask_total="What is the sum of these numbers?",
        ),
        Story(
            names=("AB", "BC", "CD"),
            split="A line segment is divided into the pieces {who}, whose lengths are in the ratio {ratio}.",
            total="Altogether, the pieces are {t} units long.",
            rest="Together with a gap of {r} units, the pieces are {t} units long.",
            part="The length of {name} is {v} units.",
            gap="difference in length between the [two pieces|largest and the smallest piece]",
            ask_part="How many units long is {name}?",
            ask_size="How many units long is the {size} piece?",
            ask_total="How many units long are the pieces altogether?",
        ),
        Story(
            names=("angle P", "angle Q", "angle R"),
            split="In a diagram, {who} have sizes in the ratio {ratio}.",
            total="Together, they measure {t} degrees.",
            rest="Together with a further angle of {r} degrees, they measure {t} degrees.",
            part="It is known that {name} measures {v} degrees.",
            gap="difference in degrees between the [two angles|largest and the smallest angle]",
            ask_part="How many degrees does {name} measure?",
            ask_size="How many degrees does the {size} of these angles measure?",
            ask_total="How many degrees do these angles measure together?",
        ),
    ),
    "medicine": (
        Story(
            names=("the children's ward", "the surgical ward", "the eye clinic"),
            split="A hospital shares doses of a vaccine {among} {who} in the ratio {ratio}.",
            total="There are {t} doses in all.",
            rest="There are {t} doses in stock, but {r} of them stay in the pharmacy.",
            part="After that, {name} has {v} doses.",
            gap="difference in doses between the [two shares|largest and the smallest share]",
            ask_part="How many doses does {name} receive?",
            ask_size="How many doses are there in the {size} share?",
            ask_total="How many doses does the hospital share?",
        ),
        Story(
            names=("the heart patient", "the kidney patient", "the liver patient"),
            split="A nurse hands out tablets in rounds, giving {pairs} in each round.",
            total="Altogether, the nurse hands out {t} tablets.",
            rest="Of the nurse's {t} tablets, {r} are kept and not handed out.",
            part="In the end, {name} has {v} tablets.",
            gap="difference in tablets between the [two patients|largest and the smallest share]",
            ask_part="How many tablets does {name} get?",
            ask_size="How many tablets does the patient with the {size} share get?",
            ask_total="How many tablets does the nurse hand out?",
        ),
        Story(
            names=("saline", "glucose", "plasma"),
            split="An infusion for a patient is mixed from {who} in the ratio {ratio}.",
            total="Together, that makes {t} millilitres.",
            rest="The infusion bag holds {t} millilitres, but {r} millilitres of it stay empty.",
            part="The doctor orders {v} millilitres of {name}.",
            gap="difference in millilitres between the [two liquids|largest and the smallest amount]",
            ask_part="How many millilitres of {name} are in the infusion?",
            ask_size="How many millilitres are in the {size} of the amounts?",
            ask_total="How many millilitres of infusion does the patient receive?",
        ),
    ),
    "law": (
        Story(
            names=("the widow", "the son", "the daughter"),
            split="A will divides the plots of an estate {among} {who} in the ratio {ratio}.",
            total="The heirs inherit {t} plots in all.",
            rest="The estate has {t} plots, but {r} of them must be used to pay debts.",
            part="According to the court, {name} inherits {v} plots.",
            gap="difference in plots between the [two heirs|largest and the smallest share]",
            ask_part="How many plots does {name} inherit?",
            ask_size="How many plots does the heir with the {size} share inherit?",
            ask_total="How many plots do the heirs inherit in all?",
        ),
        Story(
            names=("the prosecutor", "the defence", "the expert witness"),
            split="For a hearing, a judge divides the speaking time {among} {who} in the ratio {ratio}.",
            total="In all, they speak for {t} minutes.",
            rest="The hearing lasts {t} minutes, but {r} minutes are reserved for the verdict.",
            part="The judge lets {name} speak for {v} minutes.",
            gap="difference in minutes between the [two shares|largest and the smallest share]",
            ask_part="For how many minutes does {name} speak?",
            ask_size="How many minutes long is the {size} share?",
            ask_total="How many minutes do they speak in all?",
        ),
        Story(
            names=("Judge Adler", "Judge Brown", "Judge Cole"),
            split="A court registrar assigns new cases in turns, giving {pairs} each time.",
            total="This year, the registrar assigns {t} cases.",
            rest="This year, {t} cases come in, but {r} of them are settled and never assigned.",
            part="By the end of the year, {name} has {v} cases.",
            gap="difference in cases between the [two judges|largest and the smallest share]",
            ask_part="How many cases are assigned to {name}?",
            ask_size="How many cases are there in the {size} share?",
            ask_total="How many cases does the registrar assign?",
        ),
    ),
    "science": (
        Story(
            names=("copper", "zinc", "tin"),
            split="In a laboratory, {who} are melted together in the ratio {ratio}.",
            total="The alloy weighs {t} grams.",
            rest="The crucible contains {t} grams, but {r} grams of that are not part of the alloy.",
            part="The alloy contains {v} grams of {name}.",
            gap="difference in grams between the [two metals|largest and the smallest amount]",
            ask_part="How many grams of {name} does the alloy contain?",
            ask_size="How many grams does the {size} of the amounts weigh?",
            ask_total="How many grams does the whole alloy weigh?",
        ),
        Story(
            names=("the warm tank", "the cold tank", "the dark tank"),
            split="A biologist distributes shrimps {among} {who} in the ratio {ratio}.",
            total="There are {t} shrimps in the experiment.",
            rest="There are {t} shrimps, but {r} of them are too young for the experiment.",
            part="The experiment begins with {v} shrimps in {name}.",
            gap="difference in shrimps between the [two tanks|largest and the smallest share]",
            ask_part="How many shrimps are put into {name}?",
            ask_size="How many shrimps are in the tank with the {size} share?",
            ask_total="How many shrimps does the biologist distribute?",
        ),
        Story(
            names=("the spectrometer", "the microscope", "the centrifuge"),
            split="A laboratory robot passes on samples in cycles, sending {pairs} in every cycle.",
            total="In one day, the robot passes on {t} samples.",
            rest="In one day, {t} samples come in, but {r} of them are broken and not passed on.",
            part="After one day, the robot has sent {v} samples to {name}.",
            gap="difference in samples between the [two instruments|largest and the smallest share]",
            ask_part="How many samples does the robot send to {name}?",
            ask_size="How many samples make up the {size} share?",
            ask_total="How many samples does the robot pass on?",
        ),
    ),
    "cooking": (
        Story(
            names=("flour", "sugar", "oats"),
            split="A baker makes a dough from {who} in the ratio {ratio}.",
            total="Altogether, the baker uses {t} cups of them.",
            rest="The baker measures out {t} cups, but {r} of them are milk.",
            part="The dough contains {v} cups of {name}.",
            gap="difference in cups between the [two ingredients|largest and the smallest amount]",
            ask_part="How many cups of {name} are in the dough?",
            ask_size="How many cups are in the {size} of these amounts?",
            ask_total="How many cups of these ingredients does the baker use?",
        ),
        Story(
            names=("the hotel", "the canteen", "the café"),
            split="A pastry cook divides fresh tarts {among} {who} in the ratio {ratio}.",
            total="The cook divides {t} tarts in all.",
            rest="The oven yields {t} tarts, but {r} of them are burnt.",
            part="At lunch, {name} serves {v} tarts.",
            gap="difference in tarts between the [two shares|largest and the smallest share]",
            ask_part="How many tarts does {name} get?",
            ask_size="How many tarts are there in the {size} share?",
            ask_total="How many tarts does the cook divide?",
        ),
        Story(
            names=("the soup", "the salad", "the sauce"),
            split="For a feast, a cook counts out olives, adding {pairs} each time.",
            total="In all, the cook counts out {t} olives.",
            rest="The jar contains {t} olives, but {r} of them are not used.",
            part="At the end, the cook has put {v} olives into {name}.",
            gap="difference in olives between the [two dishes|largest and the smallest amount]",
            ask_part="How many olives go into {name}?",
            ask_size="How many olives go into the dish with the {size} amount?",
            ask_total="How many olives does the cook count out?",
        ),
    ),
    "sports": (
        Story(
            names=("the Lions", "the Bears", "the Hawks"),
            split="Over a season, goals are scored by {who} in the ratio {ratio}.",
            total="In all, they score {t} goals.",
            rest="The league counts {t} goals, but {r} of them are scored by other teams.",
            part="At the end of the season, {name} have {v} goals.",
            gap="difference in goals between the [two teams|largest and the smallest number]",
            ask_part="How many goals do {name} score?",
            ask_size="How many goals does the team with the {size} number score?",
            ask_total="How many goals do they score in all?",
        ),
        Story(
            names=("running", "rowing", "cycling"),
            split="An athlete splits the hours of a training plan {among} {who} in the ratio {ratio}.",
            total="In all, the athlete trains for {t} hours.",
            rest="The plan covers {t} hours, but {r} of them are for rest.",
            part="The plan sets {v} hours for {name}.",
            gap="difference in hours between the [two sports|largest and the smallest share]",
            ask_part="How many hours are planned for {name}?",
            ask_size="How many hours does the {size} share cover?",
            ask_total="For how many hours does the athlete train in all?",
        ),
        Story(
            names=("the keepers", "the defenders", "the strikers"),
            split="Before training, a coach hands out balls, giving {pairs} in each round.",
            total="In all, the coach hands out {t} balls.",
            rest="The club owns {t} balls, but {r} of them are flat and not handed out.",
            part="In the end, {name} have {v} balls.",
            gap="difference in balls between the [two groups|largest and the smallest share]",
            ask_part="How many balls do {name} get?",
            ask_size="How many balls are there in the {size} share?",
            ask_total="How many balls does the coach hand out?",
        ),
    ),
    "finance": (
        Story(
            names=("Anna", "Boris", "Clara"),
            split="The profit of a company is divided {among} {who} in the ratio {ratio}.",
            total="In all, {t} dollars are paid out.",
            rest="The profit is {t} dollars, but {r} dollars go to taxes first.",
            part="From the profit, {name} receives {v} dollars.",
            gap="difference in dollars between the [two payouts|largest and the smallest payout]",
            ask_part="How many dollars does {name} receive?",
            ask_size="How many dollars are in the {size} payout?",
            ask_total="How many dollars are paid out in all?",
        ),
        Story(
            names=("stocks", "bonds", "gold"),
            split="An investor puts dollars into {who} in the ratio {ratio}.",
            total="The investor spends {t} dollars on them.",
            rest="The investor has {t} dollars, but {r} dollars stay in the bank.",
            part="The portfolio contains {v} dollars in {name}.",
            gap="difference in dollars between the [two investments|largest and the smallest investment]",
            ask_part="How many dollars does the investor put into {name}?",
            ask_size="How many dollars are in the {size} investment?",
            ask_total="How many dollars are invested in all?",
        ),
        Story(
            names=("the pension fund", "the holiday account", "the emergency fund"),
            split="A standing order splits a saver's dollars, sending {pairs} each time.",
            total="By December, it has sent {t} dollars in all.",
            rest="By December, the saver has {t} dollars, but {r} of them are never sent.",
            part="By December, {v} dollars have gone to {name}.",
            gap="difference in dollars between the [two amounts|largest and the smallest amount]",
            ask_part="How many dollars go to {name}?",
            ask_size="How many dollars are there in the {size} of the amounts?",
            ask_total="How many dollars does the standing order send?",
        ),
    ),
    "astronomy": (
        Story(
            names=("the spiral arm", "the halo", "the core"),
            split="In a small galaxy, young stars are found in {who} in the ratio {ratio}.",
            total="Astronomers find {t} young stars there.",
            rest="Astronomers find {t} young stars, but {r} of them lie elsewhere.",
            part="Astronomers find {v} young stars in {name}.",
            gap="difference in stars between the [two regions|largest and the smallest group]",
            ask_part="How many young stars are there in {name}?",
            ask_size="How many young stars are there in the {size} group?",
            ask_total="How many young stars do these regions contain?",
        ),
        Story(
            names=("Mars", "Venus", "Saturn"),
            split="An observatory divides its nights {among} {who} in the ratio {ratio}.",
            total="In all, the planets get {t} nights.",
            rest="The season has {t} nights, but {r} of them are cloudy and not used.",
            part="The telescope points at {name} on {v} nights.",
            gap="difference in nights between the [two planets|largest and the smallest share]",
            ask_part="How many nights does {name} get?",
            ask_size="How many nights does the planet with the {size} share get?",
            ask_total="How many nights do the planets get in all?",
        ),
        Story(
            names=("the comet", "the nebula", "the moon"),
            split="A telescope takes pictures in cycles, devoting {pairs} in every cycle.",
            total="In one week, it takes {t} pictures.",
            rest="In one week, it takes {t} pictures, but {r} of them are tests outside the cycles.",
            part="In one week, it devotes {v} pictures to {name}.",
            gap="difference in pictures between the [two targets|largest and the smallest share]",
            ask_part="How many pictures are devoted to {name}?",
            ask_size="How many pictures does the target with the {size} share get?",
            ask_total="How many pictures are taken in these cycles?",
        ),
    ),
    "gardening": (
        Story(
            names=("roses", "lilies", "asters"),
            split="Along a path, a gardener plants {who} in the ratio {ratio}.",
            total="In all, the gardener plants {t} flowers.",
            rest="The path has room for {t} flowers, but {r} places stay empty.",
            part="The gardener plants {v} {name}.",
            gap="difference in flowers between the [two kinds|largest and the smallest group]",
            ask_part="How many {name} does the gardener plant?",
            ask_size="How many flowers are there in the {size} group?",
            ask_total="How many flowers does the gardener plant in all?",
        ),
        Story(
            names=("the rose bed", "the herb bed", "the fern bed"),
            split="A gardener divides bags of compost {among} {who} in the ratio {ratio}.",
            total="The beds get {t} bags in all.",
            rest="The shed contains {t} bags, but {r} of them are for the neighbours.",
            part="In spring, {name} is given {v} bags.",
            gap="difference in bags between the [two beds|largest and the smallest share]",
            ask_part="How many bags does {name} get?",
            ask_size="How many bags does the bed with the {size} share get?",
            ask_total="How many bags do the beds get in all?",
        ),
        Story(
            names=("the beans", "the peas", "the onions"),
            split="A gardener carries cans of water, bringing {pairs} in every round.",
            total="By evening, the vegetables have got {t} cans.",
            rest="The gardener fills {t} cans, but {r} of them are spilled on the way.",
            part="By evening, the gardener has brought {v} cans to {name}.",
            gap="difference in cans between the [two vegetables|largest and the smallest share]",
            ask_part="How many cans of water do {name} get?",
            ask_size="How many cans of water are in the {size} share?",
            ask_total="How many cans of water do the vegetables get?",
        ),
    ),
    "logistics": (
        Story(
            names=("Hamburg", "Madrid", "Warsaw"),
            split="A warehouse sends crates to {who} in the ratio {ratio}.",
            total="In all, it sends {t} crates to these cities.",
            rest="The warehouse holds {t} crates, but {r} of them stay where they are.",
            part="The warehouse sends {v} crates to {name}.",
            gap="difference in crates between the [two cities|largest and the smallest share]",
            ask_part="How many crates go to {name}?",
            ask_size="How many crates go to the city with the {size} share?",
            ask_total="How many crates does the warehouse send?",
        ),
        Story(
            names=("the van", "the truck", "the trailer"),
            split="At a depot, parcels are divided {among} {who} in the ratio {ratio}.",
            total="The vehicles carry {t} parcels in all.",
            rest="The depot has {t} parcels, but {r} of them are returned to the sender.",
            part="The driver counts {v} parcels in {name}.",
            gap="difference in parcels between the [two vehicles|largest and the smallest share]",
            ask_part="How many parcels are loaded into {name}?",
            ask_size="How many parcels are in the vehicle with the {size} share?",
            ask_total="How many parcels do the vehicles carry?",
        ),
        Story(
            names=("the north gate", "the south gate", "the east gate"),
            split="A sorting machine moves boxes in cycles, sending {pairs} in every cycle.",
            total="In one hour, the machine sends out {t} boxes.",
            rest="In one hour, {t} boxes arrive, but {r} of them are damaged and not sent on.",
            part="In one hour, the machine sends {v} boxes to {name}.",
            gap="difference in boxes between the [two gates|largest and the smallest share]",
            ask_part="How many boxes go to {name}?",
            ask_size="How many boxes does the gate with the {size} share get?",
            ask_total="How many boxes does the machine send out?",
        ),
    ),
}
