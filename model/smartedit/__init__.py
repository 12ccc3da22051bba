"""SmartEdit (TencentARC/SmartEdit): a language model reads image and instruction and conditions the U-Net.

    image → CLIP features F → projector ─┐
    instruction → prompt → Vicuna, which reads both → states H of 32 image tokens
    H → Q-Former → Q; F and Q → BIM → T and V; text states E = Q + 0.5·T; V is added after `conv_in`

B batch   N image patches (256)   W width of the language model (4096, 13B 5120)   L queries (77)   D text width (768)
"""

CONFIG = "smartedit.json"  # the file that makes a checkpoint folder one of SmartEdit
