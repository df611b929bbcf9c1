"""Options that several mixers have, each with its description."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

NumHeads = Annotated[PositiveInt, Field(description="the number of heads")]
KeyDim = Annotated[PositiveInt, Field(description="features of a query and a key, per head")]
ValueExpansion = Annotated[
    PositiveFloat, Field(description="features of a value, as a multiple of `head_dim`")
]
KeyShare = Annotated[
    PositiveFloat, Field(description="features of all keys, as a multiple of d_model")
]
ValueShare = Annotated[
    PositiveFloat, Field(description="features of all values, as a multiple of d_model")
]
NegativeEigenvalues = Annotated[
    bool, Field(description="lets β range over [0, 2] instead of [0, 1] (arXiv:2411.12537)")
]
OutputGate = Annotated[
    bool,
    Field(description="multiplies every output feature by the silu of a projection of the input"),
]
ConvWidth = Annotated[
    PositiveInt,
    Field(description="how many tokens the short convolution sees, including the current one"),
]
