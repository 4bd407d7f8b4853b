"""Rendered scenes with exact geometry: training pairs, the demo's photos, miniature benchmarks.

From geometry to files: `shapes`, `cameras` and `appearance` describe batches of scenes, `layouts`
draws random ones, `renderer` turns them into images and depth maps, and `photometric_effects` makes
the images look like photos. `pairs` samples training pairs, and `relief_pairs` those of photos that
`reliefs` has given heights. `conditions` writes test pairs,
`photo_collection`, `aachen_miniature` and `inloc_miniature` write folders of photos.
"""
