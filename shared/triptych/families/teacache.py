"""How much a transformer's output changes, by how much its first block's input does, as TeaCache needs it.

Coefficients of a polynomial, the highest power first. Source: Liu et al., 2024, TeaCache, whose authors
fitted them (github.com/ali-vilab/TeaCache, Apache-2.0, folder TeaCache4FLUX); FLUX.1 Kontext's are those of
github.com/welltop-cn/ComfyUI-TeaCache (Apache-2.0, nodes.py).
"""

FLUX_1_DEV = (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01)
FLUX_1_KONTEXT_DEV = (-1.04655119e03, 3.12563399e02, -1.69500694e01, 4.10995971e-01, 3.74537863e-02)
