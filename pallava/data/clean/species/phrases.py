"""Phrases that name an animal though the picture shows none of it, for `pallava.data.clean.species`.

Patterns of a text in lower case with § before each word that names an animal. What they match is taken out of it.
"""

from __future__ import annotations

import re

from pallava.data.clean.species.antibodies import ANTIBODY_HOSTS
from pallava.data.clean.species.terms import ANIMALS, FEW, NOUNS, UNCERTAIN, A, animals, any_of


def _phrases(text: str) -> str:
    """A pattern of phrases such as "owl eye"; a hyphen for a space, a plural and a possessive animal fit, too."""
    patterns = [r"[-\s]+".join(map(_word, phrase.split())) for phrase in text.split(";")]
    named = "|".join(pattern[1:] for pattern in patterns if pattern[0] == "§")
    others = "|".join(pattern for pattern in patterns if pattern[0] != "§")
    return rf"(?:§(?:{named})|\b(?:{others}))s?\b"


def _word(word: str) -> str:
    return rf"§{word}(?:'s|s'|s)?" if word in ANIMALS | UNCERTAIN else word.replace("*", r"\w*")


# Reagents and implants ------------------------------------------------------------------------------------------------

_PRODUCTS = (
    (
        "bovine porcine equine pig cow beef ox calf",
        "insulin; thrombin; heparin; collagen; gelatin; trypsin; hyaluronidase; pancreatin; pepsin; elastase; "
        "aprotinin; fibrinogen; thyroglobulin; catalase; surfactant; albumin; lactoferrin; pituitary extract",
    ),
    ("sheep horse", r"erythrocytes?; rbcs?; red cells; red blood cells; cell agglut\w+; cell rosett\w+"),
    ("sheep horse rabbit", "blood agar; plasma agar"),
    ("cow goat sheep camel mare bovine", "milk; whey; casein; colostrum; cheese"),
    ("guineapig rabbit", "complement; reticulocyte lysate"),
    ("horse equine rabbit", "atg; atgam; alg; thymoglobulin; antithymocyte; antilymphocyte; antivenom; antitoxin"),
    ("rat", "tail collagen; tail type i collagen; tail tendon collagen; collagen type i; collagen i"),
    ("calf", r"skin collagen; thymus dna; dna; intestin\w+ phosphatase"),
    ("hen chicken", r"egg white\w*; egg lysozyme; egg albumin; egg allerg\w+; eggs? protein; ovalbumin; lysozyme"),
    ("fish cod shark salmon herring", "oil; gelatin; liver oil; cartilage extract; calcitonin; sperm dna"),
    ("snake viper rattlesnake cobra bee wasp", "venom(?! gland); antivenom"),
    ("horse", "radish"),
    ("sheep", "dip"),
    ("mouse murine", "feeders?; feeder layers?; feeder cells?"),
)
"""Who supplies what: bovine insulin is a drug, mouse insulin is in a mouse."""

_SHOWN = any_of("stain; fib[re]; bundle; deposit; content; express; positiv; immunoreact; granules; cells?\\b")
_DRUGS = any_of("insulin; heparin; thrombin; collagen; gelatin; trypsin; antivenom; antitoxin")
_CATTLE = animals("bovine porcine equine pigs pig cows cow cattle horses horse sheep")
_REAGENTS = (
    *(
        rf"{animals(names)}[-\s]+{NOUNS}{{0,2}}?{any_of(products)}\b(?![-\s]+(?:\w+[-\s]+)?{_SHOWN})"
        for names, products in _PRODUCTS
    ),
    rf"\b{_DRUGS}\s+(?:of|from|derived from)\s+{_CATTLE}(?:\s+origin)?",
    rf"{A}[-\s]+"
    + any_of(
        "dander; droppings; excreta; guano; poison(?:ing)?; gut sutures?; (?:hair|protein) allerg; serum sickness"
    ),
    rf"(?:coated|coating)\s+(?:with|of)\s+{FEW}{A}\s+(?:[\w-]+\s+){{0,2}}?(?:laminin|collagen|gelatin|fibronectin)",
    r"\behs\s+§mouse\s+\w+",
)

_DONOR = animals("porcine bovine equine ovine pig cow horse")
_IMPLANT = any_of(
    r"""
    (?:bio)?prosthe\w+; dermal matrix; acellular \w+; mesh; plugs?; dressings?; hydroxyapatite;
    small intestinal submucosa;
    bone (?:derived )?(?:mineral|substitute|graft|block|filler|xenograft|particle|granule|chip|matri)\w*;
    graft material; (?<!peyer's\s)(?<!peyers\s)(?<!peyer\s)patch(?:es)?; xenografts?; xenogen\w+;
    jugular vein (?:conduit|graft)\w*; pericardial (?:patch|valve|graft|conduit|strip)\w*;
    valve (?:replacement|xenograft|implant)\w*
    """
)
_SCAFFOLD = any_of("bone; graft; membrane; matrix; mesh; collagen; scaffold; substitute; valve; mineral")
_PROCESSED = any_of("deproteini[sz]ed; anorganic; inorganic; demineralized; sintered; freeze-dried; particulate")
_BRANDS = any_of("bio-?oss; cerabone; gen-?os; osteobiol; mucograft; permacol; strattice; surgisis; geistlich")
_IMPLANTS = (
    rf"{_DONOR}[-\s]+{NOUNS}{{0,4}}?{_IMPLANT}",
    rf"{_DONOR}-derived[-\s]+(?:\w+[-\s]+){{0,2}}{_SCAFFOLD}\w*",
    rf"{_DONOR}\s+(?:acellular|cross-?linked|decellulari[sz]ed)\s+(?:dermis|pericardium|dermal\s\w+)",
    rf"(?:made|fabricated|fashioned|composed|manufactured) (?:of|from) (?:an? |the )?{_DONOR}",
    rf"{_PROCESSED}\s+{_DONOR}",
    rf"xeno(?:graft|gen\w+)s?\s*\([^()]{{0,20}}{_DONOR}",
    rf"explanted\s+(?:[\w-]+\s+){{0,2}}{_DONOR}\s+(?:\w+\s+){{0,2}}?(?:valve|pericardi|conduit|patch)",
    rf"prosthe\w+\s*\([^().]{{0,20}}{_DONOR}",
    rf"{_BRANDS}[^.;]{{0,30}}{_DONOR}|{_DONOR}[^.;]{{0,30}}{_BRANDS}",
)

# Named after an animal ------------------------------------------------------------------------------------------------

_DISEASES = _phrases(
    """
    cat scratch; swine influenza; swine flu; swine origin influenza; avian influenza; avian flu; bird flu;
    chicken pox; monkey pox; horse pox; monkey malaria; simian malaria; camel flu; rabbit fever; parrot fever;
    rat bite; rat bite fever; bovine spongiform; mad cow; equine encephalitis; simian virus; simian vacuolating;
    simian foamy; murine typhus; fish odor syndrome; fish odour syndrome; animal type; pig bel; bee keeper;
    clam digger*; rodent ulcer
    """
)
_GENES = (
    r"§(?:murine|avian|feline|simian|rat|chicken)\s+(?:\w+\s+){0,2}?(?:viral\s+)?(?:oncogene|homolog)\w*",
    r"§(?:murine|feline|avian|simian|rat)\s+(?:sarcoma|leuk\w+|erythro\w+|myelo\w+)[-\s]+(?:virus|viral|retrovir|related)\w*",
    r"§mouse mammary tumou?r virus|§(?:mouse|murine) double minute|\bpig-a\b",
    r"(?:kirsten|harvey|neuroblastoma)\s+§rat\b|\bras\s*\(§rat sarcoma\)",
    r"§rat sarcoma\s*\(?\W*(?:ras\b|virus|viral|gene|pathway|protein)",
    rf"(?:homolog(?:ue)?|ortholog(?:ue)?|counterpart)s? (?:of|in) (?:the )?{A}",
    rf"{A} (?:\w+ )?(?:homolog|ortholog)\w*|homolog(?:ue)?\w*(?: \w+)? \({A}\)",
)
_RHESUS = any_of(
    r"""
    \(?rh\b; \(?d\)?\W; incompat; negativ; positiv; factor; isoimmun; alloimmun; immuni[sz]; sensiti[sz]; disease;
    blood; status; antigen; typ; ha?emolytic; group; prophyla; antibod
    """
)
_CARRIERS = animals("dog cat sheep rat fish pig cow horse deer mouse bird chicken pigeon animal rodent")
_PARASITES = any_of(
    """
    liver flukes?; lung flukes?; hookworms?; tapeworms?; roundworms?; lungworms?; whipworms?; threadworms?; eyeworms?;
    heartworms?(?! disease); fleas?; ticks?; lice; louse; mites?; fly; flies; bots?; ked
    """
)
_NAMESAKES = (
    _DISEASES,
    *_GENES,
    rf"\brh\s*\(§rhesus\)|§rhesus[-\s]*{_RHESUS}\w*",
    rf"{_CARRIERS}[-\s]+{_PARASITES}\b",
    rf"\b(?:dr|prof)\. {A}",
)

# Looks like an animal -------------------------------------------------------------------------------------------------

_IDIOMS = _phrases(
    """
    chicken wire; chicken fat clot; chicken fat thromb*; chicken fat appearance; chicken skin appearance; bat wing;
    bat ear; bird beak; bird nest; bird shot; bird head*; bird face; buffalo hump; dromedary hump; camel hump;
    horse shoe; horse tail; horse chestnut; pony tail; dog ear; dog leg; scottie dog; hot dog; salmon patch;
    salmon patches; bee hive; dolphin nose; turkey neck; salmon pink; salmon colo*; goose flesh; goose bump;
    goose neck; goose skin; duck bill; toad skin; crocodile skin; crocodile tear; crocodile shagreen;
    snake skin appearance; snake head appearance; shark skin appearance; elephant skin; elephant foot; elephant trunk;
    elephant man; fish mouth; fish flesh; fish net; fish scale appearance; fish scale pattern; fish hook;
    fish vertebra*; fish bone pattern; fish tank; fish bone appearance; herring bone; pigeon chest; pigeon breast;
    pigeon toe*; pig tail catheter; pig tail drain; pig skin appearance; rat tail appearance; rat tail stricture;
    rat tail narrow*; rat tooth; rat toothed; mosquito forcep; mosquito clamp; monkey hand; monkey face; ape hand;
    lobster claw; crab claw; simian crease; simian line; frog belly; frog leg*; frog face; frog eyes appearance;
    turtle back; tortoise shell; parrot beak; crow feet; wasp waist; oyster shell; clam shell; raccoon eye; panda eye;
    bull neck; swan neck; spider cell; leopard skin; leopard spot; tiger stripe*; snail track; lion face;
    rooster comb; beaver tail; cat cry; cat ear; hare lip; hen teeth; tabby cat heart; bovine facies; bovine arch;
    bovine aortic arch; mickey mouse; minnie mouse; joint mouse; joint mice; pleural mouse; peritoneal mouse;
    computer mouse; mouse pointer; mouse cursor; mouse click*; baseball bat; cricket bat; cobra head; salted fish;
    fish sauce
    """
)
_ORGAN = r"\s+(?:section|retina|cornea|globe)"
_EYES = (  # a fish eye may be the organ; an owl's eye is not unless it says so
    rf"§(?:owl|bull|tiger|bird|cat|frog|fish)(?:'s|s')[-\s]eyes?(?!{_ORGAN})",
    rf"§(?:owl|bull|tiger|bird)s?[-\s]eye[sd]?\b(?!{_ORGAN}|\s+with)|§(?:cat|frog|fish)-eyes?\b",
    r"§(?:cat|frog|fish)[-\s]eyes?[-\s]+"
    + any_of("appear; sign; view; lens; disease; syndrome; pupil; reflex; like; inclusion; lesion; pattern"),
)
_CANINE_TEETH = (
    r"(?:maxillary|mandibular|impacted|unerupted|deciduous|permanent|upper|lower)\s+(?:left\s+|right\s+)?§canines?"
    r"(?=\W*(?:$|[,.;:)]|(?:and|with|in|of|or|was|is|to)\b|region|tooth|area|teeth|root|impact|erupt|crown))",
    r"(?:left|right)\s+§canines?(?=\s+(?:was|is|were|and\s+(?:premolar|incisor|molar)))",
    r"§canines? (?:tooth|teeth|fossa|root|impaction|region|eminence)",
)
_HYBRIDIZATION = (
    r"§fish(?= analysis| for her|[- ]probe|[- ]assay|[- ]signal|[- ]test\b)|hybridi[sz]ation \(§fish",
    r"(?:break-?apart|interphase|dual-colou?r|her-?2|(?:confirmed|detected|performed|testing) by)[-\s]*§fish\b",
)
_LOOKS = (
    _IDIOMS + r"(?![-\s]+(?:muscle|membrane|gland|canal|epiderm|feather|crab)\w*)",
    r"\b(?:my|(?:move|moving|follow|following) the) §mouse\b(?! \w*model)",
    rf"{A}-tailed\s+(?:appearance|sign|stricture)|§pig[-\s]?tails?\s+(?:catheter|drain|stent)\w*",
    rf"{A}[-\s](?:like|shaped|syndrome)\b|{A}(?:\s(?!no|any|with|show)\w+)?\ssign\b",
    rf"{A}\s\w+-like\b|{A}-\w+[-\s](?:shaped|like|appearance|sign|pattern|deformity)\b",
    *_EYES,
    *_CANINE_TEETH,
    *_HYBRIDIZATION,
)

# Met by a person ------------------------------------------------------------------------------------------------------

_PEOPLE = any_of(
    """
    breeder; fancier; farmer; hunter; trapper; catcher; skinner; processor; handler; owner; keeper; lover; worker;
    seller; rancher; vendor; shearer; trainer; rider; butcher; herder; milker; (?:farm|market|plant|house) worker
    """
)
_ZOONOSES = any_of(
    r"""
    leptospiro\w+; hanta\w+; plague; tular\w+; rabies; rabid; brucell\w+; psittac\w+; ornitho\w+; q fever; anthrax;
    orf; toxoplasm\w+; toxocar\w+; echinococc\w+; hydatid\w*; bartonell\w+; pasteurell\w+; capnocyto\w+; zoono\w+;
    listeri\w+; milker'?s nodules?; m\. bovis; mycobacterium bovis; trichophyton; microsporum; dermatophyto\w+; tinea;
    trichin\w+; anisak\w+; ringworm; sporotrich\w+
    """
)
_HARMS = any_of(
    r"""
    bites?; bitten; stings?; kicks?; scratches; scratched; envenom\w+; mauling; attacks?; riding; meat; broth; soup;
    litter; allerg(?:y|ies|ens?)(?! model)
    """
)
_HURT = "(?:bitten|scratched|kicked|stung|gored|attacked|licked|butted|mauled|trampled|thrown)"
_FROM = r"(?:from|via|through|(?:by|after) (?:contact with|exposure to|handling))"
_AIRBORNE = animals("bird avian dog cat horse pig animal pigeon poultry cattle sheep")
_ENCOUNTERS = (
    rf"{A}[-\s]+{_HARMS}\b|{A}-(?:borne|acquired|transmitted|associated)\b",
    rf"§(?!honeybee|bumblebee|bee\b)\w+[-\s]+{_PEOPLE}s?\b(?:'s?)?",
    rf"\b(?:owner|keeper|breeder|fancier|handler|lover|trainer)s?\s+of\s+{FEW}{A}",
    rf"\b{_HURT}\s+(?:by|from)\s+{FEW}{A}|\b(?:bites?|scratch(?:es)?|stings?|kick)\s+(?:of|from|by)\s+{FEW}{A}",
    rf"\b(?:fell|fall|fallen|hit|struck|crushed)\s+(?:from|off|by)\s+{FEW}{A}",
    rf"{animals('stingray shark jellyfish animal horse bull cow')}\s+(?:horn\s+)?(?:injur\w+|accident)",
    rf"{_AIRBORNE}[-\s]+(?:exposure|contacts?|antigens?|precipitins?)\b",
    rf"(?:history of|no|denie[sd]|after)\s+(?:\w+\s+)?contact\s+with\s+{FEW}{A}",
    rf"\b{_ZOONOSES}\s+(?:\([^()]{{0,30}}\)\s+)?(?:(?:acquired|caught|contracted|transmitted)\s+)?{_FROM}\s+"
    rf"(?:(?:an?|the|infected|wild|sick|pet|domestic)\s+){{0,2}}{A}",
    rf"\b(?:contracted|caught)\s+from\s+{FEW}{A}|{A}(?:\s+\w+){{0,3}}\s+(?:is|are)\s+endemic",
    rf"{A}\s+(?:is|are|as|being)\s+(?:the\s+)?(?:\w+\s+)?(?:hosts?|reservoirs?)\b",
    rf"\b(?:hosts?|reservoirs?)(?:\s+\w+)?(?:\s+(?:is|are|such as|include|including)|:)\s+(?:the\s+)?{A}",
    rf"\b(?:(?:transmitted|spread|carried)\s+by|allergic\s+to|allergy\s+to)\s+{FEW}{A}",
    rf"\b(?:raw|undercooked|smoked|marinated|swallowed)\s+(?:(?!data)\w+\s+)?{A}(?:\s+(?:liver|meat|bones?|eggs?|sausage))?",
    rf"\b(?:eating|ingesting|consuming|(?<!food\s)(?:ingestion|consumption)\s+of)\s+{FEW}{A}(?<!mice)(?<!rats)",
    r"§(?:fish|catfish|stingray)[-\s]+(?:spine|barb)",
    r"§(?:fish|chicken)[-\s]?bones?[-\s]+(?:perforation|ingest|impact|foreign|fragment|in\s|penetrat|granuloma)",
    r"\b(?:by|an?|of an?)\s+§(?:fish|chicken)[-\s]bone\b",
    r"§animal urchin[-\s]+(?:granuloma|spine|sting|injur|wound|arthritis)",
    rf"{animals('beetle insect jellyfish ants moths')}\s+dermatitis",
)

HARMLESS = tuple(
    re.compile(pattern) for pattern in (*ANTIBODY_HOSTS, *_NAMESAKES, *_LOOKS, *_REAGENTS, *_IMPLANTS, *_ENCOUNTERS)
)
"""Phrases that are taken away from every text."""

# Beside a person ------------------------------------------------------------------------------------------------------

HUMAN_SUBJECT = re.compile(
    r"\b"
    + any_of(
        r"""
        patients?; wom[ae]n; m[ae]n; boys?; girls?; child; children; infants?; teenager; lady; gentleman; person;
        mother; he; she; his; her(?!-?2); who; (?:organ|human) donor; decedent; farmers?; veterinarians?;
        (?<!german\s)shepherds?; fisherm[ae]n; butchers?; (?<!honey\s)(?<!honeybee\s)workers?; breeders?;
        travell?ers?; hunters?; keepers?; zookeepers?; technicians?; students?; nurses?; hikers?; divers?;
        immigrants?; \d+ years? old(?!(?:\s[\w-]+){0,3}\s§)
        """
    )
    + r"\b"
)
"""A person is spoken of, so that an animal may be what the person met and not what the picture shows."""

_MEETS = any_of(
    r"""
    contact (?:with|to); expos(?:ed|ure) to; work\w* (?:with|on|among); liv(?:es|ed|ing) (?:with|among|near);
    keep(?:s|ing)?; kept; own(?:s|ed|ing)?; breed(?:s|ing); bred; rais(?:es|ed|ing); rear(?:s|ed|ing);
    handl(?:es|ed|ing); bath(?:es|ed|ing); milk(?:s|ed|ing); slaughter\w*; butchering; skinn(?:ed|ing);
    hunt(?:s|ed|ing); shear\w*; acquired; contracted; caught; transmitted; frequented; sensiti[sz]ed to; pets?;
    parasites? of; eat(?:s|en|ing)?; ingest\w+; consum\w+; riding; has; had; car(?:es|ed|ing) for; bottle-?fe\w+;
    feeding; play(?:s|ed|ing) with; touch(?:ed|ing); pett(?:ed|ing); tend(?:s|ed|ing); herd(?:s|ed|ing); groom\w*;
    assisting; delivering; visit(?:ed|ing); history of; with (?:two|three|four|several|many)
    """
)
_IMPLANTED = "(?:explant|implant|replac|reconstruct|repair|prosthe|closure|surgery|resected|removed)"
_DONATED = any_of(r"valves?; pericardi\w+; dermis; collagen; tendon; aort\w+; veins?; (?:skin )?graft\w*")
_TISSUE_OF_DONOR = rf"{_DONOR}[-\s]+(?:[\w-]+[-\s]+){{0,2}}?{_DONATED}"
_INFECTED = animals("bovine equine canine feline avian dog rat cat sheep pig monkey deer")
_INFECTIONS = any_of(
    r"heartworm\w*(?: disease)?; filaria; hookworm; fluke; parasite; nematode; strain; genotype; virus; tapeworm; pox"
)
BESIDE_A_PERSON = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b{_MEETS}\s+{FEW}{A}",
        rf"\b(?:his|her|their|patient's|family's|neighbou?r's)\s+(?:\w+\s+)?{A}",
        rf"\b(?:usually|normally|commonly|mainly)\s+(?:\w+\s+)?in\s+{FEW}{A}",
        rf"\b(?:reported|described|published)\s+(?:previously )?in\s+{FEW}{A}",
        rf"{_TISSUE_OF_DONOR}(?=[^.]{{0,200}}{_IMPLANTED})|{_IMPLANTED}[^.]{{0,60}}{_TISSUE_OF_DONOR}",
        r"§(?:bovine|equine|porcine)[-\s]+pericardi\w+",
        r"§(?:bovine|avian)[-\s]+(?:type\s+)?(?:tubercul\w+|tubercle|tb\b|bacill\w+|mycobact\w+)",
        rf"{_INFECTED}\s+(?:\w+\s+){{0,2}}{_INFECTIONS}\w*",
    )
)
"""What a person meets, bears or is ill of, and how a text cites work on animals; counts only beside `HUMAN_SUBJECT`."""
