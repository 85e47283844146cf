"""The words that samples are made of. Fixed, so that a seed means the same sample everywhere."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> list[str]:
    return text.split()


NAMES: Final = _words("""
Alice Bob Carol Dave Emma Frank Grace Henry Ivy Jack Kate Liam Mia Noah Olivia Paul Quinn Rosa
Sam Tina Uma Victor Wendy Xavier Yara Zoe Anna Ben Clara Daniel Elena Felix Gina Hugo Iris Jonas
Karen Leo Maria Nina Oscar Petra Ralph Sara Tom Ursula Vera Walter Yusuf Amir Bella Carlos Diana
Erik Fatima George Hanna Igor Julia Kofi Lena Marco Nadia Omar Priya Rita Stefan Tara Ulrich
Vivian Will Ada Alan Grete Kurt Linus Margaret Dennis Ken Barbara Donald Edsger Niklaus John
Mary Peter James Linda Susan Robert David Richard Thomas Sarah Nancy Lisa Mark
""")
"""First names."""

THINGS: Final = _words("""
apple ball book cup key lamp pen phone ring shoe spoon ticket umbrella watch bottle box candle
chair clock coin diamond doll drum flag flute fork glove guitar hammer hat helmet kite knife
ladder letter map mirror mug necklace notebook orange parcel pear pencil photo pillow pin plate
puzzle radio rope sandwich scarf shell shirt statue stone sword table torch toy trumpet vase
violin wallet whistle bag basket blanket brush camera card carrot compass cookie crown feather
hook jar jewel lemon magnet medal melon needle onion peach plum potato razor rose ruler seed
soap sponge
""")
"""Things one can hold."""

PLACES: Final = _words("""
kitchen garden garage bedroom bathroom office library hallway cellar attic park school museum
station market harbor beach forest castle bakery hospital hotel theater stadium bridge tower
church factory farm barn workshop cafe restaurant bank airport zoo square playground lighthouse
cave
""")
"""Places one can go to."""

CITIES: Final = _words("""
Paris London Berlin Rome Madrid Vienna Prague Warsaw Lisbon Dublin Athens Oslo Stockholm
Helsinki Copenhagen Budapest Brussels Amsterdam Zurich Geneva Munich Hamburg Milan Naples Venice
Barcelona Seville Porto Lyon Nice Tokyo Osaka Kyoto Seoul Beijing Shanghai Delhi Mumbai Cairo
Lagos Nairobi Sydney Melbourne Toronto Montreal Vancouver Boston Chicago Denver Dallas Seattle
Austin Miami Lima Bogota Santiago Quito Havana Istanbul Dubai
""")
"""Cities."""

COLORS: Final = _words("""
red blue green yellow black white orange purple pink brown gray silver golden violet turquoise
""")
"""Colors."""

ANIMALS: Final = _words("""
cat dog horse cow sheep goat pig duck hen rabbit mouse fox wolf bear lion tiger owl eagle frog
snake whale dolphin camel donkey otter
""")
"""Animals."""

ADJECTIVES: Final = _words("""
small large old new quiet bright heavy light slow fast warm cold round flat soft hard clean
dusty shiny strange simple useful broken careful
""")
"""Adjectives that fit most nouns."""

NOUNS: Final = _words("""
project report river road cloud window number letter system signal engine village winter summer
story teacher student morning evening meeting paper machine forest mountain train ship island
music picture question answer problem plan result lesson market garden bridge table water
""")
"""Nouns of everyday texts."""

VERBS: Final = _words("""
watches carries paints repairs describes counts follows remembers visits builds checks moves
opens collects finds needs likes sells studies
""")
"""Verbs in the third person."""

CAPITALS: Final = dict(
    pair.split(":")
    for pair in _words("""
France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Austria:Vienna Poland:Warsaw
Ireland:Dublin Greece:Athens Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen
Hungary:Budapest Belgium:Brussels Japan:Tokyo China:Beijing India:Delhi Egypt:Cairo
Kenya:Nairobi Canada:Ottawa Peru:Lima Colombia:Bogota Chile:Santiago Cuba:Havana Russia:Moscow
Ukraine:Kyiv Turkey:Ankara Iran:Tehran Iraq:Baghdad Thailand:Bangkok Vietnam:Hanoi
Australia:Canberra Brazil:Brasilia Netherlands:Amsterdam Switzerland:Bern Romania:Bucharest
Bulgaria:Sofia Croatia:Zagreb Serbia:Belgrade Iceland:Reykjavik Estonia:Tallinn Latvia:Riga
Lithuania:Vilnius England:London
""")
)
"""Country -> capital, the only facts the model knows by heart."""

SYLLABLES: Final = _words("""
ba be bi bo bu da de di do du fa fe fi fo ga ge go ka ke ki ko la le li lo lu ma me mi mo mu na
ne ni no pa pe pi po ra re ri ro sa se si so ta te ti to va ve vi vo za zo zu tor lin mar kan
dex bran quo plim
""")
"""What invented words are made of."""

CODE_WORDS: Final = _words("""
abc able about above absolute accept access according action actual actually add added adding
additional address after again algorithm all allow allowed allows already also always and
another any anything appear append arbitrary are arg args argument arguments argv around ascii
assert associated assume async attempt attribute attributes available avoid await back backward
backwards bad base based because been before beginning behavior being below best better between
bin binary bit block blocking body bool both bpo break buffer bugs build built builtin builtins
but byte bytearray bytes cache call callable callback called caller calling calls can cannot
case cases cause change changed changes character characters charset check checking class
classes clear client close closed cls cmd code com command common compatible compile complete
connection constants contain containing contains content contents context continue control
conversion convert converted copy correct could count create created creating current currently
custom data date debug decode def default defaults define defined del depending deprecated
descriptor details determine dict dictionary difference different dir directly directory dirname
does doesn doing don done due during each effect either element elements elif else email empty
enable encode encoded encoding end endswith enough ensure entries entry enumerate equal
equivalent err errno error errors escape etc even event events every everything exactly example
exc except exception exceptions exec exist existing exists exit expected explicitly extend
extension extra fail failed fails false fast field fields file filename fileno files final
finally find first flag flags float flush followed following foo for form format formatted found
frame from full func function functions functools future generated generator get getattr gets
given gives global globals got group groups had handle handler handling happen has hasattr hash
have header headers help helper here how html http https ignore ignored implement implements
import imported include includes including index indicates info initial input insert inside
instance instances instead int integer interface internal into invalid isinstance isn issue item
items iter iterable iterator itertools its itself join just keep key keys keyword know known
kwargs lambda last later leading least left len length less let level library like likely limit
line lineno lines list lists load local log long longer look lookup loop lower made main make
makes many map mapping match matches matching max maximum may meaning means memoryview message
messages method methods might min missing mode modify module modules more most msg much multiple
must name named names namespace necessary need needed needs negative never new newline next non
normal not note nothing now number numbers obj object objects occurs off offset old omitted once
one only open opened operation operations optional options order org original other otherwise
our out output over override own package pair pairs parameter parameters parent parse parser
parsing part partial particular parts pass passed passing path per place plain platform point
pop pos position positive possible possibly prefix present prevent previous print probably
process processing program property protocol provide provided provides public purpose python
quote raise raised raises range rather raw read readable reading readline real really reason
received reference references register regular related relative remaining remove removed replace
repr require required requires res reset rest result resulting results return returned returning
returns reverse reversed right root rstrip run running safe same search second seconds see seek
seen self send sent sep separate separator sequence server set sets setting should signal
similar simple simply since single size skip socket some something sort sorted source space
spaces spec special specific specified specifies specify split stack stacklevel standard start
starting starts startswith stat state status stderr stdin stdout still stop store stored str
stream strict string strings strip style sub subclass subclasses such super supplied support
supported supports sure syntax sys system table take takes target tell test testing text than
that the their them then there these they this those though thread three through time timeout
times together too top total traceback trailing true try tuple tuples two type types under
underlying unknown unless until update upper usage use used useful user uses using usr usually
utf val valid value values variable variables various version versions very via wait want warn
warnings was way well were what when where whether which while whitespace will with within
without won word words work works would wrapped write writing written www yet yield you your
zero zip
""")
"""Frequent words of program texts."""

NUMBER_WORDS: Final = _words("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
""")
"""0 to 20 in words."""

ORDINALS: Final = _words("first second third fourth fifth sixth seventh")
"""Places in a list."""

COMMON: Final = THINGS + ANIMALS + COLORS + NOUNS
"""Words for lists."""
