r"""The units and counted things that may follow a value, with all spellings of each under one name.

It is a list and not "any word": `7\text{ million}`, `7\text{ squared}` and `7\text{ false}` are not 7 of something. Prefixed
units are listed only if they are in use, and a single letter is a unit only if it is upright or after a space. Only cents and
degrees are converted: a question that asks for centimetres is not answered in metres.
"""

from __future__ import annotations

from fractions import Fraction

# One line a unit: its name, then its other spellings.
NAMES = """
mm millimeter millimeters millimetre millimetres
cm centimeter centimeters centimetre centimetres cms 厘米
dm decimeter decimeters decimetre decimetres 分米
m meter meters metre metres mtr 米
km kilometer kilometers kilometre kilometres kms 千米 公里
nm nanometer nanometers nanometre nanometres
um micrometer micrometers micron microns
in inch inches
ft foot feet
yd yard yards yds
mi mile miles
ly lightyear lightyears
mg milligram milligrams
g gram grams gm gms 克
kg kilogram kilograms kilo kilos kgs 千克 公斤
t ton tons tonne tonnes 吨
lb lbs pound pounds
oz ounce ounces
ms millisecond milliseconds
s sec secs second seconds 秒
min minute minutes mins 分钟
h hr hrs hour hours 小时
day days 天
week weeks wk wks
month months
year years yr yrs 年 岁
decade decades
century centuries
ml mL milliliter milliliters millilitre millilitres cc 毫升
cl centiliter centiliters centilitre centilitres
dl deciliter deciliters decilitre decilitres
L l liter liters litre litres 升
gallon gallons gal gals
quart quarts qt qts
pint pints pt pts
cup cups
teaspoon teaspoons tsp
tablespoon tablespoons tbsp
acre acres
hectare hectares ha
N newton newtons
kN kilonewton kilonewtons
J joule joules
kJ kilojoule kilojoules
W watt watts
kW kilowatt kilowatts
MW megawatt megawatts
kWh
V volt volts
mA milliamp milliamps milliampere milliamperes
A ampere amperes amp amps
ohm ohms
Pa pascal pascals
kPa kilopascal kilopascals
Hz hertz
kHz kilohertz
MHz megahertz
GHz gigahertz
mol mole moles mols
cal calorie calories
eV
keV
MeV
GeV
erg ergs
amu
AU
pc parsec parsecs
kcal kilocalorie kilocalories
bit bits
byte bytes
KB kilobyte kilobytes
MB megabyte megabytes
GB gigabyte gigabytes
mph
kph kmph kmh
rpm
degree degrees deg degs 度
radian radians rad rads
°C Celsius celsius
°F Fahrenheit fahrenheit
dollar dollars USD usd bucks buck
cent cents ¢
euro euros EUR eur
GBP gbp
yuan RMB CNY 元 块
yen JPY
rupee rupees INR Rs
peso pesos
ruble rubles
penny pennies pence
nickel nickels
dime dimes
coin coins
unit units
"""
# Things that are counted; their plurals in -s or -es count too.
THINGS = (
    "adult animal answer apple arrangement bag ball balloon banana battery bead bean bear bee bicycle bike bill "
    "bird block boat bolt book bottle bouquet bowl box bracelet branch brick bucket bug burger bus button cake can "
    "candle candy car card cat cell chair chicken chip chocolate choice circle class clip coach coin combination "
    "computer contestant cookie corner cow crayon customer deck desk diagonal digit dish dog doll donut door dot "
    "dress driver duck edge egg element employee envelope event face factor family farmer fish flag floor flower "
    "frame friend frog fruit game glass goal goat grade grape guest hat head horse house integer item jar jewel "
    "journey key kid kilometer kitten lamp lap layer lemon lesson letter light line lollipop machine magazine "
    "marble match member message mile minute monkey mug muffin move necklace note notebook number nut onion option "
    "orange order ounce outcome page pancake parent parrot participant passenger path patient peach pear pen pencil "
    "permutation petal phone photo piece pie pig pizza plant plate player point pole pool potato present prize "
    "problem question rabbit ribbon ring roll room rope rose round row sandwich seat seed segment sheet shell ship "
    "shirt shoe shop side sister slice snack sock soldier solution song spoon stamp star step stick sticker stone "
    "store story straw strawberry student subset surfboard sweet swimmer table tank task teacher team term test "
    "ticket tile time toy train tree triangle trip truck turn turtle value vehicle vertex video visitor vote voter "
    "walnut watch watermelon wheel window word worker worm zebra"
)
IRREGULAR = (
    "squares cubes people person men man women woman children child mice geese feet teeth sheep deer "
    "fish vertices indices matrices dice die cookies candies cherries berries strawberries puppies puppy babies "
    "baby families stories batteries pennies ways way boys boy girls girl toys days loaves leaves knives shelves "
    "cents pages clips rabbits chickens 页 个 只 名 人 本 棵 条 张 支 辆 盒 袋 次 种 位 道 件 间 头 朵 颗 块 组 对"
)
# Single letters that are units after a space, where a variable would follow directly.
SHORT = frozenset("m g s h L l t N J W V A".split())
# The ones that may follow a number directly if they are upright: `7\mathrm{m}`.
CLOSE = frozenset("m g s h L".split())
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
MONEY = {"$": "dollar", "€": "euro", "£": "GBP", "¥": "yuan", "₹": "rupee", "¢": "cent"}
MULTIPLES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "millions": 10**6, "billion": 10**9, "billions": 10**9,
    "trillion": 10**12, "dozen": 12,
}  # fmt: skip
# (other unit, factor) for each unit that is converted.
CONVERTED = {"cent": ("dollar", Fraction(1, 100))}
# Irregular plurals of the list, and other words for the same thing.
SAME_THINGS = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child", "kid": "child",
    "mice": "mouse", "geese": "goose", "teeth": "tooth", "vertices": "vertex", "indices": "index", "matrices": "matrix",
    "dice": "die", "人": "person", "页": "page",
}  # fmt: skip


def _spellings() -> dict[str, str]:
    found = {word: line.split()[0] for line in NAMES.strip().splitlines() for word in line.split()}
    for thing in (*THINGS.split(), *IRREGULAR.split()):
        plural = thing + ("es" if thing.endswith(("s", "x", "ch", "sh")) else "s")
        for word in (thing, plural, thing[:-1] + "ies" if thing.endswith("y") else plural):
            found.setdefault(word, SAME_THINGS.get(thing, thing))
    return found


UNITS: dict[str, str] = _spellings()
Unit = tuple[tuple[str, int], ...]


def unit_named(word: str) -> str | None:
    """The name of the unit that `word` spells, in any case if it is longer than three letters; None if it is not a unit."""
    if word in UNITS:
        return UNITS[word]
    lower = word.lower()
    return UNITS[lower] if len(word) > 3 and lower in UNITS else None


def combined(factors: list[tuple[str, int]]) -> Unit:
    """The product of powers of units, in sorted order; "unit" is left out: 36 square units are 36."""
    powers: dict[str, int] = {}
    for name, power in factors:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted((name, power) for name, power in powers.items() if power and name != "unit"))


SPEEDS: dict[str, Unit] = {"mph": (("h", -1), ("mi", 1)), "kph": (("h", -1), ("km", 1))}
