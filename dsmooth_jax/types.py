"""What each array is: one alias for each array that crosses a module's border.

Axis letters, here and in every docstring (the paper's letter in brackets):

    N, B     images; images in a batch
    H, W, C  image height, width (pixels), channels
    P        ablations of an image
    K        classes, at least 2
    M        masks: what is disregarded together
    L        distinct touched sets: placements that touch the same ablations count once
    D        placements of a patch along one axis
    R, S     window positions along the height, along the width
    k        windows that one ablation keeps

Arguments that a function validates itself are annotated ``ArrayLike``: the function's
own error, which names the remedy, comes before any shape checker's.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int16, Int64

ImageSize: TypeAlias = tuple[int, ...]  # (H, W), pixels: slices of shapes are these
ImageShape: TypeAlias = tuple[int, ...]  # (H, W, C)

KeepMasks: TypeAlias = Bool[np.ndarray, "P H W"]  # True where ablation p shows a pixel
Starts: TypeAlias = Int64[np.ndarray, "P 2"]  # first kept (row, column) of each window
RowMasks: TypeAlias = Bool[np.ndarray, "R H"]  # True where window row r keeps a row
ColumnMasks: TypeAlias = Bool[np.ndarray, "S W"]
Choices: TypeAlias = Int64[np.ndarray, "P k"]  # which windows each ablation keeps

Touched: TypeAlias = Bool[np.ndarray, "L P"]  # True where the patch meets the window
PlacementRows: TypeAlias = Int64[np.ndarray, "Dh Dw"]  # row of Touched, per placement

Scores: TypeAlias = Float32[np.ndarray, "N P K"]  # softmax of the base classifier
Votes: TypeAlias = Bool[np.ndarray, "N P K"]
Grades: TypeAlias = Int16[np.ndarray, "N P K"]
AblationMasks: TypeAlias = Bool[np.ndarray, "M P"]  # True where mask m disregards p
HideMasks: TypeAlias = Bool[np.ndarray, "M H W"]  # True where mask m hides the pixel
Covering: TypeAlias = Bool[np.ndarray, "L M"]  # True where mask m covers the placement
Table: TypeAlias = Int16[np.ndarray, "N M M"]  # the class with masks i and j out
Maps: TypeAlias = Int64[np.ndarray, "N Dh Dw"]  # by the patch's upper left corner
PerImage: TypeAlias = Int64[np.ndarray, " N"]
PerImageFlag: TypeAlias = Bool[np.ndarray, " N"]
PerAblation: TypeAlias = Int64[np.ndarray, " P"]
Rectangles: TypeAlias = Bool[np.ndarray, "N h w"]  # by index of height and of width
Corners: TypeAlias = Int64[np.ndarray, "N 2"]  # (row, column) of upper left pixels
PerClass: TypeAlias = Int64[np.ndarray, "N K"]
