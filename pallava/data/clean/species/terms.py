"""The words that name an animal, for `pallava.data.clean.species`."""

from __future__ import annotations

import re


def words(*groups: str) -> frozenset[str]:
    """The words of texts."""
    return frozenset(word for group in groups for word in group.split())


def any_of(terms: str) -> str:
    """A pattern of the terms that semicolons part; within a term a space stands for spaces or hyphens."""
    return "(?:" + "|".join(r"[-\s]+".join(term.split()) for term in terms.split(";")) + ")"


ANIMALS = words(
    # laboratory
    """
    mouse mice murine rat rats rodent rodents rabbit rabbits leporine guineapig guineapigs hamster hamsters gerbil
    gerbils ferret ferrets vole voles chinchilla chinchillas cavy animal animals pup pups littermate littermates
    """,
    # farm and house
    """
    pig pigs piglet piglets swine porcine minipig minipigs sow sows boar boars hog hogs cow cows cattle bovine heifer
    heifers buffalo buffaloes bison yak oxen sheep ovine ewe ewes lamb lambs wether wethers goat goats caprine horse
    horses equine mare mares foal foals gelding geldings stallion stallions pony ponies donkey donkeys mule mules camel
    camels dromedary llama llamas alpaca alpacas camelid camelids dog dogs canine canines puppy puppies beagle beagles
    bitch bitches cat cats tomcat tomcats feline felines kitten kittens mink minks poultry chicken chickens chick
    chicks hen hens rooster roosters cockerel cockerels pullet pullets broiler broilers turkey turkeys poults duck
    ducks duckling ducklings goose geese gosling goslings quail quails ostrich ostriches emu emus pigeon pigeons avian
    bird birds fowl budgerigar budgerigars cockatiel cockatiels parrot parrots parakeet parakeets cockatoo cockatoos
    macaw macaws canaries finch finches sparrow sparrows pheasant pheasants partridge partridges livestock ruminant
    ruminants
    """,
    # apes
    """
    primate primates monkey monkeys simian macaque macaques rhesus cynomolgus baboon baboons marmoset marmosets vervet
    vervets chimpanzee chimpanzees bonobo bonobos gorilla gorillas orangutan orangutans gibbon gibbons lemur lemurs
    tamarin tamarins capuchin capuchins mandrill mandrills ape apes
    """,
    # wild
    """
    deer elk moose reindeer caribou antelope gazelle gazelles giraffe giraffes elephant elephants rhinoceros
    hippopotamus zebras lions tigers leopards lynx bobcat bobcats cougar cougars cheetah cheetahs coyote coyotes jackal
    jackals dingo dingoes wolves foxes badger badgers raccoon raccoons skunk skunks weasel weasels mongoose mongooses
    meerkat meerkats otter otters hedgehogs squirrel squirrels chipmunk chipmunks woodchuck woodchucks groundhog
    groundhogs marmot marmots porcupine porcupines beaver beavers bat bats shrew shrews hares koala koalas kangaroo
    kangaroos wallaby wallabies wombat wombats opossum opossums possum possums marsupial marsupials armadillo
    armadillos sloths dolphin dolphins porpoise porpoises whale whales manatee manatees dugong dugongs walrus pinniped
    pinnipeds owl owls hawks eagles falcons kestrel kestrels vulture vultures flamingo flamingos pelican pelicans
    penguin penguins swans crows ravens seabird seabirds
    """,
    # cold-blooded
    """
    fish fishes teleost teleosts zebrafish medaka goldfish koi salmon salmonid salmonids trout tilapia tilapias carp
    catfish killifish stickleback sticklebacks seabream seabass flounder turbot halibut tuna mackerel herring sardines
    eel eels sturgeon sturgeons grouper groupers barramundi cichlid cichlids guppy guppies minnow minnows pufferfish
    lamprey lampreys shark sharks stingray stingrays frog frogs bullfrog bullfrogs toad toads tadpoles xenopus
    salamander salamanders newt newts axolotl axolotls amphibian amphibians reptile reptiles turtle turtles tortoise
    tortoises terrapin terrapins lizard lizards gecko geckos chameleon chameleons snake snakes rattlesnake rattlesnakes
    viper vipers pythons iguana iguanas crocodile crocodiles alligator alligators
    """,
    # without a backbone
    """
    drosophila mosquito mosquitoes honeybee honeybees bumblebee bumblebees bee bees wasp wasps beetle beetles locust
    locusts grasshopper grasshoppers crickets silkworm silkworms moths cockroach cockroaches aphid aphids termite
    termites ants insect insects oyster oysters mussel mussels clam clams snails squid octopus cuttlefish abalone
    scallops shrimp shrimps prawn prawns crayfish lobster lobsters crabs krill daphnia copepods planarian planarians
    planaria earthworm earthworms corals starfish jellyfish
    """,
)
"""Words that are an animal unless a phrase says otherwise. Left out: those that mostly mean another thing."""

UNCERTAIN = words(
    """
    bull bulls bullock bullocks ram rams steer steers ox calf calves colt colts stag wolf bear bears lion tiger leopard
    seal seals fox hare zebra panda pandas jaguar puma hawk eagle falcon swan crow raven crane cock hog gilt fly flies
    tick ticks crab snail moth spider cod bass perch pike python cobra
    """
)
"""Words that are an animal only beside a tissue ("bull testis"), or where something is found in one ("in a bear")."""

NEEDS_TISSUE = words("CAT BAT PIG RAT APE DEER DUCK BEE CARP ELK COW DOG LAMB GOAT MARE HEN EEL BOAR MINK")
"""Spellings that are genes, enzymes and methods unless a tissue follows ("RAT LIVER")."""

PLACES = words("Turkey Buffalo")
"""Spellings that are treated as the words of `UNCERTAIN`."""

NEVER = words("FISH")
"""Spellings that are no animal."""

TISSUES = any_of(
    r"""
    lungs?; livers?; kidneys?; renal; spleens?; splenic; hearts?; cardiac; myocardium; brains?; cerebr\w+;
    cerebell\w+; cortex; cortical; hippocamp\w+; hypothalam\w+; pituitar\w+; spinal; testis; testes;
    testic(?:le|les|ular); epididym\w+; ovary; ovaries; ovarian; uterus; uterine; oviducts?; placentas?; pancreas;
    pancreatic; thymus; thymic; intestin\w+; jejun\w+; ileum; ileal; duoden\w+; colons?; colonic; ca?ecum; gut;
    midgut; rumen; stomachs?; gastric; o?esophag\w+; urinary; bladder; trachea\w*; retinas?; corneas?; adrenals?;
    thyroid; digestive; prostate; salivary; mammary; lymph; tonsils?; aortas?; gills?; hepatocytes?; sperm;
    spermatozoa; oocytes?
    """
)
"""Inner parts of a body, as they stand beside a word of `UNCERTAIN` or `NEEDS_TISSUE`."""

SURFACES = any_of(
    "skin; muscles?; skeletal; eyes?; tails?; tongues?; ears?; bones?; femurs?; tibiae?; cartilage; tendons?; nerves?"
)
"""Further parts, which a calf has in man as well."""

COMPOUNDS = tuple(
    (re.compile(rf"\b{pattern}", re.IGNORECASE), word)
    for pattern, word in (
        (r"guinea[- ]pig", "guineapig"),
        (r"(?:honey|bumble) bee(?=s?\b)", "honeybee"),
        (r"mini[- ]pig", "minipig"),
        (r"(?:sea (?:bass|bream|lion|cucumber|otter|eagle)|bearded dragon|prairie dog)(?=s?\b)", "animal"),
        (r"(?:harbou?r|gr[ae]y|fur|elephant|monk|ringed) seal(?=s?\b)", "animal"),
        (r"(?:polar|brown|black|grizzly|panda|sun|sloth) bear(?=s?\b)|giant pandas?", "animal"),
        (r"(?:red|arctic|gr[ae]y|fruit|flying) fox(?:es)?|(?:gr[ae]y|maned) wol(?:f|ves)", "animal"),
        (r"(?:siberian|bengal|sumatran) tigers?|snow leopards?|(?:asiatic|african|mountain) lions?", "animal"),
        (r"tasmanian devils?|mole[- ]rats?|tree shrews?|(?:european|pygmy) hedgehog|(?:brown|european) hare", "animal"),
        (r"(?:atlantic cod|(?:yellow|european) perch|northern pike|(?:ball|burmese) python)s?", "fish"),
        (r"(?:blow|fruit|house|tsetse|sand) ?fl(?:y|ies)|(?:mud|blue|swimming|horseshoe) crab", "insect"),
        (r"sea[- ]urchin(?=s?\b)", "animal urchin"),
        (r"(?:newborn|neonatal|suckling|dairy|aborted|infected|holstein|veal|bull) cal(?:f|ves)(?! serum)", "cattle"),
    )
)
"""Several words, or a word in its context -> the one word of `ANIMALS` that stands for them."""


def animals(names: str) -> str:
    """A pattern of some animals in a marked text."""
    return rf"§(?:{'|'.join(names.split())})\b(?:'s|s')?"


OR = r"\s*(?:,|/|\+|&|\band\b|\bor\b)\s*"
A = rf"§\w+(?:'s|s')?(?:{OR}(?:an?\s+)?§\w+){{0,8}}"  # unbounded, a list would cost its length squared
FEW = r"(?:(?!(?:and|or|in|into|versus|vs|than|but)\b)[\w'-]+\s+){0,4}?"
NOUNS = r"(?:(?!(?:of|in|on|with|after|and|from|for|using|by|stained|treated|model)\b)[\w/-]+[-\s]+)"
"""Patterns of a marked text (§ before each animal): a list of animals; a few words; a word of a compound."""
