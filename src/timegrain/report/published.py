"""Numbers that others have printed, to stand in a column of their own beside ours; nothing is computed from them.

Keys are benchmark, task and method as results name them; values are in the units of our scores (shares, not percent).
"TeG" is Qian et al., BMVC 2022. Only numbers that could be read in a source are here: a missing one is not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping

Scores = Mapping[str, float]

VIDSITU: Mapping[str, Scores] = {  # TeG Table 1a, Acc@1 on the validation split, any of ten annotators
    "CVRL": {"acc@1": 0.283},
    "TeG-PS": {"acc@1": 0.283},
    "TeG-FG": {"acc@1": 0.311},
    "I3D": {"acc@1": 0.312},
    "I3D + NL": {"acc@1": 0.302},
    "Slow R50 + NL": {"acc@1": 0.331},
    "SlowFast + NL": {"acc@1": 0.326},
}
GEBD: Mapping[str, Scores] = {  # TeG Table 1b, F1 at 5 % of the duration
    "SceneDet": {"f1@0.05": 0.275},
    "PC": {"f1@0.05": 0.625},
    "TCN": {"f1@0.05": 0.588},
    "BMN-SE": {"f1@0.05": 0.491},
    "window, fine-tuned, CVRL": {"f1@0.05": 0.691},
    "window, fine-tuned, TeG-PS": {"f1@0.05": 0.699},
    "window, fine-tuned, TeG-FG": {"f1@0.05": 0.714},
}

PUBLISHED: Mapping[tuple[str, str], Mapping[str, Scores]] = {
    ("vidsitu", "linear probe"): VIDSITU,
    ("vidsitu", "from scratch"): VIDSITU,
    ("gebd", "boundaries"): GEBD,
    ("kinetics400", "linear probe"): {  # TeG Table 3a, 800 epochs; CVRL: released checkpoint's page
        "CVRL": {"top1": 0.661},
        "TeG-PS": {"top1": 0.678},
        "TeG-FG": {"top1": 0.650},
    },
    ("ucf101", "linear probe"): {"CVRL": {"top1": 0.898}},
    ("ucf101", "fine-tune"): {"CVRL": {"top1": 0.929}},
    ("hmdb51", "linear probe"): {"CVRL": {"top1": 0.583}},
    ("hmdb51", "fine-tune"): {"CVRL": {"top1": 0.679}},
    ("ava-kinetics", "localization"): {  # TeG Table 3c, frame-mAP at IoU 0.5
        "CVRL": {"map": 0.241},
        "TeG-PS": {"map": 0.287},
    },
}
