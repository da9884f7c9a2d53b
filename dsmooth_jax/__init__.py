"""Certified robustness against patch attacks by (de)randomized smoothing, in JAX.

Given an image and a patch size, `certify` proves that no patch of that size, anywhere
in the image, with any content, changes the prediction. The method is Levine & Feizi,
NeurIPS 2020 (arXiv:2002.10733): a base classifier sees the image many times, each time
all but a small window hidden (an *ablation*), and the class with most votes is
predicted. A patch touches few of the windows, so it can change few of the votes.

    images [N,H,W,C] -> ablated images -> scores [N,P,K] -> votes [N,P,K]
               patch -> touched [L,P]  -> certificate [N] -> accuracy

Letters, the same everywhere (the paper's in brackets): N, B images; H, W, C height,
width, channels; P ablations of an image; K classes; L distinct touched sets; ``width``,
``height`` of a kept window [s]; ``Patch(height, width)`` [m]; ``threshold`` [theta];
``max_touched`` [Delta]. Pixels everywhere; scores and images are in [0, 1].
"""

from dsmooth_jax.ablation import (
    Ablation,
    Blocks,
    Columns,
    MultiBlocks,
    MultiColumns,
    Rows,
    ablation_from_json,
)
from dsmooth_jax.alarms import (
    AlarmCertificate,
    AlarmEvaluation,
    certify_with_alarm,
    choose_alarm_margin,
    evaluate_alarm,
)
from dsmooth_jax.attacks.attack import Attacked, UnsoundError, attack
from dsmooth_jax.attacks.patching import apply_patch
from dsmooth_jax.attacks.undefended import undefended
from dsmooth_jax.attacks.universal import universal_patch
from dsmooth_jax.certificate import Certificate, certify, largest_certified_patch
from dsmooth_jax.double_masking import (
    MaskedCertificate,
    certify_double_masking,
    double_masking_predict,
)
from dsmooth_jax.ensembling import mean_scores
from dsmooth_jax.evaluation import (
    Accuracy,
    ChosenVoting,
    Evaluation,
    base_accuracy,
    choose_strength,
    choose_threshold,
    choose_voting,
    evaluate,
    sweep,
)
from dsmooth_jax.evidence import certify_masked, log_doubts, log_levels, mask_table
from dsmooth_jax.labeling import mask_labels
from dsmooth_jax.leaving_out import (
    ablation_masks,
    covering_touched,
    design_masks,
    merged_masks,
)
from dsmooth_jax.locality import check_locality
from dsmooth_jax.masked import MaskedClassifier, load_masked
from dsmooth_jax.masking import ablate, crop, random_ablate
from dsmooth_jax.masks import Masks, covering, covering_masks
from dsmooth_jax.models import load_weights, save_weights
from dsmooth_jax.queries import (
    certified_rectangles,
    certify_several,
    rectangles_of_area,
    runner_up,
    square_of_percent,
    touched_by_any,
    vulnerability_map,
    worst_placement,
)
from dsmooth_jax.ranks import worst_rank
from dsmooth_jax.reach import votes_hold
from dsmooth_jax.report.analysis import Analysis, analyze
from dsmooth_jax.report.request import Attack, Request, attacks_on, request_of
from dsmooth_jax.report.thumbnails import save_thumbnails
from dsmooth_jax.report.write import write_report
from dsmooth_jax.scoring import (
    cropped_scores,
    masked_scores,
    one_pass_scores,
    score,
)
from dsmooth_jax.smoothed import SmoothedClassifier, load_smoothed
from dsmooth_jax.storage.checkpoint import CheckpointError
from dsmooth_jax.storage.label_store import LabelStore, open_labels
from dsmooth_jax.storage.provenance import Origin
from dsmooth_jax.storage.score_store import (
    ScoreStore,
    open_scores,
    save_scores,
)
from dsmooth_jax.storage.shards import StoreError
from dsmooth_jax.threat import Patch, max_touched, placements, touched
from dsmooth_jax.voting import (
    GRADES,
    GradedVotes,
    cast_votes,
    graded_votes,
    threshold_votes,
    top_one_votes,
    uncertain_votes,
)

__version__ = "0.1.0"

__all__ = [
    "GRADES",
    "Ablation",
    "Accuracy",
    "AlarmCertificate",
    "AlarmEvaluation",
    "Analysis",
    "Attack",
    "Attacked",
    "Blocks",
    "Certificate",
    "CheckpointError",
    "ChosenVoting",
    "Columns",
    "Evaluation",
    "GradedVotes",
    "LabelStore",
    "MaskedCertificate",
    "MaskedClassifier",
    "Masks",
    "MultiBlocks",
    "MultiColumns",
    "Origin",
    "Patch",
    "Request",
    "Rows",
    "ScoreStore",
    "SmoothedClassifier",
    "StoreError",
    "UnsoundError",
    "ablate",
    "ablation_from_json",
    "ablation_masks",
    "analyze",
    "apply_patch",
    "attack",
    "attacks_on",
    "base_accuracy",
    "cast_votes",
    "certified_rectangles",
    "certify",
    "certify_double_masking",
    "certify_masked",
    "certify_several",
    "certify_with_alarm",
    "check_locality",
    "choose_alarm_margin",
    "choose_strength",
    "choose_threshold",
    "choose_voting",
    "covering",
    "covering_masks",
    "covering_touched",
    "crop",
    "cropped_scores",
    "design_masks",
    "double_masking_predict",
    "evaluate",
    "evaluate_alarm",
    "graded_votes",
    "largest_certified_patch",
    "load_masked",
    "load_smoothed",
    "load_weights",
    "log_doubts",
    "log_levels",
    "mask_labels",
    "mask_table",
    "masked_scores",
    "max_touched",
    "mean_scores",
    "merged_masks",
    "one_pass_scores",
    "open_labels",
    "open_scores",
    "placements",
    "random_ablate",
    "rectangles_of_area",
    "request_of",
    "runner_up",
    "save_scores",
    "save_thumbnails",
    "save_weights",
    "score",
    "square_of_percent",
    "sweep",
    "threshold_votes",
    "top_one_votes",
    "touched",
    "touched_by_any",
    "uncertain_votes",
    "undefended",
    "universal_patch",
    "votes_hold",
    "vulnerability_map",
    "worst_placement",
    "worst_rank",
    "write_report",
]
