"""How captions name the hosts of antibodies, for `pallava.data.clean.species`.

Patterns of a text in lower case with § before each word that names an animal.
"""

from __future__ import annotations

import re

from pallava.data.clean.species.terms import FEW, NOUNS, OR, SURFACES, TISSUES, A, animals, any_of

_HOST = (
    animals(
        "mouse murine rabbit goat rat donkey sheep chicken horse equine guineapig hamster swine pig porcine cow bovine "
        "ovine caprine llama alpaca camel camelid monkey dog"
    )
    + rf"(?![-\s]+(?:{TISSUES}|{SURFACES}|tissue|model|section|tumou?r)s?\b)"
)
_HOSTS = rf"{_HOST}(?:{OR}{_HOST}){{0,5}}"

_VENDORS = any_of(
    r"""
    dako; abcam; sigma; santa cruz; roche; ventana; leica; novocastra; bd; invitrogen; cell signaling; cst; millipore;
    r&d; thermo; biocare; cell marque; vector; epitomics; proteintech; agilent; zymed; chemicon; serotec; biolegend;
    jackson imm\w+; zsgb; maixin
    """
)
_KITS = any_of(
    r"""
    envision\w*\+?; vectastain; immpress; ultraview; ultravision; optiview; histofine; superpicture; novolink;
    mach\s?\d; bond; refine; lsab\d?; polydetector; polink
    """
)
_MARKER = (
    r"\b"
    + any_of(
        r"""
        cd\d+\w*; ck\s?\d[\d/]*; ki-?67; p(?:16|21|27|40|53|57|63|73); muc-?\d\w*; pax-?\d; sox-?\d+; gata-?\d;
        ttf-?1; bcl-?\d; her-?2\w*; pd-?l?1; mlh-?1; msh-?[26]; pms-?2; cdx-?2; wt-?1; dog-?1; hmb-?45; s-?100\w*;
        fox[-\w]*\d; er; pr; ar; ema; sma; gfap; neun; psa; cea; afp; alk; ros1; actin; desmin; vimentin; keratin;
        cytokeratin; pan-?ck; laminin; synaptophysin; chromogranin; calretinin; insulin; glucagon; somatostatin;
        melan-?a; napsin(?: a)?; e-cadherin; catenin; collagen i+v?; fibronectin; perilipin; iba-?1; tryptase;
        lysozyme; mpo; tdt; cyclin d1; c-?myc; c-?kit; c4d; sv40; inhibin; braf; idh1; tau; ubiquitin
        """
    )
    + r"\b"
)
_NO_CLONE = r"(?!\d+(?:x|w|wk|d|h|m|mg|um)?\b|[pe]\d+(?:\.5)?\b|day|week|month|fig|panel|grade|stage|covid|cov-|sars)"
_CLONE = rf"\b{_NO_CLONE}(?=[\w/.-]{{0,40}}\d)(?=[\d/.-]{{0,40}}[a-z])[\w/.-]+"  # such as 22c3, jc70a, pax8
_TARGET = rf"(?:{_MARKER}|{_CLONE})"

# What follows a host ------------------------------------------------------------------------------------------------

_ADJECTIVES = (
    r"(?:(?:normal|purified|affinity|recombinant|primary|secondary|specific|biotinylated|non-?immune|pre-?immune|"
    r"control|chimeric|hyperimmune|derived|\w+-(?:conjugated|labell?ed|purified|human))[-\s]+){0,3}"
)
_NO_ANTIBODY = any_of(
    r"""
    gen; oxid; biotic; cancer; viral; fung; microb; coag; diab; hypert; phospholip; -?inflam; -?tumou?r;
    bod\w+ (?:mediated|induced|depos)
    """
)
_DISEASES = any_of("nephritis; glomerulonephritis; arthritis; vasculitis; uveitis; disease; model; induced; mediated")
_ANTI = (  # but "rat anti-Thy1 nephritis" is a disease of a rat
    rf"anti(?!{_NO_ANTIBODY})(?:[-\s]*{A}|[^\s,;.()§]*)(?![\w-])(?![-\s]+(?:\w+[-\s]+)?{_DISEASES})"
)
_CLONAL = r"(?:mono|poly|oligo)clonal\w*(?!\s+(?:gammopath|b[-\s]cell))"
_DEPOSITS = any_of("depos; nephropath; model; level; plasm; producing; secret; along; in the (?:glom|mesang|kid)")
_IMMUNOGLOBULIN = (  # but "mouse IgG deposits" are in a mouse
    r"(?:ig[gamey]\d?\w?|immunoglobulins?)\b(?!\s*(?:,|and|\+|/)\s*c3)" + rf"(?![-\s]+(?:\w+[-\s]+)?{_DEPOSITS})"
)
_LABORATORY_VALUES = any_of(
    r"""
    creatinine; level; alt; ast; alp; urea; bun; glucose; insulin; cytokine; concentration; biochem; sample;
    chemistry; parameter; marker; amyloid; lipid; cholesterol; bilirubin; enzyme; iron
    """
)
_SERUM = rf"ser(?:um|a)\b(?![-\s]+(?:\w+[-\s]+)?{_LABORATORY_VALUES}s?\b)"
_DETECTION = any_of(
    r"""
    isotype; hybridoma supernatant; secondary\b; clone\b; hrp; polymer; linker; gamma ?globulin; plasma protein;
    f\(ab; fab\b; (?:detection|secondary|primary) (?:system|kit|reagent|antibod)
    """
)
_IS_OF_HOST = rf"(?:{_ANTI}|{_CLONAL}|mabs?\b|{_IMMUNOGLOBULIN}|{_SERUM}|{_DETECTION})"

# What goes before a host --------------------------------------------------------------------------------------------

_ANTIBODY = r"(?:antibod(?:y|ies)|antiser(?:um|a)|mabs?|(?:mono|poly)clonals?)"
_ANY_ANTIBODY = rf"(?:{_ANTIBODY}|anti-?[\w-]{{1,40}}|immunoglobulins?|ig[gamye]\d?)"
_MADE = r"(?:raised|generated|produced|developed|made|obtained|prepared)"
_ENDS = r"(?=\s*[,;.)])"

ANTIBODY_HOSTS = (
    rf"{_HOSTS}(?:[-/\s]+human)?[-\s]+{_ADJECTIVES}{_IS_OF_HOST}",
    rf"(?:\banti|α)[-\s]?{A}",
    rf"\b(?:thymoglobulin|atg|okt3|\w+mab)\b[^.;§]{{0,30}}{_HOSTS}",
    rf"{_ANY_ANTIBODY}\s+against\s+{A}",
    rf"{_ANTIBODY}\s+(?:to|for|of|from|recogni[sz]ing)\s+(?:an?\s+|the\s+)?{_HOSTS}(?:\s+(?:origin|source))?",
    rf"{_ANTIBODY}\s+(?:from|of)\s+{A}(?=\s+(?:against|to|immuni)|\s*[,;.)]|$)",
    rf"antibod\w+\s*[:=]\s*{_HOSTS}",
    rf"antibod\w+\s+(?:was|were)\s+(?:obtained\s+)?from\s+{_HOSTS}",
    rf"(?:anti)?ser(?:um|a)\s+(?:of|from)\s+immuni[sz]ed\s+{A}",
    rf"{_ANY_ANTIBODY}[^.;]{{0,80}}\b{_MADE}\W+(?:in|from|by)\s+{FEW}{A}",
    rf"\b{_MADE}\s+in\s+{FEW}{A}\s+(?:against|to)\b",
    rf"\b{_MADE}\s+in\s+{_HOST}\s*\)",
    rf"\bhost(?:\s+(?:species|animal))?\s*[:=,]\s*{A}|\(\s*host\s+{A}\s*\)",
    rf"{_HOSTS}[-\s]+{NOUNS}{{0,3}}?kit\b",
    rf"\b{_KITS}[-\s,:]+(?:[\w-]+[-\s,]+){{0,2}}?\(?{_HOSTS}",
    rf"{_HOSTS}[-\s]+(?:\w+[-\s]+)?{_KITS}\b",
    rf"{_ANTIBODY}[,:]?\s+\(?{_HOSTS}{_ENDS}",
    rf"{_HOSTS}\s*\((?:primary|secondary)\)",
    rf"{A}-on-(?:human|{A})",
    rf"{_HOSTS},?\s*\(?\s*(?:1\s?:\s?\d+|clone\b)",
    rf"(?:\bclone\b|1\s?:\s?\d+|monoclonal|polyclonal)[^.;]{{0,30}},\s*{_HOSTS}{_ENDS}",
    rf"\((?=[^()]{{0,80}}{_HOST}\s*[,;/)])(?=[^()]{{0,80}}(?:1\s?:\s?\d|clone|\b{_VENDORS}\b))[^()]*\)",
    rf"{_HOST}\s*[,(]\s*{_VENDORS}\b",
    rf"\b(?:\w*stain\w*|labell?\w*|incubated|probed)\s+(?:with|using)\s+(?:an?\s+)?{_HOSTS}\s+(?:{_TARGET}|α-\w+)",
    rf"{_HOSTS}\s+(?!treated|given|with|and|after|injected|received)(?:α-)?[\w-]+\s+antibod(?:y|ies)\b(?!-)",
    # even where no word says antibody: "ER (rabbit, SP1)", "HER2 4B5 rabbit"
    rf"{_MARKER}\s*[(\[]\s*(?:{_CLONE}\s*[,;]\s*)?{_HOSTS}\s*"
    rf"(?:[,;/]\s*(?:{_CLONE}|{_VENDORS}|1:|clone|mono|poly|brown|red\b|green|blue|opal|alexa|cy\d|fitc|dab)"
    r"[^()]{0,60})?[)\]]",
    rf"\w\s*[(\[]{_CLONE}\s*[,;]\s*{_HOSTS}\s*[)\]]",
    rf"{_MARKER}\s+(?:{_CLONE}\s+){{1,2}}{_HOST}(?=\s*(?:$|[,.;)]))",
)
"""Phrases that name the host of an antibody, wherever they stand."""

SPEAKS_OF_ANTIBODIES = re.compile(
    r"antibod|antiser|immuno-?(?:stain|histo|cyto|fluor|react|label|perox|gold|positiv)|\bihc\b|\bclones?\b|\banti[-\s]"
)
LISTED_HOSTS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_TARGET}(?:\s+(?:clone|antibod\w+|ihc|\w*stain\w*|expression|{_CLONE}))?\s*"
        rf"[(\[]\s*(?:[^()]{{0,20}}[,;]\s*)?{_HOSTS}\s*(?:[,;/][^()]{{0,60}})?[)\]]",
        rf"{_HOSTS}\s+{_TARGET}"
        r"(?=\s*(?:$|[,;.:()]|and\b|or\b|at\b|antibod|clone|\+|in\s+(?:red|green|brown|blue)))",
        rf"{_HOSTS}\s+α-\w+|{_HOSTS}\s*\({_TARGET}|\((?:all|both)\s+{_HOSTS}\)",
        rf"{_TARGET},?\s+{_HOSTS}(?=\s*(?:[,;.)]|$))",
    )
)
"""A host beside what its antibody binds, in a sentence of which `SPEAKS_OF_ANTIBODIES` is true."""
