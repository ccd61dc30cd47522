"""The words by which `pallava.data.clean.species` knows an animal, and the phrases that name one and mean none."""

from __future__ import annotations

import re


def _words(*groups: str) -> frozenset[str]:
    return frozenset(word for group in groups for word in group.split())


ANIMALS = _words(
    # laboratory
    """
    mouse mice murine rat rats rodent rodents rabbit rabbits leporine guineapig guineapigs hamster hamsters gerbil
    gerbils ferret ferrets vole voles chinchilla chinchillas cavy animal animals pup pups littermate littermates
    """,
    # farm and house
    """
    pig pigs piglet piglets swine porcine minipig minipigs sow sows boar boars hog hogs cow cows cattle bovine
    heifer heifers buffalo buffaloes bison yak sheep ovine ewe ewes lamb lambs goat goats caprine horse horses
    equine mare mares foal foals gelding geldings stallion stallions pony ponies donkey donkeys mule mules camel
    camels dromedary llama llamas alpaca alpacas dog dogs canine canines puppy puppies beagle beagles cat cats
    feline felines kitten kittens mink minks poultry chicken chickens chick chicks hen hens rooster broiler
    broilers turkey turkeys duck ducks duckling ducklings goose geese quail quails ostrich pigeon pigeons avian
    bird birds fowl budgerigar cockatiel parrot parrots
    """,
    # apes
    """
    primate primates monkey monkeys simian macaque macaques rhesus cynomolgus baboon baboons marmoset marmosets
    vervet chimpanzee chimpanzees gorilla gorillas orangutan orangutans lemur lemurs tamarin tamarins ape apes
    """,
    # wild
    """
    deer elk moose reindeer caribou antelope gazelle giraffe giraffes elephant elephants rhinoceros hippopotamus
    zebras lions tigers leopards lynx cheetah cheetahs wolves foxes badger badgers raccoon raccoons skunk skunks
    otter otters hedgehogs squirrel squirrels beaver beavers bat bats shrew shrews koala koalas kangaroo kangaroos
    wallaby wallabies opossum opossums possum possums armadillo armadillos dolphin dolphins porpoise porpoises
    whale whales manatee walrus owl owls hawks eagles falcons vulture vultures penguin penguins swans crows ravens
    """,
    # cold-blooded
    """
    fish fishes teleost zebrafish medaka goldfish salmon salmonids trout tilapia carp catfish killifish
    stickleback seabream flounder turbot halibut tuna eel eels sturgeon grouper lamprey shark sharks stingray frog
    frogs toad toads tadpoles xenopus salamander salamanders newt newts axolotl axolotls turtle turtles tortoise
    tortoises lizard lizards gecko geckos snake snakes rattlesnake viper vipers iguana iguanas crocodile
    crocodiles alligator alligators
    """,
    # without a backbone
    """
    drosophila mosquito mosquitoes honeybee honeybees bumblebee bumblebees bee bees wasp wasps beetle beetles
    locust locusts silkworm silkworms cockroach cockroaches aphid aphids termite termites insect insects oyster
    oysters mussel mussels clam clams snails squid octopus abalone scallops shrimp shrimps prawn prawns crayfish
    lobster lobsters crabs daphnia copepods planarian planarians earthworm earthworms corals
    """,
)
"""Words that are an animal unless one of `HARMLESS` says otherwise. Left out: those that mostly mean another thing."""

COMPOUNDS = (
    (r"guinea[- ]pig", "guineapig"),
    (r"(?:honey|bumble) bee(?=s?\b)", "honeybee"),
    (r"mini[- ]pig", "minipig"),
    (r"sea (?:urchin|bass|bream|lion|cucumber|otter|eagle)s?|(?:harbou?r|gr[ae]y|fur|elephant) seals?", "animal"),
    (
        r"(?:polar|brown|black|grizzly|panda) bears?|(?:red|arctic|gr[ae]y|fruit) fox(?:es)?|gr[ae]y wol(?:f|ves)",
        "animal",
    ),
    (
        r"(?:siberian|bengal) tigers?|snow leopards?|(?:asiatic|african) lions?|tasmanian devils?|mole[- ]rats?",
        "animal",
    ),
    (r"(?:blow|fruit|house|tsetse|sand) ?fl(?:y|ies)|(?:european|pygmy) hedgehog|(?:mud|blue|swimming) crab", "insect"),
    (r"(?:heart|liver|kidney|brain|lung|blood|muscle|tissues?) (?:of|from) (?:a |the )?cal(?:f|ves)", "cattle"),
    (r"(?:newborn|neonatal|suckling|dairy|aborted|infected|holstein|veal) cal(?:f|ves)(?! serum)", "cattle"),
)
"""Several words, or a word in its context -> the one word of `ANIMALS` that stands for them."""

CAPITALS_MEAN_OTHERWISE = frozenset(("CAT", "BAT", "FISH", "PIG", "RAT", "APE", "DEER", "DUCK", "BEE", "CARP", "ELK"))
"""Genes, enzymes and methods when they are written in capitals."""

EVIDENCE = re.compile(
    "|".join(
        (
            # strains and breeds
            r"sprague[- ]?dawley|wistar|long[- ]evans|fischer 344|f344|brown norway|spontaneously hypertensive|zucker|"
            r"goto[- ]kakizaki|c57 ?/?bl\S*|balb/?c|dba/[12]|c3h/he\w*|fvb/n|nod[-/. ]?scid|nod/\w+|\bnsg\b|athymic|"
            r"\bnu/nu|\bdb/db|\bob/ob|\bmdx\b|\bmin/\+|5x ?fad|app/ps1|sod1[- ]?g93a|rosa26|new zealand white|"
            r"g(?:ö|o|oe)ttingen mini|yorkshire|landrace|holstein|hereford|labrador|(?:golden|labrador) retriever|"
            r"german shepherd|poodle|dachshund|rottweiler|greyhound|domestic short[- ]?hair|thoroughbred|quarter horse",
            # scientific names
            r"mus musculus|rattus|danio rerio|gallus gallus|sus scrofa|bos (?:taurus|indicus)|ovis aries|capra hircus|"
            r"equus|canis (?:lupus|familiaris)|felis catus|oryctolagus|cavia porcellus|mesocricetus|meriones|mustela|"
            r"macaca|papio (?:anubis|hamadryas)|callithrix|chlorocebus|caenorhabditis|c\. ?elegans|oreochromis|"
            r"oncorhynchus|"
            r"salmo salar|cyprinus|sparus|apis mellifera|aedes|anopheles|culex|bombyx|biomphalaria|tribolium|schmidtea",
            # cell lines
            r"(?:nih[-/ ]?)?3t3|raw ?264|mdck|\bvero(?:[- ]e6)? cells?|\bcho(?:-k1)?[- ](?:cells?|transfect)|"
            r"\bcos-?[17]\b|"
            r"bhk-?21|c2c12|h9c2|\bpc-?12\b|\bb16(?:-?f\d+|-?bl6)?\b|\b4t1\b|\bct-?26\b|\bmc-?38\b|lewis lung|\bl929\b|"
            r"\bins-1e?\b|\bmin6\b|\bnmumg\b|neuro-?2a|\bgl-?261\b|\bmefs\b|llc-pk1|crfk",
            # experiments that are done on animals alone
            r"transgenic|\bdpf\b|\bgavage|sham[- ]operated|ovariectomi[sz]ed|euthani[sz]|were sacrificed|necropsy|"
            r"chorioallantoic membrane|patient[- ]derived xenografts?|\bpdx\b(?!-1)|xenografted|"
            r"xenograft (?:tumou?r|model)|"
            r"tumou?r xenografts?|tumou?r[- ]bearing|gnotobiotic|embryonic day \d|\be\d{1,2}(?:\.5)? embryos?|"
            r"fed (?:an? |the )?(?:high[- ]fat|western|chow|normal|control|standard|basal)\b(?: \w+)? ?(?:diet|chow)|"
            r"knock-?(?:out|in) (?:male|female|embryo)s?",
            # plants
            r"arabidopsis|nicotiana|oryza sativa|zea mays|triticum|solanum|glycine max|xylem|phloem|mesophyll|tyloses|"
            r"aerenchyma|chloroplasts?|cotyledons?|seedlings?|petioles?|plant (?:tissue|root|leaf|leaves|stem)s?|"
            r"(?:rice|wheat|maize|corn|barley|soybean|tomato|potato|tobacco|cotton|pea|bean|grapevine|poplar|pine|"
            r"sorghum|"
            r"cucumber|apple|citrus) (?:\w+ )?(?:leaf|leaves|roots?|stems?|seeds?|pollen|ovules?|anthers?|fruit)\b|"
            r"(?:leaf|leaves|roots?|stems?|seeds?|pollen|pollen grains) of (?:the )?(?:\w+ )?(?:rice|wheat|maize|"
            r"corn|barley|"
            r"soybean|tomato|potato|tobacco|cotton|pea|bean|grapevine|poplar|pine|plant)",
        )
    )
)
"""What means an animal, a plant or their cells wherever it stands, in lower case."""

MOUSE_GENOTYPE = re.compile(r"\b[A-Z][a-z][A-Za-z0-9]*(?:-/-|\+/-|fl/fl)|\b[A-Z][A-Za-z0-9]+-Cre(?:ERT2?)?\b")
"""Genes of mice are written ``Fgfr3``, those of man ``FGFR3``; this one is read in the caption's own case."""

HUMAN_SUBJECT = re.compile(
    r"\b(?:patients?|wom[ae]n|m[ae]n|boys?|girls?|child|children|teenager|lady|gentleman|farmers?|veterinarians?|"
    r"butchers?|"
    r"workers?|breeders?|travell?ers?|hunters?|person|he|she|his|her|who|mother|donor|\d+[- ]year[- ]old (?:male|"
    r"female))\b"
)
"""A person is spoken of, so that an animal may be what the person met and not what the picture shows."""

_A = r"§\w+(?:'s|s')?(?:\s*(?:,|/|\+|\band\b|\bor\b)\s*§\w+){0,8}"  # unbounded, a list would cost its length squared
_FEW = r"(?:[\w'-]+\s+){0,4}?"
_ADJECTIVES = (
    r"(?:(?:normal|purified|affinity|recombinant|primary|secondary|specific|biotinylated|non-?immune|pre-?immune|"
    r"control|"
    r"chimeric|hyperimmune|\w+-(?:conjugated|labell?ed|purified|human))[-\s]+){0,3}"
)
_VENDORS = (
    r"dako|abcam|sigma|santa cruz|roche|ventana|leica|novocastra|\bbd\b|invitrogen|cell signaling|cst\b|millipore|"
    r"r&d|thermo|"
    r"biocare|cell marque|vector lab|epitomics|proteintech|agilent|zymed|chemicon|serotec|biolegend|jackson"
)

HARMLESS = tuple(
    re.compile(pattern)
    for pattern in (
        # antibodies: where they come from, what they bind
        rf"{_A}[-\s]+{_ADJECTIVES}(?:anti\w*(?:[-\s]*{_A})?|(?:monoclonal|polyclonal|oligoclonal)\w*|mabs?\b|"
        rf"ig[gamey]\d?\w?\b|immunoglobulin|"
        r"isotype|clone|hrp|envision|detection|polymer|linker|gamma ?globulin|serum|sera\b|plasma protein|f\(ab)",
        rf"(?:\banti|α)[-\s]?{_A}",
        rf"{_A}[-\s]+(?:[\w/-]+\s+){{0,3}}(?:detection|ihc|elisa|vectastain|staining|polymer)?\s?kit\b",
        rf"(?:monoclonal|polyclonal|antibod(?:y|ies)|\bmab)[,:]?\s+\(?{_A}(?=\s*[),;.])",
        rf"(?:raised|generated|produced|developed|host(?: species)?)\W+(?:in|from|of)?\s*(?:an?\s+)?{_A}",
        rf"{_A}-on-{_A}",
        rf"{_A},?\s*\(?\s*(?:1\s?:\s?\d+|clone\b)",
        rf"(?:\bclone\b|1\s?:\s?\d+|monoclonal|polyclonal)[^.;]{{0,30}},\s*{_A}(?=\s*[,;.)])",
        rf"\((?=[^()]*{_A}\s*[,;/)])(?=[^()]*(?:1\s?:\s?\d|clone|{_VENDORS}))[^()]*\)",
        # reagents and drugs
        rf"{_A}[-\s]+(?:trypsin|gelatin|thrombin|(?:tail |skin |type i )?collagen\b(?! deposition| content)|insulin|"
        rf"heparin|"
        r"hyaluronidase|pancreatin|pituitary extract|milk|liver oil|oil\b|dander|fat\b|red blood cells?|erythrocytes|"
        r"blood agar|radish|venom|antivenom|cartilage extract|gut\b|silk|protein allergy)",
        # implants
        rf"(?:made|fabricated|fashioned|composed|prepared) (?:of|from) (?:an? |the )?{_A}",
        r"§(?:porcine|bovine|equine|ovine|pig|cow|horse)[-\s]+(?:[\w-]+\s+){0,4}?(?:bio)?(?:prosthes[ie]s|"
        r"prosthetic\w*|"
        r"bioprosthetic|dermal matrix|dermis|bone (?:mineral|substitute|graft|block|filler|xenograft)\w*|mesh|"
        r"hydroxyapatite)",
        # diseases, viruses and genes of man that are called after an animal
        r"§cat[-\s]+scratch|§swine[-\s]+(?:origin )?(?:influenza|flu)|§swine-origin|§(?:avian|"
        r"bird)[-\s]+(?:influenza|flu)\b|"
        r"§(?:chicken|monkey|cow)[-\s]?pox|§bovine spongiform|§equine encephalitis|§simian (?:virus|vacuolating|"
        r"sarcoma)|"
        r"§feline sarcoma|§murine (?:sarcoma|leuk\w+|typhus|double)|§avian (?:myelo\w+|erythro\w+|sarcoma)|"
        r"§rat sarcoma|"
        r"§mouse double minute|§mouse mammary tumou?r virus|§rabbit fever|§parrot fever|§animal[- ]type melanoma",
        rf"(?:homolog(?:ue)?|ortholog(?:ue)?|counterpart)s? (?:of|in) (?:the )?{_A}|{_A} (?:\w+ )?(?:homolog|"
        rf"ortholog)\w*",
        # looks
        r"§(?:owl|bull|bird|fish|frog|tiger)(?:'s)?[-\s]+eyes?|§cat's[-\s]+eye|§chicken[-\s]+(?:wire|fat|skin)|"
        r"§bat(?:'s)?[-\s]+wing|"
        r"§bird(?:'s)?[-\s]+(?:beak|nest|eye)|§buffalo hump|§horse ?shoe|§horse[-\s]?tail|§dog[-\s]+ears?\b|"
        r"§salmon[-\s]+(?:patch|"
        r"pink|colou?r\w*)|§(?:goose|toad|crocodile|snake|shark|elephant)[-\s]+(?:skin|flesh|bumps|shagreen|tears)|"
        r"§fish[-\s]?"
        r"(?:mouth|bones?\b|flesh|net)|§pigeon[-\s]+(?:chest|breast)|§pig[-\s]?tail|§rat[-\s]tail(?:ed)?\b|"
        r"§rabbit ear sign|"
        r"§(?:monkey|ape) (?:hand|paw)|§lobster[-\s]+claw|§simian (?:crease|line)|§\w+(?:-| )(?:like|shaped)\b",
        r"§canines? (?:tooth|teeth|fossa|root|impaction|region|eminence)|(?:maxillary|mandibular|impacted|upper|"
        r"lower|permanent|"
        r"deciduous|left|right|unerupted) §canines?",
        r"§fish(?: analysis| probes?| assay| test\w*| stud\w+| results?| shows?| showed| confirm\w*| signal\w*| was|"
        r" for| with| using| positiv\w*|[:;,)])",
        r"(?:\bby|\bbreak-apart|interphase|using|dual-colou?r|\() ?§fish\b",
        # what bites, stings or is kept
        rf"{_A}[-\s]+(?:bites?|bitten|scratch(?:es)?|stings?|kick|envenomation|breeders?|fanciers?|farmers?|"
        rf"handlers?|owners?|"
        r"keepers?|lovers?|hookworms?|tapeworms?|roundworms?|lungworms?|fleas?|ticks?|allergy|tank)\b(?:'s)?",
        rf"\b(?:bitten|scratched|kicked|stung|gored|attacked|licked|butted) by {_FEW}{_A}",
        rf"\b(?:bites?|scratch|stings?|kick) (?:of|from|by) {_FEW}{_A}",
    )
)
"""Phrases that name an animal (§ stands before it) though the picture shows none of it."""

CONTACT = re.compile(
    r"\b(?:contact with|expos(?:ed|ure) to|work\w* (?:with|on|among)|liv(?:es|ed|ing) (?:with|among|near)|keep(?:s|"
    r"ing)?|kept|"
    r"own(?:s|ed|ing)?|breed(?:s|ing)|bred|rais(?:es|ed|ing)|rear(?:s|ed|ing)|handl(?:es|ed|ing)|bath(?:es|ed|ing)|"
    r"milk(?:s|ed|ing)|"
    r"slaughter\w*|butchering|skinn(?:ed|ing)|hunt(?:s|ed|ing)|shear\w*|acquired|contracted|caught|transmitted|"
    r"frequented|pets?|"
    r"allergic to|parasites? of|eat(?:s|en|ing)?|ate|ingest\w+|consum\w+|undercooked|raw|fell from|fallen from|riding|"
    rf"(?:reported|described|published) (?:previously )?in)\s+{_FEW}{_A}"
)
"""How a person meets an animal, or how a text cites work on one; counts only beside a `HUMAN_SUBJECT`."""
