"""Colour maps for overlays: :func:`colormap`.

``inferno`` and ``viridis`` are perceptually uniform: equal steps of activation look like equal steps of brightness.
Their tables are those of matplotlib, by Nathaniel J. Smith, Stefan van der Walt and (viridis) Eric Firing, who released
them under the CC0 1.0 public domain dedication (https://bids.github.io/colormap). ``jet`` is the paper's, by its
formula.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["BUILT_IN", "colormap"]

# 256 colours each, RRGGBB.
_INFERNO = (
    "00000300000400000601000701010901010b02010e02021003021204031404031605041806041b07051d08061f090621"
    "0a07230b07260d08280e082a0f092d10092f120a32130a34140b36160b39170b3b190b3e1a0b401c0c431d0c451f0c47"
    "200c4a220b4c240b4e260b50270b52290b542b0a562d0a582e0a5a300a5c32095d34095f3509603709613909623b0964"
    "3c09653e0966400966410967430a68450a69460a69480b6a4a0b6a4b0c6b4d0c6b4f0d6c500d6c520e6c530e6d550f6d"
    "570f6d58106d5a116d5b116e5d126e5f126e60136e62146e63146e65156e66156e68166e6a176e6b176e6d186e6e186e"
    "70196e72196d731a6d751b6d761b6d781c6d7a1c6d7b1d6c7d1d6c7e1e6c801f6b811f6b83206b85206a86216a88216a"
    "8922698b22698d23698e24689024689125679325679526669626669827659928649b28649c29639e2963a02a62a12b61"
    "a32b61a42c60a62c5fa72d5fa92e5eab2e5dac2f5cae305baf315bb1315ab23259b43358b53357b73456b83556ba3655"
    "bb3754bd3753be3852bf3951c13a50c23b4fc43c4ec53d4dc73e4cc83e4bc93f4acb4049cc4148cd4247cf4446d04544"
    "d14643d24742d44841d54940d64a3fd74b3ed94d3dda4e3bdb4f3adc5039dd5238de5337df5436e05634e25733e35832"
    "e45a31e55b30e65c2ee65e2de75f2ce8612be9622aea6428eb6527ec6726ed6825ed6a23ee6c22ef6d21f06f1ff0701e"
    "f1721df2741cf2751af37719f37918f47a16f57c15f57e14f68012f68111f78310f7850ef8870df8880cf88a0bf98c09"
    "f98e08f99008fa9107fa9306fa9506fa9706fb9906fb9b06fb9d06fb9e07fba007fba208fba40afba60bfba80dfbaa0e"
    "fbac10fbae12fbb014fbb116fbb318fbb51afbb71cfbb91efabb21fabd23fabf25fac128f9c32af9c52cf9c72ff8c931"
    "f8cb34f8cd37f7cf3af7d13cf6d33ff6d542f5d745f5d948f4db4bf4dc4ff3de52f3e056f3e259f2e45df2e660f1e864"
    "f1e968f1eb6cf1ed70f1ee74f1f079f1f27df2f381f2f485f3f689f4f78df5f891f6fa95f7fb99f9fc9dfafda0fcfea4"
)
_VIRIDIS = (
    "44015444025544035745055845065a45085b46095c460b5e460c5f460e61470f62471163471265471466471567471669"
    "47186a48196b481a6c481c6e481d6f481e70482071482172482273482374472575472676472777472878472a79472b7a"
    "472c7b462d7c462f7c46307d46317e45327f45347f453580453681443781443982433a83433b83433c84423d84423e85"
    "4240854141864142864043874044873f45873f47883e48883e49893d4a893d4b893d4c893c4d8a3c4e8a3b508a3b518a"
    "3a528b3a538b39548b39558b38568b38578c37588c37598c365a8c365b8c355c8c355d8c345e8d345f8d33608d33618d"
    "32628d32638d31648d31658d31668d30678d30688d2f698d2f6a8d2e6b8e2e6c8e2e6d8e2d6e8e2d6f8e2c708e2c718e"
    "2c728e2b738e2b748e2a758e2a768e2a778e29788e29798e287a8e287a8e287b8e277c8e277d8e277e8e267f8e26808e"
    "26818e25828e25838d24848d24858d24868d23878d23888d23898d22898d228a8d228b8d218c8d218d8c218e8c208f8c"
    "20908c20918c1f928c1f938b1f948b1f958b1f968b1e978a1e988a1e998a1e998a1e9a891e9b891e9c891e9d881e9e88"
    "1e9f881ea0871fa1871fa2861fa38620a48520a58521a68521a78422a78423a88323a98224aa8225ab8126ac8127ad80"
    "28ae7f29af7f2ab07e2bb17d2cb17d2eb27c2fb37b30b47a32b57a33b67935b77836b87738b97639b9763bba753dbb74"
    "3ebc7340bd7242be7144be7045bf6f47c06e49c16d4bc26c4dc26b4fc36951c46853c56755c66657c66559c7645bc862"
    "5ec96160c96062ca5f64cb5d67cc5c69cc5b6bcd596dce5870ce5672cf5574d05477d05279d1517cd24f7ed24e81d34c"
    "83d34b86d44988d5478bd5468dd64490d64392d74195d73f97d83e9ad83c9dd93a9fd938a2da37a5da35a7db33aadb32"
    "addc30afdc2eb2dd2cb5dd2bb7dd29bade27bdde26bfdf24c2df22c5df21c7e01fcae01ecde01dcfe11cd2e11bd4e11a"
    "d7e219dae218dce218dfe318e1e318e4e318e7e419e9e419ece41aeee51bf1e51cf3e51ef6e61ff8e621fae622fde724"
)


def _jet() -> npt.NDArray[np.uint8]:
    """Compute the piecewise-linear ``jet``: each channel is a trapezium. Within 1 of OpenCV's COLORMAP_JET."""
    value = np.linspace(0.0, 1.0, 256)[:, None]
    channels = np.clip(1.5 - np.abs(4.0 * value - np.array([3.0, 2.0, 1.0])), 0.0, 1.0)
    return np.asarray(np.rint(channels * 255.0), dtype=np.uint8)


def _table(digits: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(digits), dtype=np.uint8).reshape(256, 3)


BUILT_IN = ("inferno", "viridis", "jet")


@cache
def colormap(name: str) -> npt.NDArray[np.uint8]:
    """Return a colour map as a table.

    Parameters
    ----------
    name : str
        ``"inferno"``, ``"viridis"`` or ``"jet"``; any other name is looked up in matplotlib, where that is installed.

    Returns
    -------
    (256, 3) uint8
        Red, green and blue for activations 0 to 1 in equal steps. Read-only.

    Raises
    ------
    ValueError
        If no colour map has that name, or matplotlib is needed to tell and is not installed.
    """
    if name == "jet":
        table = _jet()
    elif name == "inferno":
        table = _table(_INFERNO)
    elif name == "viridis":
        table = _table(_VIRIDIS)
    else:
        table = _from_matplotlib(name)
    table.flags.writeable = False
    return table


def _from_matplotlib(name: str) -> npt.NDArray[np.uint8]:
    expected = "cmap: expected " + ", ".join(BUILT_IN)
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(f"{expected}, got {name!r} (other names need matplotlib, which is not installed)") from error
    if name not in matplotlib.colormaps:
        raise ValueError(f"{expected} or a colour map of matplotlib, got {name!r}")
    return np.ascontiguousarray(matplotlib.colormaps[name](np.linspace(0.0, 1.0, 256), bytes=True)[:, :3])
