"""What means an animal or a plant without naming one, for `pallava.data.clean.species`."""

from __future__ import annotations

import re

from pallava.data.clean.species.terms import SURFACES, TISSUES, any_of

_STRAINS = any_of(
    r"""
    sprague[-\s]?dawley; wistar(?! institute); long evans; fischer 344; f344; brown norway;
    spontaneously hypertensive; zucker (?:diabetic|fatty|obese|lean); goto kakizaki; dahl salt; \bshrsp\b;
    c57\s?/?bl\S*; balb/?c; dba/[12]; c3h/he\w*; fvb/n; nod[-/.\s]?scid; scid[-\s/]?beige; nod/\w+; \bnsg\b; athymic;
    \bnu/nu; \bin nudes?\b; swiss webster; \bskh-?1\b; mrl[-\s/]?(?:lpr|mpj); nzb/?(?:w|nzw)\w*; \bddy\b; \bkk-?ay\b;
    \bsamp8\b; \bdb/db; \bob/ob; \bmdx\b; \bmin/\+; 5x\s?fad; 3xtg; \btg2576; app/ps1; sod1[-\s]?g93a; rosa26;
    k18-hace2; mmtv-(?:pymt|pyvt|neu|erbb2|her2|wnt|cre|ras|myc); \bpy(?:mt|vt)\b; \blsl-; rip-?tag; e[μµu]-myc;
    new zealand white; g(?:ö|o|oe)ttingen mini; landrace; (?<!schleswig-)(?<!schleswig\s)holstein; golden retriever;
    labrador retriever; german shepherd; poodle; dachshund; rottweiler; greyhound; domestic (?:short|long)[-\s]?hair;
    thoroughbred; quarter horse; yorkshire terrier; cocker spaniel; shih tzu; chihuahua
    """
)
_SCIENTIFIC = any_of(
    r"""
    mus musculus; rattus; danio rerio; gallus gallus; sus scrofa; bos (?:taurus|indicus); bubalus; ovis aries;
    capra hircus; equus; camelus; canis (?:lupus|familiaris); felis catus; oryctolagus; cavia porcellus; mesocricetus;
    meriones; mustela; peromyscus; tupaia; macaca; papio (?:anubis|hamadryas); callithrix; chlorocebus; saimiri;
    pan troglodytes; coturnix; anas platyrhynchos; columba livia; caenorhabditis; \bc\.\s?elegans; oreochromis;
    oncorhynchus; salmo salar; cyprinus; carassius; oryzias; clarias; sparus; dicentrarchus; ambystoma;
    rana (?:catesbeiana|temporaria|esculenta); caretta; chelonia mydas; apis mellifera;
    (?<!by\s)(?:aedes|anopheles|culex) \w+; bombyx; biomphalaria; tribolium; schmidtea; spodoptera; manduca;
    litopenaeus; penaeus; crassostrea; mytilus; eisenia; nematostella
    """
)
_CELL_LINES = any_of(
    r"""
    3t3(?![-\w]*(?:\s\w+)? feeder); raw\s?264; mdck; \bvero(?:[-\s]e6)? cells?; \bcho(?:-k1)? (?:cells?|transfect);
    \bcos-?[17]\b; bhk-?21; c2c12; h9c2; \bpc-?12\b; \bb16(?:-?f\d+|-?bl6)?\b; \b4t1\b; \bct-?26\b; \bmc-?38\b;
    lewis lung; \bl929\b; \bins-1e?\b; \bmin6\b; \bnmumg\b; neuro-?2a; \bgl-?261\b; \bmefs\b; llc-pk1; crfk;
    \bvx-?2\b; sarcoma 180; \bs-?180\b; \b9l glio; ba/f3; c6 glioma; ehrlich (?:ascites|carcinoma); walker 256;
    \bemt-?6\b; \bhepa\s?1-6\b; \brenca\b; \bpan-?02\b
    """
)
_METHODS = any_of(
    r"""
    transgenic; \bdpf\b; \bgavage; sham operated; ovariectomi[sz]ed; euthani[sz]; were sacrificed; gnotobiotic;
    non-?human; tail vein; hind\s?(?:limb|paw)s?\b; foot\s?pads? inject; embryonic day \d;
    \be\d{1,2}(?:\.5)? embryos?; chorioallantoic membrane; \bcam (?:assay|model)s?\b;
    \b(?:chick|the|ex ovo|in ovo) cam\b(?!\s?5);
    fed (?:an?\s|the\s)?(?:high fat|western|chow|normal|control|standard|basal)\b(?:\s\w+)?\s?(?:diet|chow);
    \btumou?r bearing (?:hosts?|recipients?|nude|scid); knock-?(?:out|in) (?:male|female|embryo)s?;
    \bkpc (?:tumou?r|pancrea|model|pdac|allograft|cells); \btramp (?:tumou?r|prostate|model|males);
    """
    r"\b(?:tumou?rs?|cells|grown|inject\w*|implant\w*|engraft\w*)\b[^.\x3b]{0,60}\bscid\b(?!\s(?:patient|infant|child))"
)
_ORGANS = any_of(
    r"""
    fore-?stomach; \brumen\b; abomasum; omasum; gizzard; proventricul; bursa of fabricius; swim\s?bladder;
    hepatopancreas; \budders?\b; \bgills\b; gill (?:filament|lamella|arch|tissue); harderian gland; vibrissae?\b
    """
)
_CROPS = any_of(
    """
    rice; wheat; maize; corn; barley; soybean; tomato; potato; tobacco; cotton; pea; bean; grapevine; poplar; pine;
    sorghum; cucumber; apple; citrus; onion; lily; garlic; lettuce; cabbage; spinach; sunflower; sugarcane
    """
)
_PARTS = any_of(
    "leaf; leaves; roots?; stems?; seeds?; pollen(?: grains)?; ovules?; anthers?; fruit; tubers?; panicles?; kernels?; "
    "needles?"
)
_PLANTS = any_of(
    r"""
    arabidopsis; medicago; vitis vinifera; nicotiana; oryza sativa; zea mays; triticum; solanum; glycine max; xylem;
    phloem; mesophyll; tyloses; aerenchyma; leaf epidermis; leaf (?:cross )?section; \b(?:di|mono)cot; guard cells;
    chloroplasts?; seedlings?; petioles?; \banthers?\b; \broot tips?\b; plant (?:tissue|root|leaf|leaves|stem)s?
    """
)
EVIDENCE = re.compile(
    rf"{_STRAINS}|{_SCIENTIFIC}|{_CELL_LINES}|{_METHODS}|{_ORGANS}|{_PLANTS}|"
    rf"\b{_CROPS} (?:\w+ )?{_PARTS}\b|\b{_PARTS} (?:\w+ )?of (?:the )?(?:\w+ )?(?:{_CROPS}|plant)"
)
"""What means an animal, a plant or their cells wherever it stands, in lower case."""

NECROPSY = re.compile(r"necrops(?:y|ied|ies)")
"""Means an animal unless a person is spoken of."""

_STAINS = any_of(
    "Desmin; Vimentin; Keratin; Cytokeratin; Ki67; Bcl[26]; Cyclin; Calretinin; Calponin; Chromogranin; Synaptophysin"
)
GENOTYPES = re.compile(
    rf"\b(?!{_STAINS}\b)[A-Z][a-z][A-Za-z0-9]*(?:-/-|\+/-|fl/fl|flox/flox)|"
    r"\b[A-Z][A-Za-z0-9]+-Cre(?:ERT2?)?\b|\bApc\w*/\+|"
    r"\b[A-Z][a-z]+\d+\w*[- ](?:mutants|null|KO|knock-?out)\b|\bTg\(|\b(?:SHR|WKY)s?\b"
)
"""Genes of mice are written ``Fgfr3``, those of man ``FGFR3``: read in the caption's own case, as are rats' strains."""

KNOCKOUTS = re.compile(
    rf"\b(?:WT|[Ww]ild[- ]?type)\b[^.;]{{0,40}}\bKOs?\b|\bKO\b[^.;]{{0,40}}\b(?:WT|wild[- ]?type)\b|"
    rf"\b(?:KO|[Kk]nock-?out)\s+(?:\w+\s+)?(?:{TISSUES}|{SURFACES})\b"
)
"""Animals without a gene, unless `CULTURES` says cells."""

CULTURES = re.compile(r"\bcells?\b|organoid|spheroid|cell line|crispr|\bhela\b|\bhek", re.IGNORECASE)

XENOGRAFTS = re.compile(
    r"\b[Xx]eno(?:graft|transplant)\w*|\bXENOGRAFTS?\b|\bPDXs?\b(?![-\s]?1\b)|\bCDXs\b|\bCDX (?:tumou?r|model|line)"
)
"""Tissue of man that was grown in an animal, unless it is `GRAFT_MATERIAL` from an animal in man."""

GRAFT_MATERIAL = re.compile(
    r"\b(?:bones?|sinus|socket|ridge|alveol\w+|dental|periodont\w+|intrabony|bio-?oss|cerabone|deproteini[sz]ed|"
    r"bovine|porcine|equine|valves?|burns?|burned|dressing|acellular|mesh)\b"
)
TUMOURS = re.compile(
    r"tumou?r|cancer|carcinoma|sarcoma|metasta|glioma|melanoma|leuka?emi|lymphoma|myeloma|blastoma|neoplas|cell line"
)
