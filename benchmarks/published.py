"""Numbers that others published, beside which ours stand. None of them was measured by us, nor on our machines.

All stand in the method's paper (SpatialAvatar-0, arXiv 2606.15659), those of other methods, too, and are given as they
are printed there. A sequence of three is PSNR (dB), SSIM and LPIPS.
"""

SOURCE = "arXiv 2606.15659"

# Table 3 and section 4.3: one RTX 3090, 58,173 Gaussians, 512 x 512 pixels, diff_gaussian_rasterization
EFFICIENCY_COLUMNS = ("iterations", "time for a subject", "frames/s")
EFFICIENCY = {
    "FlashAvatar": ("150 K", "1.66 h", "291.20"),
    "GaussianAvatars": ("600 K", "9.25 h", "19.11"),
    "GeoAvatar": ("300 K", "4.90 h", "71.52"),
    "SpatialAvatar-0, refined": ("10 K", "about 2.0 min", "265.60"),
}
REFINEMENT_SECONDS, REFINEMENT_ITERATIONS = 120.0, 10_000
FRAME_MILLISECONDS = 3.77
AVATAR_MILLISECONDS = 50.0  # "a complete avatar from a single image", RTX 3090, section 4.3

# Section 4.2 and appendix A.2: both phases on one H100 NVL. The length of Phase 2 is not given.
TRAINING_DAYS, PHASE1_STEPS, PHASE1_BATCH = 14, 200_000, 48
LEAST_SAMPLES_PER_SECOND = PHASE1_STEPS * PHASE1_BATCH / (TRAINING_DAYS * 86_400)

# Tables 1 and 2, self-reenactment of one portrait: on VFHQ, on HDTF. SpatialAvatar-0 trained on neither data set, some
# of the others on one or both (section 4.3).
ZERO_SHOT = {
    "StyleHeat": ("19.95", "0.726", "0.211", "21.41", "0.785", "0.155"),
    "ROME": ("19.96", "0.786", "0.192", "20.51", "0.803", "0.145"),
    "OTAvatar": ("17.65", "0.563", "0.294", "20.52", "0.696", "0.166"),
    "HideNeRF": ("19.79", "0.768", "0.180", "21.08", "0.811", "0.117"),
    "CVTHead": ("18.43", "0.706", "0.317", "20.08", "0.762", "0.179"),
    "GPAvatar": ("21.04", "0.807", "0.150", "23.06", "0.855", "0.104"),
    "Real3DPortrait": ("20.88", "0.780", "0.154", "22.82", "0.835", "0.103"),
    "Portrait4D": ("20.35", "0.741", "0.191", "20.81", "0.786", "0.137"),
    "Portrait4D-v2": ("21.34", "0.791", "0.144", "22.87", "0.860", "0.105"),
    "GAGAvatar": ("21.83", "0.818", "0.122", "23.13", "0.863", "0.103"),
    "SpatialAvatar-0, one pass": ("23.34", "0.875", "0.077", "24.67", "0.916", "0.076"),
}

# Table 4, the SplattingAvatar clips, last 350 frames held out. LPIPS is printed there times ten.
PER_SUBJECT = {
    "GAGAvatar (one portrait)": ("23.541", "0.875", "0.1121"),
    "SplattingAvatar": ("25.333", "0.933", "0.0588"),
    "3DGS": ("27.543", "0.923", "0.1019"),
    "INSTA": ("28.083", "0.938", "0.0678"),
    "MonoGaussianAvatar": ("28.813", "0.937", "0.0733"),
    "GaussianAvatars": ("29.124", "0.938", "0.0494"),
    "FlashAvatar": ("29.306", "0.943", "0.0444"),
    "GaussianAvatars, SH degree 0": ("29.686", "0.934", "0.0529"),
    "GeoAvatar": ("32.635", "0.965", "0.0367"),
    "SpatialAvatar-0, refined": ("33.960", "0.971", "0.0355"),
}

# Tables 5, 6 and 8, a held-out part of CelebV-HQ
ABLATION = {
    "Phase 1 only": ("24.84", "0.879", "0.073"),
    "Phase 2 without anchor and cross-time mix": ("22.73", "0.799", "0.135"),
    "Phase 2 with the anchor alone": ("24.11", "0.854", "0.097"),
    "Phase 2 with the cross-time mix alone": ("23.81", "0.840", "0.104"),
    "Phase 2 with both (K = 4)": ("24.94", "0.881", "0.070"),
    "K = 3": ("24.75", "0.869", "0.079"),
    "K = 2": ("24.21", "0.856", "0.090"),
    "K = 1": ("23.01", "0.806", "0.126"),
    "refined": ("29.95", "0.947", "0.045"),
    "refined, without residual head": ("28.36", "0.933", "0.060"),
    "refined, without Jacobian penalty": ("28.72", "0.937", "0.040"),
    "refined, attention in place of the mean over portraits": ("29.46", "0.948", "0.047"),
}

# Table 9 and appendix B.6, a held-out part of CelebV-HQ; then the largest aspect ratio
ANTI_SPIKE = {
    "all three": ("29.95", "0.947", "0.045", "about 8"),
    "without scale freeze": ("27.88", "0.941", "0.070", "not given"),
    "without clamp": ("28.39", "0.938", "0.043", "above 10^6"),
    "without aspect loss": ("28.92", "0.930", "0.051", "about 20"),
}
